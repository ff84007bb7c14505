package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/s3syncd/s3syncd/internal/fstest"
)

// failedRecord returns the failed records of the path rel.
func (tr trail) failedRecords(path string) (list []record) {
	for _, r := range tr.records {
		if r.LocalPath == path && r.Status == "failed" {
			list = append(list, r)
		}
	}
	return list
}

// wantFailed checks that rel has one failed record, of class file.
func (s *site) wantFailed(t *testing.T, rel string) {
	t.Helper()
	if got := s.bucket.readTrail(t).failedRecords(s.path(rel)); len(got) != 1 || got[0].ErrorClass != "file" || got[0].Error == "" {
		t.Errorf("failed records of %s: %+v, want one of class file", rel, got)
	}
}

// wantKeys checks which objects there are.
func (s *site) wantKeys(t *testing.T, rel ...string) {
	t.Helper()
	want := []string{}
	for _, r := range rel {
		want = append(want, s.bucket.prefix+"/"+r)
	}
	slices.Sort(want)
	got := s.bucket.keys(t, false)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("keys: %q, want %q", got, want)
	}
}

func TestAMirrorKeepsWhatAnotherFileSystemDoesNotHave(t *testing.T) {
	for _, inodes := range []string{"256", "128"} {
		t.Run("inodes of "+inodes+" bytes", func(t *testing.T) {
			s := newSite(t, "deletes: mirror", "")
			d := fstest.NewDisk(t, s.dir, "-I", inodes)
			for i := range 5 {
				write(t, s.path(fmt.Sprintf("f%d", i)), "x")
			}
			s.mustSync(t, 5, 0, 0)
			d.Unmount()
			d.Make("-I", inodes)
			d.Mount()
			write(t, s.path("f0"), "x")
			write(t, s.path("new"), "x")
			for range 2 {
				s.sync(t)
				s.wantKeys(t, "f0", "f1", "f2", "f3", "f4", "new")
			}
			if got := s.bucket.readTrail(t).removed(); len(got) != 0 {
				t.Errorf("deleted records: %v, want none", got)
			}
			p := s.daemon(t)
			code, out, errs := command(t, s.env, "rescan", "app", "--confirm-deletes", "-c", s.file)
			if code != 0 {
				t.Fatalf("rescan exited with %d: %s%s", code, out, errs)
			}
			eventually(t, "what is confirmed", func() bool { return len(s.bucket.keys(t, false)) == 2 })
			if code := p.stop(t); code != 0 {
				t.Errorf("exit code %d, want 0", code)
			}
			remove(t, s.path("new"))
			write(t, s.path("newer"), "x")
			s.sync(t)
			s.wantKeys(t, "f0", "newer")
		})
	}
}

func TestASourceOfDumpsThatAreAllNew(t *testing.T) {
	for _, deletes := range []string{"keep", "mirror"} {
		t.Run(deletes, func(t *testing.T) {
			s := newSite(t, "deletes: "+deletes, "")
			for day := range 3 {
				if day > 0 {
					remove(t, s.path(fmt.Sprintf("dump-%d", day-1)))
				}
				write(t, s.path(fmt.Sprintf("dump-%d", day)), "x")
				s.mustSync(t, 1, 0, 0)
			}
			want := map[string]int{s.bucket.prefix + "/dump-0": 1, s.bucket.prefix + "/dump-1": 1}
			if got := s.bucket.readTrail(t).removed(); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("deleted records: %v, want %v", got, want)
			}
			if deletes == "mirror" {
				s.wantKeys(t, "dump-2")
			}
		})
	}
}

func TestALockedDirectoryHasNotBeenEmptied(t *testing.T) {
	for _, deletes := range []string{"keep", "mirror"} {
		t.Run(deletes, func(t *testing.T) {
			s := newSite(t, "deletes: "+deletes, "")
			fstest.NewDisk(t, s.dir, "-O", "encrypt")
			if err := os.Mkdir(s.path("home"), 0o755); err != nil {
				t.Fatal(err)
			}
			key := fstest.Encrypt(t, s.path("home"))
			write(t, s.path("beside"), "x")
			for i := range 4 {
				write(t, s.path(fmt.Sprintf("home/f%d", i)), "x")
				write(t, s.path(fmt.Sprintf("home/d/f%d", i)), "x")
			}
			s.mustSync(t, 9, 0, 0)
			key.Remove()
			s.mustSync(t, 0, 1, 1)
			s.wantFailed(t, "home")
			if got := len(s.bucket.keys(t, false)); got != 9 {
				t.Errorf("%d objects, want 9", got)
			}
			key.Add()
			remove(t, s.path("home/f0"))
			s.mustSync(t, 0, 8, 0)
			if got := s.bucket.readTrail(t).removed(); len(got) != 1 || got[s.bucket.prefix+"/home/f0"] != 1 {
				t.Errorf("deleted records: %v, want home/f0", got)
			}
		})
	}
}

