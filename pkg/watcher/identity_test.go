package watcher

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/s3syncd/s3syncd/internal/fstest"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// runs are several runs over one source: each remembers what the one before it
// left, and all fill one archive.
type runs struct {
	tb     testing.TB
	dir    string
	sink   *fakeArchive
	memory Memory
	change func(*Options)
}

// next is a run that begins now.
func (s *runs) next() *rig {
	s.tb.Helper()
	return rigOf(s.tb, s.dir, s.sink, func(o *Options) {
		o.Memory = s.memory
		o.OnMemory = func(m Memory) { s.memory = m }
		if s.change != nil {
			s.change(o)
		}
	})
}

// scan is a run that scans once.
func (s *runs) scan() ScanResult {
	s.tb.Helper()
	res, err := s.next().ScanOnce(context.Background(), archive.TriggerSync)
	if err != nil {
		s.tb.Fatal(err)
	}
	return res
}

func newRuns(tb testing.TB, change func(*Options)) *runs {
	tb.Helper()
	dir := filepath.Join(tb.TempDir(), "src")
	if err := os.Mkdir(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	return &runs{tb: tb, dir: dir, sink: newArchive(dir), change: change}
}

func (s *runs) must(err error) {
	s.tb.Helper()
	if err != nil {
		s.tb.Fatal(err)
	}
}

func (s *runs) write(rel string) { write(s.tb, filepath.Join(s.dir, rel), "x") }

func TestAnotherFileSystemAfterARestartIsNoDeletion(t *testing.T) {
	for name, options := range map[string][]string{
		"with times of nanoseconds":   nil,
		"with times of whole seconds": {"-I", "128"},
		"of a UUID that is kept":      {"-U", "01234567-89ab-cdef-0123-456789abcdef"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newRuns(t, mirroring(100))
			d := fstest.NewDisk(t, s.dir, options...)
			s.must(os.Remove(filepath.Join(s.dir, "lost+found")))
			for i := range 5 {
				s.write(fmt.Sprintf("f%d", i))
			}
			s.scan()
			d.Unmount()
			if name == "of a UUID that is kept" {
				waitForTheNextSecond() // The birth of a root is a whole second.
			}
			d.Make(options...)
			d.Mount()
			s.must(os.Remove(filepath.Join(s.dir, "lost+found")))
			s.write("f0") // With the inode number that it had.
			for range 2 { // What is archived of it proves nothing in the next run.
				if res := s.scan(); !res.Replaced || res.Gone != 0 || res.Withheld != 4 {
					t.Errorf("replaced %v, gone %d, withheld %d, want true, 0, 4", res.Replaced, res.Gone, res.Withheld)
				}
			}
			if got := len(s.sink.list()); got != 5 {
				t.Errorf("%d files are archived, want 5", got)
			}
			r := s.next()
			r.ConfirmDeletes()
			if res, err := r.ScanOnce(context.Background(), archive.TriggerSync); err != nil || res.Replaced || res.Gone != 4 {
				t.Errorf("confirmed: %+v, %v, want 4 gone", res, err)
			}
			s.must(os.Remove(filepath.Join(s.dir, "f0")))
			s.write("f9")
			if res := s.scan(); res.Replaced || res.Gone != 1 {
				t.Errorf("the run after: replaced %v, gone %d, want false and 1", res.Replaced, res.Gone)
			}
		})
	}
}

// waitForTheNextSecond returns when a file system that is made has another second.
func waitForTheNextSecond() {
	var first, now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_REALTIME, &first)
	// The time that mkfs uses may lag this clock by a tick.
	for now = first; now.Sec == first.Sec || now.Nsec < 100_000_000; {
		_ = wait(context.Background(), 10_000_000)
		_ = unix.ClockGettime(unix.CLOCK_REALTIME, &now)
	}
}

// Inode numbers are used again: its birth identifies the directory.
func TestADirectoryMadeAgainIsNoDeletion(t *testing.T) {
	s := newRuns(t, nil)
	s.write("a")
	s.write("b")
	s.scan()
	s.must(os.RemoveAll(s.dir))
	s.must(os.Mkdir(s.dir, 0o755))
	s.write("a")
	if res := s.scan(); !res.Replaced || res.Gone != 0 || res.Withheld != 1 {
		t.Errorf("replaced %v, gone %d, withheld %d, want true, 0, 1", res.Replaced, res.Gone, res.Withheld)
	}
}

func TestASourceWhoseFilesAreAllNewIsItself(t *testing.T) {
	s := newRuns(t, nil)
	for day := range 3 {
		if day > 0 {
			s.must(os.Remove(filepath.Join(s.dir, fmt.Sprintf("dump-%d", day-1))))
		}
		s.write(fmt.Sprintf("dump-%d", day))
		if res := s.scan(); res.Replaced || res.Withheld != 0 || res.New != 1 || res.Gone != int64(min(day, 1)) {
			t.Errorf("day %d: %+v, want yesterday's file gone and today's new", day, res)
		}
	}
	if got := fmt.Sprint(s.sink.list()); got != "[dump-2]" {
		t.Errorf("archived: %s, want the last one", got)
	}
	// Emptied, it is itself as well.
	s.must(os.Remove(filepath.Join(s.dir, "dump-2")))
	if res := s.scan(); res.Replaced || res.Gone != 1 {
		t.Errorf("emptied: %+v, want its last file gone", res)
	}
}

