package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fast publishes the trail soon enough for a test.
const fast = "manifest: {flush_interval: 1s}"

// Eight writers change the tree in every way; the events alone must bring all
// of it to the bucket.
func TestStress(t *testing.T) {
	t.Run("against MinIO", func(t *testing.T) { stress(t, newSite(t, "", fast)) })
	t.Run("with files and directories that swap", func(t *testing.T) { stress(t, newFakeSite(t, "", fast)) })
}

func stress(t *testing.T, s *site) {
	t.Helper()
	ops := 350
	if thorough {
		ops = 20_000 // Some minutes.
	}
	d := s.daemon(t)
	s.churn(t, seed(t), ops, 9*time.Millisecond)
	s.converges(t, d)
	if n := d.overflows(t); n == 0 {
		d.noScanHelped(t)
	} else {
		t.Logf("the queue of events overflowed %v times, so a scan was allowed to help", n)
	}
	d.nothingMissed(t)
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	s.wantAgreement(t)
}

// The daemon stands still while more changes than the kernel's queue holds; the
// writers go on all the while, and it is stopped and continued in between.
func TestStressWithOverflowsAndStops(t *testing.T) {
	rounds, ops := 1, 150
	if thorough {
		rounds, ops = 10, 1000
	}
	s := newSite(t, "", fast)
	d := s.daemon(t)
	seed := seed(t)
	for i := range rounds {
		d.signal(t, syscall.SIGSTOP)
		s.overflow(t)
		s.churn(t, seed+uint64(2*i), ops, 0)
		d.signal(t, syscall.SIGCONT)
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.churn(t, seed+uint64(2*i+1), ops, 5*time.Millisecond)
		}()
		for range 3 {
			d.signal(t, syscall.SIGSTOP)
			await(t, 50*time.Millisecond)
			d.signal(t, syscall.SIGCONT)
			await(t, 100*time.Millisecond)
		}
		<-done
	}
	s.converges(t, d)
	if n := d.overflows(t); n == 0 {
		t.Error("nothing overflowed")
	}
	d.nothingMissed(t)
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	s.wantAgreement(t)
}

func (p *process) signal(t *testing.T, sig os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatalf("%v: %v", sig, err)
	}
}

// overflow makes more events than the kernel keeps for one watcher. The limit
// belongs to the whole host, so it is left as it is.
func (s *site) overflow(t *testing.T) {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	if err != nil {
		t.Fatal(err)
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	for i := range limit + 1000 { // Alternating, because equal neighbors are merged.
		if err := os.WriteFile(s.path(fmt.Sprintf("flood%d", i%2)), []byte(strconv.Itoa(i)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

const userWatches = "/proc/sys/user/max_inotify_watches"

// limitedDaemon starts the daemon in a user namespace of its own with a limit
// of watches, so that the host's stays as it is.
func (s *site) limitedDaemon(t *testing.T, watches int) *process {
	t.Helper()
	p := newProcess(t, "/bin/sh", s.env, "-c", fmt.Sprintf(`echo %d >%s && exec "$0" "$@"`, watches, userWatches), binary, "run", "-c", s.file)
	p.cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
	p.cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
	p.cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	if !p.start(t) {
		t.Skip("no user namespace to be had here")
	}
	p.isReady(t)
	return p
}

// Fewer watches than directories: what does not fit is polled, and watched once
// the limit is higher.
func TestStressAtTheLimitOfWatches(t *testing.T) {
	ops := 100
	if thorough {
		ops = 5000
	}
	s := newSite(t, "", fast)
	for i := range 40 {
		write(t, s.path(fmt.Sprintf("base/%02d/sub/f", i)), "x")
	}
	d := s.limitedDaemon(t, 20)
	if n := d.metric(t, `s3syncd_watched_directories{source="app"}`); n > 20 {
		t.Fatalf("%v directories are watched, the limit is 20", n)
	}
	if n := d.metric(t, `s3syncd_polled_directories{source="app"}`); n < 60 {
		t.Errorf("%v directories are polled, want at least 60", n)
	}
	seed := seed(t)
	s.churn(t, seed, ops, 5*time.Millisecond)
	d.signal(t, syscall.SIGSTOP)
	s.churn(t, seed+1, ops/4, 0)
	d.signal(t, syscall.SIGCONT)
	for i := range 40 {
		write(t, s.path(fmt.Sprintf("base/%02d/sub/g", i)), "told or polled")
	}
	s.converges(t, d)
	s.raiseWatches(t, d)
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	s.wantAgreement(t)
}

// raiseWatches raises the limit of a limitedDaemon, which must use it.
func (s *site) raiseWatches(t *testing.T, d *process) {
	t.Helper()
	enter, err := exec.LookPath("nsenter")
	if err != nil {
		t.Log("no nsenter here: the limit stays as it is")
		return
	}
	out, err := exec.CommandContext(t.Context(), enter, "--preserve-credentials", "-U", "-t", strconv.Itoa(d.cmd.Process.Pid),
		"/bin/sh", "-c", "echo 100000 >"+userWatches).CombinedOutput()
	if err != nil {
		t.Fatalf("raise the limit: %v\n%s", err, out)
	}
	eventually(t, "the raised limit is used", func() bool {
		return d.metric(t, `s3syncd_polled_directories{source="app"}`) == 0 && d.metric(t, `s3syncd_watcher_degraded{source="app"}`) == 0
	})
	write(t, s.path("base/39/sub/h"), "told")
	s.converges(t, d)
}

// A directory and a file in it, at once: the file must be found though there
// may be no watch yet when it is written.
func TestNewDirectoriesAtOnceAreNotMissed(t *testing.T) {
	rounds := 500
	if thorough {
		rounds = 10_000
	}
	s := newSite(t, "", fast)
	d := s.daemon(t)
	for i := range rounds {
		dir := s.path(fmt.Sprintf("r%d/%d", i%10, i))
		if i%3 == 0 {
			dir = filepath.Join(dir, "a", "b")
		}
		write(t, filepath.Join(dir, "f"), strconv.Itoa(i))
		if i%50 == 49 {
			await(t, 10*time.Millisecond) // Beyond some thousand a second events may be lost.
		} else if i%2 == 0 {
			runtime.Gosched()
		}
	}
	s.converges(t, d)
	if n := d.overflows(t); n != 0 {
		t.Errorf("%v overflows", n)
	}
	d.noScanHelped(t)
	d.nothingMissed(t)
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	tr := s.wantAgreement(t)
	for _, r := range tr.records {
		if r.Trigger != "event" {
			t.Errorf("%s was found by a %s, not by an event", r.S3Key, r.Trigger)
		}
	}
}
