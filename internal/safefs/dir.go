package safefs

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const direntBuffer = 64 << 10

// Offsets in struct linux_dirent64, see getdents64(2).
const (
	direntReclen = 16
	direntType   = 18
	direntName   = 19
)

// Entry is one name in a directory.
type Entry struct {
	Name string
	Type uint32 // the file type bits of st_mode
	// Linked: the name is a symbolic link that is followed, and Type is that of
	// its target. A link that is dangling or not followed has Type S_IFLNK.
	Linked bool
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
	root  *Root
	rel   string
	fd    int
	mount uint64
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
	d := &Dir{root: r, rel: rel, fd: c.fd, mount: c.mount}
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
		return nil, err
	}
	if !d.root.o.CrossMounts {
		m, err := mount(fd)
		if err == nil && m != d.mount {
			err = ErrOtherMount
		}
		if err != nil {
			closeFD(fd)
			return nil, err
		}
	}
	return &Dir{root: d.root, rel: rel, fd: fd, mount: d.mount}, nil
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

// StatEntry says what e is, for a followed link what it leads to.
func (d *Dir) StatEntry(e Entry) (Stat, error) {
	if e.Linked {
		return d.root.Stat(d.join(e.Name))
	}
	return d.Stat(e.Name)
}

// Entries lists the directory from its start, without "." and "..", in the
// order in which the paths below it sort: a directory sorts as its name with a
// slash behind it. The memory of buf is used again where it suffices.
func (d *Dir) Entries(buf []Entry) ([]Entry, error) {
	if _, err := unix.Seek(d.fd, 0, 0); err != nil {
		return nil, pathError("readdir", d.rel, err)
	}
	entries, err := d.read(buf[:0])
	if err != nil {
		return nil, pathError("readdir", d.rel, err)
	}
	for i := range entries {
		d.settleType(&entries[i])
	}
	slices.SortFunc(entries, compareEntries)
	return entries, nil
}

func (d *Dir) read(entries []Entry) ([]Entry, error) {
	p, ok := d.root.bufs.Get().(*[]byte)
	if !ok {
		return nil, unix.ENOMEM
	}
	defer d.root.bufs.Put(p)
	for {
		var n int
		err := retry(func() (err error) {
			n, err = unix.Getdents(d.fd, *p)
			return err
		})
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return entries, nil
		}
		entries = parse((*p)[:n], entries)
	}
}

// parse appends the entries in buf. Their names share one allocation.
func parse(buf []byte, entries []Entry) []Entry {
	text := string(buf)
	for len(buf) >= direntName {
		reclen := int(binary.NativeEndian.Uint16(buf[direntReclen:]))
		if reclen < direntName || reclen > len(buf) {
			return entries
		}
		name := buf[direntName:reclen]
		if i := bytes.IndexByte(name, 0); i >= 0 {
			name = name[:i]
		}
		if s := string(name); s != "." && s != ".." {
			entries = append(entries, Entry{Name: text[direntName : direntName+len(name)], Type: uint32(buf[direntType]) << 12})
		}
		buf, text = buf[reclen:], text[reclen:]
	}
	return entries
}

// settleType asks for the type of an entry whose file system does not tell it
// in a listing, and resolves links where they are followed.
func (d *Dir) settleType(e *Entry) {
	if e.Type == 0 {
		if st, err := fstatat(d.fd, e.Name); err == nil {
			e.Type = st.Mode & unix.S_IFMT
		}
	}
	if e.Type != unix.S_IFLNK || !d.root.o.Follow {
		return
	}
	if st, err := d.root.Stat(d.join(e.Name)); err == nil && !st.IsSymlink() {
		e.Type, e.Linked = st.Mode&unix.S_IFMT, true
	}
}

// compareEntries orders entries as git orders a tree.
func compareEntries(a, b Entry) int {
	n := min(len(a.Name), len(b.Name))
	if c := strings.Compare(a.Name[:n], b.Name[:n]); c != 0 {
		return c
	}
	return int(a.byteAt(n)) - int(b.byteAt(n))
}

func (e Entry) byteAt(i int) byte {
	switch {
	case i < len(e.Name):
		return e.Name[i]
	case e.IsDir():
		return '/'
	}
	return 0
}
