package watcher

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/s3syncd/s3syncd/internal/fstest"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/scan"
)

func TestTheReservedNameIsRefusedWhateverHasIt(t *testing.T) {
	for name, row := range map[string]func(path string) error{
		"a file":                   func(path string) error { return os.WriteFile(path, []byte("x"), 0o644) },
		"a directory":              func(path string) error { return os.Mkdir(path, 0o755) },
		"a symbolic link":          func(path string) error { return os.Symlink("f", path) },
		"a link to a directory":    func(path string) error { return os.Symlink("d", path) },
		"a dangling link":          func(path string) error { return os.Symlink("none", path) },
		"a link out of the source": func(path string) error { return os.Symlink("/etc", path) },
		"a FIFO":                   func(path string) error { return unix.Mkfifo(path, 0o644) },
	} {
		for _, follow := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", follow ", follow), func(t *testing.T) {
				r := newRig(t, func(o *Options) {
					o.Root = safefs.NewRoot(o.Root.Path(), safefs.RootOptions{Follow: follow, CrossMounts: true})
				})
				r.write("f", "x")
				r.write("d/g", "x")
				r.must(row(r.path("_manifests")))
				if s := r.once(); s.Reserved != 1 || s.New != 2 || s.Special != 0 || s.Symlinks != 0 {
					t.Errorf("got %+v, want it reserved, and nothing else", s)
				}
				if got, want := r.offers(), "[refused _manifests check d/g check f]"; got != want {
					t.Errorf("got %s, want %s", got, want)
				}
			})
		}
	}
}

func TestTheReservedNameIsRefusedWhenItComes(t *testing.T) {
	r := newRig(t, nil)
	r.write("f", "x")
	r.start()
	r.agrees()
	r.write("_manifests", "x")
	r.eventually("it is refused", func() bool {
		r.sink.mu.Lock()
		defer r.sink.mu.Unlock()
		return len(r.sink.refused) == 1 && errors.Is(r.sink.refused[0].Err, scan.ErrReserved)
	})
	// As the index has it then. When it is removed, its entry goes too.
	r.sink.mu.Lock()
	r.sink.put(scan.Known{Path: "_manifests", Recheck: true})
	r.sink.mu.Unlock()
	r.rescan()
	if got := fmt.Sprint(r.sink.list()); got != "[_manifests f]" {
		t.Errorf("the index has %s while it is there", got)
	}
	r.must(os.Remove(r.path("_manifests")))
	r.eventually("it is forgotten", func() bool { return fmt.Sprint(r.sink.list()) == "[f]" })
}

// On a file system that does not tell types in a listing, a name that cannot be
// examined is a failure, not a special file.
func TestANameThatCannotBeLookedAtIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "src")
	d := fstest.NewDisk(t, dir, "-O", "^filetype")
	s := &runs{tb: t, dir: dir, sink: newArchive(dir)}
	s.write("bad")
	s.write("badly") // Sorts between bad and what would be below it.
	s.write("fine")
	s.write("sub/f")
	s.scan()
	d.Unmount()
	d.Debug("clri bad")
	d.Mount()
	for range 2 {
		s.sink.refused = nil
		res := s.scan()
		if res.Unreadable != 1 || res.Special != 0 || res.Gone != 0 || res.New != 0 || res.Changed != 0 {
			t.Errorf("got %+v, want one that is unreadable, and nothing else", res)
		}
		if n := len(s.sink.refused); n != 1 || s.sink.refused[0].Path != "bad" || errors.Is(s.sink.refused[0].Err, fs.ErrNotExist) {
			t.Errorf("refused: %+v, want bad", s.sink.refused)
		}
	}
	if got, want := fmt.Sprint(s.sink.list()), "[bad badly fine sub/f]"; got != want {
		t.Errorf("the index has %s, want %s", got, want)
	}
}

func TestFileSystemsOfTheKernelInsideASource(t *testing.T) {
	succeeds(t, mountingChild(t, kernelChild, filepath.Join(t.TempDir(), "src")))
}

func kernelSource(r *rig) {
	r.must(os.MkdirAll(r.path("jail/proc"), 0o755))
	r.must(os.MkdirAll(r.path("jail/sys"), 0o755))
	r.write("f", "x")
	r.write("version", "hidden")
	r.must(unix.Mount("/proc", r.path("jail/proc"), "", unix.MS_BIND|unix.MS_REC, ""))
	r.must(unix.Mount("/sys", r.path("jail/sys"), "", unix.MS_BIND|unix.MS_REC, ""))
	r.must(unix.Mount("/proc/version", r.path("version"), "", unix.MS_BIND, ""))
	r.start()
	s := r.rescan()
	if s.Pseudo != 3 || s.Files != 1 || s.Unreadable != 0 {
		r.tb.Errorf("got %+v, want 3 of the kernel's left out and one file", s)
	}
	r.eventually("f alone is archived", func() bool { return fmt.Sprint(r.sink.list()) == "[f]" })
	if got := r.metric("skipped_files", "pseudo"); got != 3 {
		r.tb.Errorf("skipped_files: got %v, want 3", got)
	}
	if got, _ := r.Directories(); got != 2 {
		r.tb.Errorf("%d directories are watched, want 2", got)
	}
}
