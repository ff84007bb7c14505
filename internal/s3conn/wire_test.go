package s3conn

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/encoding/httpbinding"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/s3syncd/s3syncd/internal/s3test"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// sdkAuthorization has the SDK's signer sign the headers that req itself says
// are signed.
func sdkAuthorization(t *testing.T, req *http.Request, c aws.Credentials, region string, now time.Time) string {
	t.Helper()
	theirs := &http.Request{
		Method: req.Method, Host: req.Host, ContentLength: req.ContentLength, Header: http.Header{},
		URL: &url.URL{Scheme: req.URL.Scheme, Host: req.URL.Host, Path: req.URL.Path, RawPath: req.URL.RawPath},
	}
	for k, v := range req.Header {
		if k == strings.ToLower(k) {
			theirs.Header[http.CanonicalHeaderKey(k)] = v
		}
	}
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	if err := signer.SignHTTP(t.Context(), c, theirs, unsignedBody, signService, region, now); err != nil {
		t.Fatalf("the SDK's signer: %v", err)
	}
	return theirs.Header.Get("Authorization")
}

// FuzzSignatureIsTheSDKs compares path and signature of any request with the
// SDK's.
func FuzzSignatureIsTheSDKs(f *testing.F) {
	f.Add("data/a b+c/ü%2F.txt", "secret", "token", "  two  spaces ", int64(1_700_000_000), int64(3))
	f.Add("/", "", "", "", int64(0), int64(0))
	f.Add("../a//b\x00\x7f", "s", "", "\t", int64(951_782_400), int64(1<<40))
	f.Fuzz(func(t *testing.T, key, secret, token, value string, seconds, size int64) {
		if strings.ContainsAny(value, "\r\n\x00") || seconds < 0 || seconds > 1<<33 || size < 0 {
			return // No header has such a value, and no request such a time or length.
		}
		w := &wire{signer: sigV4{region: "eu-central-1"}, scheme: "https", address: "b.s3.example.com:9000", host: "b.s3.example.com:9000", plain: "/x y", path: "/x%20y"}
		c := aws.Credentials{AccessKeyID: "AKID", SecretAccessKey: secret, SessionToken: token}
		now := time.Unix(seconds, 0)
		for range 2 { // The second time with the key that the first has derived.
			req := w.request(&s3.PutObjectInput{
				Key: aws.String(key), ContentLength: aws.Int64(size), ContentType: aws.String("application/octet-stream"), IfNoneMatch: aws.String("*"),
				Metadata: map[string]string{"MD5": "0", "note": value}, SSEKMSKeyId: aws.String("k"), BucketKeyEnabled: aws.Bool(true),
			}, c, now)
			if want := w.path + "/" + httpbinding.EscapePath(key, false); req.URL.EscapedPath() != want {
				t.Fatalf("path %q, the SDK's %q", req.URL.EscapedPath(), want)
			}
			if got, want := req.Header.Get("Authorization"), sdkAuthorization(t, req, c, "eu-central-1", now); got != want {
				t.Fatalf("signed as\n%s, by the SDK as\n%s", got, want)
			}
		}
	})
}

// TestSigningKeyFollowsTheDayAndTheSecret signs on either side of midnight and
// of a rotation.
func TestSigningKeyFollowsTheDayAndTheSecret(t *testing.T) {
	w := &wire{signer: sigV4{region: "us-east-1"}, scheme: "https", address: "h", host: "h"}
	late := time.Date(2026, 2, 28, 23, 59, 59, 0, time.UTC)
	for _, now := range []time.Time{late, late.Add(time.Second), late} {
		for _, secret := range []string{"a", "b"} {
			c := aws.Credentials{AccessKeyID: "id", SecretAccessKey: secret}
			req := w.request(&s3.PutObjectInput{Key: aws.String("k")}, c, now)
			if got, want := req.Header.Get("Authorization"), sdkAuthorization(t, req, c, "us-east-1", now); got != want {
				t.Errorf("%v, secret %s: %s, by the SDK %s", now, secret, got, want)
			}
		}
	}
}

