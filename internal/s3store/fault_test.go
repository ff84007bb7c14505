package s3store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/internal/s3test"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// What the connection does, as operators see it.
const (
	attempts         = 3  // of one request
	answersThatAgree = 5  // before a Date is believed
	requestKinds     = 10 // that have a histogram from the start
)

func headInput(bucket, key string) *s3.HeadObjectInput {
	return &s3.HeadObjectInput{Bucket: aws.String(bucket), Key: aws.String(key)}
}

func TestListDenied(t *testing.T) {
	f, s := fakeStore(t, nil)
	f.Behave(func(b *s3test.Behavior) { b.ListDenied = true })
	if err := s.Ping(t.Context()); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("Ping before the canary: %v, want fs.ErrPermission", err)
	}
	if err := s.Probe(t.Context()); err != nil {
		t.Fatalf("Probe: %v", err)
	}
	if !s.Capabilities().ListDenied {
		t.Error("the canary did not learn that listing is denied")
	}
	if err := s.Ping(t.Context()); err != nil {
		t.Errorf("Ping: %v", err)
	}
	if _, err := s.Head(t.Context(), "data/missing"); !errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Head of a missing key: %v, want fs.ErrPermission", err)
	}
	if _, err := s.Put(t.Context(), put("data/missing", []byte("1"), archive.Condition{Absent: true})); err != nil {
		t.Errorf("Put: %v", err)
	}
}

// A server that does not say what stands there may ignore the condition, too.
func TestNothingIsDeletedUnseen(t *testing.T) {
	f, s := fakeStore(t, nil)
	f.Behave(func(b *s3test.Behavior) { b.ListDenied = true })
	if err := s.Probe(t.Context()); err != nil {
		t.Fatalf("Probe: %v", err)
	}
	if _, err := s.Put(t.Context(), put("data/a", []byte("1"), archive.Condition{Absent: true})); err != nil {
		t.Fatalf("Put: %v", err)
	}
	f.Answer(s3test.Match{Op: s3conn.OpHead, Key: "data/a", Times: -1}, 403, "")
	if _, err := s.Delete(t.Context(), "data/a", archive.Condition{ETag: "another"}); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("Delete = %v, want the refusal", err)
	}
	if n := f.Count(s3test.Match{Op: "DeleteObject", Key: "data/a"}); n != 0 {
		t.Errorf("%d deletions were sent", n)
	}
}

func TestRefusedHeadIsExplainedOnceAMinute(t *testing.T) {
	f, s := fakeStore(t, nil)
	f.Answer(s3test.Match{Op: s3conn.OpHead, Times: -1}, 403, "")
	f.Answer(s3test.Match{Op: s3conn.OpGet, Times: -1}, 403, "InvalidAccessKeyId")
	for range 3 {
		_, err := s.Head(t.Context(), "data/a")
		if archive.ClassOf(err) != archive.ClassCredentials || !strings.Contains(err.Error(), "InvalidAccessKeyId") || !errors.Is(err, fs.ErrPermission) {
			t.Errorf("Head: %v, want the code behind the refusal", err)
		}
	}
	if n := f.Count(s3test.Match{Op: s3conn.OpGet}); n != 1 {
		t.Errorf("asked %d times, want 1", n)
	}
}

