package s3conn

import (
	"bytes"
	"cmp"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	smithyauth "github.com/aws/smithy-go/auth"
	smithytime "github.com/aws/smithy-go/time"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

const (
	userAgent     = "s3syncd"
	maxAnswer     = 64 << 10        // what is read of an answer's body
	skewLimit     = 4 * time.Minute // S3 refuses signatures of another time than its own by 15 minutes
	codeSkewed    = "RequestTimeTooSkewed"
	maxRetryAfter = 5 * time.Second // beyond the retryer's own delay, as the SDK's
)

// wire sends PutObject, the one operation that runs for every file: through the
// SDK's operation stack it takes nearly twice the time, and three times the
// allocations. What decides how a request fares is the SDK's all the same: the
// credential chain, the rules for endpoints, the retryer and the types of errors.
// It is safe for concurrent use.
type wire struct {
	Next     http.RoundTripper
	Retryer  aws.Retryer
	Creds    aws.CredentialsProvider
	observer *observer
	signer   sigV4
	scheme   string
	address  string // host and port to connect to
	host     string // of the Host header: without the scheme's own port, which proxies drop
	plain    string // path of the bucket, without a slash at its end
	path     string // the same, escaped
}

// newWire finds out where requests to the bucket go.
func (c *Conn) newWire(ctx context.Context, o s3.Options) (*wire, error) {
	region := o.Region
	e, err := o.EndpointResolverV2.ResolveEndpoint(ctx, s3.EndpointParameters{
		Bucket: aws.String(c.o.Bucket), Region: aws.String(region), Endpoint: o.BaseEndpoint,
		UseFIPS:        aws.Bool(o.EndpointOptions.UseFIPSEndpoint == aws.FIPSEndpointStateEnabled),
		UseDualStack:   aws.Bool(o.EndpointOptions.UseDualStackEndpoint == aws.DualStackEndpointStateEnabled),
		ForcePathStyle: aws.Bool(o.UsePathStyle), Accelerate: aws.Bool(o.UseAccelerate),
		DisableMultiRegionAccessPoints: aws.Bool(o.DisableMultiRegionAccessPoints), UseArnRegion: aws.Bool(o.UseARNRegion),
		DisableS3ExpressSessionAuth: o.DisableS3ExpressSessionAuth,
	}.WithDefaults())
	if err != nil {
		return nil, fmt.Errorf("s3store: resolve the endpoint: %w", err)
	}
	schemes, _ := smithyauth.GetAuthOptions(&e.Properties)
	if len(schemes) > 0 {
		if id := strings.TrimPrefix(schemes[0].SchemeID, "aws.auth#"); id != signScheme {
			return nil, fmt.Errorf("s3store: requests to bucket %s are signed with %s, only %s is supported", c.o.Bucket, id, signScheme)
		}
		if r, ok := smithyhttp.GetSigV4SigningRegion(&schemes[0].SignerProperties); ok {
			region = r
		}
	}
	return &wire{
		Next: c.watched, Retryer: o.Retryer, Creds: c.Creds,
		observer: c.observer, signer: sigV4{region: region},
		scheme: e.URI.Scheme, address: e.URI.Host, host: withoutDefaultPort(e.URI.Scheme, e.URI.Host),
		plain: strings.TrimSuffix(e.URI.Path, "/"), path: strings.TrimSuffix(e.URI.EscapedPath(), "/"),
	}, nil
}

// withoutDefaultPort returns host as a Host header has it.
func withoutDefaultPort(scheme, host string) string {
	if scheme == "https" {
		return strings.TrimSuffix(host, ":443")
	}
	return strings.TrimSuffix(host, ":80")
}

// Put sends in, whose body is b, in as many attempts as the retryer grants, and
// returns what the server said. It blocks as long as bytes move.
func (w *wire) Put(ctx context.Context, in *s3.PutObjectInput, b *Body) (*s3.PutObjectOutput, heard, error) {
	if aws.ToString(in.Key) == "" {
		return nil, heard{}, smithy.NewErrParamRequired("Key") // It would be a request to the bucket.
	}
	for attempt := 1; ; attempt++ {
		begun := time.Now()
		out, h, err := w.try(ctx, in, b)
		if err == nil || attempt >= w.Retryer.MaxAttempts() || ctx.Err() != nil {
			return out, h, err
		}
		if !w.Retryer.IsErrorRetryable(err) && !skewed(err, w.observer.clock, begun) {
			return nil, h, err
		}
		if err := w.pause(ctx, attempt, err); err != nil {
			return nil, h, err
		}
		if _, err := b.Seek(0, io.SeekStart); err != nil {
			return nil, h, err
		}
	}
}

// skewed reports whether a request was signed for a time that the server does
// not take, and another one is in use since it began.
func skewed(err error, c *Clock, begun time.Time) bool {
	return answerOf(err).code == codeSkewed && c.movedSince(begun)
}

// pause waits before the next attempt, longer where the server asks for it.
func (w *wire) pause(ctx context.Context, attempt int, err error) error {
	d, derr := w.Retryer.RetryDelay(attempt, err)
	if derr != nil {
		return errors.Join(err, derr)
	}
	d = min(max(d, answerOf(err).retryAfter), d+maxRetryAfter)
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return &aws.RequestCanceledError{Err: ctx.Err()}
	}
}