func TestANameThatCannotBeLookedAtFails(t *testing.T) {
	s := newSite(t, "", "")
	d := fstest.NewDisk(t, s.dir, "-O", "^filetype")
	write(t, s.path("bad"), "x")
	write(t, s.path("fine"), "x")
	s.mustSync(t, 2, 0, 0)
	d.Unmount()
	d.Debug("clri bad")
	d.Mount()
	s.mustSync(t, 0, 1, 1)
	s.wantFailed(t, "bad")
	if got := s.bucket.readTrail(t).removed(); len(got) != 0 {
		t.Errorf("deleted records: %v, want none", got)
	}
}

func TestTheReservedNameIsRefusedWhateverHasIt(t *testing.T) {
	for name, create := range map[string]func(path string) error{
		"file": func(path string) error { return os.WriteFile(path, []byte("x"), 0o644) },
		"link": func(path string) error { return os.Symlink("f", path) },
		"FIFO": func(path string) error { return unix.Mkfifo(path, 0o644) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, "symlinks: follow", "")
			write(t, s.path("f"), "x")
			if err := create(s.path("_manifests")); err != nil {
				t.Fatal(err)
			}
			s.mustSync(t, 1, 0, 1)
			s.wantKeys(t, "f")
			s.wantFailed(t, "_manifests")
			s.mustSync(t, 0, 1, 1)
			remove(t, s.path("_manifests"))
			s.mustSync(t, 0, 1, 0)
		})
	}
}

func TestFileSystemsOfTheKernelAreNotArchived(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root mounts")
	}
	s := newSite(t, "", "")
	write(t, s.path("f"), "x")
	for _, fs := range []string{"proc", "sys"} {
		if err := os.Mkdir(s.path(fs), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("/"+fs, s.path(fs), "", unix.MS_BIND, ""); err != nil {
			t.Skipf("mount: %v", err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(s.path(fs), unix.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
				t.Error(err)
			}
		})
	}
	s.mustSync(t, 1, 0, 0)
	s.wantKeys(t, "f")
	digests := s.bucket.readTrail(t).digests
	if !slices.ContainsFunc(digests, func(d digest) bool { return len(d.Scans) > 0 && d.Scans[0].Pseudo == 2 }) {
		t.Errorf("digests: %+v, want a scan with 2 file systems of the kernel", digests)
	}
}

func TestADirectoryTooDeepForAKeyIsOneFailure(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("z"), "behind it")
	nested(t, s.dir, 8000)
	begin := time.Now()
	s.mustSync(t, 1, 0, 1)
	if d := time.Since(begin); d > time.Minute { // It takes a second; minutes where depth costs its square.
		t.Errorf("the run took %v", d)
	}
	s.mustSync(t, 0, 1, 1)
	failed := 0
	for _, r := range s.bucket.readTrail(t).records {
		if r.Status == "failed" && r.ErrorClass == "file" && strings.Contains(r.Error, "1,024") {
			failed++
		}
	}
	if failed != 1 {
		t.Errorf("%d failed records, want 1", failed)
	}
}

// nested makes directories in each other, too deep for a path. The end of the
// test takes them away.
func nested(t *testing.T, dir string, depth int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	for i := 0; i < depth && err == nil; i++ {
		if err = unix.Mkdirat(fd, "d", 0o755); err != nil {
			break
		}
		var sub int
		sub, err = unix.Openat(fd, "d", unix.O_PATH|unix.O_DIRECTORY, 0)
		_ = unix.Close(fd)
		fd = sub
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(fd)
	t.Cleanup(func() {
		for range depth { // What is in the first one takes its place.
			if os.Rename(dir+"/d/d", dir+"/next") != nil {
				return
			}
			_ = os.Remove(dir + "/d")
			_ = os.Rename(dir+"/next", dir+"/d")
		}
	})
}