func TestMissingConditionsAreWorkedAround(t *testing.T) {
	f, s := fakeStore(t, nil)
	f.Behave(func(b *s3test.Behavior) { b.IgnoreConditions, b.IgnoreMD5 = true, true })
	if err := s.Probe(t.Context()); err != nil {
		t.Fatalf("Probe: %v", err)
	}
	if c := s.Capabilities(); c.IfNoneMatch || c.IfMatch || c.ContentMD5 {
		t.Errorf("Capabilities = %+v, want none of the checks", c)
	}
	f.Forget()
	o, err := s.Put(t.Context(), put("data/a", []byte("1"), archive.Condition{Absent: true}))
	if err != nil {
		t.Fatalf("Put: %v", err)
	}
	if _, err := s.Put(t.Context(), put("data/a", []byte("2"), archive.Condition{Absent: true})); !errors.Is(err, archive.ErrPrecondition) {
		t.Errorf("Put over an object: %v, want ErrPrecondition", err)
	}
	if _, err := s.Put(t.Context(), put("data/a", []byte("2"), archive.Condition{ETag: "x"})); !errors.Is(err, archive.ErrPrecondition) {
		t.Errorf("Put over another ETag: %v, want ErrPrecondition", err)
	}
	if _, err := s.Delete(t.Context(), "data/a", archive.Condition{ETag: "x"}); !errors.Is(err, archive.ErrPrecondition) {
		t.Errorf("Delete of another ETag: %v, want ErrPrecondition", err)
	}
	if _, err := s.Put(t.Context(), put("data/a", []byte("2"), archive.Condition{ETag: o.ETag})); err != nil {
		t.Errorf("Put over the known ETag: %v", err)
	}
	for _, r := range f.Ledger() {
		if r.Header.Get("If-Match")+r.Header.Get("If-None-Match") != "" {
			t.Errorf("%s carries a condition that the server does not know", r.Op)
		}
	}
}

func TestProbeFaults(t *testing.T) {
	for _, c := range []struct {
		name  string
		plan  func(f *s3test.Fake)
		class archive.Class
	}{
		{"a disabled key", func(f *s3test.Fake) { f.Behave(func(b *s3test.Behavior) { b.KMSError = "KMS.DisabledException" }) }, archive.ClassConfiguration},
		{"no right to write", func(f *s3test.Fake) { f.Answer(s3test.Match{Op: s3conn.OpPut}, 403, "AccessDenied") }, archive.ClassConfiguration},
		{"no right to read", func(f *s3test.Fake) { f.Answer(s3test.Match{Op: s3conn.OpHead, Times: -1}, 403, "") }, archive.ClassConfiguration},
		{"lost metadata", func(f *s3test.Fake) { f.Behave(func(b *s3test.Behavior) { b.DropMetadata = true }) }, archive.ClassConfiguration},
		{"an outage", func(f *s3test.Fake) { f.Answer(s3test.Match{Op: s3conn.OpPut, Times: -1}, 500, "InternalError") }, archive.ClassTransient},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, s := fakeStore(t, nil)
			c.plan(f)
			if err := s.Probe(t.Context()); err == nil || archive.ClassOf(err) != c.class {
				t.Errorf("Probe: %v, want class %s", err, c.class)
			}
			if !s.Capabilities().CheckedAt.IsZero() {
				t.Error("a canary that failed left capabilities")
			}
		})
	}
}

func TestRequestIsTriedThreeTimes(t *testing.T) {
	f, s := fakeStore(t, nil)
	f.Answer(s3test.Match{Op: s3conn.OpPut, Times: 2}, 503, "SlowDown")
	if _, err := s.Put(t.Context(), put("data/a", []byte("again"), archive.Condition{})); err != nil {
		t.Errorf("Put at the third attempt: %v", err)
	}
	f.Answer(s3test.Match{Op: s3conn.OpHead, Times: -1}, 503, "")
	if _, err := s.Head(t.Context(), "data/a"); archive.ClassOf(err) != archive.ClassThrottled {
		t.Errorf("Head: %v, want class throttled", err)
	}
	if n := f.Count(s3test.Match{Op: s3conn.OpHead}); n != attempts {
		t.Errorf("%d attempts, want %d", n, attempts)
	}
}

