package safefs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/s3syncd/s3syncd/internal/fstest"
)

func TestPlacesAreCompared(t *testing.T) {
	full := Place{UUID: "u", FSID: "f", Ino: 2, Birth: 3, Generation: "4"}
	change := func(f func(*Place)) Place {
		p := full
		f(&p)
		return p
	}
	for name, row := range map[string]struct {
		now  Place
		want Verdict
	}{
		"nothing changed":                         {full, Same},
		"another UUID":                            {change(func(p *Place) { p.UUID = "v" }), Other},
		"another file system id":                  {change(func(p *Place) { p.FSID = "g" }), Other},
		"another inode":                           {change(func(p *Place) { p.Ino = 9 }), Other},
		"another birth":                           {change(func(p *Place) { p.Birth = 9 }), Other},
		"another generation":                      {change(func(p *Place) { p.Generation = "9" }), Other},
		"a kernel that tells no UUID":             {change(func(p *Place) { p.UUID = "" }), Same},
		"a kernel that tells the birth alone":     {Place{Ino: 2, Birth: 3}, Same},
		"a kernel that tells another birth alone": {Place{Ino: 2, Birth: 9}, Other},
		"an inode number alone":                   {Place{Ino: 2}, Unsure},
		"nothing is known":                        {Place{}, Unsure},
	} {
		if got := full.Compare(row.now); got != row.want {
			t.Errorf("%s: Compare = %d, want %d", name, got, row.want)
		}
		if got := row.now.Compare(full); got != row.want {
			t.Errorf("%s, the other way: Compare = %d, want %d", name, got, row.want)
		}
	}
}

// A directory that is made again may get the inode number of the one that was
// removed.
func TestADirectoryMadeAgainIsAnotherPlace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "src")
	r := NewRoot(dir, RootOptions{CrossMounts: true})
	var first Identity
	for i := range 50 {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		id, err := r.Identify()
		if err != nil {
			t.Fatal(err)
		}
		if id.Place.Birth == 0 {
			t.Skip("this file system tells no birth")
		}
		switch {
		case i == 0:
			first = id
			r.Pin(id)
		case id.Ino == first.Ino:
			if first.SameDirectory(id) {
				t.Errorf("%+v and %+v count as the same directory", first, id)
			}
			if _, err := r.Lstat(""); !errors.Is(err, ErrRootChanged) {
				t.Errorf("a look below the root that was pinned: got %v, want ErrRootChanged", err)
			}
			return
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	t.Skip("this file system did not use the inode again")
}

func TestAPlaceLivesAsLongAsItsFileSystem(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "src")
	d := fstest.NewDisk(t, dir)
	r := NewRoot(dir, RootOptions{CrossMounts: true})
	place := func() Place {
		t.Helper()
		id, err := r.Identify()
		if err != nil {
			t.Fatal(err)
		}
		if p, err := r.Place(""); err != nil || p != id.Place {
			t.Errorf("Place of the root: got %+v, %v, want %+v", p, err, id.Place)
		}
		return id.Place
	}
	first := place()
	d.Unmount()
	d.Mount()
	if now := place(); first.Compare(now) != Same || now.FSID == "" {
		t.Errorf("mounted again: got %+v, want the same as %+v", now, first)
	}
	d.Unmount()
	d.Make()
	d.Mount()
	now := place()
	if first.Compare(now) != Other || now.Ino != first.Ino {
		t.Errorf("made anew: got %+v, want another than %+v with the same inode", now, first)
	}
}

// The first write in a directory of an overlay's lower layer makes a directory in
// the upper one, which was born then.
// The same id, inode and generation, and no birth: mkfs -U after a disk was restored.
func TestAFileSystemWithoutBirthsIsTold(t *testing.T) {
	const uuid = "6f0b1c0e-5a55-4c39-9a3c-0d8f6c1b2a3d"
	dir := filepath.Join(t.TempDir(), "src")
	d := fstest.NewDisk(t, dir, "-I", "128", "-U", uuid)
	r := NewRoot(dir, RootOptions{CrossMounts: true})
	place := func() Place {
		t.Helper()
		p, err := r.Place("")
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := place()
	if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(dir, "lost+found"), 1, 1); err != nil {
		t.Fatal(err)
	}
	d.Unmount()
	d.Mount()
	if now := place(); first.Compare(now) != Same {
		t.Errorf("mounted again: got %+v, want the same as %+v", now, first)
	}
	end := time.Now().Add(10 * time.Second)
	for { // The times are of whole seconds.
		d.Unmount()
		d.Make("-I", "128", "-U", uuid)
		d.Mount()
		now := place()
		if first.Compare(now) == Other {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("made anew: got %+v, want another than %+v", now, first)
		}
	}
}

