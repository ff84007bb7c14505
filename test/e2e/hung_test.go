package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hangs mounts a file system over dir that answers nothing, until the function
// that is returned is called.
func hangs(t *testing.T, dir string) (release func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a file system")
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("/dev/fuse: %v", err)
	}
	released := false
	release = func() {
		if released {
			return
		}
		released = true
		_ = unix.Close(fd) // Whoever waits gets an error.
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	}
	if err := unix.Mount("hung", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)); err != nil {
		_ = unix.Close(fd)
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(release)
	return release
}

// quick runs a command that must not wait for a source.
func quick(t *testing.T, s *site, args ...string) (code int, out string) {
	t.Helper()
	begin := time.Now()
	code, stdout, stderr := command(t, s.env, args...)
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("%v took %v", args, took)
	}
	return code, stdout + stderr
}

func TestAHungSourceHoldsUpNobody(t *testing.T) {
	s := newFakeSite(t, "", "")
	more := filepath.Join(filepath.Dir(s.dir), "more")
	second := fmt.Sprintf("- {name: more, path: %s, bucket: %s, prefix: more, kms_key_id: %s}\n", more, s.bucket.bucket, s.key)
	first := fmt.Sprintf("- {name: app, path: %s, bucket: %s, prefix: backups/app, kms_key_id: %s}\n", s.dir, s.bucket.bucket, s.key)
	write(t, s.file, yaml(s.proxy.URL, s.state, second+first, ""))
	write(t, s.path("f"), "content")
	write(t, filepath.Join(more, "f"), "content")
	p := s.daemon(t)
	eventually(t, "the files", func() bool { return s.inBucket(t, "f", "content") })
	release := hangs(t, more)

	if code, out := quick(t, s, "check", "-c", s.file); code != 0 {
		t.Errorf("check: %d %s", code, out)
	}
	eventually(t, "the source is hung", func() bool {
		_, out := quick(t, s, "status", "-c", s.file)
		return strings.Contains(out, "more: hung since ")
	})
	_, page := p.get(t, "/metrics")
	for _, want := range []string{`s3syncd_source_available{source="more"} 0`, `s3syncd_source_available{source="app"} 1`, `s3syncd_source_hung_since_timestamp_seconds{source="app"} 0`} {
		if !strings.Contains(page, want+"\n") {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	if strings.Contains(page, `s3syncd_source_hung_since_timestamp_seconds{source="more"} 0`+"\n") {
		t.Error("the metric does not say since when it hangs")
	}
	if code, body := p.get(t, "/-/healthy"); code != 200 {
		t.Errorf("healthy: %d %s", code, body)
	}
	if code, out := quick(t, s, "flush", "more", "-c", s.file); code != 3 || !strings.Contains(out, "hung since") {
		t.Errorf("flush of the hung source: %d %s, want 3 and why", code, out)
	}
	write(t, s.path("g"), "more")
	if code, out := quick(t, s, "flush", "app", "-c", s.file); code != 0 {
		t.Errorf("flush of the other source: %d %s", code, out)
	}

	// A reload is applied, and the source is hung after it as well.
	write(t, s.file, yaml(s.proxy.URL, s.state, second+strings.Replace(first, "kms_key_id", "exclude: ['*.tmp'], kms_key_id", 1), ""))
	begin := time.Now()
	p.reload(t, `"msg":"ready"`)
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("the reload took %v", took)
	}
	eventually(t, "it is hung still", func() bool {
		_, out := quick(t, s, "status", "-c", s.file)
		return strings.Contains(out, "more: hung since ")
	})
	write(t, s.path("out.tmp"), "x")
	write(t, s.path("h"), "after the reload")
	eventually(t, "a file of the other source", func() bool { return s.inBucket(t, "h", "after the reload") })

	release()
	eventually(t, "it answers again", func() bool {
		_, out := quick(t, s, "status", "-c", s.file)
		return strings.Contains(out, "more: current")
	})
	write(t, filepath.Join(more, "g"), "back")
	eventually(t, "its file", func() bool {
		body, _ := s.fake.Object(s.bucket.bucket, "more/g")
		return string(body.Body) == "back"
	})
	if code := p.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

func TestADaemonWithAHungSourceStartsAndStops(t *testing.T) {
	s := newFakeSite(t, "", "")
	more := filepath.Join(filepath.Dir(s.dir), "more")
	if err := os.Mkdir(more, 0o755); err != nil {
		t.Fatal(err)
	}
	sources := fmt.Sprintf("- {name: more, path: %s, bucket: %s, prefix: more, kms_key_id: %s}\n- {name: app, path: %s, bucket: %s, prefix: backups/app, kms_key_id: %s}\n",
		more, s.bucket.bucket, s.key, s.dir, s.bucket.bucket, s.key)
	write(t, s.file, yaml(s.proxy.URL, s.state, sources, ""))
	write(t, s.path("f"), "content")
	hangs(t, more)
	p := spawn(t, s.env, "run", "-c", s.file)
	eventually(t, "the file of the other source", func() bool { return s.inBucket(t, "f", "content") })
	begin := time.Now()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the last digest", func() bool { return strings.Contains(p.stderr.String(), `"msg":"stopped"`) })
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("the stop took %v", took)
	}
	if code := p.ended(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

func TestAHungMountInsideASourceMakesItHung(t *testing.T) {
	s := newFakeSite(t, "", "")
	write(t, s.path("f"), "content")
	inner := s.path("inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	p := s.daemon(t)
	eventually(t, "the file", func() bool { return s.inBucket(t, "f", "content") })
	release := hangs(t, inner)
	eventually(t, "the source is hung", func() bool {
		_, out := quick(t, s, "status", "-c", s.file)
		return strings.Contains(out, "app: hung since ")
	})
	release()
	eventually(t, "it answers again", func() bool {
		_, out := quick(t, s, "status", "-c", s.file)
		return strings.Contains(out, "app: current") || strings.Contains(out, "mount less")
	})
	if code := p.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

// The directory of a source that does not answer at the start is the one that the
// source was last archived from, also where another one stands in its first place.
func TestASourceThatHangsAtTheStartHasNotMoved(t *testing.T) {
	s := newFakeSite(t, "", "")
	write(t, s.path("f"), "content")
	s.mustSync(t, 1, 0, 0)
	first, moved := s.dir, filepath.Join(filepath.Dir(s.dir), "moved")
	if err := os.Rename(first, moved); err != nil {
		t.Fatal(err)
	}
	s.dir = moved
	s.configure(t, "", "")
	s.mustSync(t, 0, 1, 0)
	if err := os.Mkdir(first, 0o755); err != nil {
		t.Fatal(err)
	}
	hangs(t, moved)
	before := len(s.bucket.readTrail(t).digests)
	p := spawn(t, s.env, "run", "-c", s.file)
	eventually(t, "the digest of the start", func() bool { return len(s.bucket.readTrail(t).digests) > before })
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.ended(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if got := s.bucket.readTrail(t).event("path-changed"); len(got) != 1 {
		t.Errorf("path-changed = %q, want the one of the move", got)
	}
}