func TestRetriesNeverRunOut(t *testing.T) {
	f, s := fakeStore(t, nil)
	f.Answer(s3test.Match{Op: s3conn.OpHead, Times: -1}, 500, "")
	const calls = 200
	done := make(chan error, calls)
	for range calls {
		go func() { _, err := s.Head(t.Context(), "data/a"); done <- err }()
	}
	for range calls {
		if err := <-done; archive.ClassOf(err) != archive.ClassTransient {
			t.Errorf("Head: %v, want class transient", err)
		}
	}
	if n := f.Count(s3test.Match{Op: s3conn.OpHead}); n != calls*attempts {
		t.Errorf("%d attempts for %d calls, want %d each", n, calls, attempts)
	}
}

func TestLostAnswerShowsAsPrecondition(t *testing.T) {
	f, s := fakeStore(t, nil)
	f.Lose(s3test.Match{Op: s3conn.OpPut})
	if _, err := s.Put(t.Context(), put("data/a", []byte("1"), archive.Condition{Absent: true})); !errors.Is(err, archive.ErrPrecondition) {
		t.Errorf("Put: %v, want ErrPrecondition", err)
	}
	if o, err := s.Head(t.Context(), "data/a"); err != nil || o.Metadata[archive.MetaID] != "host-1/0badcafe/7" {
		t.Errorf("Head = %+v, %v, want our own object", o, err)
	}
}

func TestStalledAttemptsEnd(t *testing.T) {
	f, s := fakeStore(t, func(o *Options) { o.StallLimit, o.CompleteLimit = 100*time.Millisecond, 10*time.Second })
	large := bytes.Repeat([]byte("x"), 16<<20) // More than the sockets hold.
	for name, m := range map[string]s3test.Match{
		"no answer":          {Op: s3conn.OpHead, Times: -1},
		"a body not taken":   {Op: s3conn.OpPut, Times: -1},
		"a part not taken":   {Op: s3conn.OpPart, Times: -1},
		"a listing withheld": {Op: s3conn.OpList, Times: -1},
	} {
		p := f.Stall(m)
		start := time.Now()
		var err error
		switch m.Op {
		case s3conn.OpHead:
			_, err = s.Head(t.Context(), "data/a")
		case s3conn.OpPut:
			_, err = s.Put(t.Context(), put("data/a", large, archive.Condition{}))
		case s3conn.OpPart:
			_, err = s.UploadPart(t.Context(), "data/a", "u", 1, bytes.NewReader(large), int64(len(large)), 0)
		case s3conn.OpList:
			err = s.List(t.Context(), "data/", "", func(archive.Object) error { return nil })
		}
		if _, ok := errors.AsType[*s3conn.StalledError](err); !ok || archive.ClassOf(err) != archive.ClassTransient {
			t.Errorf("%s: %v, want a stall", name, err)
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("%s: took %v", name, took)
		}
		p.Release()
	}
}

// slowReader gives its bytes in small pieces with a pause before each.
type slowReader struct {
	io.ReadSeeker

	pause time.Duration
}

func (r *slowReader) Read(p []byte) (int, error) {
	<-time.After(r.pause)
	return r.ReadSeeker.Read(p[:1])
}

func TestSlowSourceIsNoStall(t *testing.T) {
	_, s := fakeStore(t, func(o *Options) { o.StallLimit = 40 * time.Millisecond })
	p := put("data/slow", []byte("abc"), archive.Condition{})
	p.Body = &slowReader{p.Body, 100 * time.Millisecond}
	if _, err := s.Put(t.Context(), p); err != nil {
		t.Errorf("Put of a slow source: %v", err)
	}
}

func TestCompleteMayTakeLonger(t *testing.T) {
	f, s := fakeStore(t, func(o *Options) { o.StallLimit, o.CompleteLimit = 50*time.Millisecond, 20*time.Second })
	c := upload(t, s, "data/m", []byte("x"))
	p := f.Hold(s3test.Match{Op: s3conn.OpComplete})
	go func() {
		p.Wait(t)
		<-time.After(300 * time.Millisecond)
		p.Release()
	}()
	if _, err := s.Complete(t.Context(), c); err != nil {
		t.Errorf("Complete: %v", err)
	}
	if n := f.Count(s3test.Match{Op: s3conn.OpComplete}); n != 1 {
		t.Errorf("%d attempts, want 1", n)
	}
}