// TestWhereRequestsGo compares with where the SDK sends its own.
func TestWhereRequestsGo(t *testing.T) {
	for _, tc := range []struct {
		name string
		env  map[string]string
		o    func(*Options)
		want string
	}{
		{"AWS", nil, func(o *Options) { o.EndpointURL, o.PathStyle = "", false }, "https://my-bucket.s3.eu-central-1.amazonaws.com/a"},
		{"path style", nil, func(o *Options) { o.EndpointURL = "" }, "https://s3.eu-central-1.amazonaws.com/my-bucket/a"},
		{"dotted bucket", nil, func(o *Options) { o.EndpointURL, o.PathStyle, o.Bucket = "", false, "my.bucket" }, "https://s3.eu-central-1.amazonaws.com/my.bucket/a"},
		{"China", nil, func(o *Options) { o.EndpointURL, o.PathStyle, o.Region = "", false, "cn-north-1" }, "https://my-bucket.s3.cn-north-1.amazonaws.com.cn/a"},
		{
			"FIPS and dual stack",
			map[string]string{"AWS_USE_FIPS_ENDPOINT": "true", "AWS_USE_DUALSTACK_ENDPOINT": "true"},
			func(o *Options) { o.EndpointURL, o.PathStyle, o.Region = "", false, "us-east-1" },
			"https://my-bucket.s3-fips.dualstack.us-east-1.amazonaws.com/a",
		},
		{"endpoint with a path", nil, func(o *Options) { o.EndpointURL = "https://gateway.example.com:8443/s3/" }, "https://gateway.example.com:8443/s3/my-bucket/a"},
		{"pseudo-region", nil, func(o *Options) { o.EndpointURL, o.PathStyle, o.Region = "", false, "fips-us-east-1" }, "https://my-bucket.s3-fips.us-east-1.amazonaws.com/a"},
		{"the scheme's own port", nil, func(o *Options) { o.EndpointURL = "https://gateway.example.com:443" }, "https://gateway.example.com:443/my-bucket/a"},
		{"endpoint of the environment", map[string]string{"AWS_ENDPOINT_URL_S3": "https://gw.example.com"}, func(o *Options) { o.EndpointURL, o.PathStyle = "", false }, "https://gw.example.com/my-bucket/a"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, v := range []string{"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT"} {
				t.Setenv(v, tc.env[v])
			}
			t.Setenv("AWS_ACCESS_KEY_ID", "a")
			t.Setenv("AWS_SECRET_ACCESS_KEY", "b")
			o := connOptions("my-bucket", "")
			o.Region = "eu-central-1"
			tc.o(&o)
			s := openConn(t, o)
			in := &s3.PutObjectInput{Bucket: aws.String(o.Bucket), Key: aws.String("a")}
			theirs := sdkRequest(t, s, in)
			ours := s.Wire.request(in, aws.Credentials{AccessKeyID: "a", SecretAccessKey: "b"}, time.Now())
			theirs.URL.RawQuery = "" // It only names the operation.
			if ours.URL.String() != tc.want || ours.URL.String() != theirs.URL.String() {
				t.Errorf("request to %s, the SDK's to %s, want %s", ours.URL, theirs.URL, tc.want)
			}
			if host := cmp.Or(theirs.Host, theirs.URL.Host); ours.Host != host {
				t.Errorf("Host %s, the SDK's %s", ours.Host, host)
			}
			if got, want := scopeOf(ours), scopeOf(theirs); got != want {
				t.Errorf("signed for %s, by the SDK for %s", got, want)
			}
		})
	}
}

func connOptions(bucket, url string) Options {
	return Options{Region: s3test.Region, EndpointURL: url, PathStyle: true, Bucket: bucket, Workers: 4}
}

func openConn(t *testing.T, o Options) *Conn {
	t.Helper()
	o.Log, o.Metrics = zaptest.NewLogger(t), NewMetrics(prometheus.NewPedanticRegistry())
	c, err := Dial(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdle)
	return c
}

// scopeOf returns day, region and service of a signature.
func scopeOf(r *http.Request) string {
	scope, _, _ := strings.Cut(r.Header.Get("Authorization"), ",")
	_, scope, _ = strings.Cut(scope, "/")
	return scope
}

// sdkRequest returns what the SDK would send for in.
func sdkRequest(t *testing.T, s *Conn, in *s3.PutObjectInput) (sent *http.Request) {
	t.Helper()
	client := s3.New(s.Client.Options(), func(o *s3.Options) {
		o.Retryer = aws.NopRetryer{}
		o.HTTPClient = doer(func(r *http.Request) (*http.Response, error) {
			sent = r
			return nil, errors.New("not sent")
		})
	})
	if _, err := client.PutObject(t.Context(), in, func(o *s3.Options) {
		o.APIOptions = append(o.APIOptions, v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware)
	}); err == nil || sent == nil {
		t.Fatalf("the SDK sent nothing: %v", err)
	}
	return sent
}

