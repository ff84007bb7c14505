package safefs

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func openTarget(t *testing.T, dir string) *Target {
	t.Helper()
	target, err := OpenTarget(dir, 0o700)
	if err != nil {
		t.Fatalf("OpenTarget: %v", err)
	}
	t.Cleanup(target.Close)
	return target
}

// deliver writes one file below target.
func deliver(target *Target, rel, content string, a Attributes, replace bool) error {
	in, err := target.Create(rel, DirOwnerSelf)
	if err != nil {
		return err
	}
	defer in.Close()
	if _, err := in.Write([]byte(content)); err != nil {
		return err
	}
	return in.Commit(a, replace)
}

// names lists what is in dir.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestTargetWritesFilesWithTheirAttributes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "target")
	target := openTarget(t, dir)
	if err := os.Chmod(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("n", 255)
	for _, rel := range []string{"f", "a/b/c/f", "a/" + long, "a/\xff\xfe", "a/-rf", "a/new\nline", "a/..."} {
		mode, at := uint32(0o4751), time.Unix(-1_000, 123_456_789)
		if err := deliver(target, rel, rel, Attributes{Mode: &mode, MTime: &at}, false); err != nil {
			t.Fatalf("%q: %v", rel, err)
		}
		st, err := target.Lstat(rel)
		if err != nil || st.Mode&0o7777 != mode || st.MtimeNs != at.UnixNano() || !(Attributes{Mode: &mode, MTime: &at}).Equal(st) {
			t.Errorf("%q: %+v, %v; want mode %o and time %v", rel, st, err, mode, at)
		}
		f, err := target.Open(rel)
		if err != nil {
			t.Fatalf("Open(%q): %v", rel, err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, rel)); err != nil || string(got) != rel {
			t.Errorf("%q holds %q, %v", rel, got, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	if st, err := target.Lstat("a/b"); err != nil || st.Mode&0o777 != 0o700 {
		t.Errorf("a new directory has mode %o, %v; want 700", st.Mode&0o777, err)
	}
	if err := target.Sync(); err != nil {
		t.Errorf("Sync: %v", err)
	}
}

func TestTargetRefusesWhatLeadsOut(t *testing.T) {
	base := t.TempDir()
	dir, outside := filepath.Join(base, "target"), filepath.Join(base, "outside")
	write(t, outside+"/f", "precious")
	write(t, dir+"/file", "x")
	write(t, dir+"/d/child", "x")
	symlink(t, outside, dir+"/link")
	symlink(t, outside+"/f", dir+"/flink")
	symlink(t, ".", dir+"/self")
	target := openTarget(t, dir)
	cases := []struct {
		rel     string
		replace bool
		want    error
	}{
		{"../outside/f", true, ErrEscapes},
		{"a/../../outside/f", true, ErrEscapes},
		{"/etc/passwd", true, ErrEscapes},
		{"", true, ErrEscapes},
		{".", true, ErrEscapes},
		{"a//b", true, ErrEscapes},
		{"a/", true, ErrEscapes},
		{"nul\x00", true, ErrEscapes},
		{"link/f", true, ErrParent},
		{"link/new/f", true, ErrParent},
		{"self/f", true, ErrParent},
		{"file/below", true, ErrParent},
		{"flink", false, ErrNotReplaced},
		{"file", false, ErrNotReplaced},
		{"d", true, ErrIsDirectory},
		{"d", false, ErrNotReplaced},
		{strings.Repeat("n", 256), true, syscall.ENAMETOOLONG},
	}
	for _, c := range cases {
		if err := deliver(target, c.rel, "attack", Attributes{}, c.replace); !errors.Is(err, c.want) {
			t.Errorf("writing %q with replace=%v: %v, want %v", c.rel, c.replace, err, c.want)
		}
	}
	for rel, want := range map[string]error{"link/f": ErrParent, "link": ErrSymlink, "d": ErrIsDirectory, "none/f": fs.ErrNotExist, "../outside/f": ErrEscapes} {
		if f, err := target.Open(rel); !errors.Is(err, want) {
			t.Errorf("Open(%q) = %v, %v, want %v", rel, f, err, want)
		}
	}
	if err := deliver(target, "flink", "in its place", Attributes{}, true); err != nil {
		t.Errorf("a link is replaced: %v", err)
	}
	if got, err := os.ReadFile(outside + "/f"); err != nil || string(got) != "precious" {
		t.Errorf("the file outside holds %q, %v", got, err)
	}
	if got := names(t, outside); len(got) != 1 {
		t.Errorf("outside there is %q", got)
	}
	for _, name := range names(t, dir) {
		if IsTargetTemp(name) {
			t.Errorf("%s was left behind", name)
		}
	}
}

// A directory is swapped with a link that leads outside, as fast as the kernel
// can, while files are written into it and made to replace each other.
func TestSwapRaceNeverWritesOutside(t *testing.T) {
	base := t.TempDir()
	dir, outside := filepath.Join(base, "target"), filepath.Join(base, "outside")
	write(t, dir+"/d/f", "x")
	write(t, outside+"/f", "precious")
	symlink(t, outside, dir+"/link")
	target := openTarget(t, dir)
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !stop.Load() {
			if err := unix.Renameat2(fd, "d", fd, "link", unix.RENAME_EXCHANGE); err != nil {
				t.Error(err)
				return
			}
		}
	})
	defer wg.Wait()
	defer stop.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	written, refused := 0, 0
	for ctx.Err() == nil && (written < 200 || refused < 200) {
		switch err := deliver(target, "d/f", "archived", Attributes{}, true); {
		case err == nil:
			written++
		case errors.Is(err, ErrParent):
			refused++
		default:
			t.Fatalf("an error that is neither: %v", err)
		}
	}
	if written == 0 || refused == 0 {
		t.Errorf("%d files were written, %d refused: there was no race", written, refused)
	}
	if got, err := os.ReadFile(outside + "/f"); err != nil || string(got) != "precious" {
		t.Fatalf("the file outside holds %q, %v", got, err)
	}
	if got := names(t, outside); len(got) != 1 {
		t.Fatalf("outside there is %q", got)
	}
}

func TestTargetReplacesWhatAKilledWriteLeft(t *testing.T) {
	dir := t.TempDir()
	target := openTarget(t, dir)
	killed, err := target.Create("sub/f", DirOwnerSelf)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := killed.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	left := names(t, dir+"/sub")
	if len(left) != 1 || !IsTargetTemp(left[0]) {
		t.Fatalf("a file that is being written is called %q", left)
	}
	if err := deliver(target, "sub/f", "whole", Attributes{}, false); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir+"/sub"); len(got) != 1 || got[0] != "f" {
		t.Errorf("there is %q, want the file alone", got)
	}
	killed.Close()
	if got, err := os.ReadFile(dir + "/sub/f"); err != nil || string(got) != "whole" {
		t.Errorf("the file holds %q, %v", got, err)
	}
}