func TestCutDownloadIsTransient(t *testing.T) {
	f, s := fakeStore(t, nil)
	f.Store("bucket", s3test.FakeObject{Key: "data/a", Body: bytes.Repeat([]byte("x"), 1<<20)})
	f.Truncate(s3test.Match{Op: s3conn.OpGet})
	r, _, err := s.Get(t.Context(), "data/a")
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	defer r.Close()
	if _, err := io.Copy(io.Discard, r); archive.ClassOf(err) != archive.ClassTransient || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read: %v, want a transient unexpected EOF", err)
	}
}

func TestCanceledRequestSaysSo(t *testing.T) {
	f, s := fakeStore(t, nil)
	p := f.Hold(s3test.Match{Op: s3conn.OpHead})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { p.Wait(t); cancel() }()
	if _, err := s.Head(ctx, "data/a"); !archive.Interrupted(ctx, err) {
		t.Errorf("Head: %v, want an interruption", err)
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	f, s := fakeStore(t, nil)
	other := s3test.NewFake(t, "bucket")
	f.Answer(s3test.Match{Op: s3conn.OpPut}, 307, "TemporaryRedirect", "Location", other.URL+"/bucket/data/a")
	_, err := s.Put(t.Context(), put("data/a", []byte("1"), archive.Condition{}))
	if archive.ClassOf(err) != archive.ClassConfiguration || !strings.Contains(err.Error(), other.URL) {
		t.Errorf("Put: %v, want configuration and the other address", err)
	}
	if n := len(other.Ledger()); n != 0 {
		t.Errorf("the other host got %d requests", n)
	}
}

func TestEndpointsInTheClearAreRefused(t *testing.T) {
	s3test.Credentials{AccessKeyID: "a", SecretAccessKey: "b"}.Setenv(t)
	for _, c := range []struct {
		endpoint string
		insecure bool
		ok       bool
	}{
		{"http://s3.example.com", false, false},
		{"http://s3.example.com", true, true},
		{"https://s3.example.com", false, true},
		{"http://127.0.0.1:9000", false, true},
		{"http://[::1]:9000", false, true},
		{"http://localhost", false, true},
		{"http://localhost.example.com", false, false},
		{"ftp://127.0.0.1", true, false},
		{"127.0.0.1:9000", true, false},
		{"https://user:secret@s3.example.com", false, false},
	} {
		for _, fromEnv := range []bool{false, true} {
			o := options(c.endpoint, "bucket", "key")
			o.AllowInsecure, o.Metrics = c.insecure, s3conn.NewMetrics(prometheus.NewRegistry())
			o.Log = openStore(t, options("https://s3.example.com", "b", "k")).conn.Log
			if fromEnv {
				o.EndpointURL = ""
				t.Setenv("AWS_ENDPOINT_URL_S3", c.endpoint)
			}
			_, err := Open(t.Context(), o)
			if (err == nil) != c.ok || err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("Open(%s, insecure %v, environment %v): %v, want ok %v", c.endpoint, c.insecure, fromEnv, err, c.ok)
			}
			t.Setenv("AWS_ENDPOINT_URL_S3", "")
		}
	}
}

func TestPrivateAuthorityIsNeeded(t *testing.T) {
	srv := s3test.MinIOTLS(t)
	srv.Root.Setenv(t)
	t.Setenv("AWS_CA_BUNDLE", "")
	s := openStore(t, options(srv.URL, "bucket", s3test.KeyName))
	if err := s.Ping(t.Context()); archive.ClassOf(err) != archive.ClassConfiguration {
		t.Errorf("Ping without the CA: %v (class %s), want configuration", err, archive.ClassOf(err))
	}
}

