package watcher

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/internal/watches"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// noScanHelped fails if a scan other than the first one ran.
func (r *rig) noScanHelped() {
	r.tb.Helper()
	if n := len(r.scans); n != 0 {
		r.tb.Errorf("%d scans ran: %+v", n, <-r.scans)
	}
}

func TestNewDirectoriesWithFilesAtOnce(t *testing.T) {
	r := newRig(t, nil)
	r.start()
	for i := range 300 {
		r.write(fmt.Sprintf("i%d/f", i), "1")
		r.write(fmt.Sprintf("i%d/b/f", i), "2")
		r.write(fmt.Sprintf("i%d/b/c/f", i), "3")
		r.write(fmt.Sprintf("i%d/b/c/g", i), "4")
	}
	r.agrees()
	if got := len(r.sink.list()); got != 1200 {
		t.Errorf("got %d files, want 1200", got)
	}
	r.noScanHelped()
	if got := r.metric("watched_directories"); got != 901 {
		t.Errorf("watched: got %v, want 901", got)
	}
}

func TestDirectoriesThatMove(t *testing.T) {
	r := newRig(t, nil)
	outside := r.dir + "-outside"
	write(t, outside+"/p/q/f", "moved in")
	write(t, outside+"/p/g", "moved in")
	r.write("a/b/f", "x")
	r.write("a/g", "y")
	r.start()
	steps := []struct {
		name string
		do   func() error
		want string
	}{
		{"in", func() error { return os.Rename(outside+"/p", r.path("p")) }, "[a/b/f a/g p/g p/q/f]"},
		{"within", func() error { return os.Rename(r.path("a"), r.path("p/a")) }, "[p/a/b/f p/a/g p/g p/q/f]"},
		{"written after it moved", func() error { return os.WriteFile(r.path("p/a/b/new"), []byte("n"), 0o644) }, "[p/a/b/f p/a/b/new p/a/g p/g p/q/f]"},
		{"back and a file in its place", func() error {
			if err := os.Rename(r.path("p/a"), r.path("z")); err != nil {
				return err
			}
			return os.WriteFile(r.path("p/a"), []byte("file"), 0o644)
		}, "[p/a p/g p/q/f z/b/f z/b/new z/g]"},
		{"a directory again", func() error {
			if err := os.Remove(r.path("p/a")); err != nil {
				return err
			}
			return os.Rename(r.path("z"), r.path("p/a"))
		}, "[p/a/b/f p/a/b/new p/a/g p/g p/q/f]"},
		{"out", func() error { return os.Rename(r.path("p"), outside+"/p") }, "[]"},
		{"written outside", func() error { return os.WriteFile(outside+"/p/a/b/other", []byte("n"), 0o644) }, "[]"},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		r.agrees()
		r.eventually(s.name, func() bool { return fmt.Sprint(r.sink.list()) == s.want })
	}
	r.noScanHelped()
	if got := r.metric("watched_directories"); got != 1 {
		t.Errorf("watched: got %v, want the root alone", got)
	}
}

// A directory that is watched moves into a new one before that is watched: the
// kernel knows the watch by inode and would keep it at the old path.
func TestMoveIntoANewDirectory(t *testing.T) {
	r := newRig(t, nil)
	for i := range 50 {
		r.write(fmt.Sprintf("q%d/sub/f", i), "x")
	}
	r.start()
	for i := range 50 {
		r.must(os.Mkdir(r.path(fmt.Sprintf("new%d", i)), 0o755))
		r.must(os.Rename(r.path(fmt.Sprintf("q%d", i)), r.path(fmt.Sprintf("new%d/q", i))))
	}
	r.agrees()
	for i := range 50 {
		r.write(fmt.Sprintf("new%d/q/sub/g", i), "after")
		r.write(fmt.Sprintf("new%d/q/h", i), "after")
	}
	r.agrees()
	r.noScanHelped()
	if got := r.metric("watched_directories"); got != 151 {
		t.Errorf("watched: got %v, want 151", got)
	}
}

func TestRemovedAndMadeAgain(t *testing.T) {
	r := newRig(t, nil)
	r.write("keep", "x")
	r.start()
	for i := range 30 {
		for j := range 5 {
			r.write(fmt.Sprintf("d/e%d/f%d", j, i), "x")
		}
		r.must(os.RemoveAll(r.path("d")))
		r.write("d/e0/last", strconv.Itoa(i))
	}
	r.agrees()
	if got, want := fmt.Sprint(r.sink.list()), "[d/e0/last keep]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	r.must(os.RemoveAll(r.path("d")))
	r.agrees()
	r.noScanHelped()
}

