package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/s3syncd/s3syncd/internal/admin"
	"github.com/s3syncd/s3syncd/internal/s3test"
)

// ask runs a command that asks the site's daemon.
func (s *site) ask(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return command(t, nil, append(args, "-c", s.file)...)
}

// mustFlush flushes and fails the test unless that is done.
func (s *site) mustFlush(t *testing.T) {
	t.Helper()
	if code, out, errs := s.ask(t, "flush"); code != 0 {
		t.Fatalf("flush = %d %q %q, want 0", code, out, errs)
	}
}

func (s *site) socket() string { return filepath.Join(s.state, "control.sock") }

func (s *site) status(t *testing.T) admin.Status {
	t.Helper()
	st, err := admin.NewClient(s.socket()).Status(t.Context())
	if err != nil {
		t.Fatalf("status: %v", err)
	}
	return st
}

func TestWhenFlushReturnsBucketAndTrailHoldEverything(t *testing.T) {
	s := newSite(t, "", "manifest: {flush_interval: 1h, digest_interval: 1h}")
	d := s.daemon(t)
	rounds := 12
	if thorough {
		rounds = 150
	}
	removed := 0
	for round := range rounds {
		for i := range 20 {
			write(t, s.path(fmt.Sprintf("new/%d/%d/f", round, i)), fmt.Sprintf("%d.%d", round, i))
			write(t, s.path(fmt.Sprintf("same/%d", i)), fmt.Sprintf("changed in %d", round))
		}
		tmp := s.path(".over")
		write(t, tmp, fmt.Sprintf("renamed in %d", round))
		if err := os.Rename(tmp, s.path("over")); err != nil {
			t.Fatal(err)
		}
		gone := s.path(fmt.Sprintf("gone-%d", round))
		if round%2 == 0 {
			write(t, gone, "soon removed")
		} else {
			last := s.path(fmt.Sprintf("gone-%d", round-1))
			if err := os.Remove(last); err != nil {
				t.Fatal(err)
			}
			removed++
		}
		s.mustFlush(t)
		tr := s.bucket.readTrail(t)
		s.bucket.wantTreeBut(t, s.dir, &tr, "/gone-")
		if got := tr.count("deleted"); got != removed {
			t.Fatalf("round %d: %d deleted records, want %d", round, got, removed)
		}
		if t.Failed() {
			t.Fatalf("round %d: flush returned 0 before everything was there", round)
		}
	}
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

func TestFlushEndsWhileAFileNeverHoldsStill(t *testing.T) {
	s := newSite(t, "", "")
	s.daemon(t)
	f, err := os.OpenFile(s.path("log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				f.WriteString("line\n")
			case <-stop:
				return
			}
		}
	}()
	eventually(t, "a line", func() bool { st, err := f.Stat(); return err == nil && st.Size() > 0 })
	write(t, s.path("other"), "other")
	s.mustFlush(t)
	if !slices.Contains(s.bucket.keys(t, false), s.bucket.prefix+"/log") || !s.inBucket(t, "other", "other") {
		t.Errorf("after flush the bucket holds %q", s.bucket.keys(t, false))
	}
	close(stop)
	<-ended
}

func TestFlushFollowsAFileThatMovesWhileItIsSent(t *testing.T) {
	s := newSite(t, "", "upload: {single_put_max: 5MiB, part_size: 5MiB}")
	d := s.daemon(t)
	content := func(word string) string { return strings.Repeat(word, 2<<20) }
	create := s3test.Match{Op: "CreateMultipartUpload", Key: "/moves"}
	first := s.proxy.Hold(create)
	write(t, s.path("moves"), content("one "))
	first.Wait(t)
	done := make(chan string, 1)
	go func() {
		code, out, errs := s.ask(t, "flush")
		done <- fmt.Sprint(code, out, errs)
	}()
	eventually(t, "the scan of the flush", func() bool {
		return strings.Contains(d.stderr.String(), `"msg":"scanned","source":"app","trigger":"rescan"`)
	})
	second := s.proxy.Hold(create)
	write(t, s.path("moves"), content("two ")) // The server refuses the mixture, and the scan's offer is looked at.
	first.Release()
	second.Wait(t)
	write(t, s.path("moves"), content("three ")) // That moves as well: the path leaves the queue without an upload.
	second.Release()
	if got := <-done; !strings.HasPrefix(got, "0") {
		t.Fatalf("flush = %s, want 0", got)
	}
	if tr := s.bucket.readTrail(t); tr.count("uploaded") != 1 || !s.inBucket(t, "moves", content("three ")) {
		t.Errorf("flush returned 0 with %d uploads in the trail and %q in the bucket, want 1 and the file", tr.count("uploaded"), s.bucket.keys(t, false))
	}
}