func TestAStateOfAnOlderReleaseGoesOn(t *testing.T) {
	s := newRuns(t, nil)
	s.write("a")
	s.write("b")
	s.scan()
	s.memory = Memory{}
	s.must(os.Remove(filepath.Join(s.dir, "b")))
	if res := s.scan(); res.Replaced || res.Gone != 1 {
		t.Errorf("replaced %v, gone %d, want false and 1", res.Replaced, res.Gone)
	}
	if s.memory.Place.Ino == 0 || s.memory.Path != s.dir {
		t.Errorf("remembered: %+v, want the directory", s.memory)
	}
}

func TestADirectoryThatWasMovedWithItsFilesIsItself(t *testing.T) {
	s := newRuns(t, nil)
	s.write("a")
	s.write("b")
	s.scan()
	s.must(os.Rename(s.dir, s.dir+"-moved"))
	s.dir += "-moved"
	s.sink.root = safefs.NewRoot(s.dir, safefs.RootOptions{CrossMounts: true})
	s.must(os.Remove(filepath.Join(s.dir, "b")))
	if res := s.scan(); res.Replaced || res.Gone != 1 {
		t.Errorf("replaced %v, gone %d, want false and 1", res.Replaced, res.Gone)
	}
}

func TestMountsInsideOverRestarts(t *testing.T) {
	succeeds(t, mountingChild(t, restartsChild, filepath.Join(t.TempDir(), "src")))
}

// mountsOverRestarts changes what is mounted at vol between the runs.
func mountsOverRestarts(tb testing.TB, dir string) {
	tb.Helper()
	s := &runs{tb: tb, dir: dir, sink: newArchive(dir)}
	vol := filepath.Join(dir, "vol")
	mount := func() { s.must(unix.Mount("tmpfs", vol, "tmpfs", 0, "")) }
	unmount := func() { s.must(unix.Unmount(vol, unix.MNT_DETACH)) }
	expect := func(what string, gone, withheld int64) {
		if res := s.scan(); res.Gone != gone || res.Withheld != withheld || res.Replaced {
			tb.Errorf("%s: gone %d, withheld %d, replaced %v, want %d, %d, false", what, res.Gone, res.Withheld, res.Replaced, gone, withheld)
		}
	}
	s.write("f")
	s.write("vol/hidden")
	expect("at first", 0, 0)
	mount()
	expect("a mount over an archived file", 0, 1)
	s.write("vol/on")
	expect("a file on it", 0, 1)
	s.must(os.Remove(filepath.Join(vol, "on")))
	expect("which goes", 0, 2)
	unmount()
	expect("unmounted", 0, 1) // What became of vol/on is not known.
	r := s.next()
	r.ConfirmDeletes()
	if res, err := r.ScanOnce(context.Background(), archive.TriggerSync); err != nil || res.Gone != 1 {
		tb.Errorf("confirmed: %+v, %v, want vol/on gone", res, err)
	}
	s.must(os.Remove(filepath.Join(vol, "hidden")))
	expect("after that", 1, 0)
	mount()
	expect("a mount over nothing", 0, 0)
	s.write("vol/1")
	s.write("vol/2")
	expect("files on it", 0, 0)
	s.must(os.Remove(filepath.Join(vol, "1")))
	expect("of which one goes", 1, 0)
	unmount()
	mount()
	s.write("vol/3")
	expect("another file system at the mount point", 0, 1)
	expect("and again", 0, 1)
	s.write("vol/2")
	expect("restored", 0, 0)
	s.must(os.Remove(filepath.Join(vol, "3")))
	expect("which is what counts from then on", 1, 0)
}

func TestALockedDirectoryIsNoDeletion(t *testing.T) {
	s := newRuns(t, mirroring(100))
	fstest.NewDisk(t, s.dir, "-O", "encrypt")
	home := filepath.Join(s.dir, "home")
	s.must(os.Mkdir(home, 0o755))
	key := fstest.Encrypt(t, home)
	s.write("beside")
	for i := range 5 {
		s.write(fmt.Sprintf("home/f%d", i))
		s.write(fmt.Sprintf("home/d/f%d", i))
	}
	s.scan()
	key.Remove()
	for range 2 {
		if res := s.scan(); res.Gone != 0 || res.Unreadable == 0 || res.New != 0 {
			t.Errorf("locked: %+v, want nothing gone or new, and something unreadable", res)
		}
	}
	if n := len(s.sink.refused); n == 0 || s.sink.refused[0].Path != "home" {
		t.Errorf("refused: %+v, want home", s.sink.refused)
	}
	if got := len(s.sink.list()); got != 11 {
		t.Errorf("%d files are archived, want 11", got)
	}
	key.Add()
	s.must(os.Remove(filepath.Join(home, "f0")))
	if res := s.scan(); res.Gone != 1 || res.Unreadable != 0 {
		t.Errorf("unlocked: %+v, want one gone", res)
	}
}

func TestALockedSourceIsAway(t *testing.T) {
	base := filepath.Join(t.TempDir(), "disk")
	fstest.NewDisk(t, base, "-O", "encrypt")
	s := &runs{tb: t, dir: filepath.Join(base, "home"), sink: newArchive(filepath.Join(base, "home"))}
	s.must(os.Mkdir(s.dir, 0o755))
	key := fstest.Encrypt(t, s.dir)
	s.write("f")
	s.scan()
	key.Remove()
	if res, err := s.next().ScanOnce(context.Background(), archive.TriggerSync); err == nil || res.Complete {
		t.Errorf("locked: %+v, want an error", res)
	}
	key.Add()
	if res := s.scan(); res.Gone != 0 || res.Unchanged != 1 {
		t.Errorf("unlocked: %+v, want the file unchanged", res)
	}
}