func TestChangesOfFiles(t *testing.T) {
	r := newRig(t, nil)
	r.write("f", "one")
	r.write("log", "line")
	r.start()
	steps := map[string]func() error{
		"rename over": func() error {
			if err := os.WriteFile(r.path(".f.tmp"), []byte("two"), 0o644); err != nil {
				return err
			}
			return os.Rename(r.path(".f.tmp"), r.path("f"))
		},
		"mode":     func() error { return os.Chmod(r.path("f"), 0o600) },
		"times":    func() error { return os.Chtimes(r.path("f"), time.Unix(1, 0), time.Unix(1, 0)) },
		"truncate": func() error { return os.Truncate(r.path("f"), 0) },
		"rotate": func() error {
			if err := os.Rename(r.path("log"), r.path("log.1")); err != nil {
				return err
			}
			return os.WriteFile(r.path("log"), []byte("new"), 0o644)
		},
		"raw name": func() error { return os.WriteFile(r.path("\xff\n"), []byte("x"), 0o644) },
	}
	for name, do := range steps {
		if err := do(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		r.agrees()
	}
	r.noScanHelped()
	for _, c := range r.sink.takeOffers() {
		if c.Path == ".f.tmp" {
			t.Errorf("a temporary file that did not last was offered: %+v", c)
		}
	}
}

// A change under one name makes no event for the others.
func TestOtherNamesOfAFile(t *testing.T) {
	r := newRig(t, nil)
	r.write("a/f", "x")
	r.must(os.Mkdir(r.path("b"), 0o755))
	r.must(os.Link(r.path("a/f"), r.path("b/g")))
	r.start()
	r.agrees()
	for i := range 5 {
		r.write([]string{"a/f", "b/g"}[i%2], strconv.Itoa(i))
		r.agrees()
	}
	r.must(os.Remove(r.path("a/f")))
	r.agrees()
	r.noScanHelped()
}

// Root reads everything, so this runs in a process of another user.
func TestUnreadableDirectoryBecomesReadable(t *testing.T) {
	asAnotherUser(t, unreadableChild)
}

// asAnotherUser runs a child for a source with the file d/f.
func asAnotherUser(t *testing.T, mode string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "src")
	write(t, dir+"/d/f", "x")
	c := child(t, mode, dir)
	if os.Getuid() == 0 {
		for _, p := range []string{dir, dir + "/d", dir + "/d/f"} {
			if err := os.Chown(p, 65534, 65534); err != nil {
				t.Fatal(err)
			}
		}
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	succeeds(t, c)
}

func unreadableSource(r *rig) {
	r.start()
	r.agrees()
	r.must(os.Chmod(r.path("d"), 0))
	s := r.rescan()
	if s.Unreadable != 1 || s.Gone != 0 || !s.Complete {
		r.tb.Errorf("unreadable %d, gone %d, complete %v, want 1, 0, true", s.Unreadable, s.Gone, s.Complete)
	}
	if n := len(r.sink.refused); n != 1 || r.sink.refused[0].Path != "d" {
		r.tb.Errorf("refused: got %+v, want d alone", r.sink.refused)
	}
	// The failure is in the index, and waits in the sink to be tried again.
	r.sink.mu.Lock()
	r.sink.put(scan.Known{Path: "d"})
	r.sink.mu.Unlock()
	r.sink.hold("d")
	gone := func() bool { return r.offers() == "[gone d]" }
	r.must(os.Chmod(r.path("d"), 0o100)) // Still not readable.
	r.eventually("the event is handled", func() bool { return r.Dirty() == 0 })
	if gone() {
		r.tb.Error("the failure of a directory that cannot be read is taken back")
	}
	r.must(os.Chmod(r.path("d"), 0o755))
	r.eventually("the failure is taken back", gone)
	r.sink.hold("")
	r.sink.mu.Lock()
	r.sink.remove("d")
	r.sink.mu.Unlock()
	r.eventually("d is watched", func() bool { return r.metric("watched_directories") == 2 })
	r.write("d/g", "y")
	r.agrees()
}

// gated is a notifier whose events wait while its gate is locked.
type gated struct {
	watches.Notifier
	events chan fsnotify.Event
}

func newGated(n watches.Notifier, gate *sync.Mutex) gated {
	in, _ := n.Channels()
	g := gated{n, make(chan fsnotify.Event)}
	go func() {
		defer close(g.events)
		for ev := range in {
			gate.Lock()
			g.events <- ev
			gate.Unlock()
		}
	}()
	return g
}

// Channels returns the events that passed the gate, and the errors.
func (g gated) Channels() (<-chan fsnotify.Event, <-chan error) {
	_, errs := g.Notifier.Channels()
	return g.events, errs
}

func TestOverflowIsFollowedByAScan(t *testing.T) {
	r := newRig(t, nil)
	r.write("a/f", "x")
	var gate sync.Mutex
	r.notifier = func() (watches.Notifier, error) {
		n, err := watches.NewInotify()
		if err != nil {
			return nil, err
		}
		return newGated(n, &gate), nil
	}
	r.start()
	before := r.metric("event_overflows_total")
	// More than the kernel's queue and ours hold, while nothing drains them.
	gate.Lock()
	limit := 0
	if b, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events"); err == nil {
		fmt.Sscan(string(b), &limit)
	}
	f, err := os.OpenFile(r.path("a/f"), os.O_WRONLY, 0)
	r.must(err)
	g, err := os.OpenFile(r.path("a/g"), os.O_WRONLY|os.O_CREATE, 0o644)
	r.must(err)
	for range limit + 3*4096 { // Alternating, since the kernel merges equal neighbors.
		f.WriteString("x")
		g.WriteString("y")
	}
	f.Close()
	g.Close()
	r.write("lost/f", "its events are lost")
	gate.Unlock()
	s := r.scanned()
	if s.Trigger != triggerOverflow || s.Missed != 0 {
		t.Errorf("got a scan by %s that missed %d, want by %s and 0", s.Trigger, s.Missed, triggerOverflow)
	}
	r.agrees()
	if got := r.metric("event_overflows_total") - before; got != 1 {
		t.Errorf("overflows: got %v, want 1", got)
	}
	r.write("lost/g", "watched again")
	r.agrees()
}

