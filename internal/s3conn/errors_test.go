package s3conn

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"testing"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// answered builds what the SDK returns for an answer of S3.
func answered(status int, code string, header ...string) error {
	h := http.Header{}
	for i := 0; i+1 < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return &smithy.OperationError{ServiceID: "S3", OperationName: "X", Err: &awshttp.ResponseError{
		RequestID: "R1",
		ResponseError: &smithyhttp.ResponseError{
			Response: &smithyhttp.Response{Response: &http.Response{StatusCode: status, Header: h}},
			Err:      &smithy.GenericAPIError{Code: code, Message: "message"},
		},
	}}
}

func unanswered(err error) error {
	return &smithy.OperationError{ServiceID: "S3", OperationName: "X", Err: &smithyhttp.RequestSendError{Err: err}}
}

func TestClassify(t *testing.T) {
	const plain, odd = "data/a-b_c.txt", "data/é"
	for _, c := range []struct {
		name  string
		op    string
		key   string
		err   error
		class archive.Class
		means error
	}{
		{"an absent object at HEAD", OpHead, plain, answered(404, "NotFound"), archive.ClassTransient, fs.ErrNotExist},
		{"an absent object at GET", OpGet, plain, answered(404, "NoSuchKey"), archive.ClassTransient, fs.ErrNotExist},
		{"If-Match without an object", OpPut, plain, answered(404, "NoSuchKey"), archive.ClassTransient, fs.ErrNotExist},
		{"an absent bucket", OpPut, plain, answered(404, "NoSuchBucket"), archive.ClassConfiguration, nil},
		{"an unknown key on MinIO", OpPut, plain, answered(404, "kms:KeyNotFound"), archive.ClassConfiguration, nil},
		{"an unknown 404 at PUT", OpPut, plain, answered(404, "Lost"), archive.ClassConfiguration, nil},
		{"an unknown upload", OpComplete, plain, answered(404, "NoSuchUpload"), archive.ClassTransient, archive.ErrNoUpload},
		{"a HEAD refused", OpHead, plain, answered(403, "Forbidden"), archive.ClassConfiguration, fs.ErrPermission},
		{"a write refused", OpPut, plain, answered(403, "AccessDenied"), archive.ClassConfiguration, fs.ErrPermission},
		{"a bad HEAD", OpHead, plain, answered(400, "BadRequest"), archive.ClassConfiguration, nil},
		{"an unknown access key", OpPut, plain, answered(403, "InvalidAccessKeyId"), archive.ClassCredentials, fs.ErrPermission},
		{"an expired token", OpPut, plain, answered(400, "ExpiredToken"), archive.ClassCredentials, nil},
		{"a wrong secret", OpPut, plain, answered(403, "SignatureDoesNotMatch"), archive.ClassCredentials, fs.ErrPermission},
		{"a signature of an odd name", OpPut, odd, answered(403, "SignatureDoesNotMatch"), archive.ClassFile, nil},
		{"a status without credentials", OpPut, plain, answered(401, ""), archive.ClassCredentials, nil},
		{"a precondition", OpPut, plain, answered(412, "PreconditionFailed"), archive.ClassTransient, archive.ErrPrecondition},
		{"a race", OpPut, plain, answered(409, "ConditionalRequestConflict"), archive.ClassTransient, archive.ErrConcurrent},
		{"another 409", OpPut, plain, answered(409, "OperationAborted"), archive.ClassTransient, archive.ErrConcurrent},
		{"a wrong MD5", OpPut, plain, answered(400, "BadDigest"), archive.ClassChanged, nil},
		{"a wrong CRC", OpComplete, plain, answered(400, "XAmzContentChecksumMismatch"), archive.ClassChanged, nil},
		{"a wrong SHA-256", OpPut, plain, answered(400, "XAmzContentSHA256Mismatch"), archive.ClassChanged, nil},
		{"an incomplete body", OpPut, plain, answered(400, "IncompleteBody"), archive.ClassChanged, nil},
		{"a body that ended early", OpPut, plain, unanswered(&bodyError{errShortBody}), archive.ClassChanged, errShortBody},
		{"a body that cannot be read", OpPut, plain, unanswered(&bodyError{io.ErrClosedPipe}), archive.ClassFile, io.ErrClosedPipe},
		{"a disabled key", OpPut, plain, answered(400, "KMS.DisabledException"), archive.ClassConfiguration, nil},
		{"an absent key", OpPut, plain, answered(400, "KMS.NotFoundException"), archive.ClassConfiguration, nil},
		{"a key about to be deleted", OpPut, plain, answered(400, "KMS.KMSInvalidStateException"), archive.ClassConfiguration, nil},
		{"a key service that throttles", OpPut, plain, answered(400, "KMS.ThrottlingException"), archive.ClassThrottled, nil},
		{"a key service that fails", OpPut, plain, answered(500, "KMS.KMSInternalException"), archive.ClassTransient, nil},
		{"too many requests", OpPut, plain, answered(503, "SlowDown"), archive.ClassThrottled, nil},
		{"a 503 without a body", OpHead, plain, answered(503, "ServiceUnavailable"), archive.ClassThrottled, nil},
		{"a 429", OpHead, plain, answered(429, ""), archive.ClassThrottled, nil},
		{"a slow host", OpPut, plain, answered(400, "RequestTimeout"), archive.ClassTransient, nil},
		{"a failing server", OpPut, plain, answered(500, "InternalError"), archive.ClassTransient, nil},
		{"a gateway", OpPut, plain, answered(502, ""), archive.ClassTransient, nil},
		{"a full server", OpPut, plain, answered(507, "XMinioStorageFull"), archive.ClassTransient, nil},
		{"no KMS on the server", OpPut, plain, answered(501, "NotImplemented"), archive.ClassConfiguration, archive.ErrUnsupported},
		{"a long key", OpPut, plain, answered(400, "KeyTooLongError"), archive.ClassFile, nil},
		{"a name that MinIO refuses", OpPut, plain, answered(400, "XMinioInvalidObjectName"), archive.ClassFile, nil},
		{"an object in the place of a directory", OpPut, plain, answered(400, "XMinioParentIsObject"), archive.ClassFile, nil},
		{"a large object", OpPut, plain, answered(400, "EntityTooLarge"), archive.ClassFile, nil},
		{"another region", OpHead, plain, answered(301, "MovedPermanently"), archive.ClassConfiguration, nil},
		{"another region in a signature", OpPut, plain, answered(400, "AuthorizationHeaderMalformed"), archive.ClassConfiguration, nil},
		{"an unknown name", OpPut, plain, unanswered(&net.DNSError{Err: "no such host", Name: "x", IsNotFound: true}), archive.ClassTransient, nil},
		{"a reset", OpPut, plain, unanswered(io.ErrUnexpectedEOF), archive.ClassTransient, io.ErrUnexpectedEOF},
		{"a stall", OpPut, plain, unanswered(&StalledError{}), archive.ClassTransient, nil},
		{"the end of the process", OpPut, plain, &smithy.CanceledError{Err: context.Canceled}, archive.ClassTransient, context.Canceled},
		{"an unknown authority", OpPut, plain, unanswered(x509.UnknownAuthorityError{}), archive.ClassConfiguration, nil},
		{"plain HTTP for HTTPS", OpPut, plain, unanswered(http.ErrSchemeMismatch), archive.ClassConfiguration, nil},
		{"no credentials", OpPut, plain, &credentialError{errors.New("none")}, archive.ClassCredentials, nil},
		{"no instance role", OpPut, plain, &credentialError{&smithy.OperationError{ServiceID: "ec2imds", Err: unanswered(io.EOF)}}, archive.ClassCredentials, nil},
		{"no role at the instance", OpPut, plain, &credentialError{&smithy.OperationError{ServiceID: "ec2imds", Err: answered(403, "")}}, archive.ClassCredentials, nil},
		{"a role that is refused", OpPut, plain, &credentialError{answered(403, "AccessDenied")}, archive.ClassCredentials, nil},
		{"a token service that fails", OpPut, plain, &credentialError{answered(500, "InternalFailure")}, archive.ClassTransient, nil},
		{"a token service out of reach", OpPut, plain, &credentialError{unanswered(io.EOF)}, archive.ClassTransient, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := Classify(c.op, c.key, c.err)
			if got := archive.ClassOf(err); got != c.class {
				t.Errorf("class of %v = %s, want %s", err, got, c.class)
			}
			for _, s := range []error{fs.ErrNotExist, archive.ErrPrecondition, archive.ErrConcurrent, archive.ErrNoUpload, archive.ErrUnsupported} {
				if got, want := errors.Is(err, s), errors.Is(s, c.means); got != want {
					t.Errorf("errors.Is(%v, %v) = %v, want %v", err, s, got, want)
				}
			}
			if c.means != nil && !errors.Is(err, c.means) {
				t.Errorf("errors.Is(%v, %v) = false", err, c.means)
			}
		})
	}
}