func TestRotatedCredentialsAreTakenUp(t *testing.T) {
	f, _ := fakeStore(t, nil)
	file := filepath.Join(t.TempDir(), "credentials")
	write := func(id string) {
		if err := os.WriteFile(file, []byte("[default]\naws_access_key_id = "+id+"\naws_secret_access_key = s\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("OLDKEY")
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file)
	s := openStore(t, options(f.URL, "bucket", s3test.FakeKeyARN))
	s.conn.Expire()
	write("NEWKEY")
	f.Answer(s3test.Match{Op: s3conn.OpPut}, 403, "InvalidAccessKeyId")
	p := put("data/a", []byte("1"), archive.Condition{})
	if _, err := s.Put(t.Context(), p); err != nil {
		t.Fatalf("Put: %v, want a second attempt with the new credentials", err)
	}
	l := f.Ledger()
	for i, want := range []string{"OLDKEY", "NEWKEY"} {
		if got := l[i].Header.Get("Authorization"); !strings.Contains(got, want) {
			t.Errorf("request %d was signed %q, want with %s", i, got, want)
		}
	}
}

func TestNoCredentials(t *testing.T) {
	f := s3test.NewFake(t, "bucket")
	s3test.Credentials{}.Setenv(t)
	s := openStore(t, options(f.URL, "bucket", s3test.FakeKeyARN))
	if err := s.Ping(t.Context()); archive.ClassOf(err) != archive.ClassCredentials {
		t.Errorf("Ping: %v (class %s), want credentials", err, archive.ClassOf(err))
	}
	if n := len(f.Ledger()); n != 0 {
		t.Errorf("%d requests without credentials", n)
	}
}

func TestClockOffset(t *testing.T) {
	f, s := fakeStore(t, nil)
	if err := s.Ping(t.Context()); err != nil || s.ClockOffset() != 0 {
		t.Errorf("ClockOffset = %v, %v, want 0 for equal clocks", s.ClockOffset(), err)
	}
	f.Behave(func(b *s3test.Behavior) { b.Clock = time.Hour })
	for range answersThatAgree + 1 {
		if err := s.Ping(t.Context()); err != nil {
			t.Fatalf("Ping: %v", err)
		}
	}
	if d := s.ClockOffset() - time.Hour; d.Abs() > 2*time.Second {
		t.Errorf("ClockOffset = %v, want an hour", s.ClockOffset())
	}
	if d := s.Now().Sub(time.Now().Add(time.Hour)); d.Abs() > 2*time.Second {
		t.Errorf("Now is %v off", d)
	}
	f.Behave(func(b *s3test.Behavior) { b.Clock = 0 })
	for range answersThatAgree + 1 {
		if err := s.Ping(t.Context()); err != nil {
			t.Fatalf("Ping: %v", err)
		}
	}
	if s.ClockOffset() != 0 {
		t.Errorf("ClockOffset = %v, want 0 again", s.ClockOffset())
	}
}

func TestListPages(t *testing.T) {
	f, s := fakeStore(t, nil)
	f.Behave(func(b *s3test.Behavior) { b.PageSize = 2 })
	for _, k := range []string{"a", "b", "c", "d", "e"} {
		f.Store("bucket", s3test.FakeObject{Key: "data/" + k})
	}
	var got strings.Builder
	if err := s.List(t.Context(), "data/", "", func(o archive.Object) error { got.WriteString(o.Key[5:]); return nil }); err != nil || got.String() != "abcde" {
		t.Errorf("List = %q, %v, want abcde", got.String(), err)
	}
	if n := f.Count(s3test.Match{Op: s3conn.OpList}); n != 3 {
		t.Errorf("%d pages, want 3", n)
	}
}

func TestRequestMetrics(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	f, s := fakeStore(t, func(o *Options) { o.Metrics = s3conn.NewMetrics(reg) })
	if n, err := testutil.GatherAndCount(reg, "s3syncd_s3_request_duration_seconds"); err != nil || n != requestKinds {
		t.Errorf("%d histograms at the start, %v, want %d", n, err, requestKinds)
	}
	f.Answer(s3test.Match{Op: s3conn.OpPut}, http.StatusServiceUnavailable, "SlowDown")
	f.Cut(s3test.Match{Op: s3conn.OpPart})
	if _, err := s.Put(t.Context(), put("data/a", []byte("1"), archive.Condition{})); err != nil {
		t.Fatalf("Put: %v", err)
	}
	upload(t, s, "data/m", []byte("x"))
	want := `# HELP s3syncd_s3_requests_total Requests sent to S3, each attempt by itself, by HTTP status (none: no answer).
# TYPE s3syncd_s3_requests_total counter
s3syncd_s3_requests_total{code="200",op="CreateMultipartUpload"} 1
s3syncd_s3_requests_total{code="200",op="PutObject"} 1
s3syncd_s3_requests_total{code="200",op="UploadPart"} 1
s3syncd_s3_requests_total{code="503",op="PutObject"} 1
s3syncd_s3_requests_total{code="none",op="UploadPart"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "s3syncd_s3_requests_total"); err != nil {
		t.Error(err)
	}
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) != 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
	if n, err := testutil.GatherAndCount(reg); err != nil || n > 20 {
		t.Errorf("%d metrics, %v, want few", n, err)
	}
}

func TestBodyIsReadOnce(t *testing.T) {
	_, s := fakeStore(t, nil)
	p := put("data/a", bytes.Repeat([]byte("x"), 1<<20), archive.Condition{})
	r := &countingReader{ReadSeeker: p.Body}
	p.Body = r
	if _, err := s.Put(t.Context(), p); err != nil {
		t.Fatalf("Put: %v", err)
	}
	if r.n != p.Size {
		t.Errorf("read %d bytes of %d", r.n, p.Size)
	}
}

type countingReader struct {
	io.ReadSeeker

	n int64
}

func (r *countingReader) Read(p []byte) (int, error) {
	n, err := r.ReadSeeker.Read(p)
	r.n += int64(n)
	return n, err
}

func TestRestrictedUser(t *testing.T) {
	srv := s3test.MinIO(t)
	bucket := srv.Bucket(t)
	srv.User(t, `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["s3:PutObject","s3:GetObject"],"Resource":"arn:aws:s3:::`+bucket+`/*"}]}`).Setenv(t)
	s := openStore(t, options(srv.URL, bucket, s3test.KeyName))
	if err := s.Probe(t.Context()); err != nil {
		t.Fatalf("Probe with the least policy: %v", err)
	}
	if err := s.List(t.Context(), "data/", "", func(archive.Object) error { return nil }); !errors.Is(err, fs.ErrPermission) || archive.ClassOf(err) != archive.ClassConfiguration {
		t.Errorf("List: %v, want a refusal", err)
	}
	if _, err := s.Delete(t.Context(), "data/a", archive.Condition{}); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("Delete: %v, want a refusal", err)
	}
}

func TestOutageAndRecovery(t *testing.T) {
	srv := s3test.MinIO(t)
	srv.Setenv(t)
	n := s3test.NewNetwork(t, srv.URL)
	o := options(n.URL, srv.Bucket(t), s3test.KeyName)
	o.StallLimit = 200 * time.Millisecond
	s := openStore(t, o)
	for name, fault := range map[string]func(){"down": n.Down, "reset": n.Reset, "silence": n.Silence} {
		fault()
		if err := s.Ping(t.Context()); err == nil || archive.ClassOf(err) != archive.ClassTransient {
			t.Errorf("%s: Ping: %v, want class transient", name, err)
		}
		if name == "down" {
			n.Up()
		}
		n.Heal()
		s.CloseIdle()
		if err := s.Ping(t.Context()); err != nil {
			t.Errorf("after %s: Ping: %v", name, err)
		}
	}
}
