package safefs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func write(tb testing.TB, path, content string) {
	tb.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		tb.Fatal(err)
	}
}

func symlink(tb testing.TB, target, path string) {
	tb.Helper()
	if err := os.Symlink(target, path); err != nil {
		tb.Fatal(err)
	}
}

func readAll(tb testing.TB, r *Root, rel string) (string, error) {
	tb.Helper()
	o, err := r.Open(rel)
	if err != nil {
		return "", err
	}
	defer o.File.Close()
	b, err := io.ReadAll(o.File)
	return string(b), err
}

func TestOpenRefusesWhatIsNotAFileOfTheSource(t *testing.T) {
	base := t.TempDir()
	root := filepath.Join(base, "root")
	write(t, root+"/d/f", "public")
	write(t, base+"/secret/f", "secret")
	write(t, root+"/file", "x")
	symlink(t, base+"/secret", root+"/out")
	symlink(t, "../secret/f", root+"/outfile")
	symlink(t, "d", root+"/in")
	symlink(t, "d/f", root+"/infile")
	symlink(t, root+"/d/f", root+"/abs")
	symlink(t, "loop", root+"/loop")
	symlink(t, "gone", root+"/dangling")
	symlink(t, "../file", root+"/d/up")
	if err := unix.Mkfifo(root+"/fifo", 0o644); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		rel            string
		skip, follow   error // the error wanted with links not followed and followed
		content        string
		followsContent string
	}{
		{rel: "d/f", content: "public", followsContent: "public"},
		{rel: "d", skip: ErrNotRegular, follow: ErrNotRegular},
		{rel: "", skip: ErrNotRegular, follow: ErrNotRegular},
		{rel: "fifo", skip: ErrNotRegular, follow: ErrNotRegular},
		{rel: "none", skip: fs.ErrNotExist, follow: fs.ErrNotExist},
		{rel: "file/below", skip: fs.ErrNotExist, follow: fs.ErrNotExist},
		{rel: "file/below/more", skip: fs.ErrNotExist, follow: fs.ErrNotExist},
		{rel: "../secret/f", skip: ErrEscapes, follow: ErrEscapes},
		{rel: "/etc/passwd", skip: ErrEscapes, follow: ErrEscapes},
		{rel: "d//f", skip: ErrEscapes, follow: ErrEscapes},
		{rel: "d/./f", skip: ErrEscapes, follow: ErrEscapes},
		{rel: "out/f", skip: ErrSymlink, follow: ErrEscapes},
		{rel: "outfile", skip: ErrSymlink, follow: ErrEscapes},
		{rel: "in/f", skip: ErrSymlink, followsContent: "public"},
		{rel: "infile", skip: ErrSymlink, followsContent: "public"},
		{rel: "abs", skip: ErrSymlink, followsContent: "public"},
		{rel: "d/up", skip: ErrSymlink, followsContent: "x"},
		{rel: "in/up", skip: ErrSymlink, followsContent: "x"},
		{rel: "loop", skip: ErrSymlink, follow: ErrSymlink},
		{rel: "dangling", skip: ErrSymlink, follow: fs.ErrNotExist},
	}
	for _, c := range cases {
		for _, follow := range []bool{false, true} {
			r := NewRoot(root, RootOptions{Follow: follow, CrossMounts: true})
			wantErr, want := c.skip, c.content
			if follow {
				wantErr, want = c.follow, c.followsContent
			}
			got, err := readAll(t, r, c.rel)
			if !errors.Is(err, wantErr) || got != want {
				t.Errorf("Open(%q) with follow=%v: got %q, %v, want %q, %v", c.rel, follow, got, err, want, wantErr)
			}
		}
	}
}

func TestBelowASymlinkNothingExists(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/d/f", "x")
	symlink(t, "d", root+"/l")
	r := NewRoot(root, RootOptions{})
	if _, err := r.Lstat("l/f"); !errors.Is(err, fs.ErrNotExist) || !errors.Is(err, ErrSymlink) {
		t.Errorf("Lstat below a link: got %v, want ErrSymlink and fs.ErrNotExist", err)
	}
	if st, err := r.Lstat("l"); err != nil || !st.IsSymlink() {
		t.Errorf("Lstat of a link: got %+v, %v", st, err)
	}
	follow := NewRoot(root, RootOptions{Follow: true})
	if st, err := follow.Stat("l"); err != nil || !st.IsDir() {
		t.Errorf("Stat of a followed link: got %+v, %v", st, err)
	}
	if st, err := follow.Lstat("l"); err != nil || !st.IsSymlink() {
		t.Errorf("Lstat of a followed link: got %+v, %v", st, err)
	}
}

