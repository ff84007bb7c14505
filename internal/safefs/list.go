package safefs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
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

// entryCost is what an Entry takes beside its name, in bytes.
const entryCost = 48

// Entries lists the directory from its start, without "." and "..", in the
// order in which the paths below it sort: a directory sorts as its name with a
// slash behind it. The memory of buf is used again where it suffices.
func (d *Dir) Entries(buf []Entry) ([]Entry, error) {
	entries, _, err := d.EntriesAfter(nil, 0, buf)
	return entries, err
}

// EntriesAfter is Entries for what sorts behind last, nil being the start, and
// for no more at once than takes size bytes or twice that, 0 being all. More says
// that the rest begins behind the last one. Each call reads the directory again.
func (d *Dir) EntriesAfter(last *Entry, size int, buf []Entry) (entries []Entry, more bool, err error) {
	l := listing{d: d, size: size, entries: buf[:0]}
	if last != nil {
		l.after = *last
		l.resumes = true
	}
	if err := d.read(l.take); err != nil {
		return nil, false, pathError("readdir", d.rel, err)
	}
	l.sort()
	return l.entries, l.cut, nil
}

// Visit calls f for every entry, in no order, until it returns false.
func (d *Dir) Visit(f func(*Entry) bool) error {
	var buf []Entry
	err := d.read(func(chunk []byte) bool {
		buf = parse(chunk, buf[:0])
		for i := range buf {
			d.settleType(&buf[i])
			if !f(&buf[i]) {
				return false
			}
		}
		return true
	})
	if err != nil {
		return pathError("readdir", d.rel, err)
	}
	return nil
}

// listing collects the first entries behind one, in the order of paths.
type listing struct {
	d       *Dir
	size    int
	after   Entry
	resumes bool // only what sorts behind after is wanted
	entries []Entry
	bytes   int
	cut     bool  // there is more
	bound   Entry // with cut: nothing behind it is wanted
	chunk   []Entry
}

// take adds what is wanted of one answer of getdents64.
func (l *listing) take(buf []byte) bool {
	if !l.resumes && !l.cut { // The names share the memory of the answer.
		n := len(l.entries)
		l.entries = parse(buf, l.entries)
		for i := range l.entries[n:] {
			l.bytes += entryCost + len(l.entries[n+i].Name)
		}
	} else {
		l.chunk = parse(buf, l.chunk[:0])
		for i := range l.chunk {
			l.choose(&l.chunk[i])
		}
	}
	if l.size > 0 && l.bytes > 2*l.size {
		l.shorten()
	}
	return true
}

func (l *listing) choose(e *Entry) {
	if l.resumes && !l.sortsBehind(e, &l.after) || l.cut && l.sortsBehind(e, &l.bound) {
		return
	}
	e.Name = strings.Clone(e.Name)
	l.entries = append(l.entries, *e)
	l.bytes += entryCost + len(e.Name)
}

// sortsBehind asks for the type of e only where the names do not decide.
func (l *listing) sortsBehind(e, other *Entry) bool {
	n := min(len(e.Name), len(other.Name))
	if c := strings.Compare(e.Name[:n], other.Name[:n]); c != 0 {
		return c > 0
	}
	l.d.settleType(e)
	return compareEntries(*e, *other) > 0
}

// shorten keeps the first entries, as many as take size bytes.
func (l *listing) shorten() {
	l.sort()
	l.bytes = 0
	for i := range l.entries {
		l.bytes += entryCost + len(l.entries[i].Name)
		if l.bytes < l.size {
			if !l.cut && !l.resumes {
				l.entries[i].Name = strings.Clone(l.entries[i].Name)
			}
			continue
		}
		l.entries[i].Name = strings.Clone(l.entries[i].Name)
		if i+1 == len(l.entries) {
			return
		}
		clear(l.entries[i+1:])
		l.entries = l.entries[:i+1]
		l.cut, l.bound = true, l.entries[i]
		return
	}
}

func (l *listing) sort() {
	for i := range l.entries {
		l.d.settleType(&l.entries[i])
	}
	slices.SortFunc(l.entries, compareEntries)
}

// read calls f for every answer of getdents64 from the start of the directory,
// until it returns false.
func (d *Dir) read(f func([]byte) bool) error {
	if _, err := unix.Seek(d.fd, 0, 0); err != nil {
		return err
	}
	p, ok := d.root.bufs.Get().(*[]byte)
	if !ok {
		return unix.ENOMEM
	}
	defer d.root.bufs.Put(p)
	for {
		var n int
		err := retry(func() (err error) {
			n, err = unix.Getdents(d.fd, *p)
			return err
		})
		if err != nil || n == 0 || !f((*p)[:n]) {
			return err
		}
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
	if e.Type == 0 && e.Err == nil {
		st, err := fstatat(d.fd, e.Name)
		if err != nil {
			e.Err = pathError("lstat", d.join(e.Name), err)
			return
		}
		e.Type = st.Mode & unix.S_IFMT
	}
	if e.Type != unix.S_IFLNK || !d.root.o.Follow {
		return
	}
	switch st, err := d.root.Stat(d.join(e.Name)); {
	case err == nil && !st.IsSymlink():
		e.Type, e.Linked = st.Mode&unix.S_IFMT, true
	case err != nil && !leadsNowhere(err):
		e.Err = err
	}
}

// leadsNowhere reports whether a symbolic link is not followed for a reason that
// lies in the link: it is dangling, leads out of the source or in a circle.
func leadsNowhere(err error) bool {
	for _, reason := range []error{fs.ErrNotExist, ErrEscapes, ErrSymlink, ErrOtherMount, ErrPseudo, unix.ENOTDIR, unix.ENAMETOOLONG} {
		if errors.Is(err, reason) {
			return true
		}
	}
	return false
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
