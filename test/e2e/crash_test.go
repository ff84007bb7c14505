package e2e_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

// wantOnce checks that every upload of the trail stands there once, and that
// bucket, tree and trail agree.
func (s *site) wantOnce(t *testing.T) trail {
	t.Helper()
	tr := s.bucket.readTrail(t)
	s.bucket.wantTree(t, s.dir, &tr)
	for k, n := range tr.uploads() {
		if n != 1 {
			t.Errorf("%s is recorded %d times", k, n)
		}
	}
	return tr
}

func TestAKillBetweenTheAnswerToAPutAndItsCommit(t *testing.T) {
	for _, large := range []bool{false, true} {
		t.Run(fmt.Sprintf("large=%v", large), func(t *testing.T) {
			s := newSite(t, "", "")
			m := s3test.Match{Op: "PutObject", Key: "app/f"}
			if large {
				random(t, s.path("f"), 70<<20, 5)
				m.Op = "CompleteMultipartUpload"
			} else {
				write(t, s.path("f"), "stored, but nobody was told")
			}
			hold := s.proxy.Hold(m)
			p := spawn(t, s.env, "run", "-c", s.file)
			hold.Wait(t) // The server has it, the client waits for the answer.
			p.kill(t)
			hold.Release()
			d := s.daemon(t)
			eventually(t, "the settlement", func() bool { return strings.Contains(d.stderr.String(), `"msg":"uploaded"`) })
			if code := d.stop(t); code != 0 {
				t.Errorf("exit code %d, want 0", code)
			}
			tr := s.wantOnce(t)
			if n := tr.count("uploaded"); n != 1 {
				t.Errorf("%d uploads in the trail, want 1", n)
			}
			for _, r := range tr.records {
				if r.Status == "uploaded" && !r.Recovered {
					t.Errorf("the upload is not marked as recovered: %+v", r)
				}
			}
			if n := s.data(m.Op); n != 1 {
				t.Errorf("%d %s requests, want 1: it was stored the first time", n, m.Op)
			}
		})
	}
}

func TestAKillBetweenTheAnswerToATrailDocumentAndItsCommit(t *testing.T) {
	for _, kind := range []string{"/_manifests/manifest_", "/_manifests/digest_"} {
		t.Run(strings.Trim(kind, "/"), func(t *testing.T) {
			s := newSite(t, "", "manifest: {flush_interval: 1s, digest_interval: 1s}")
			hold := s.proxy.Hold(s3test.Match{Op: "PutObject", Key: kind})
			write(t, s.path("f"), "content")
			p := spawn(t, s.env, "run", "-c", s.file)
			hold.Wait(t)
			p.kill(t)
			hold.Release()
			d := s.daemon(t)
			write(t, s.path("g"), "more")
			eventually(t, "the second file", func() bool { return s.inBucket(t, "g", "more") })
			if code := d.stop(t); code != 0 {
				t.Errorf("exit code %d, want 0", code)
			}
			tr := s.wantOnce(t)
			if n := tr.count("uploaded"); n != 2 {
				t.Errorf("%d uploads in the trail, want 2", n)
			}
		})
	}
}

// The first signal waits for what is under way, the second for nothing.
func TestASecondSignalEndsItAtOnceAndLosesNothing(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("f"), "content")
	hold := s.proxy.Hold(s3test.Match{Op: "PutObject", Key: "app/f"})
	d := s.daemon(t)
	hold.Wait(t)
	for ended := false; !ended; { // One that comes while the first is being taken in does not count.
		_ = d.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-d.done:
			ended = true
		case <-time.After(100 * time.Millisecond):
		}
	}
	if st, ok := d.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || st.Signal() != syscall.SIGTERM {
		t.Errorf("it ended with %v, want by the signal: it had an answer to wait for", d.cmd.ProcessState)
	}
	hold.Release()
	if code, out, errs := s.sync(t); code != 0 {
		t.Errorf("sync = %d:\n%s", code, out+errs)
	}
	if n := s.data("PutObject"); n != 1 {
		t.Errorf("%d PUTs, want 1: it was stored the first time", n)
	}
	tr := s.wantOnce(t)
	if n := tr.count("uploaded"); n != 1 {
		t.Errorf("%d uploads in the trail, want 1", n)
	}
}

// mustBeInSync runs a sync that must find nothing to do.
func (s *site) mustBeInSync(t *testing.T) {
	t.Helper()
	if code, out, errs := s.sync(t); code != 0 || !strings.Contains(out, "Uploaded: 0\n") {
		t.Errorf("the daemon left work behind, sync exited with %d:\n%s%s", code, tail(out, 1000), tail(errs, 2000))
	}
}

func TestAFileRewrittenDuringItsUploadIsNeverStoredTorn(t *testing.T) {
	size, rounds := int64(128<<20), 5
	if thorough {
		size, rounds = 1<<30, 100
	}
	s := newSite(t, "", "upload: {part_size: 8MiB}")
	file := s.path("big")
	random(t, file, size, 6)
	d := s.daemon(t)
	r := rand.New(rand.NewPCG(3, 4))
	for i := range rounds {
		eventually(t, "an upload under way", func() bool { return s.data("UploadPart") > i*4 })
		rewrite(t, file, size, byte(i+1), r)
	}
	eventually(t, "the last content", func() bool {
		_, page := d.get(t, "/metrics")
		return s.inSync(t, "big") && strings.Contains(page, `s3syncd_oldest_pending_timestamp_seconds{source="app"} 0`)
	})
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	tr := s.wantOnce(t)
	for _, rec := range tr.records {
		if rec.Status == "failed" && rec.ErrorClass != "changed" {
			t.Errorf("failed with class %q: %s", rec.ErrorClass, rec.Error)
		}
	}
}

// rewrite overwrites head, tail and some places of a file without changing its
// size.
func rewrite(t *testing.T, file string, size int64, with byte, r *rand.Rand) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := []byte(strings.Repeat(string(rune('a'+with%26)), 64<<10))
	for _, at := range []int64{0, size - int64(len(block)), r.Int64N(size - int64(len(block))), r.Int64N(size - int64(len(block)))} {
		if _, err := f.WriteAt(block, at); err != nil {
			t.Fatal(err)
		}
	}
}

// inSync reports whether the object of rel has the md5checksum of the file.
func (s *site) inSync(t *testing.T, rel string) bool {
	t.Helper()
	f, err := os.Open(s.path(rel))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	body, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return s.metaMD5(t, rel) == md5Of(string(body))
}