// try is one attempt.
func (w *wire) try(ctx context.Context, in *s3.PutObjectInput, b *Body) (*s3.PutObjectOutput, heard, error) {
	c, err := w.Creds.Retrieve(ctx)
	if err != nil {
		return nil, heard{}, err
	}
	body := &attemptBody{r: b}
	offset := w.observer.clock.Signs()
	req := w.request(in, c, time.Now().Add(offset)).WithContext(ctx)
	if b.size > 0 {
		req.Body = body
	}
	// Nothing reads it after this, whatever the transport still does. Until then it
	// may: a refusal that comes before the whole body was sent is lost otherwise.
	defer func() { _ = body.Close() }()
	sent := time.Now()
	resp, err := w.Next.RoundTrip(req) //nolint:bodyclose // ReadAnswer does.
	h := w.observer.observe(OpPut, sent, time.Now(), resp)
	if err != nil {
		if ctx.Err() != nil {
			return nil, h, &smithy.CanceledError{Err: ctx.Err()}
		}
		return nil, h, &smithyhttp.RequestSendError{Err: &url.Error{Op: "Put", URL: req.URL.String(), Err: err}}
	}
	received := time.Now()
	text, err := readAnswer(resp)
	if err != nil {
		return nil, h, err
	}
	a, refused := refusalIn(resp, text)
	w.observer.clock.observe(clockAnswer{
		sent: sent, received: received, date: h.trusted, signed: offset, verdict: clockVerdictOf(resp.StatusCode, a.code),
	})
	if refused {
		return nil, h, &refusal{a}
	}
	return putOutput(resp.Header), h, nil
}

// request builds a signed request without its body.
func (w *wire) request(in *s3.PutObjectInput, c aws.Credentials, now time.Time) *http.Request {
	key := aws.ToString(in.Key)
	path := w.path + "/" + escapedPath(key)
	fields := w.fields(in, c, now)
	authorization := w.signer.sign(c, now, http.MethodPut, path, fields)

	h := make(http.Header, len(fields)+4)
	values := make([]string, len(fields)) // One allocation for all.
	for i, f := range fields {
		if f.name == headerHost || f.name == headerLength {
			continue // Of the request itself.
		}
		values[i] = f.value
		h[f.name] = values[i : i+1 : i+1]
	}
	h["Authorization"] = []string{authorization}
	h["User-Agent"] = []string{userAgent}
	h["Accept-Encoding"] = []string{"identity"} // Not signed: some proxies alter it.
	return &http.Request{
		Method: http.MethodPut, Host: w.host, Header: h, ContentLength: aws.ToInt64(in.ContentLength),
		URL:  &url.URL{Scheme: w.scheme, Host: w.address, Path: w.plain + "/" + key, RawPath: path},
		Body: http.NoBody,
	}
}

// fields are the headers of a request that are signed, unordered.
func (w *wire) fields(in *s3.PutObjectInput, c aws.Credentials, now time.Time) []field {
	f := make([]field, 0, 32)
	add := func(name, value string) {
		if value != "" {
			f = append(f, field{name, value})
		}
	}
	add(headerHost, w.host)
	if n := aws.ToInt64(in.ContentLength); n > 0 {
		add(headerLength, strconv.FormatInt(n, 10))
	}
	add(headerAmzDate, now.UTC().Format(signTime))
	add(headerBodyHash, unsignedBody)
	add(headerToken, c.SessionToken)
	add("content-type", aws.ToString(in.ContentType))
	add("content-md5", aws.ToString(in.ContentMD5))
	add("x-amz-checksum-sha256", aws.ToString(in.ChecksumSHA256))
	add("x-amz-expected-bucket-owner", aws.ToString(in.ExpectedBucketOwner))
	add("if-match", aws.ToString(in.IfMatch))
	add("if-none-match", aws.ToString(in.IfNoneMatch))
	add("x-amz-server-side-encryption", string(in.ServerSideEncryption))
	add("x-amz-server-side-encryption-aws-kms-key-id", aws.ToString(in.SSEKMSKeyId))
	add("x-amz-server-side-encryption-context", aws.ToString(in.SSEKMSEncryptionContext))
	if in.BucketKeyEnabled != nil {
		add("x-amz-server-side-encryption-bucket-key-enabled", strconv.FormatBool(*in.BucketKeyEnabled))
	}
	add("x-amz-storage-class", string(in.StorageClass))
	add("x-amz-acl", string(in.ACL))
	add("x-amz-tagging", aws.ToString(in.Tagging))
	add("x-amz-object-lock-mode", string(in.ObjectLockMode))
	if in.ObjectLockRetainUntilDate != nil {
		add("x-amz-object-lock-retain-until-date", smithytime.FormatDateTime(*in.ObjectLockRetainUntilDate))
	}
	for k, v := range in.Metadata {
		add("x-amz-meta-"+strings.ToLower(k), v)
	}
	return f
}

