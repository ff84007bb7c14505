package s3test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

// failures stands in for a test that is expected to fail.
type failures struct {
	testing.TB

	n int
}

func (f *failures) Helper()               {}
func (f *failures) Errorf(string, ...any) { f.n++ }

func TestUnfiredFaultFailsTheTest(t *testing.T) {
	f := NewFake(t, "bucket")
	p := f.plan(Match{Op: "PutObject"})
	lone := &Faults{faults: []*Fault{p}}
	var failed failures
	lone.verify(&failed)
	if failed.n != 1 {
		t.Errorf("a fault that never fired failed %d times, want 1", failed.n)
	}
	p.fired = 1
	failed.n = 0
	if lone.verify(&failed); failed.n != 0 {
		t.Errorf("a fault that fired failed %d times, want 0", failed.n)
	}
}

func TestFaultTakesTheChosenRequests(t *testing.T) {
	f := NewFake(t, "bucket")
	f.Answer(Match{Method: http.MethodGet, Key: "b", Skip: 1, Times: 2}, http.StatusTeapot, "Teapot")
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	var got []int
	for _, key := range []string{"a", "b", "a", "b", "ab", "b"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.URL+"/bucket/"+key, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "x")
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		got = append(got, resp.StatusCode)
	}
	want := []int{404, 404, 404, 418, 418, 404}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("statuses = %v, want %v", got, want)
		}
	}
	if n := f.Count(Match{Key: "b"}); n != 4 {
		t.Errorf("Count = %d, want 4", n)
	}
}

// through returns a client of srv that goes by way of url.
func through(srv *Server, url string) *s3.Client {
	return s3.New(srv.Client().Options(), func(o *s3.Options) { o.BaseEndpoint = aws.String(url) })
}

func TestProxyHoldsAnAnswerAfterTheServerActed(t *testing.T) {
	srv := MinIO(t)
	bucket := srv.Bucket(t)
	p := NewProxy(t, srv.URL)
	held := p.Hold(Match{Op: "PutObject", Key: "k v"})
	done := make(chan error, 1)
	go func() {
		_, err := through(srv, p.URL).PutObject(t.Context(), &s3.PutObjectInput{
			Bucket: aws.String(bucket), Key: aws.String("k v+é"), Body: bytes.NewReader(bytes.Repeat([]byte("x"), 3<<20)),
			ServerSideEncryption: types.ServerSideEncryptionAwsKms, SSEKMSKeyId: aws.String(KeyName),
		})
		done <- err
	}()
	held.Wait(t)
	h, err := srv.Client().HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: aws.String(bucket), Key: aws.String("k v+é")})
	if err != nil || aws.ToString(h.SSEKMSKeyId) != KeyARN || aws.ToInt64(h.ContentLength) != 3<<20 {
		t.Errorf("HEAD while the answer is held: %+v, %v, want the object", h, err)
	}
	select {
	case err := <-done:
		t.Errorf("PutObject ended before its answer was released: %v", err)
	default:
	}
	held.Release()
	if err := <-done; err != nil {
		t.Errorf("PutObject: %v", err)
	}
}

func TestProxyLosesAnswers(t *testing.T) {
	srv := MinIO(t)
	bucket := srv.Bucket(t, BucketOptions{Versioning: true})
	p := NewProxy(t, srv.URL)
	p.Lose(Match{Op: "PutObject"})
	_, err := through(srv, p.URL).PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String(bucket), Key: aws.String("k"), Body: strings.NewReader("x")})
	if _, ok := errors.AsType[smithy.APIError](err); err == nil || ok {
		t.Errorf("PutObject: %v, want a broken connection", err)
	}
	v, err := srv.Client().ListObjectVersions(t.Context(), &s3.ListObjectVersionsInput{Bucket: aws.String(bucket)})
	if err != nil || len(v.Versions) != 1 {
		t.Errorf("versions = %+v, %v, want one", v, err)
	}
}

func TestProxyStripsAndTruncates(t *testing.T) {
	srv := MinIO(t)
	bucket := srv.Bucket(t)
	p := NewProxy(t, srv.URL)
	c := through(srv, p.URL)
	p.Strip(Match{Op: "PutObject"}, "X-Amz-Server-Side-Encryption")
	out, err := c.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: aws.String(bucket), Key: aws.String("k"), Body: strings.NewReader("0123456789"),
		ServerSideEncryption: types.ServerSideEncryptionAwsKms, SSEKMSKeyId: aws.String(KeyName),
	})
	if err != nil || out.ServerSideEncryption != "" || out.SSEKMSKeyId != nil || out.ETag == nil {
		t.Errorf("PutObject = %+v, %v, want an answer without encryption", out, err)
	}
	p.Truncate(Match{Op: "GetObject"})
	get, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String(bucket), Key: aws.String("k")})
	if err != nil {
		t.Fatalf("GetObject: %v", err)
	}
	defer get.Body.Close()
	if b, err := io.ReadAll(get.Body); !errors.Is(err, io.ErrUnexpectedEOF) || string(b) != "01234" {
		t.Errorf("body = %q, %v, want half of it", b, err)
	}
}

func TestMissingServerSaysHowToGetIt(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("S3SYNCD_TEST_MINIO", "")
	t.Chdir(dir)
	if _, err := minioBinary(); err == nil || !strings.Contains(err.Error(), "make tools") {
		t.Errorf("minioBinary: %v, want advice", err)
	}
}
