package safefs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Found is a regular file below a Target, open for reading.
type Found struct {
	*os.File
	Stat

	dir         Stat // of its directory
	acl, dirACL bool // others may have rights that the mode does not show
}

// Open opens the regular file at rel for reading. What else may be there is
// refused: a symbolic link by ErrSymlink, a directory by ErrIsDirectory, other
// things by ErrNotRegular; none of them is opened. Stat is valid where the error
// concerns what is there.
func (t *Target) Open(rel string) (Found, error) {
	dir, name, err := t.enter(rel, nil)
	if err != nil {
		return Found{}, &fs.PathError{Op: "open", Path: rel, Err: err}
	}
	defer closeFD(dir)
	above, err := fstat(dir)
	if err != nil {
		return Found{}, &fs.PathError{Op: "open", Path: rel, Err: err}
	}
	fd, st, err := openRegular(dir, name)
	if err != nil {
		return Found{Stat: st}, &fs.PathError{Op: "open", Path: rel, Err: err}
	}
	return Found{File: os.NewFile(uintptr(fd), rel), Stat: st, dir: above, acl: hasACL(fd), dirACL: hasACL(dir)}, nil
}

// Sole reports whether no user but this process's and the owner that a gives
// the file can change it now or later: not by its mode or an ACL, not by a second
// name, not by putting another file into its directory, and not through a
// descriptor or a mapping from a time when they could. A caller that restores a file
// that is not sole has to write a new one.
func (f *Found) Sole(a Attributes) bool {
	switch {
	case !a.trusts(f.UID), f.Nlink > 1:
		return false
	case !a.trusts(f.dir.UID), openToOthers(f.dir, f.dirACL):
		return false
	}
	return !f.writableByOthers(a)
}

// trusts reports whether a user is this process's, or the owner in a.
func (a Attributes) trusts(uid uint32) bool {
	return uid == uint32(os.Geteuid()) || a.UID != nil && uid == *a.UID
}

// writableByOthers reports whether f's mode lets more users write it than a's
// does.
func (f *Found) writableByOthers(a Attributes) bool {
	var allowed uint32 // Who may write the file in the end, may write it now.
	if a.Mode != nil && !a.RunsAs() && !f.acl {
		allowed = *a.Mode & 0o022
		if a.GID != nil && *a.GID != f.GID {
			allowed &= 0o002
		}
	}
	return f.Mode&0o022&^allowed != 0
}

// openToOthers reports whether a directory lets others than its owner change its
// names. The process's own group is no other: where the umask is 002, each user
// has a group of their own.
func openToOthers(dir Stat, acl bool) bool {
	if dir.Mode&0o002 != 0 {
		return true
	}
	return dir.Mode&0o020 != 0 && (acl || dir.GID != uint32(os.Getegid()))
}

// hasACL reports whether an access control list belongs to the file or directory
// that fd stands for. What cannot be found out is believed to have one.
func hasACL(fd int) bool {
	err := retry(func() error {
		_, err := unix.Getxattr(fmt.Sprintf("/proc/self/fd/%d", fd), "system.posix_acl_access", nil) // An O_PATH descriptor refuses fgetxattr.
		return err
	})
	return !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP)
}
