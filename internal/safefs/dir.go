package safefs

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Entry is one name in a directory.
type Entry struct {
	Name string
	Type uint32 // the file type bits of st_mode
	// Linked: the name is a symbolic link that is followed, and Type is that of
	// its target. A link that is dangling or not followed has Type S_IFLNK.
	Linked bool
	// Err says why the type is not known: what is there is unreadable.
	Err error
}

// IsDir reports whether e is a directory.
func (e Entry) IsDir() bool { return e.Type == unix.S_IFDIR }

// IsRegular reports whether e is a regular file.
func (e Entry) IsRegular() bool { return e.Type == unix.S_IFREG }

// IsSymlink reports whether e is a symbolic link that is not followed.
func (e Entry) IsSymlink() bool { return e.Type == unix.S_IFLNK }

// Dir is an open directory of a source. It is not safe for concurrent use and
// must be closed.
type Dir struct {
	root   *Root
	rel    string
	fd     int
	ground ground
}

// OpenDir opens the directory at rel, "" being the root.
func (r *Root) OpenDir(rel string) (*Dir, error) {
	c, name, err := r.walk(rel, true)
	if err != nil {
		return nil, pathError("opendir", rel, err)
	}
	defer c.close()
	if name == "" {
		name = "."
	}
	d := &Dir{root: r, rel: rel, fd: c.fd, ground: c.ground}
	opened, err := d.open(name, rel)
	if err != nil {
		return nil, pathError("opendir", rel, err)
	}
	return opened, nil
}

// OpenDir opens the directory name in d. A symbolic link that is followed is
// resolved from the root.
func (d *Dir) OpenDir(name string) (*Dir, error) {
	rel := d.join(name)
	sub, err := d.open(name, rel)
	if err == nil {
		return sub, nil
	}
	if d.root.o.Follow {
		if st, serr := fstatat(d.fd, name); serr == nil && st.IsSymlink() {
			return d.root.OpenDir(rel)
		}
	}
	return nil, pathError("opendir", rel, err)
}

func (d *Dir) open(name, rel string) (*Dir, error) {
	fd, err := openat(d.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return nil, absent(d.fd, err)
	}
	in, err := d.root.admit(fd, d.ground)
	if err == nil && in.encrypted {
		err = unlocked(fd)
	}
	if err != nil {
		closeFD(fd)
		return nil, err
	}
	return &Dir{root: d.root, rel: rel, fd: fd, ground: d.ground}, nil
}

// Close gives the descriptor back.
func (d *Dir) Close() {
	if d.fd >= 0 {
		closeFD(d.fd)
		d.fd = -1
	}
}

// Path returns the directory's path below the source, "" for the root.
func (d *Dir) Path() string { return d.rel }

func (d *Dir) join(name string) string {
	if d.rel == "" {
		return name
	}
	return d.rel + "/" + name
}

// Self says what d is.
func (d *Dir) Self() (Stat, error) {
	st, err := fstat(d.fd)
	if err != nil {
		return Stat{}, pathError("fstat", d.rel, err)
	}
	return st, nil
}

// Stat says what name in d is, without following a symbolic link.
func (d *Dir) Stat(name string) (Stat, error) {
	st, err := fstatat(d.fd, name)
	if err != nil {
		return Stat{}, pathError("lstat", d.join(name), err)
	}
	return d.root.seen(st), nil
}

// StatEntry says what e is, for a followed link its target.
func (d *Dir) StatEntry(e Entry) (Stat, error) {
	if e.Linked {
		return d.root.Stat(d.join(e.Name))
	}
	return d.Stat(e.Name)
}

// Admits returns why name is not part of the source, nil when it is.
func (d *Dir) Admits(name string) error {
	fd, err := openat(d.fd, name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return pathError("open", d.join(name), err)
	}
	defer closeFD(fd)
	if _, err := d.root.admit(fd, d.ground); err != nil {
		return pathError("open", d.join(name), err)
	}
	return nil
}

// Parent opens the directory above d, which must be parent and at rel still. It
// costs the same at any depth.
func (d *Dir) Parent(rel string, parent Stat) (*Dir, error) {
	fd, err := openat(d.fd, "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return nil, pathError("opendir", rel, err)
	}
	up := &Dir{root: d.root, rel: rel, fd: fd, ground: d.ground}
	if now, err := up.Self(); err != nil || now.Dev != parent.Dev || now.Ino != parent.Ino {
		up.Close()
		return nil, pathError("opendir", rel, errMoved)
	}
	return up, nil
}

// errMoved: the directory above is not the one that was come from.
var errMoved = errors.New("another directory is above it")