func TestFlushFailsWithTheReason(t *testing.T) {
	s := newSite(t, "", "")
	base := filepath.Dir(s.dir)
	src := fmt.Sprintf("- {name: good, path: %s, bucket: %s, prefix: good, kms_key_id: %s}\n"+
		"- {name: no-bucket, path: %s, bucket: no-such-bucket, prefix: p, kms_key_id: %s}\n"+
		"- {name: no-dir, path: %s, bucket: %s, prefix: no-dir, kms_key_id: %s}",
		s.dir, s.bucket.bucket, testKey(), filepath.Join(base, "b"), testKey(), filepath.Join(base, "absent"), s.bucket.bucket, testKey())
	write(t, s.file, yaml(s.proxy.URL, s.state, src, ""))
	s.bucket.prefix = "good"
	write(t, filepath.Join(base, "b", "f"), "content")
	s.daemon(t)
	long := s.path(strings.Repeat("n", 200) + "/" + strings.Repeat("n", 200) + "/" + strings.Repeat("n", 200) + "/" +
		strings.Repeat("n", 200) + "/" + strings.Repeat("n", 200) + "/" + strings.Repeat("n", 200))
	write(t, s.path("f"), "content")
	write(t, long, "its key is too long")

	code, out, errs := s.ask(t, "flush", "good")
	if code != 3 || out != "" || !strings.Contains(errs, "good: not flushed: failed files: 1; the first is") {
		t.Errorf("flush of a file that cannot be archived = %d %q %q", code, out, errs)
	}
	if tr := s.bucket.readTrail(t); tr.count("uploaded") != 1 || tr.count("failed") != 1 {
		t.Errorf("%d uploaded and %d failed records, want 1 and 1: the others are published all the same", tr.count("uploaded"), tr.count("failed"))
	}
	if err := os.RemoveAll(s.path(strings.Repeat("n", 200))); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := s.ask(t, "flush", "good"); code != 0 {
		t.Errorf("flush once the file is gone = %d %q, want 0", code, errs)
	}
	code, out, errs = s.ask(t, "flush", "--timeout", "1m")
	for _, want := range []string{"no-bucket: not flushed: parked: ", "NoSuchBucket", "no-dir: not flushed: ", "no such file"} {
		if code != 3 || !strings.Contains(errs, want) || !strings.Contains(out, "good: done; chain ") {
			t.Errorf("flush = %d %q %q, want 3 and %q", code, out, errs, want)
		}
	}
	code, _, errs = s.ask(t, "flush", "nobody")
	if code != 2 || !strings.Contains(errs, `"good", "no-bucket", "no-dir"`) {
		t.Errorf("flush of an unknown source = %d %q, want 2 and the known ones", code, errs)
	}
	code, out, _ = s.ask(t, "status")
	for _, want := range []string{"good: current\n", "no-bucket: behind since ", "NoSuchBucket", "next probe in ", "no-dir: behind since ", "directory not available"} {
		if code != 3 || !strings.Contains(out, want) {
			t.Errorf("status = %d, want 3 and %q in\n%s", code, want, out)
		}
	}
}

