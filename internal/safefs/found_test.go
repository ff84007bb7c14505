package safefs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAFileIsSoleOnlyIfNobodyElseCanChangeIt(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	id := func(n uint32) *uint32 { return &n }
	type place struct {
		dirUID, dirGID int
		dirMode        os.FileMode
		uid, gid       int
		mode           os.FileMode
		linked         bool
		want           Attributes
	}
	base := place{dirMode: 0o755, mode: 0o644, want: Attributes{UID: id(0), GID: id(0), Mode: id(0o644)}}
	for _, c := range []struct {
		name   string
		change func(p *place)
		sole   bool
	}{
		{"root's own", func(*place) {}, true},
		{"no recorded attributes", func(p *place) { p.want = Attributes{} }, true},
		{"of the user that it is for", func(p *place) { p.uid, p.gid, p.want.UID, p.want.GID = 1000, 1000, id(1000), id(1000) }, true},
		{"in that user's directory", func(p *place) { p.dirUID, p.uid, p.want.UID = 1000, 1000, id(1000) }, true},
		{"writable by its group, as recorded", func(p *place) { p.mode, p.gid, p.want.GID, p.want.Mode = 0o664, 100, id(100), id(0o664) }, true},
		{"in a directory of the process's group", func(p *place) { p.dirMode = 0o775 }, true},
		{"of another user", func(p *place) { p.uid = 1000 }, false},
		{"of another user, nothing recorded", func(p *place) { p.uid, p.want = 1000, Attributes{} }, false},
		{"of another user than it is for", func(p *place) { p.uid, p.want.UID = 1000, id(1001) }, false},
		{"writable by all", func(p *place) { p.mode = 0o666 }, false},
		{"writable by its group", func(p *place) { p.mode = 0o664 }, false},
		{"writable by another group than it will be", func(p *place) { p.mode, p.gid, p.want.GID, p.want.Mode = 0o664, 100, id(200), id(0o664) }, false},
		{"writable and to be setuid", func(p *place) { p.mode, p.want.Mode = 0o664, id(0o4664) }, false},
		{"in a directory that all can write", func(p *place) { p.dirMode = 0o777 }, false},
		{"in a sticky directory that all can write", func(p *place) { p.dirMode = 0o777 | os.ModeSticky }, false},
		{"in a directory of another group", func(p *place) { p.dirMode, p.dirGID = 0o775, 100 }, false},
		{"in a directory of another user", func(p *place) { p.dirUID = 1000 }, false},
		{"with a second name", func(p *place) { p.linked = true }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := base
			c.change(&p)
			root := t.TempDir()
			dir := filepath.Join(root, "d")
			path := filepath.Join(dir, "f")
			write(t, path, "content")
			for _, err := range []error{
				os.Chown(path, p.uid, p.gid), os.Chmod(path, p.mode),
				os.Chown(dir, p.dirUID, p.dirGID), os.Chmod(dir, p.dirMode),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			if p.linked {
				if err := os.Link(path, filepath.Join(root, "second")); err != nil {
					t.Fatal(err)
				}
			}
			found, err := openTarget(t, root).Open("d/f")
			if err != nil {
				t.Fatal(err)
			}
			defer found.Close()
			if got := found.Sole(p.want); got != c.sole {
				t.Errorf("Sole() = %v, want %v", got, c.sole)
			}
		})
	}
}

// An access control list lets a user write that the mode does not show.
func TestAFileWithAnAccessControlListIsNotSole(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "f")
	write(t, path, "content")
	acl := []byte{2, 0, 0, 0} // Version 2, then tag, permissions and id of each entry.
	for _, e := range [][8]byte{
		{0x01, 0, 6, 0, 0xff, 0xff, 0xff, 0xff}, // user::rw-
		{0x02, 0, 6, 0, 0xe8, 0x03, 0, 0},       // user:1000:rw-
		{0x04, 0, 4, 0, 0xff, 0xff, 0xff, 0xff}, // group::r--
		{0x10, 0, 6, 0, 0xff, 0xff, 0xff, 0xff}, // mask::rw-
		{0x20, 0, 4, 0, 0xff, 0xff, 0xff, 0xff}, // other::r--
	} {
		acl = append(acl, e[:]...)
	}
	switch err := unix.Setxattr(path, "system.posix_acl_access", acl, 0); {
	case errors.Is(err, unix.ENOTSUP):
		t.Skip("this file system has no access control lists")
	case err != nil:
		t.Fatal(err)
	}
	found, err := openTarget(t, root).Open("f")
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	mode := uint32(0o664)
	if found.Sole(Attributes{Mode: &mode}) {
		t.Error("Sole() = true for a file that user 1000 may write")
	}
}

// Somebody who can write the directory links the file that is written, or puts
// another one in its place: neither becomes setuid, and it is said.
func TestAFileThatSomebodyElseMovesIsNotMadeSetuid(t *testing.T) {
	for name, meddle := range map[string]func(temp, other string) error{
		"a second name": os.Link,
		"another file in its place": func(temp, other string) error {
			return errors.Join(os.Rename(temp, other), os.WriteFile(temp, []byte("evil"), 0o600))
		},
	} {
		dir := t.TempDir()
		target := openTarget(t, dir)
		in, err := target.Create("f", DirOwnerSelf)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(in.Close)
		other := filepath.Join(dir, "other")
		if err := meddle(filepath.Join(dir, names(t, dir)[0]), other); err != nil {
			t.Fatal(err)
		}
		mode := uint32(0o4755)
		if err := in.Commit(Attributes{Mode: &mode}, false); !errors.Is(err, ErrMeddled) {
			t.Errorf("%s: Commit = %v, want ErrMeddled", name, err)
		}
		for _, path := range []string{other, filepath.Join(dir, "f")} {
			if st, err := os.Stat(path); err == nil && st.Mode()&os.ModeSetuid != 0 {
				t.Errorf("%s: %s is setuid", name, path)
			}
		}
	}
}

func TestNewDirectoriesGetTheModeThatWasAskedFor(t *testing.T) {
	for _, mode := range []os.FileMode{0o700, 0o755} {
		old := unix.Umask(0o022)
		root := filepath.Join(t.TempDir(), "new")
		target, err := OpenTarget(root, mode)
		unix.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(target.Close)
		if err := deliver(target, "a/b/f", "content", Attributes{}, false); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{root, root + "/a", root + "/a/b"} {
			if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != mode {
				t.Errorf("%s has mode %v, %v, want %v", dir, st.Mode(), err, mode)
			}
		}
		if got := target.Made(); got != 2 {
			t.Errorf("Made() = %d, want 2", got)
		}
	}
}
