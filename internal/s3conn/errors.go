package s3conn

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"time"
	"unicode"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// maxMessage bounds what a server can put into a log line or a record.
const maxMessage = 512

// cause is the text and the meaning of a server's answer. The SDK's error stays
// reachable, and its long text stays out of logs.
type cause struct {
	text   string
	causes []error
}

func (c *cause) Error() string   { return c.text }
func (c *cause) Unwrap() []error { return c.causes }

// Classify turns an error of operation op on key into an *archive.Error. It is the
// only place that decides what an error of S3 means. An error that says only
// that ctx ended keeps doing so under errors.Is.
func Classify(op, key string, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*archive.Error](err); ok && e.Op != "" {
		return err
	}
	if b, ok := errors.AsType[*bodyError](err); ok {
		return &archive.Error{Class: b.class(), Op: op, Err: b}
	}
	a := answerOf(err)
	// What a token service answered is no answer of S3.
	if _, ours := errors.AsType[*credentialError](err); ours || a.status == 0 {
		return &archive.Error{Class: classOfSilence(err), Op: op, Err: trimmed(err)}
	}
	v := a.verdict(op, key)
	e := &archive.Error{Class: v.class, Op: op, Code: a.code, Status: a.status, RequestID: a.requestID}
	c := &cause{text: a.text(v), causes: []error{err}}
	if v.means != nil {
		c.causes = append(c.causes, v.means)
	}
	e.Err = c
	return e
}

// answer is what a server said when it refused.
type answer struct {
	status    int
	code      string
	message   string
	requestID string
	region    string // where the bucket is, when the server says so
	location  string // of a redirect

	retryAfter time.Duration // what the server asks for before another attempt, 0 for nothing
}

func answerOf(err error) answer {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r.answer
	}
	var a answer
	if e, ok := errors.AsType[*smithyhttp.ResponseError](err); ok {
		a.status = e.HTTPStatusCode()
		if e.Response != nil && e.Response.Response != nil {
			a.region = e.Response.Header.Get("X-Amz-Bucket-Region")
			a.location = e.Response.Header.Get("Location")
		}
	}
	if e, ok := errors.AsType[*awshttp.ResponseError](err); ok {
		a.requestID = Bounded(e.ServiceRequestID())
	}
	if e, ok := errors.AsType[smithy.APIError](err); ok && a.status != 0 {
		a.code, a.message = Bounded(e.ErrorCode()), e.ErrorMessage()
	}
	return a
}

// verdict is a class, and a sentinel that callers ask for with errors.Is.
type verdict struct {
	class archive.Class
	means error
}

// verdict judges by code where the code is known, else by status.
func (a answer) verdict(op, key string) verdict {
	if a.status == http.StatusServiceUnavailable || a.status == http.StatusTooManyRequests || throttleCode(a.code) {
		return verdict{class: archive.ClassThrottled}
	}
	if v, ok := a.byCode(key); ok {
		if v.means == nil && a.status == http.StatusForbidden {
			v.means = fs.ErrPermission
		}
		return v
	}
	return a.byStatus(op)
}

// throttleCode reports whether a code asks for fewer requests, whatever the
// status (KMS throttles with 400).
func throttleCode(code string) bool {
	switch strings.TrimPrefix(code, "KMS.") {
	case "SlowDown", "SlowDownRead", "SlowDownWrite", "Throttling", "ThrottlingException", "RequestThrottled",
		"RequestLimitExceeded", "TooManyRequests", "TooManyRequestsException", "BandwidthLimitExceeded":
		return true
	}
	return false
}

// byCode is the table of known codes.
// https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
func (a answer) byCode(key string) (verdict, bool) {
	switch a.code {
	case "NoSuchKey", "NoSuchVersion":
		return verdict{archive.ClassTransient, fs.ErrNotExist}, true
	case "NoSuchUpload":
		return verdict{archive.ClassTransient, archive.ErrNoUpload}, true
	case "PreconditionFailed":
		return verdict{archive.ClassTransient, archive.ErrPrecondition}, true
	case "ConditionalRequestConflict", "OperationAborted":
		return verdict{archive.ClassTransient, archive.ErrConcurrent}, true
	case "NotImplemented":
		return verdict{archive.ClassConfiguration, archive.ErrUnsupported}, true
	case "SignatureDoesNotMatch":
		// Some servers and proxies compute another signature for odd names.
		if !plainKey(key) {
			return verdict{class: archive.ClassFile}, true
		}
		return verdict{class: archive.ClassCredentials}, true
	}
	if c := classOfCode(a.code); c != "" {
		return verdict{class: c}, true
	}
	return a.kmsCode()
}

// classOfCode is the part of the table in which the code alone decides.
func classOfCode(code string) archive.Class {
	switch code {
	case "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken", "TokenRefreshRequired",
		"InvalidClientTokenId", "UnrecognizedClientException", "InvalidSecurity":
		return archive.ClassCredentials
	case "AccessDenied", "AllAccessDisabled", "AccountProblem", "NoSuchBucket", "PermanentRedirect", "TemporaryRedirect",
		"MovedPermanently", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "RequestTimeTooSkewed",
		"InvalidBucketName", "InvalidEncryptionAlgorithmError", "ServerSideEncryptionConfigurationNotFoundError",
		"InvalidStorageClass", "MethodNotAllowed", "InvalidRequest", "InvalidArgument":
		return archive.ClassConfiguration
	case "BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch", "IncompleteBody",
		"InvalidPart", "InvalidPartOrder":
		return archive.ClassChanged
	case "KeyTooLongError", "XMinioInvalidObjectName", "XMinioInvalidResourceName", "XMinioParentIsObject",
		"XMinioObjectExistsAsDirectory", "DirectoryObjectContainsData", "InvalidObjectState", "EntityTooLarge", "MetadataTooLarge", "InvalidURI":
		return archive.ClassFile
	case "InternalError", "RequestTimeout", "ServiceUnavailable", "KMS.DependencyTimeoutException", "KMS.KMSInternalException":
		return archive.ClassTransient
	}
	return ""
}