func TestTargetIsLocked(t *testing.T) {
	dir := t.TempDir()
	first, err := OpenTarget(dir, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := OpenTarget(dir, 0o700); !errors.Is(err, ErrTargetBusy) {
		t.Errorf("a second OpenTarget = %v, %v, want ErrTargetBusy", second, err)
	}
	first.Close()
	openTarget(t, dir)
}

func TestNewDirectoriesGoToTheOwnerOfTheOneAbove(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give directories away")
	}
	dir := t.TempDir()
	if err := os.Chown(dir, 1234, 4321); err != nil {
		t.Fatal(err)
	}
	target := openTarget(t, dir)
	in, err := target.Create("a/b/f", DirOwnerParent)
	if err != nil {
		t.Fatal(err)
	}
	uid, gid := uint32(77), uint32(88)
	if err := in.Commit(Attributes{UID: &uid, GID: &gid}, false); err != nil {
		t.Fatal(err)
	}
	for rel, want := range map[string][2]uint32{"a": {1234, 4321}, "a/b": {1234, 4321}, "a/b/f": {77, 88}} {
		if st, err := target.Lstat(rel); err != nil || [2]uint32{st.UID, st.GID} != want {
			t.Errorf("%s belongs to %d:%d, %v, want %v", rel, st.UID, st.GID, err, want)
		}
	}
}
