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

	"github.com/s3syncd/s3syncd/pkg/state"
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
		class state.Class
		means error
	}{
		{"an absent object at HEAD", OpHead, plain, answered(404, "NotFound"), state.ClassTransient, fs.ErrNotExist},
		{"an absent object at GET", OpGet, plain, answered(404, "NoSuchKey"), state.ClassTransient, fs.ErrNotExist},
		{"If-Match without an object", OpPut, plain, answered(404, "NoSuchKey"), state.ClassTransient, fs.ErrNotExist},
		{"an absent bucket", OpPut, plain, answered(404, "NoSuchBucket"), state.ClassConfiguration, nil},
		{"an unknown key on MinIO", OpPut, plain, answered(404, "kms:KeyNotFound"), state.ClassConfiguration, nil},
		{"an unknown 404 at PUT", OpPut, plain, answered(404, "Lost"), state.ClassConfiguration, nil},
		{"an unknown upload", OpComplete, plain, answered(404, "NoSuchUpload"), state.ClassTransient, state.ErrNoUpload},
		{"a HEAD refused", OpHead, plain, answered(403, "Forbidden"), state.ClassConfiguration, fs.ErrPermission},
		{"a write refused", OpPut, plain, answered(403, "AccessDenied"), state.ClassConfiguration, fs.ErrPermission},
		{"a bad HEAD", OpHead, plain, answered(400, "BadRequest"), state.ClassConfiguration, nil},
		{"an unknown access key", OpPut, plain, answered(403, "InvalidAccessKeyId"), state.ClassCredentials, fs.ErrPermission},
		{"an expired token", OpPut, plain, answered(400, "ExpiredToken"), state.ClassCredentials, nil},
		{"a wrong secret", OpPut, plain, answered(403, "SignatureDoesNotMatch"), state.ClassCredentials, fs.ErrPermission},
		{"a signature of an odd name", OpPut, odd, answered(403, "SignatureDoesNotMatch"), state.ClassFile, nil},
		{"a status without credentials", OpPut, plain, answered(401, ""), state.ClassCredentials, nil},
		{"a precondition", OpPut, plain, answered(412, "PreconditionFailed"), state.ClassTransient, state.ErrPrecondition},
		{"a race", OpPut, plain, answered(409, "ConditionalRequestConflict"), state.ClassTransient, state.ErrConcurrent},
		{"another 409", OpPut, plain, answered(409, "OperationAborted"), state.ClassTransient, state.ErrConcurrent},
		{"a wrong MD5", OpPut, plain, answered(400, "BadDigest"), state.ClassChanged, nil},
		{"a wrong CRC", OpComplete, plain, answered(400, "XAmzContentChecksumMismatch"), state.ClassChanged, nil},
		{"a wrong SHA-256", OpPut, plain, answered(400, "XAmzContentSHA256Mismatch"), state.ClassChanged, nil},
		{"an incomplete body", OpPut, plain, answered(400, "IncompleteBody"), state.ClassChanged, nil},
		{"a body that ended early", OpPut, plain, unanswered(&bodyError{errShortBody}), state.ClassChanged, errShortBody},
		{"a body that cannot be read", OpPut, plain, unanswered(&bodyError{io.ErrClosedPipe}), state.ClassFile, io.ErrClosedPipe},
		{"a disabled key", OpPut, plain, answered(400, "KMS.DisabledException"), state.ClassConfiguration, nil},
		{"an absent key", OpPut, plain, answered(400, "KMS.NotFoundException"), state.ClassConfiguration, nil},
		{"a key about to be deleted", OpPut, plain, answered(400, "KMS.KMSInvalidStateException"), state.ClassConfiguration, nil},
		{"a key service that throttles", OpPut, plain, answered(400, "KMS.ThrottlingException"), state.ClassThrottled, nil},
		{"a key service that fails", OpPut, plain, answered(500, "KMS.KMSInternalException"), state.ClassTransient, nil},
		{"too many requests", OpPut, plain, answered(503, "SlowDown"), state.ClassThrottled, nil},
		{"a 503 without a body", OpHead, plain, answered(503, "ServiceUnavailable"), state.ClassThrottled, nil},
		{"a 429", OpHead, plain, answered(429, ""), state.ClassThrottled, nil},
		{"a slow host", OpPut, plain, answered(400, "RequestTimeout"), state.ClassTransient, nil},
		{"a failing server", OpPut, plain, answered(500, "InternalError"), state.ClassTransient, nil},
		{"a gateway", OpPut, plain, answered(502, ""), state.ClassTransient, nil},
		{"a full server", OpPut, plain, answered(507, "XMinioStorageFull"), state.ClassTransient, nil},
		{"no KMS on the server", OpPut, plain, answered(501, "NotImplemented"), state.ClassConfiguration, state.ErrUnsupported},
		{"a long key", OpPut, plain, answered(400, "KeyTooLongError"), state.ClassFile, nil},
		{"a name that MinIO refuses", OpPut, plain, answered(400, "XMinioInvalidObjectName"), state.ClassFile, nil},
		{"an object in the place of a directory", OpPut, plain, answered(400, "XMinioParentIsObject"), state.ClassFile, nil},
		{"a large object", OpPut, plain, answered(400, "EntityTooLarge"), state.ClassFile, nil},
		{"another region", OpHead, plain, answered(301, "MovedPermanently"), state.ClassConfiguration, nil},
		{"another region in a signature", OpPut, plain, answered(400, "AuthorizationHeaderMalformed"), state.ClassConfiguration, nil},
		{"an unknown name", OpPut, plain, unanswered(&net.DNSError{Err: "no such host", Name: "x", IsNotFound: true}), state.ClassTransient, nil},
		{"a reset", OpPut, plain, unanswered(io.ErrUnexpectedEOF), state.ClassTransient, io.ErrUnexpectedEOF},
		{"a stall", OpPut, plain, unanswered(&StalledError{}), state.ClassTransient, nil},
		{"the end of the process", OpPut, plain, &smithy.CanceledError{Err: context.Canceled}, state.ClassTransient, context.Canceled},
		{"an unknown authority", OpPut, plain, unanswered(x509.UnknownAuthorityError{}), state.ClassConfiguration, nil},
		{"plain HTTP for HTTPS", OpPut, plain, unanswered(http.ErrSchemeMismatch), state.ClassConfiguration, nil},
		{"no credentials", OpPut, plain, &credentialError{errors.New("none")}, state.ClassCredentials, nil},
		{"no instance role", OpPut, plain, &credentialError{&smithy.OperationError{ServiceID: "ec2imds", Err: unanswered(io.EOF)}}, state.ClassCredentials, nil},
		{"no role at the instance", OpPut, plain, &credentialError{&smithy.OperationError{ServiceID: "ec2imds", Err: answered(403, "")}}, state.ClassCredentials, nil},
		{"a role that is refused", OpPut, plain, &credentialError{answered(403, "AccessDenied")}, state.ClassCredentials, nil},
		{"a token service that fails", OpPut, plain, &credentialError{answered(500, "InternalFailure")}, state.ClassTransient, nil},
		{"a token service out of reach", OpPut, plain, &credentialError{unanswered(io.EOF)}, state.ClassTransient, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := Classify(c.op, c.key, c.err)
			if got := state.ClassOf(err); got != c.class {
				t.Errorf("class of %v = %s, want %s", err, got, c.class)
			}
			for _, s := range []error{fs.ErrNotExist, state.ErrPrecondition, state.ErrConcurrent, state.ErrNoUpload, state.ErrUnsupported} {
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
	e, ok := errors.AsType[*state.Error](Classify(OpPut, "a", answered(403, "AccessDenied")))
	if !ok || e.Code != "AccessDenied" || e.Status != 403 || e.RequestID != "R1" {
		t.Errorf("error = %+v, want code, status and request id", e)
	}
	if err := Classify(OpPut, "a", fmt.Errorf("x: %w", e)); state.ClassOf(err) != state.ClassConfiguration || strings.Count(err.Error(), "PutObject") != 1 {
		t.Errorf("classified twice: %v", err)
	}
}