// A directory and a file are swapped with links that lead outside, as fast as
// the kernel can, while they are opened.
func TestSwapRaceNeverLeaks(t *testing.T) {
	for _, follow := range []bool{false, true} {
		base := t.TempDir()
		root := filepath.Join(base, "root")
		write(t, root+"/d/f", "public")
		write(t, base+"/secret/f", "SECRET")
		symlink(t, base+"/secret", root+"/link")
		symlink(t, base+"/secret/f", root+"/d/lf")
		var stop atomic.Bool
		var wg sync.WaitGroup
		swap := func(dir, a, b string) {
			fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0) // Stays the same directory while its name moves.
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				defer unix.Close(fd)
				for !stop.Load() {
					if err := unix.Renameat2(fd, a, fd, b, unix.RENAME_EXCHANGE); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		swap(root+"/d", "f", "lf")
		swap(root, "d", "link")
		r := NewRoot(root, RootOptions{Follow: follow, CrossMounts: true})
		var public, refused int
		for range 20000 {
			got, err := readAll(t, r, "d/f")
			switch {
			case got == "SECRET":
				t.Fatalf("follow=%v: the file outside the source was read", follow)
			case err == nil:
				public++
			default:
				refused++
			}
		}
		stop.Store(true)
		wg.Wait()
		if public == 0 || refused == 0 {
			t.Errorf("follow=%v: %d opens passed, %d were refused: there was no race", follow, public, refused)
		}
	}
}

func TestPinnedRootRefusesAnotherDirectory(t *testing.T) {
	base := t.TempDir()
	root := filepath.Join(base, "root")
	write(t, root+"/f", "x")
	r := NewRoot(root, RootOptions{CrossMounts: true})
	id, err := r.Identify()
	if err != nil {
		t.Fatal(err)
	}
	r.Pin(id)
	if _, err := r.Lstat("f"); err != nil {
		t.Fatalf("Lstat in the pinned root: %v", err)
	}
	if err := os.Rename(root, base+"/old"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Lstat("f"); !errors.Is(err, ErrRootChanged) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Lstat without the root: got %v, want ErrRootChanged and not fs.ErrNotExist", err)
	}
	write(t, root+"/f", "other")
	if _, err := r.Open("f"); !errors.Is(err, ErrRootChanged) {
		t.Errorf("Open in a replaced root: got %v, want ErrRootChanged", err)
	}
	other, err := r.Identify()
	if err != nil {
		t.Fatal(err)
	}
	if other.SameDirectory(id) {
		t.Errorf("the replaced root has the identity of the first one: %+v", other)
	}
	r.Pin(other)
	if got, err := readAll(t, r, "f"); err != nil || got != "other" {
		t.Errorf("after pinning again: got %q, %v", got, err)
	}
}

func TestEntriesAreInPathOrder(t *testing.T) {
	root := t.TempDir()
	for _, f := range []string{"a/x", "a.txt", "a-", "a0", "ab", "b", "b.d/x", "\xff", "new\nline", "A"} {
		write(t, filepath.Join(root, f), "x")
	}
	symlink(t, "a", root+"/al")
	r := NewRoot(root, RootOptions{Follow: true, CrossMounts: true})
	d, err := r.OpenDir("")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for range 2 { // A second listing begins at the start again.
		entries, err := d.Entries(nil)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range entries {
			n := e.Name
			if e.IsDir() {
				n += "/"
			}
			got = append(got, n)
		}
		want := slices.Sorted(slices.Values(got))
		if len(got) != 11 || !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if !slices.Contains(got, "al/") {
			t.Errorf("a followed link to a directory does not sort as one: %q", got)
		}
	}
}

func TestPathsLongerThanPathMax(t *testing.T) {
	root := t.TempDir()
	name := strings.Repeat("n", 200)
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	rel := ""
	for range 30 {
		if err := unix.Mkdirat(fd, name, 0o755); err != nil {
			t.Fatal(err)
		}
		sub, err := unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd, rel = sub, rel+name+"/"
	}
	f, err := unix.Openat(fd, "f", unix.O_CREAT|unix.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	unix.Write(f, []byte("deep"))
	unix.Close(f)
	unix.Close(fd)
	r := NewRoot(root, RootOptions{CrossMounts: true})
	if got, err := readAll(t, r, rel+"f"); err != nil || got != "deep" {
		t.Errorf("open of %d bytes: got %q, %v", len(rel)+1, got, err)
	}
	d, err := r.OpenDir(strings.TrimSuffix(rel, "/"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if entries, err := d.Entries(nil); err != nil || len(entries) != 1 || entries[0].Name != "f" {
		t.Errorf("listing: got %v, %v", entries, err)
	}
}

func TestManyEntries(t *testing.T) {
	root := t.TempDir()
	want := make(map[string]bool)
	for i := range 5000 {
		n := strings.Repeat("x", i%200+1) + "-" + string(rune('a'+i%26)) + time.Duration(i).String()
		want[n] = true
		write(t, filepath.Join(root, n), "")
	}
	d, err := NewRoot(root, RootOptions{CrossMounts: true}).OpenDir("")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	entries, err := d.Entries(nil)
	if err != nil || len(entries) != len(want) {
		t.Fatalf("got %d entries, %v, want %d", len(entries), err, len(want))
	}
	for _, e := range entries {
		if !want[e.Name] || !e.IsRegular() {
			t.Fatalf("unexpected entry %q of type %o", e.Name, e.Type)
		}
	}
}

func TestMountsAreNotCrossed(t *testing.T) {
	// /proc is a mount of its own below the root of every Linux system.
	r := NewRoot("/", RootOptions{})
	if _, err := r.Open("proc/version"); !errors.Is(err, ErrOtherMount) {
		t.Errorf("Open: got %v, want ErrOtherMount", err)
	}
	if _, err := r.OpenDir("proc"); !errors.Is(err, ErrOtherMount) {
		t.Errorf("OpenDir: got %v, want ErrOtherMount", err)
	}
	shm, err := os.MkdirTemp("/dev/shm", "s3syncd-") //nolint:usetesting // A mount of its own.
	if err != nil {
		t.Skip(err)
	}
	defer os.RemoveAll(shm)
	write(t, shm+"/f", "shared memory")
	cross := NewRoot("/", RootOptions{CrossMounts: true})
	if got, err := readAll(t, cross, shm[1:]+"/f"); err != nil || got != "shared memory" {
		t.Errorf("with mounts crossed: got %q, %v", got, err)
	}
}

func TestStatAgreesWithTheKernel(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/d/f", "four")
	if err := os.Link(root+"/d/f", root+"/g"); err != nil {
		t.Fatal(err)
	}
	r := NewRoot(root, RootOptions{CrossMounts: true})
	o, err := r.Open("d/f")
	if err != nil {
		t.Fatal(err)
	}
	defer o.File.Close()
	again, err := Fstat(o.File)
	if err != nil {
		t.Fatal(err)
	}
	l, err := r.Lstat("d/f")
	if err != nil {
		t.Fatal(err)
	}
	if o.Stat != again || o.Stat != l {
		t.Errorf("three stats of one file differ: %+v, %+v, %+v", o.Stat, again, l)
	}
	if l.Size != 4 || l.Nlink != 2 || o.Dir.UID != uint32(os.Getuid()) {
		t.Errorf("got size %d, nlink %d, directory owner %d", l.Size, l.Nlink, o.Dir.UID)
	}
}

func TestPendingAppearsByCommitAlone(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := WriteFile(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := CreatePending(path, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	p.Write([]byte("two"))
	check := func(want string, wantMode os.FileMode, wantFiles int) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(b, []byte(want)) {
			t.Errorf("got %q, %v, want %q", b, err, want)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode() != wantMode {
			t.Errorf("got mode %v, %v, want %v", fi.Mode(), err, wantMode)
		}
		names, err := os.ReadDir(dir)
		if err != nil || len(names) != wantFiles {
			t.Errorf("got %v, %v, want %d files", names, err, wantFiles)
		}
	}
	check("one", 0o600, 2)
	p.Close()
	check("one", 0o600, 1)
	if err := p.Commit(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Commit after Close: got %v, want fs.ErrClosed", err)
	}
	if p, err = CreatePending(path, 0o640); err != nil {
		t.Fatal(err)
	}
	p.Write([]byte("three"))
	if err := p.Commit(); err != nil {
		t.Fatal(err)
	}
	p.Close()
	check("three", 0o640, 1)
	if ok, _ := filepath.Match(TempPattern, ".f.s3syncd-tmp-123"); !ok {
		t.Error("TempPattern does not match a temporary file's name")
	}
}

func TestCommitFailureLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/target/inside", "a directory that is not empty cannot be replaced")
	p, err := CreatePending(dir+"/target", 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Commit(); err == nil {
		t.Error("Commit over a directory succeeded")
	}
	if names, _ := os.ReadDir(dir); len(names) != 1 {
		t.Errorf("left behind: %v", names)
	}
}

func TestMkdirAll(t *testing.T) {
	dir := t.TempDir()
	if err := MkdirAll(dir+"/a/b/c", 0o700); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(dir + "/a/b/c"); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("got %v, %v", fi, err)
	}
	if err := MkdirAll(dir+"/a/b/c", 0o700); err != nil {
		t.Errorf("again: %v", err)
	}
	write(t, dir+"/f", "")
	if err := MkdirAll(dir+"/f/x", 0o700); err == nil {
		t.Error("a directory below a file was made")
	}
}

func TestNoDescriptorsAreLeft(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/a/b/f", "x")
	symlink(t, "../a/b", root+"/a/l")
	symlink(t, "../../..", root+"/a/up")
	count := func() int {
		names, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	before := count()
	for _, o := range []RootOptions{{}, {Follow: true}, {Follow: true, CrossMounts: true}} {
		r := NewRoot(root, o)
		for _, rel := range []string{"", "a", "a/b/f", "a/l/f", "a/up/x", "none", "a/none/f", "../x"} {
			if f, err := r.Open(rel); err == nil {
				f.File.Close()
			}
			r.Lstat(rel)
			r.Stat(rel)
			if d, err := r.OpenDir(rel); err == nil {
				d.Entries(nil)
				d.Close()
			}
			r.Identify()
		}
	}
	if after := count(); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func BenchmarkOpenDepth6(b *testing.B) {
	root := b.TempDir()
	write(b, root+"/a/b/c/d/e/f", "x")
	r := NewRoot(root, RootOptions{CrossMounts: true})
	for b.Loop() {
		o, err := r.Open("a/b/c/d/e/f")
		if err != nil {
			b.Fatal(err)
		}
		o.File.Close()
	}
}

func BenchmarkLstatDepth3(b *testing.B) {
	root := b.TempDir()
	write(b, root+"/a/b/f", "x")
	r := NewRoot(root, RootOptions{CrossMounts: true})
	for b.Loop() {
		if _, err := r.Lstat("a/b/f"); err != nil {
			b.Fatal(err)
		}
	}
}

// A FIFO that takes the place of a file between two calls must not be opened:
// that would let whoever waits to write to it go on.
func TestFIFOInAFilesPlaceIsNeverOpened(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	spare, fifo := filepath.Join(dir, "spare"), filepath.Join(dir, "fifo")
	if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	root := NewRoot(dir, RootOptions{CrossMounts: true})
	// A writer that waits is let go by whoever opens the FIFO for reading, and
	// stays let go however soon that one closes it (fifo(7)).
	held, err := openat(unix.AT_FDCWD, fifo, unix.O_PATH)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFD(held)
	path := fmt.Sprintf("/proc/self/fd/%d", held)
	var letGo atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		if fd, err := openat(unix.AT_FDCWD, path, unix.O_WRONLY); err == nil {
			letGo.Store(true)
			closeFD(fd)
		}
	})
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := errors.Join(os.Rename(name, spare), os.Rename(fifo, name), os.Rename(name, fifo), os.Rename(spare, name)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 200_000 {
		if o, err := root.Open("f"); err == nil {
			o.File.Close()
		}
	}
	if letGo.Load() {
		t.Error("the FIFO was opened")
	}
	close(stop)
	reader, err := openat(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFD(reader)
	wg.Wait()
}

// What stands at a name is another thing when it is opened than when it was looked
// at: a directory opens as well as a file does. What was opened is looked at, too.
func TestWhatWasOpenedIsAFile(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, other := range []string{"dir", "fifo"} {
		base := t.TempDir()
		write(t, base+"/f", "content")
		must(os.Mkdir(base+"/dir", 0o755))
		must(unix.Mkfifo(base+"/fifo", 0o644))
		fd, err := unix.Open(base, unix.O_PATH|unix.O_DIRECTORY, 0)
		must(err)
		t.Cleanup(func() { _ = unix.Close(fd) })
		var stop atomic.Bool
		var wg sync.WaitGroup
		wg.Go(func() {
			for !stop.Load() {
				if err := unix.Renameat2(fd, "f", fd, other, unix.RENAME_EXCHANGE); err != nil {
					t.Error(err)
					return
				}
			}
		})
		r := NewRoot(base, RootOptions{CrossMounts: true})
		files := 0
		for range 50_000 {
			o, err := r.Open("f")
			if err != nil {
				continue
			}
			st, err := o.File.Stat()
			if err != nil || !st.Mode().IsRegular() || !o.Stat.IsRegular() {
				t.Errorf("a %s was opened: %v, %v", other, st.Mode(), err)
			}
			_ = o.File.Close()
			if files++; t.Failed() {
				break
			}
		}
		stop.Store(true)
		wg.Wait()
		if files == 0 {
			t.Errorf("no file was opened beside a %s: there was no race", other)
		}
	}
}