// TestHeadersAreTheSDKs compares everything that a request of this package may
// carry with what the SDK makes of it.
func TestHeadersAreTheSDKs(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "a")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "b")
	t.Setenv("AWS_SESSION_TOKEN", "c")
	s := openConn(t, connOptions("bucket", "http://127.0.0.1:1"))
	for _, size := range []int64{0, 5, 2 << 20} {
		in := &s3.PutObjectInput{
			Bucket: aws.String("bucket"), Key: aws.String("a/é %"), ContentLength: aws.Int64(size), ContentType: aws.String("application/octet-stream"),
			Body: bytes.NewReader(make([]byte, size)), ContentMD5: aws.String("m"), ChecksumSHA256: aws.String("s"),
			ACL: "bucket-owner-full-control", Tagging: aws.String("a=b+c"), ExpectedBucketOwner: aws.String("1"), IfMatch: aws.String(`"e"`), IfNoneMatch: aws.String("*"), StorageClass: "GLACIER_IR",
			Metadata:                  map[string]string{"MD5": "0", "note": " é  x "},
			SSEKMSEncryptionContext:   aws.String("e30="),
			SSEKMSKeyId:               aws.String("k"),
			ServerSideEncryption:      "aws:kms",
			BucketKeyEnabled:          aws.Bool(true),
			ObjectLockMode:            "GOVERNANCE",
			ObjectLockRetainUntilDate: aws.Time(time.Date(2027, 1, 2, 3, 4, 5, 6e6, time.UTC)),
		}
		theirs := sdkRequest(t, s, in)
		ours := s.Wire.request(in, aws.Credentials{AccessKeyID: "a", SecretAccessKey: "b", SessionToken: "c"}, time.Now())
		if ours.ContentLength != size {
			t.Errorf("length %d, want %d", ours.ContentLength, size)
		}
		for _, agent := range []string{ours.UserAgent(), theirs.UserAgent()} {
			if !strings.Contains(agent, userAgent) {
				t.Errorf("User-Agent %q does not name this program", agent)
			}
		}
		want := theirs.Header.Clone()
		for _, own := range []string{"Amz-Sdk-Invocation-Id", "Amz-Sdk-Request", "Authorization", "User-Agent", "X-Amz-Date", "Content-Length"} {
			want.Del(own)
		}
		got := http.Header{}
		for k, v := range ours.Header {
			got[http.CanonicalHeaderKey(k)] = v
		}
		for _, own := range []string{"Authorization", "User-Agent", "X-Amz-Date"} {
			if got.Get(own) == "" {
				t.Errorf("%s is missing", own)
			}
			got.Del(own)
		}
		if !maps.EqualFunc(got, want, slices.Equal) {
			t.Errorf("%d bytes: headers\n%v, the SDK's\n%v", size, got, want)
		}
	}
}

// doer is a client, and a transport, of one function.
type doer func(*http.Request) (*http.Response, error)

func (d doer) Do(r *http.Request) (*http.Response, error)        { return d(r) }
func (d doer) RoundTrip(r *http.Request) (*http.Response, error) { return d(r) }

// wireTo is a wire whose answers come from next.
func wireTo(next http.RoundTripper) *wire {
	m := NewMetrics(prometheus.NewRegistry())
	creds := &CredentialSource{Metrics: m, Loaded: time.Now(), Current: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: "a", SecretAccessKey: "b"}, nil
	})}
	creds.Load = func(context.Context) (aws.CredentialsProvider, error) { return creds.Current, nil }
	c := &Clock{metrics: m, log: zap.NewNop()}
	return &wire{
		Next: next, Retryer: NewRetryer(creds, c), Creds: creds, observer: &observer{metrics: m, clock: c},
		signer: sigV4{region: "us-east-1"}, scheme: "http", address: "127.0.0.1:1", host: "127.0.0.1:1", plain: "/bucket", path: "/bucket",
	}
}

func response(status int, header http.Header, body string) *http.Response {
	if header == nil {
		header = http.Header{}
	}
	return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body))}
}

const errorXML = "<?xml version=\"1.0\"?>\n<Error><Code>%s</Code><Message>because</Message><RequestId>R1</RequestId></Error>"