// putOutput reads what the head of a success says.
func putOutput(h http.Header) *s3.PutObjectOutput {
	out := &s3.PutObjectOutput{
		ETag: Optional(h.Get("Etag")), VersionId: Optional(h.Get("X-Amz-Version-Id")),
		SSEKMSKeyId: Optional(h.Get("X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id")),
	}
	out.ServerSideEncryption = types.ServerSideEncryption(h.Get("X-Amz-Server-Side-Encryption"))
	if b, err := strconv.ParseBool(h.Get("X-Amz-Server-Side-Encryption-Bucket-Key-Enabled")); err == nil {
		out.BucketKeyEnabled = aws.Bool(b)
	}
	return out
}

// readAnswer reads and closes the body of an answer, and no more than an answer
// may have. A refusal whose body breaks off counts as far as it goes; a success
// that breaks off may be none, because S3 can turn one into an error after
// its head: https://repost.aws/knowledge-center/s3-resolve-200-internalerror
func readAnswer(resp *http.Response) (text []byte, err error) {
	defer func() { _ = resp.Body.Close() }() // It was only read.
	if resp.ContentLength == 0 {
		return nil, nil
	}
	text, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil && resp.StatusCode < http.StatusMultipleChoices {
		return nil, &smithyhttp.RequestSendError{Err: fmt.Errorf("read the answer: %w", err)}
	}
	return text, nil
}

// refusalIn reads a refusal out of an answer, or an error that came with status
// 200. A text that is no XML, or breaks off, counts as far as it goes.
func refusalIn(resp *http.Response, text []byte) (a answer, refused bool) {
	ok := resp.StatusCode >= http.StatusOK && resp.StatusCode < http.StatusMultipleChoices
	if ok && !strings.EqualFold(rootOf(text), "Error") {
		return answer{}, false
	}
	var e struct {
		Code      string `xml:"Code"`
		Message   string `xml:"Message"`
		RequestID string `xml:"RequestId"`
	}
	_ = decoder(text).Decode(&e) // As far as it goes.
	if len(text) == 0 {
		e.Code = strings.ReplaceAll(http.StatusText(resp.StatusCode), " ", "") // As the SDK has it.
	}
	a = answer{
		status: resp.StatusCode, code: Bounded(e.Code), message: e.Message,
		requestID: cmp.Or(requestID(resp.Header), Bounded(e.RequestID)),
		region:    resp.Header.Get("X-Amz-Bucket-Region"), location: resp.Header.Get("Location"),
	}
	if ms, err := strconv.ParseUint(resp.Header.Get("X-Amz-Retry-After"), 10, 31); err == nil {
		a.retryAfter = time.Duration(ms) * time.Millisecond
	}
	if ok {
		a.status = http.StatusInternalServerError
	}
	return a, true
}

// rootOf returns the name of the first element of an XML text, "" for none.
func rootOf(text []byte) string {
	d := decoder(text)
	for {
		t, err := d.RawToken()
		if err != nil {
			return ""
		}
		if e, ok := t.(xml.StartElement); ok {
			return e.Name.Local
		}
	}
}

// decoder reads any charset as if it were UTF-8: the names that count are ASCII.
func decoder(text []byte) *xml.Decoder {
	d := xml.NewDecoder(bytes.NewReader(text))
	d.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil }
	return d
}

// refusal is an answer that is not a success. The SDK's retryer judges it by the
// methods that it shares with the SDK's own errors.
type refusal struct{ answer }

func (r *refusal) Error() string {
	return fmt.Sprintf("%s: status %d, request %s, %s: %s", OpPut, r.status, r.requestID, r.code, Bounded(r.message))
}

// HTTPStatusCode returns the status of the answer.
func (r *refusal) HTTPStatusCode() int { return r.status }

// ErrorCode returns S3's code, "" when the answer had none.
func (r *refusal) ErrorCode() string { return r.code }

// attemptBody is the body of one attempt. A transport may go on reading after it
// has returned an answer: from Close on it reads nothing of what the next attempt
// or the next file uses.
type attemptBody struct {
	mu     sync.Mutex
	r      io.Reader
	closed bool
}

func (b *attemptBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	return b.r.Read(p)
}

// Close waits for a Read that is under way.
func (b *attemptBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return nil
}
