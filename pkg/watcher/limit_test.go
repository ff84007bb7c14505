package watcher

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/s3syncd/s3syncd/internal/watches"
)

const userLimit = "/proc/sys/user/max_inotify_watches"

// limited is a notifier with a limit of its own.
type limited struct {
	watches.Notifier
	left *atomic.Int64
}

func (l limited) Add(path string) error {
	if l.left.Add(-1) < 0 {
		l.left.Add(1)
		return unix.ENOSPC
	}
	return l.Notifier.Add(path)
}

func (r *rig) limit(n int64) *atomic.Int64 {
	var left atomic.Int64
	left.Store(n)
	r.notifier = func() (watches.Notifier, error) {
		n, err := watches.NewInotify()
		return limited{n, &left}, err
	}
	return &left
}

func TestWatchLimitPollsTheRest(t *testing.T) {
	r := newRig(t, nil)
	for i := range 20 {
		r.write(fmt.Sprintf("d%02d/sub/f", i), "x")
	}
	left := r.limit(10)
	r.start()
	r.agrees()
	if got := r.metric("watched_directories"); got != 10 {
		t.Errorf("watched: got %v, want 10", got)
	}
	if got := r.metric("polled_directories"); got != 31 {
		t.Errorf("polled: got %v, want 31", got)
	}
	if got := r.metric("watcher_degraded"); got != 1 {
		t.Errorf("degraded: got %v, want 1", got)
	}
	warnings := r.logs.FilterMessageSnippet("fs.inotify.max_user_watches").All()
	if len(warnings) != 1 {
		t.Fatalf("got %d warnings of the limit, want 1", len(warnings))
	}
	if got := warnings[0].ContextMap()["needed"]; got != int64(41) {
		t.Errorf("needed: got %v, want 41", got)
	}
	for i := range 20 {
		r.write(fmt.Sprintf("d%02d/sub/g", i), "polled or told")
	}
	r.must(os.RemoveAll(r.path("d00")))
	r.must(os.RemoveAll(r.path("d19")))
	r.agrees()
	left.Store(1000)
	r.eventually("the raised limit is used", func() bool { return r.metric("watched_directories") == 37 })
	if got := r.metric("polled_directories") + r.metric("watcher_degraded"); got != 0 {
		t.Errorf("polled or degraded still: %v", got)
	}
	r.write("d18/sub/h", "told")
	r.agrees()
}

func TestNoWatcherPollsEverything(t *testing.T) {
	r := newRig(t, nil)
	r.write("a/b/f", "x")
	var fail atomic.Bool
	fail.Store(true)
	r.notifier = func() (watches.Notifier, error) {
		if fail.Load() {
			return nil, unix.EMFILE
		}
		return watches.NewInotify()
	}
	r.start()
	<-r.Watching()
	r.write("a/b/g", "y")
	r.agrees()
	if d, p := r.metric("watcher_degraded"), r.metric("polled_directories"); d != 1 || p != 3 {
		t.Errorf("degraded %v, polled %v, want 1 and 3", d, p)
	}
	fail.Store(false)
	r.eventually("a watcher is had", func() bool { return r.metric("watched_directories") == 3 })
	r.write("a/b/h", "z")
	r.agrees()
}

// The kernel's own limit, in a user namespace so that the host is left alone.
func TestKernelWatchLimit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "src")
	for i := range 20 {
		write(t, fmt.Sprintf("%s/d%02d/f", dir, i), "x")
	}
	c := child(t, limitedChild, dir)
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	succeeds(t, c)
}

func limitedSource(r *rig) {
	r.must(os.WriteFile(userLimit, []byte("10"), 0))
	r.start()
	r.agrees()
	if got := r.metric("watched_directories"); got != 10 {
		r.tb.Errorf("watched: got %v, want 10", got)
	}
	r.write("d19/g", "polled")
	r.agrees()
	r.must(os.WriteFile(userLimit, []byte("1000"), 0))
	r.eventually("the raised limit is used", func() bool { return r.metric("watched_directories") == 21 })
}