// TestAttempts checks after which answers a request is sent again.
func TestAttempts(t *testing.T) {
	const body = "the body"
	for _, tc := range []struct {
		name   string
		status int
		header http.Header
		body   string
		sends  int
		class  archive.Class // "": success
	}{
		{"success", 200, http.Header{"Etag": {`"e"`}}, "", 1, ""},
		{"internal error", 500, nil, fmt.Sprintf(errorXML, "InternalError"), maxAttempts, archive.ClassTransient},
		{"an error with status 200", 200, nil, fmt.Sprintf(errorXML, "InternalError"), maxAttempts, archive.ClassTransient},
		{"an error with status 200 that is bad XML", 200, nil, "<error><Code>InternalError</Code><Message>a & b</Message>", maxAttempts, archive.ClassTransient},
		{"an error with status 200 in another charset", 200, nil, `<?xml version="1.0" encoding="ISO-8859-1"?><Error><Code>SlowDown</Code></Error>`, maxAttempts, archive.ClassThrottled},
		{"a success with a text", 200, http.Header{"Etag": {`"e"`}}, "<html>thanks", 1, ""},
		{"a code before bad XML", 400, nil, "<Error><Code>XMinioInvalidObjectName</Code><Key>a&#x1;</Key></Error>", 1, archive.ClassFile},
		{"a code below another root", 403, nil, "<ErrorResponse><Code>InvalidAccessKeyId</Code></ErrorResponse>", 1, archive.ClassCredentials},
		{"a time-out without a text", 408, nil, "", maxAttempts, archive.ClassTransient},
		{"slow down", 503, nil, fmt.Sprintf(errorXML, "SlowDown"), maxAttempts, archive.ClassThrottled},
		{"throttled by KMS", 400, nil, fmt.Sprintf(errorXML, "ThrottlingException"), maxAttempts, archive.ClassThrottled},
		{"denied", 403, nil, fmt.Sprintf(errorXML, "AccessDenied"), 1, archive.ClassConfiguration},
		{"bad digest", 400, nil, fmt.Sprintf(errorXML, "BadDigest"), 1, archive.ClassChanged},
		{"a web page", 502, nil, "<html>Bad gateway", maxAttempts, archive.ClassTransient},
		{"a redirect", 307, http.Header{"Location": {"http://elsewhere"}}, "", 1, archive.ClassConfiguration},
		{"another clock, as before", 403, nil, fmt.Sprintf(errorXML, "RequestTimeTooSkewed"), 1, archive.ClassConfiguration},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sends := 0
				w := wireTo(doer(func(r *http.Request) (*http.Response, error) {
					sends++
					if b, err := io.ReadAll(r.Body); err != nil || string(b) != body {
						t.Errorf("attempt %d sent %q, %v", sends, b, err)
					}
					return response(tc.status, tc.header, tc.body), nil
				}))
				b, err := NewBody(strings.NewReader(body), int64(len(body)))
				if err != nil {
					t.Fatal(err)
				}
				out, _, err := w.Put(t.Context(), &s3.PutObjectInput{Key: aws.String("k"), ContentLength: aws.Int64(b.size)}, b)
				err = Classify(OpPut, "k", err)
				if (err == nil) != (tc.class == "") || err != nil && archive.ClassOf(err) != tc.class {
					t.Errorf("put: %v (class %s), want class %q", err, archive.ClassOf(err), tc.class)
				}
				if err == nil && strings.Trim(aws.ToString(out.ETag), `"`) != "e" {
					t.Errorf("ETag %q", strings.Trim(aws.ToString(out.ETag), `"`))
				}
				if sends != tc.sends {
					t.Errorf("%d attempts, want %d", sends, tc.sends)
				}
			})
		})
	}
}

// TestAServerMayAskForMoreTime reads how long the next attempt is to wait.
func TestAServerMayAskForMoreTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tc := range []struct {
			header      string
			least, most time.Duration
		}{
			{"", 0, maxBackoff},
			{"4000", 4 * time.Second, maxBackoff + 4*time.Second},
			{"86400000", maxRetryAfter, maxBackoff + maxRetryAfter},
			{"-1", 0, maxBackoff},
		} {
			var at []time.Time
			w := wireTo(doer(func(*http.Request) (*http.Response, error) {
				if at = append(at, time.Now()); len(at) > 1 {
					return response(200, nil, ""), nil
				}
				return response(503, http.Header{"X-Amz-Retry-After": {tc.header}}, fmt.Sprintf(errorXML, "SlowDown")), nil
			}))
			b, err := NewBody(strings.NewReader(""), 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := w.Put(t.Context(), &s3.PutObjectInput{Key: aws.String("k")}, b); err != nil {
				t.Fatal(err)
			}
			if waited := at[1].Sub(at[0]); waited < tc.least || waited > tc.most {
				t.Errorf("asked for %q ms the next attempt waited %v, want %v to %v", tc.header, waited, tc.least, tc.most)
			}
		}
	})
}