func TestClassifySaysWhatToDo(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{answered(301, "MovedPermanently", "X-Amz-Bucket-Region", "eu-west-1"), "HeadObject: MovedPermanently (301): the bucket is in region eu-west-1, set the source's region to it"},
		{
			answered(400, "AuthorizationHeaderMalformed", "X-Amz-Bucket-Region", "eu-west-1"),
			"HeadObject: AuthorizationHeaderMalformed (400): the bucket is in region eu-west-1, set the source's region to it",
		},
		{answered(307, "", "Location", "https://elsewhere/"), "HeadObject: status 307: the server redirects to https://elsewhere/"},
		{answered(403, "AccessDenied"), "HeadObject: AccessDenied (403): message"},
		{unanswered(errors.New("connection reset")), "HeadObject: connection reset"},
	} {
		if got := Classify(OpHead, "data/a", c.err).Error(); got != c.want {
			t.Errorf("text = %q, want %q", got, c.want)
		}
	}
	e, ok := errors.AsType[*archive.Error](Classify(OpPut, "a", answered(403, "AccessDenied")))
	if !ok || e.Code != "AccessDenied" || e.Status != 403 || e.RequestID != "R1" {
		t.Errorf("error = %+v, want code, status and request id", e)
	}
	if err := Classify(OpPut, "a", fmt.Errorf("x: %w", e)); archive.ClassOf(err) != archive.ClassConfiguration || strings.Count(err.Error(), "PutObject") != 1 {
		t.Errorf("classified twice: %v", err)
	}
}
