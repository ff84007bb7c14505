package safefs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Identity says which directory a source is.
type Identity struct {
	Place    Place
	RealPath string // without symbolic links
	Dev, Ino uint64
	MountID  uint64 // of the mount that the directory is on; changes when it is mounted again
	FSType   int64  // statfs f_type
}

// SameDirectory reports whether a and b are one directory at one path. Its
// mount may be another one: watches do not survive that, files do.
func (a Identity) SameDirectory(b Identity) bool {
	return a.RealPath == b.RealPath && a.Dev == b.Dev && a.Ino == b.Ino && a.Place.Compare(b.Place) != Other
}

// RootOptions are the policies of a source.
type RootOptions struct {
	Follow      bool // follow symbolic links that stay inside the source
	CrossMounts bool // enter mounts inside the source
	// SizeMtime is for file systems whose inode numbers or change times differ at
	// each look: the Stat of a regular file has no inode and no device then, and
	// its ctime is its mtime.
	SizeMtime bool
}

// seen is st as this source's policies have it.
func (r *Root) seen(st Stat) Stat {
	if r.o.SizeMtime && st.IsRegular() {
		return st.SizeMtime()
	}
	return st
}

// Root is the directory of a source. It holds no descriptor while no call is
// under way. All methods may be called concurrently.
type Root struct {
	path   string
	o      RootOptions
	pinned atomic.Pointer[Identity]
	bufs   sync.Pool // *[]byte for getdents64
}

// NewRoot returns the source at path, which need not be there yet.
func NewRoot(path string, o RootOptions) *Root {
	return &Root{path: path, o: o, bufs: sync.Pool{New: func() any {
		b := make([]byte, direntBuffer)
		return &b
	}}}
}

// Path returns the path that NewRoot was given.
func (r *Root) Path() string { return r.path }

// Options returns the policies that NewRoot was given.
func (r *Root) Options() RootOptions { return r.o }

// Identify says which directory stands at the source's path now. It ignores a
// pinned identity.
func (r *Root) Identify() (Identity, error) {
	abs, err := filepath.Abs(r.path)
	if err != nil {
		return Identity{}, fmt.Errorf("identify %s: %w", r.path, err)
	}
	resolved, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return Identity{}, fmt.Errorf("identify %s: %w", r.path, err)
	}
	fd, err := openRootFD(resolved, unix.O_NOFOLLOW)
	if err != nil {
		return Identity{}, fmt.Errorf("identify %s: %w", resolved, err)
	}
	defer closeFD(fd)
	id, err := identify(fd)
	if err != nil {
		return Identity{}, fmt.Errorf("identify %s: %w", resolved, err)
	}
	id.RealPath = resolved
	return id, nil
}

func identify(fd int) (Identity, error) {
	in, err := inspect(fd)
	if err != nil {
		return Identity{}, err
	}
	var fs unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(fd, &fs) }); err != nil {
		return Identity{}, err
	}
	id := Identity{Dev: in.dev, Ino: in.ino, MountID: in.mount, FSType: int64(fs.Type)} //nolint:unconvert // Type's width differs between architectures.
	if d, err := openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW); err == nil {
		defer closeFD(d)
		fd = d
	}
	id.Place = placeOf(fd, in, &fs)
	return id, nil
}

// Pin makes every later call fail with ErrRootChanged when the directory at
// id.RealPath is not id any more, so that an unmounted or replaced source never
// looks like one whose files are gone.
func (r *Root) Pin(id Identity) { r.pinned.Store(&id) }

// Pinned returns the identity that was last pinned; ok is false for none.
func (r *Root) Pinned() (id Identity, ok bool) {
	if p := r.pinned.Load(); p != nil {
		return *p, true
	}
	return Identity{}, false
}

// open returns an O_PATH descriptor of the source's directory after comparing
// it with the pinned identity.
func (r *Root) open() (int, error) {
	pin := r.pinned.Load()
	if pin == nil {
		return openRootFD(r.path, 0)
	}
	fd, err := openRootFD(pin.RealPath, unix.O_NOFOLLOW)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return -1, fmt.Errorf("%w: %w", ErrRootChanged, hidden{err})
	}
	if err != nil {
		return -1, err
	}
	in, err := inspect(fd)
	if err != nil {
		closeFD(fd)
		return -1, err
	}
	reborn := in.birth != 0 && pin.Place.Birth != 0 && in.birth != pin.Place.Birth
	if in.dev != pin.Dev || in.ino != pin.Ino || reborn {
		closeFD(fd)
		return -1, ErrRootChanged
	}
	return fd, nil
}

// hidden keeps the text of an error and hides what it is: a source that is not
// there must not match fs.ErrNotExist, which means that one file is gone.
type hidden struct{ err error }

// Error returns the text of the hidden error.
func (h hidden) Error() string { return h.err.Error() }

func openRootFD(path string, flags int) (fd int, err error) {
	err = retry(func() error {
		fd, err = unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC|flags, 0)
		return err
	})
	return fd, err
}

// closeFD closes a descriptor that was only read from: its error has no
// consequence.
func closeFD(fd int) { _ = unix.Close(fd) }