// TestAWrongClockIsCorrectedAtOnce has the server tell the time in its refusal.
func TestAWrongClockIsCorrectedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ahead := time.Hour
		w := wireTo(doer(func(r *http.Request) (*http.Response, error) {
			now := time.Now().Add(ahead)
			h := http.Header{"Date": {now.UTC().Format(http.TimeFormat)}}
			signed, err := time.Parse(signTime, signedValue(r, headerAmzDate))
			if err != nil {
				t.Error(err)
			}
			if now.Sub(signed).Abs() > 15*time.Minute {
				return response(403, h, fmt.Sprintf(errorXML, "RequestTimeTooSkewed")), nil
			}
			return response(200, h, ""), nil
		}))
		for _, ahead = range []time.Duration{time.Hour, -48 * time.Hour, 0} {
			b, err := NewBody(strings.NewReader(""), 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, h, err := w.Put(t.Context(), &s3.PutObjectInput{Key: aws.String("k")}, b); err != nil || h.date.IsZero() {
				t.Errorf("server ahead by %v: %v, dated %v", ahead, err, h.date)
			}
		}
	})
}

// signedValue returns a header that goes out under a name in lower case.
func signedValue(r *http.Request, name string) string {
	for k, v := range r.Header {
		if k == name {
			return v[0]
		}
	}
	return ""
}

// TestAnAnswerThatBreaksOffIsNoSuccess: S3 may turn a success into an error in
// its body.
func TestAnAnswerThatBreaksOffIsNoSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := wireTo(doer(func(*http.Request) (*http.Response, error) {
			r := response(200, nil, "<Err")
			r.ContentLength, r.Body = 100, io.NopCloser(io.MultiReader(strings.NewReader("<Err"), failing{}))
			return r, nil
		}))
		b, err := NewBody(strings.NewReader(""), 0)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = w.Put(t.Context(), &s3.PutObjectInput{Key: aws.String("k")}, b)
		if err = Classify(OpPut, "k", err); archive.ClassOf(err) != archive.ClassTransient {
			t.Errorf("put: %v, want class transient", err)
		}
	})
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// TestABodyIsNotReadAfterItsAttempt has a transport that answers early and goes
// on reading.
func TestABodyIsNotReadAfterItsAttempt(t *testing.T) {
	late := make(chan io.Reader, maxAttempts)
	w := wireTo(doer(func(r *http.Request) (*http.Response, error) {
		late <- r.Body
		return response(200, nil, ""), nil
	}))
	content := []byte("content")
	b, err := NewBody(bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Put(t.Context(), &s3.PutObjectInput{Key: aws.String("k"), ContentLength: aws.Int64(b.size)}, b); err != nil {
		t.Fatal(err)
	}
	if n, err := (<-late).Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the transport read %d bytes of a buffer that is not its own any more, %v", n, err)
	}
}

// BenchmarkPutRequest is what a PUT costs this process before it goes to the
// connection: headers and signature.
func BenchmarkPutRequest(b *testing.B) {
	w := wireTo(nil)
	in := &s3.PutObjectInput{
		Key: aws.String("data/2026/11/some file.log"), ContentLength: aws.Int64(4096), ContentType: aws.String("application/octet-stream"),
		ContentMD5: aws.String("1B2M2Y8AsgTpgAmY7PhCfg=="), ChecksumSHA256: aws.String("47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="),
		SSEKMSKeyId: aws.String(s3test.FakeKeyARN), ServerSideEncryption: "aws:kms", BucketKeyEnabled: aws.Bool(true),
		Metadata: map[string]string{archive.MetaMD5: "d41d8cd98f00b204e9800998ecf8427e", archive.MetaID: "host-1/0badcafe/7", archive.MetaOwner: "0"},
	}
	c := aws.Credentials{AccessKeyID: "AKID", SecretAccessKey: "secret", SessionToken: "token"}
	b.ReportAllocs()
	for b.Loop() {
		if r := w.request(in, c, time.Now()); r.Method != http.MethodPut {
			b.Fatal(r.Method)
		}
	}
}