func TestADirectoryOfAnOverlayStaysTheSamePlace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root mounts")
	}
	base := t.TempDir()
	write(t, base+"/lower/src/f", "x")
	for _, d := range []string{"upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	merged := base + "/merged"
	mount := func() {
		t.Helper()
		options := "lowerdir=" + base + "/lower,upperdir=" + base + "/upper,workdir=" + base + "/work"
		if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
			t.Skipf("no overlay: %v", err)
		}
	}
	unmount := func() {
		if err := unix.Unmount(merged, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}
	mount()
	r := NewRoot(merged+"/src", RootOptions{CrossMounts: true})
	before, err := r.Identify()
	if err != nil {
		t.Fatal(err)
	}
	write(t, merged+"/src/new", "x")
	after, err := r.Identify()
	if err != nil || !before.SameDirectory(after) || before.Place.Compare(after.Place) != Same {
		t.Errorf("after a write: %+v, %v, want the same as %+v", after, err, before)
	}
	unmount()
	mount()
	defer unmount()
	if again, err := r.Identify(); err != nil || before.Place.Compare(again.Place) != Same {
		t.Errorf("mounted again: %+v, %v, want the same as %+v", again, err, before)
	}
}

func TestALockedDirectoryIsNotReadAsEmptied(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "src")
	fstest.NewDisk(t, dir, "-O", "encrypt")
	locked := filepath.Join(dir, "home")
	if err := os.Mkdir(locked, 0o755); err != nil {
		t.Fatal(err)
	}
	key := fstest.Encrypt(t, locked)
	write(t, locked+"/f", "x")
	write(t, locked+"/d/f", "x")
	r := NewRoot(dir, RootOptions{CrossMounts: true, Follow: true})
	symlink(t, "home/f", dir+"/link")
	if _, err := r.OpenDir("home"); err != nil {
		t.Fatalf("with its key: %v", err)
	}
	if _, err := r.Lstat("home/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a name that is not there, with the key: got %v, want ErrNotExist", err)
	}
	key.Remove()
	for _, path := range []string{"home/f", "home/d/f", "home/none", "link"} {
		// The kernel may remember a name for a while.
		if _, err := r.Stat(path); err != nil && (!errors.Is(err, ErrLocked) || errors.Is(err, fs.ErrNotExist)) {
			t.Errorf("Stat(%s) without the key: got %v, want ErrLocked or nil", path, err)
		}
		if _, err := r.Open(path); !errors.Is(err, ErrLocked) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open(%s) without the key: got %v, want ErrLocked", path, err)
		}
	}
	if _, err := r.OpenDir("home"); !errors.Is(err, ErrLocked) {
		t.Errorf("OpenDir without the key: got %v, want ErrLocked", err)
	}
	if _, err := r.Lstat("none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a name beside it: got %v, want ErrNotExist", err)
	}
	key.Add()
	if got, err := readAll(t, r, "home/d/f"); err != nil || got != "x" {
		t.Errorf("unlocked again: got %q, %v", got, err)
	}
}

func TestFileSystemsOfTheKernelAreNotEntered(t *testing.T) {
	r := NewRoot("/", RootOptions{CrossMounts: true})
	if _, err := r.OpenDir("proc"); !errors.Is(err, ErrPseudo) {
		t.Errorf("OpenDir: got %v, want ErrPseudo", err)
	}
	for _, path := range []string{"proc/version", "sys/kernel/uevent_seqnum"} {
		if _, err := r.Open(path); !errors.Is(err, ErrPseudo) {
			t.Errorf("Open(%s): got %v, want ErrPseudo", path, err)
		}
	}
}