func TestFlushGivesUpAnOutageAtItsTimeout(t *testing.T) {
	s := newSite(t, "", "")
	net := s3test.NewNetwork(t, s.server.URL)
	b, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.file, strings.ReplaceAll(string(b), s.proxy.URL, net.URL))
	s.daemon(t)
	net.Down()
	write(t, s.path("f"), "content")
	code, _, errs := s.ask(t, "flush", "--timeout", "3s")
	if code != 3 || !strings.Contains(errs, "app: not flushed: not done in time: ") {
		t.Errorf("flush in an outage = %d %q, want 3 and not in time", code, errs)
	}
	done := make(chan int, 1)
	go func() {
		code, _, _ := s.ask(t, "flush")
		done <- code
	}()
	net.Up()
	if code := <-done; code != 0 {
		t.Errorf("flush = %d once the server is back, want 0", code)
	}
	if !s.inBucket(t, "f", "content") {
		t.Errorf("after flush the file is not there")
	}
}

func TestStatusSaysWhatIsGoingOn(t *testing.T) {
	s := newSite(t, "", "")
	d := s.daemon(t)
	name := "bad\x1b[31m\n\xff"
	write(t, s.path(name), "content")
	write(t, s.path("empty"), "")
	s.mustFlush(t)
	code, out, errs := s.ask(t, "status")
	if code != 0 || !strings.HasPrefix(out, "app: current\n") || errs != "" {
		t.Errorf("status = %d %q %q, want 0 and the sentence first", code, out, errs)
	}
	for _, want := range []string{"2 files, 7 B", "2 uploaded", "digest", "ready"} {
		if !strings.Contains(out, want) {
			t.Errorf("status lacks %q:\n%s", want, out)
		}
	}
	held := s.proxy.Hold(s3test.Match{Op: "PutObject", Key: "bad"})
	write(t, s.path(name), "changed")
	held.Wait(t)
	code, out, _ = s.ask(t, "status")
	if strings.ContainsRune(out, '\x1b') || !utf8.ValidString(out) || !strings.Contains(out, `"bad\x1b[31m\n\xff"`) {
		t.Errorf("status = %d, the file in flight is not shown in quotes:\n%q", code, out)
	}
	code, out, _ = s.ask(t, "status", "--json")
	var st admin.Status
	if err := json.Unmarshal([]byte(out), &st); err != nil || code != 0 {
		t.Fatalf("status --json = %d %v:\n%s", code, err, out)
	}
	src := st.Sources[0]
	if st.Format != 1 || src.State != admin.StateWorking || len(src.InFlight) != 1 || src.InFlight[0].Size != 7 ||
		src.InFlight[0].Phase != "send" || src.InFlight[0].B64 == "" || src.Outcomes["uploaded"] != 2 || src.Trail.LastManifest == "" {
		t.Errorf("status --json says:\n%s", out)
	}
	held.Release()
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if code, out, errs := s.ask(t, "status"); code != 1 || out != "" || !strings.Contains(errs, "no daemon answers at "+s.socket()) {
		t.Errorf("status without a daemon = %d %q %q, want 1 and what to do", code, out, errs)
	}
}

func TestStatusAnswersAtOnceDuringALargeRun(t *testing.T) {
	s := newSite(t, "", "")
	n := 2000
	if thorough {
		n = 10_000
	}
	for i := range n {
		write(t, s.path(fmt.Sprintf("d%d/f%d", i%100, i)), fmt.Sprintf("content %d", i))
	}
	s.daemon(t)
	var took []time.Duration
	eventually(t, "all files", func() bool {
		begin := time.Now()
		st := s.status(t)
		took = append(took, time.Since(begin))
		return st.Sources[0].Outcomes["uploaded"] == int64(n)
	})
	if len(took) < 10 {
		t.Skipf("the run was over after %d looks", len(took))
	}
	slices.Sort(took)
	t.Logf("%d answers: median %v, 99%% %v, slowest %v", len(took), took[len(took)/2], took[len(took)*99/100], took[len(took)-1])
	if median := took[len(took)/2]; median > 50*time.Millisecond { // The slowest ones are the scheduler's.
		t.Errorf("status takes %v, want less than 50 ms", median)
	}
}