// A link that is made while the source is watched: there is no event at the
// name that the file had before.
func TestANameThatIsAddedToAFile(t *testing.T) {
	r := newRig(t, nil)
	r.write("a/f", "x")
	r.must(os.Mkdir(r.path("b"), 0o755))
	r.start()
	r.agrees()
	r.must(os.Link(r.path("a/f"), r.path("b/g")))
	r.agrees() // The new link changed the ctime of the file under its old name.
	r.write("b/g", "changed under the new name")
	r.agrees()
	r.must(os.Link(r.path("b/g"), r.path("a/h")))
	r.must(os.Remove(r.path("a/f")))
	r.agrees()
	r.noScanHelped()
}

// A file gets a second name while the upload of the first is under way, so that
// the index does not have it yet.
func TestANameThatIsAddedToAFileOnItsWay(t *testing.T) {
	r := newRig(t, nil)
	r.must(os.Mkdir(r.path("a"), 0o755))
	r.must(os.Mkdir(r.path("b"), 0o755))
	r.start()
	r.sink.hold("a/f")
	r.write("a/f", "x")
	r.eventually("a/f is on its way", func() bool { return slices.Contains(r.sink.offered(), "a/f") })
	r.must(os.Link(r.path("a/f"), r.path("b/g")))
	r.eventually("b/g is archived and its other name known", func() bool {
		st, err := r.sink.root.Lstat("b/g")
		r.must(err)
		r.names.links.mu.Lock()
		defer r.names.links.mu.Unlock()
		_, whole := r.names.links.whole[scan.IDOf(st)]
		return whole && slices.Contains(r.sink.offered(), "b/g")
	})
	r.sink.hold("") // The upload ends.
	r.must(r.sink.Offer(t.Context(), Change{Path: "a/f", Kind: archive.Check}))
	r.write("b/g", "changed under the new name")
	r.agrees()
	r.noScanHelped()
}

// No event reports what changes only because a file gets or loses a name, and that
// is no fault of the watches; everything else is.
func TestANameOutsideIsNotMissed(t *testing.T) {
	r := newRig(t, nil)
	outside := t.TempDir()
	r.write("f", "x")
	r.write("g", "x")
	r.start()
	r.agrees()
	r.must(os.Link(r.path("f"), filepath.Join(outside, "f")))
	r.must(os.Link(r.path("g"), filepath.Join(outside, "g")))
	r.must(os.Chmod(filepath.Join(outside, "g"), 0o600))
	r.must(wait(t.Context(), r.settle+eventMargin+100*time.Millisecond))
	if s := r.rescan(); s.Changed != 2 || s.Missed != 1 {
		t.Errorf("changed %d, missed %d, want 2 and 1", s.Changed, s.Missed)
	}
	lines := r.logs.FilterMessage("no event reported this change").All()
	if len(lines) != 1 || lines[0].ContextMap()["path"] != "g" {
		t.Errorf("named are %v, want g", lines)
	}
}