// kmsCode covers the other codes that AWS (KMS.…) and MinIO (kms:…) pass on
// from the key service: a disabled, deleted or unknown key, or a missing right.
func (a answer) kmsCode() (verdict, bool) {
	switch {
	case !strings.HasPrefix(a.code, "KMS.") && !strings.HasPrefix(a.code, "kms:") && !strings.HasPrefix(a.code, "XMinioKMS"):
		return verdict{}, false
	case a.status >= http.StatusInternalServerError && a.status != http.StatusNotImplemented:
		return verdict{class: archive.ClassTransient}, true
	}
	return verdict{class: archive.ClassConfiguration}, true
}

// byStatus judges an answer whose code is unknown, or which had no body.
func (a answer) byStatus(op string) verdict {
	switch a.status {
	case http.StatusUnauthorized:
		return verdict{class: archive.ClassCredentials}
	case http.StatusForbidden:
		return verdict{archive.ClassConfiguration, fs.ErrPermission}
	case http.StatusNotFound:
		// Only the answer to a HEAD, which never has a body, may say so little.
		if op == OpHead {
			return verdict{archive.ClassTransient, fs.ErrNotExist}
		}
	case http.StatusRequestTimeout:
		return verdict{class: archive.ClassTransient}
	case http.StatusConflict:
		return verdict{archive.ClassTransient, archive.ErrConcurrent}
	case http.StatusPreconditionFailed:
		return verdict{archive.ClassTransient, archive.ErrPrecondition}
	case http.StatusRequestEntityTooLarge, http.StatusRequestURITooLong:
		return verdict{class: archive.ClassFile}
	case http.StatusNotImplemented:
		return verdict{archive.ClassConfiguration, archive.ErrUnsupported}
	}
	if a.status >= http.StatusMultipleChoices && a.status < http.StatusInternalServerError {
		return verdict{class: archive.ClassConfiguration}
	}
	return verdict{class: archive.ClassTransient}
}

// text renders the answer for an operator.
func (a answer) text(v verdict) string {
	t := Bounded(a.message)
	switch {
	case a.region != "" && a.elsewhere():
		t = "the bucket is in region " + Bounded(a.region) + ", set the source's region to it"
	case a.status >= 300 && a.status < 400 && a.location != "":
		t = "the server redirects to " + Bounded(a.location)
	case t == "" && v.means != nil:
		t = v.means.Error()
	case t == "":
		t = http.StatusText(a.status)
	}
	if a.code == "" {
		t = fmt.Sprintf("status %d: %s", a.status, t)
	}
	return t
}

// elsewhere reports whether the answer comes from another region than the
// bucket's.
func (a answer) elsewhere() bool {
	switch a.code {
	case "AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException":
		return true
	}
	return a.status == http.StatusMovedPermanently || a.status == http.StatusTemporaryRedirect
}

// classOfSilence judges an error without an answer.
func classOfSilence(err error) archive.Class {
	if c, ok := errors.AsType[*credentialError](err); ok {
		return classOfCredentials(c)
	}
	_, cert := errors.AsType[*tls.CertificateVerificationError](err)
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	_, record := errors.AsType[tls.RecordHeaderError](err)
	_, input := errors.AsType[smithy.InvalidParamsError](err)
	_, encode := errors.AsType[*smithy.SerializationError](err)
	unsendable := strings.Contains(err.Error(), "net/http: invalid") // A header or a method that HTTP has no form for.
	if cert || unknown || record || input || encode || unsendable || errors.Is(err, http.ErrSchemeMismatch) {
		return archive.ClassConfiguration
	}
	return archive.ClassTransient
}

// classOfCredentials tells a chain without credentials from one whose token
// service cannot be reached.
func classOfCredentials(c *credentialError) archive.Class {
	if c.fromInstanceMetadata() {
		return archive.ClassCredentials
	}
	a := answerOf(c.err)
	_, unsent := errors.AsType[*smithyhttp.RequestSendError](c.err)
	switch {
	case errors.Is(c.err, context.Canceled), errors.Is(c.err, context.DeadlineExceeded),
		unsent && a.status == 0, a.status >= http.StatusInternalServerError, throttleCode(a.code):
		return archive.ClassTransient
	}
	return archive.ClassCredentials
}

// trimmed cuts the SDK's preambles off an error that no server answered with.
func trimmed(err error) error {
	if op, ok := errors.AsType[*smithy.OperationError](err); ok && (op.Service() == "S3" || op.Service() == "KMS") {
		err = op.Err
	}
	if send, ok := errors.AsType[*smithyhttp.RequestSendError](err); ok {
		err = send.Err
	}
	return err
}

// Bounded keeps a server's text to one short line of characters that a terminal
// shows.
func Bounded(s string) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "?")), " ")
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	if len(s) > maxMessage {
		s = strings.ToValidUTF8(s[:maxMessage], "") + "…"
	}
	return s
}

// plainKey reports whether key has only characters that need no encoding in a
// URL, so that a wrong signature cannot come from its name.
func plainKey(key string) bool {
	return !strings.Contains(key, "//") && !strings.ContainsFunc(key, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("/-_.~", r)
	})
}