func TestControlSocketIsTheDaemonsOwn(t *testing.T) {
	s := newSite(t, "", "")
	d := s.daemon(t)
	st, err := os.Stat(s.socket())
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("the socket has mode %v, %v; want 0600", st, err)
	}
	other := filepath.Join(t.TempDir(), "other.yaml") // Another state, the same socket.
	b, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(b), s.state, s.state+"2", 1)
	write(t, other, strings.Replace(text, "127.0.0.1:0\"", "127.0.0.1:0\", socket: "+s.socket(), 1))
	if code, _, errs := command(t, s.env, "run", "-c", other); code != 1 || !strings.Contains(errs, "another daemon answers at") {
		t.Errorf("a second daemon on the socket = %d %q, want 1", code, errs)
	}
	s.wantOthersRefused(t)
	d.kill(t)
	if _, err := os.Lstat(s.socket()); err != nil {
		t.Fatalf("the dead daemon's socket is gone: %v", err)
	}
	if code, _, errs := s.ask(t, "status"); code != 1 || !strings.Contains(errs, "no daemon answers") {
		t.Errorf("status at a stale socket = %d %q, want 1", code, errs)
	}
	d = s.daemon(t)
	if st := s.status(t); st.State != "ready" {
		t.Errorf("state %q through the replaced socket, want ready", st.State)
	}
	d.stop(t)
	if _, err := os.Lstat(s.socket()); !os.IsNotExist(err) {
		t.Errorf("the socket is still there after the stop: %v", err)
	}
}

func TestRescanIsAskedOfTheDaemon(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("f"), "content")
	d := s.daemon(t)
	s.mustFlush(t)
	scans := func() int {
		return strings.Count(d.stderr.String(), `"msg":"scanned","source":"app","trigger":"rescan"`)
	}
	before := scans()
	if code, out, errs := s.ask(t, "rescan"); code != 0 || !strings.Contains(out, "app: rescan asked for") {
		t.Errorf("rescan = %d %q %q, want 0", code, out, errs)
	}
	eventually(t, "a scan", func() bool { return scans() == before+1 })
	if code, _, errs := s.ask(t, "rescan", "nobody"); code != 2 || !strings.Contains(errs, `"nobody"; the sources are "app"`) {
		t.Errorf("rescan of an unknown source = %d %q, want 2", code, errs)
	}
	if code, out, _ := s.ask(t, "rescan", "app", "--confirm-deletes"); code != 0 || !strings.Contains(out, "counts as deleted") {
		t.Errorf("rescan --confirm-deletes = %d %q, want 0", code, out)
	}
	eventually(t, "another scan", func() bool { return scans() == before+2 })
}

func TestADaemonDoesNotStartOverSomethingElse(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.socket(), "precious")
	if code, _, errs := command(t, s.env, "run", "-c", s.file); code != 1 || !strings.Contains(errs, "is not a socket") {
		t.Errorf("run = %d %q, want 1 and that it is no socket", code, errs)
	}
	if b, err := os.ReadFile(s.socket()); err != nil || string(b) != "precious" {
		t.Errorf("the file holds %q, %v; want it untouched", b, err)
	}
}

// wantOthersRefused asks the daemon as another user.
func (s *site) wantOthersRefused(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		return
	}
	chmodUp(t, s.state)
	if code, _, errs := commandAs(t, nobody, nil, "status", "--socket", s.socket()); code != 1 || !strings.Contains(errs, "permission denied") {
		t.Errorf("status of another user = %d %q, want 1 and permission denied", code, errs)
	}
	if err := os.Chmod(s.socket(), 0o666); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := commandAs(t, nobody, nil, "status", "--socket", s.socket()); code != 1 || !strings.Contains(errs, "only root and the daemon's own user") {
		t.Errorf("status of another user through an open socket = %d %q, want 1 and a refusal", code, errs)
	}
}
