package s3store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/encoding/httpbinding"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/s3syncd/s3syncd/internal/s3test"
	"github.com/s3syncd/s3syncd/pkg/state"
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
			t.Skip()
		}
		w := &wire{signer: sigV4{region: "eu-central-1"}, scheme: "https", host: "b.s3.example.com:9000", path: "/x%20y"}
		c := aws.Credentials{AccessKeyID: "AKID", SecretAccessKey: secret, SessionToken: token}
		now := time.Unix(seconds, 0)
		for range 2 { // The second time with the key that the first has derived.
			req := w.request(&s3.PutObjectInput{
				Key: aws.String(key), ContentLength: aws.Int64(size), ContentType: aws.String(contentBinary), IfNoneMatch: aws.String(ifAbsent),
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
	w := &wire{signer: sigV4{region: "us-east-1"}, scheme: "https", host: "h"}
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
		{"endpoint of the environment", map[string]string{"AWS_ENDPOINT_URL_S3": "https://gw.example.com"}, func(o *Options) { o.EndpointURL, o.PathStyle = "", false }, "https://gw.example.com/my-bucket/a"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, v := range []string{"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT"} {
				t.Setenv(v, tc.env[v])
			}
			t.Setenv("AWS_ACCESS_KEY_ID", "a")
			t.Setenv("AWS_SECRET_ACCESS_KEY", "b")
			o := options("", "my-bucket", s3test.FakeKeyARN)
			o.Region = "eu-central-1"
			tc.o(&o)
			s := openStore(t, o)
			var theirs string
			s.client = s3.New(s.client.Options(), func(o *s3.Options) { o.HTTPClient = seen(&theirs) })
			_, _ = s.client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String(o.Bucket), Key: aws.String("a")}) // It is not sent.
			ours := s.wire.request(&s3.PutObjectInput{Key: aws.String("a")}, aws.Credentials{}, time.Now()).URL.String()
			if theirs, _, _ = strings.Cut(theirs, "?"); ours != tc.want || ours != theirs {
				t.Errorf("request to %s, the SDK's to %s, want %s", ours, theirs, tc.want)
			}
		})
	}
}

// seen is a client that notes where a request goes and sends nothing.
func seen(to *string) doer {
	return func(r *http.Request) (*http.Response, error) {
		*to = r.URL.String()
		return nil, errors.New("not sent")
	}
}

type doer func(*http.Request) (*http.Response, error)

func (d doer) Do(r *http.Request) (*http.Response, error)        { return d(r) }
func (d doer) RoundTrip(r *http.Request) (*http.Response, error) { return d(r) }

// wireTo is a wire whose answers come from next.
func wireTo(next http.RoundTripper) *wire {
	m := NewMetrics(prometheus.NewRegistry())
	creds := &credentialSource{metrics: m, loaded: time.Now(), current: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: "a", SecretAccessKey: "b"}, nil
	})}
	creds.load = func(context.Context) (aws.CredentialsProvider, error) { return creds.current, nil }
	return &wire{
		next: next, retryer: newRetryer(creds), creds: creds, observer: &observer{metrics: m, clock: &clock{metrics: m}},
		signer: sigV4{region: "us-east-1"}, scheme: "http", host: "127.0.0.1:1", path: "/bucket",
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
		class  state.Class // "": success
	}{
		{"success", 200, http.Header{"Etag": {`"e"`}}, "", 1, ""},
		{"internal error", 500, nil, fmt.Sprintf(errorXML, "InternalError"), maxAttempts, state.ClassTransient},
		{"an error with status 200", 200, nil, fmt.Sprintf(errorXML, "InternalError"), maxAttempts, state.ClassTransient},
		{"slow down", 503, nil, fmt.Sprintf(errorXML, "SlowDown"), maxAttempts, state.ClassThrottled},
		{"throttled by KMS", 400, nil, fmt.Sprintf(errorXML, "ThrottlingException"), maxAttempts, state.ClassThrottled},
		{"denied", 403, nil, fmt.Sprintf(errorXML, "AccessDenied"), 1, state.ClassConfiguration},
		{"bad digest", 400, nil, fmt.Sprintf(errorXML, "BadDigest"), 1, state.ClassChanged},
		{"a web page", 502, nil, "<html>Bad gateway", maxAttempts, state.ClassTransient},
		{"a redirect", 307, http.Header{"Location": {"http://elsewhere"}}, "", 1, state.ClassConfiguration},
		{"another clock, as before", 403, nil, fmt.Sprintf(errorXML, "RequestTimeTooSkewed"), 1, state.ClassConfiguration},
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
				b, err := newBody(strings.NewReader(body), int64(len(body)))
				if err != nil {
					t.Fatal(err)
				}
				out, _, err := w.put(t.Context(), &s3.PutObjectInput{Key: aws.String("k"), ContentLength: aws.Int64(b.size)}, b)
				err = classify(opPut, "k", err)
				if (err == nil) != (tc.class == "") || err != nil && state.ClassOf(err) != tc.class {
					t.Errorf("put: %v (class %s), want class %q", err, state.ClassOf(err), tc.class)
				}
				if err == nil && etag(out.ETag) != "e" {
					t.Errorf("ETag %q", etag(out.ETag))
				}
				if sends != tc.sends {
					t.Errorf("%d attempts, want %d", sends, tc.sends)
				}
			})
		})
	}
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
			b, err := newBody(strings.NewReader(""), 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, h, err := w.put(t.Context(), &s3.PutObjectInput{Key: aws.String("k")}, b); err != nil || h.date.IsZero() {
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
		b, err := newBody(strings.NewReader(""), 0)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = w.put(t.Context(), &s3.PutObjectInput{Key: aws.String("k")}, b)
		if err = classify(opPut, "k", err); state.ClassOf(err) != state.ClassTransient {
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
	b, err := newBody(bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.put(t.Context(), &s3.PutObjectInput{Key: aws.String("k"), ContentLength: aws.Int64(b.size)}, b); err != nil {
		t.Fatal(err)
	}
	if n, err := (<-late).Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the transport read %d bytes of a buffer that is not its own any more, %v", n, err)
	}
}
