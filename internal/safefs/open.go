package safefs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Opened is a regular file of a source. The caller closes File.
type Opened struct {
	File *os.File
	Stat Stat // of File, after it was opened
	Dir  Stat // of the directory that holds it
}

// Open opens the regular file at rel for reading. Anything else is refused
// without being opened for reading: a FIFO does not block, a device is not
// touched.
func (r *Root) Open(rel string) (*Opened, error) {
	c, name, err := r.walk(rel, true)
	if err != nil {
		return nil, pathError("open", rel, err)
	}
	defer c.close()
	o, err := c.openFile(rel, name)
	if err != nil {
		return nil, pathError("open", rel, err)
	}
	o.Stat = r.seen(o.Stat)
	return o, nil
}

func (c *cursor) openFile(rel, name string) (*Opened, error) {
	if name == "" {
		return nil, ErrNotRegular
	}
	dir, err := fstat(c.fd)
	if err != nil {
		return nil, err
	}
	fd, err := c.openRegular(name)
	if err != nil {
		return nil, openError(err)
	}
	st, err := c.checkFile(fd)
	if err != nil {
		closeFD(fd)
		return nil, err
	}
	return &Opened{File: os.NewFile(uintptr(fd), rel), Stat: st, Dir: dir}, nil
}

// openRegular opens name for reading without ever opening anything but a
// regular file: opening a FIFO that was put there between a stat and the open
// would let its writer go on. An O_PATH descriptor opens nothing; what it holds
// cannot be exchanged any more and is opened through /proc (proc_pid_fd(5)).
func (c *cursor) openRegular(name string) (int, error) {
	held, err := openat(c.fd, name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return -1, absent(c.fd, err)
	}
	defer closeFD(held)
	st, err := fstat(held)
	if err != nil {
		return -1, err
	}
	if err := regular(st); err != nil {
		return -1, err
	}
	const flags = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY
	fd, err := openat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(held), flags)
	if errors.Is(err, unix.ENOENT) && !procMounted() {
		return openat(c.fd, name, flags|unix.O_NOFOLLOW) // checkFile sees what it is.
	}
	return fd, err
}

// procMounted reports whether this process has a /proc.
func procMounted() bool {
	return unix.Access("/proc/self/fd", unix.F_OK) == nil
}

// openError names what stands at the last component when it changed between
// the look and the open.
func openError(err error) error {
	switch {
	case errors.Is(err, unix.ELOOP):
		return ErrSymlink
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return ErrNotRegular
	case errors.Is(err, unix.ENOKEY):
		return ErrLocked
	}
	return err
}

func (c *cursor) checkFile(fd int) (Stat, error) {
	st, err := fstat(fd)
	if err != nil {
		return Stat{}, err
	}
	if err := regular(st); err != nil {
		return Stat{}, err
	}
	_, err = c.root.admit(fd, c.ground)
	return st, err
}

func regular(st Stat) error {
	switch {
	case st.IsSymlink():
		return ErrSymlink
	case !st.IsRegular():
		return ErrNotRegular
	}
	return nil
}

// Lstat says what stands at rel, "" being the root. It does not follow a
// symbolic link that is the last component.
func (r *Root) Lstat(rel string) (Stat, error) { return r.stat("lstat", rel, false) }

// Stat is Lstat, but follows the last component too where links are followed.
func (r *Root) Stat(rel string) (Stat, error) { return r.stat("stat", rel, true) }

func (r *Root) stat(op, rel string, follow bool) (Stat, error) {
	c, name, err := r.walk(rel, follow)
	if err != nil {
		return Stat{}, pathError(op, rel, err)
	}
	defer c.close()
	var st Stat
	if name == "" {
		st, err = fstat(c.fd)
	} else {
		st, err = fstatat(c.fd, name)
	}
	if err != nil {
		return Stat{}, pathError(op, rel, absent(c.fd, err))
	}
	return r.seen(st), nil
}

// pathError names the operation and the path. A component that is a file makes
// what is below it not exist.
func pathError(op, rel string, err error) error {
	if errors.Is(err, unix.ENOTDIR) {
		err = fmt.Errorf("%w (a parent is not a directory)", fs.ErrNotExist)
	}
	return &fs.PathError{Op: op, Path: rel, Err: err}
}
