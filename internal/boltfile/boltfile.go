// Package boltfile tells a whole bbolt file from a damaged one without mapping it:
// a mapped file that is shorter than its meta page says ends the process with a
// signal.
package boltfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"slices"
)

// The layout of a bbolt file, as far as it must be known to tell a whole file
// from a damaged one without mapping it: a mapped file that is shorter than its
// meta page says ends the process with a signal.
const (
	PageHeader = 16 // id uint64, flags uint16, count uint16, overflow uint32
	MetaBytes  = 64 // magic … checksum, behind the header
	ElemBytes  = 16 // of a branch and of a leaf element

	boltMagic   = 0xED0CDAED
	boltVersion = 2

	pageBranch   = 0x01
	pageLeaf     = 0x02
	pageFreelist = 0x10
	leafBucket   = 0x01 // flag of a leaf element that is a bucket

	maxPageSize = 64 << 10
	maxDepth    = 64 // of the tree, nested buckets included: far more than any real one
)

// Meta is what a valid meta page says.
type Meta struct {
	PageSize uint32
	Root     uint64
	Freelist uint64
	Pages    uint64 // the number of the first page that was never used
	Txid     uint64
}

// ReadMetas returns the first bytes of the file with both meta pages.
func ReadMetas(f io.ReaderAt) ([]byte, error) {
	buf := make([]byte, 2*os.Getpagesize())
	if _, err := f.ReadAt(buf, 0); err != nil {
		return nil, fmt.Errorf("read the meta pages: %w", err)
	}
	return buf, nil
}

// RestoreMetas puts back what readMetas returned, durably.
func RestoreMetas(f *os.File, metas []byte) error {
	_, err := f.WriteAt(metas, 0)
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return fmt.Errorf("restore the meta pages: %w", err)
	}
	return nil
}

// ParseMeta reads a meta page, and returns false for anything but a valid one.
func ParseMeta(page []byte) (m Meta, ok bool) {
	if len(page) < PageHeader+MetaBytes {
		return m, false
	}
	b, e := page[PageHeader:], binary.NativeEndian
	h := fnv.New64a()
	_, _ = h.Write(b[:56])
	if e.Uint32(b) != boltMagic || e.Uint32(b[4:]) != boltVersion || e.Uint64(b[56:]) != h.Sum64() {
		return m, false
	}
	m = Meta{
		PageSize: e.Uint32(b[8:]), Root: e.Uint64(b[16:]), Freelist: e.Uint64(b[32:]),
		Pages: e.Uint64(b[40:]), Txid: e.Uint64(b[48:]),
	}
	size := m.PageSize
	return m, size >= 1024 && size <= maxPageSize && size&(size-1) == 0
}

// NewestMeta returns the meta page of the last transaction. The library is
// content with one valid page of the two, and then goes back to the transaction
// before, although the last one was acknowledged. A meta page lies within one
// sector, so a power cut does not tear it: transactions take turns with the two
// pages, and one that is not valid, or not next to the other, is damage.
func NewestMeta(f io.ReaderAt) (Meta, error) {
	first, err := metaAt(f, 0)
	if err != nil {
		return Meta{}, err
	}
	second, err := metaAt(f, int64(first.PageSize))
	if err != nil {
		return Meta{}, err
	}
	newest, before := first, second
	if second.Txid > first.Txid {
		newest, before = second, first
	}
	if first.PageSize != second.PageSize || first.Txid%2 != 0 || newest.Txid != before.Txid+1 {
		return Meta{}, damagedPage("the meta pages of transactions %d and %d are no pair", first.Txid, second.Txid)
	}
	return newest, nil
}

// metaAt reads the meta page at off.
func metaAt(f io.ReaderAt, off int64) (Meta, error) {
	buf := make([]byte, PageHeader+MetaBytes)
	n, err := f.ReadAt(buf, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return Meta{}, fmt.Errorf("read a meta page: %w", err)
	}
	m, ok := ParseMeta(buf[:n])
	if !ok {
		return Meta{}, damagedPage("the meta page at byte %d is not valid", off)
	}
	return m, nil
}

// Check walks the file's tree of pages and its list of free pages. It
// finds what would make the library panic, read outside the file, use a page
// twice, not see what is there, or go astray at the next write; the checksums of
// the values find the rest. It reads every used page once, and returns the number
// of free pages.
func Check(f io.ReaderAt, fileSize int64) (m Meta, free int, err error) {
	m, err = NewestMeta(f)
	if err != nil {
		return m, 0, err
	}
	if m.Pages < 4 || m.Pages > uint64(fileSize)/uint64(m.PageSize) {
		return m, 0, damagedPage("%d pages of %d bytes do not fit the file of %d bytes", m.Pages, m.PageSize, fileSize)
	}
	w := &walker{file: f, meta: m, seen: make([]uint64, m.Pages/64+1)}
	if err := w.tree(m.Root, 0, span{}); err != nil {
		return m, 0, err
	}
	if free, err = w.freelist(); err != nil {
		return m, 0, err
	}
	if w.marked != m.Pages-2 {
		return m, 0, damagedPage("%d of %d pages are neither in use nor free", m.Pages-2-w.marked, m.Pages)
	}
	return m, free, nil
}

// walker checks the pages that can be reached.
type walker struct {
	file   io.ReaderAt
	meta   Meta
	seen   []uint64 // one bit a page
	marked uint64   // bits in seen
	bufs   [maxDepth][]byte
	keys   [][]byte // of the leaf at hand
}

// mark notes that page id is in use, once.
func (w *walker) mark(id uint64) error {
	if id < 2 || id >= w.meta.Pages {
		return damagedPage("page %d is outside of %d pages", id, w.meta.Pages)
	}
	if w.seen[id/64]&(1<<(id%64)) != 0 {
		return damagedPage("page %d is used twice", id)
	}
	w.seen[id/64] |= 1 << (id % 64)
	w.marked++
	return nil
}

// page reads page id with its overflow into the buffer of depth.
func (w *walker) page(id uint64, depth int) ([]byte, error) {
	if err := w.mark(id); err != nil {
		return nil, err
	}
	size := int(w.meta.PageSize)
	buf := slices.Grow(w.bufs[depth][:0], size)[:size]
	if err := w.read(buf, id); err != nil {
		return nil, err
	}
	if got := binary.NativeEndian.Uint64(buf); got != id {
		return nil, damagedPage("page %d has the number %d", id, got)
	}
	over := uint64(binary.NativeEndian.Uint32(buf[12:]))
	if over >= w.meta.Pages-id {
		return nil, damagedPage("page %d is longer than the file", id)
	}
	for i := range over {
		if err := w.mark(id + 1 + i); err != nil {
			return nil, err
		}
	}
	if over > 0 {
		buf = slices.Grow(buf, int(over)*size)[:size*int(over+1)]
		if err := w.read(buf[size:], id+1); err != nil {
			return nil, err
		}
	}
	w.bufs[depth] = buf
	return buf, nil
}

func (w *walker) read(buf []byte, id uint64) error {
	if _, err := w.file.ReadAt(buf, int64(id)*int64(w.meta.PageSize)); err != nil {
		return fmt.Errorf("read page %d: %w", id, err)
	}
	return nil
}

// span is the range of keys that a page holds: from low, below high. The first
// key is low itself: a write replaces the page in its parent under that name. A
// nil bound is no bound.
type span struct{ low, high []byte }

func (s span) holds(first, last []byte) bool {
	return (s.low == nil || bytes.Equal(first, s.low)) && (s.high == nil || bytes.Compare(last, s.high) < 0)
}

// tree checks page id and what is below it.
func (w *walker) tree(id uint64, depth int, keys span) error {
	if depth >= maxDepth {
		return damagedPage("page %d is too deep", id)
	}
	page, err := w.page(id, depth)
	if err != nil {
		return err
	}
	switch flags := binary.NativeEndian.Uint16(page[8:]); flags {
	case pageBranch:
		return w.branch(id, page, depth, keys)
	case pageLeaf:
		return w.leaf(id, page, depth, keys)
	default:
		return damagedPage("page %d has the type %#x", id, flags)
	}
}

func (w *walker) branch(id uint64, page []byte, depth int, within span) error {
	elems, err := elements(id, page)
	if err != nil {
		return err
	}
	keys := make([][]byte, 0, len(elems)/ElemBytes+1)
	data := page[PageHeader+len(elems):]
	for off := 0; off < len(elems); off += ElemBytes {
		e := elems[off:]
		pos, ksize := binary.NativeEndian.Uint32(e), binary.NativeEndian.Uint32(e[4:])
		if err := follows(id, page[PageHeader+off:], pos, data); err != nil {
			return err
		}
		var key []byte
		if key, data, err = cut(id, data, ksize); err != nil {
			return err
		}
		keys = append(keys, key)
	}
	if err := errors.Join(unused(id, data), ordered(id, keys, within)); err != nil {
		return err
	}
	if len(keys) == 0 {
		return damagedPage("branch page %d is empty", id)
	}
	keys = append(keys, within.high)
	for i := range len(keys) - 1 {
		child := binary.NativeEndian.Uint64(elems[i*ElemBytes+8:])
		if err := w.tree(child, depth+1, span{low: keys[i], high: keys[i+1]}); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) leaf(id uint64, page []byte, depth int, within span) error {
	elems, err := elements(id, page)
	if err != nil {
		return err
	}
	w.keys = w.keys[:0]
	var buckets [][]byte
	data := page[PageHeader+len(elems):]
	for off := 0; off < len(elems); off += ElemBytes {
		e := elems[off:]
		flags, pos := binary.NativeEndian.Uint32(e), binary.NativeEndian.Uint32(e[4:])
		if err := follows(id, page[PageHeader+off:], pos, data); err != nil {
			return err
		}
		var key, value []byte
		if key, data, err = cut(id, data, binary.NativeEndian.Uint32(e[8:])); err != nil {
			return err
		}
		if value, data, err = cut(id, data, binary.NativeEndian.Uint32(e[12:])); err != nil {
			return err
		}
		w.keys = append(w.keys, key)
		switch flags {
		case 0:
		case leafBucket:
			buckets = append(buckets, value)
		default:
			return damagedPage("page %d has an element of type %#x", id, flags)
		}
	}
	if err := errors.Join(unused(id, data), ordered(id, w.keys, within)); err != nil {
		return err
	}
	for _, value := range buckets {
		if err := w.bucket(id, value, depth); err != nil {
			return err
		}
	}
	return nil
}

// ordered checks that keys ascend within their bounds.
func ordered(id uint64, keys [][]byte, within span) error {
	if len(keys) == 0 && within.low == nil {
		return nil
	}
	if len(keys) == 0 {
		return damagedPage("page %d is empty", id)
	}
	ok := within.holds(keys[0], keys[len(keys)-1])
	for i := 1; i < len(keys) && ok; i++ {
		ok = bytes.Compare(keys[i-1], keys[i]) < 0
	}
	if !ok || len(keys[0]) == 0 {
		return damagedPage("the keys of page %d are out of order", id)
	}
	return nil
}

// bucket checks the value of a leaf element that is a bucket: the number of its
// root page, or 0 with a whole leaf page behind it.
func (w *walker) bucket(id uint64, value []byte, depth int) error {
	if len(value) < 16 {
		return damagedPage("page %d has a bucket that is cut short", id)
	}
	if root := binary.NativeEndian.Uint64(value); root != 0 {
		return w.tree(root, depth+1, span{})
	}
	inline := value[16:]
	if len(inline) < PageHeader || binary.NativeEndian.Uint16(inline[8:]) != pageLeaf || depth+1 >= maxDepth {
		return damagedPage("page %d has a bucket without a page", id)
	}
	return w.leaf(id, inline, depth+1, span{})
}

// elements returns the element headers of a page.
func elements(id uint64, page []byte) ([]byte, error) {
	n := int(binary.NativeEndian.Uint16(page[10:])) * ElemBytes
	if n > len(page)-PageHeader {
		return nil, damagedPage("page %d has too many elements", id)
	}
	return page[PageHeader : PageHeader+n], nil
}

// follows checks that an element's data begins, pos bytes behind the element's
// start, where the last one's ended: pages are written without holes, so a count
// or a length that was changed shows.
func follows(id uint64, element []byte, pos uint32, data []byte) error {
	if int64(pos) != int64(len(element)-len(data)) {
		return damagedPage("page %d has an element in the wrong place", id)
	}
	return nil
}

// unused checks that what follows a page's last element is zero, as it is
// written: elements that were left out of the count, or a length that was
// changed, show.
func unused(id uint64, rest []byte) error {
	if len(rest) > 0 && (rest[0] != 0 || !bytes.Equal(rest[1:], rest[:len(rest)-1])) {
		return damagedPage("page %d has data behind its last element", id)
	}
	return nil
}

// cut splits n bytes off data.
func cut(id uint64, data []byte, n uint32) (head, rest []byte, err error) {
	if uint64(n) > uint64(len(data)) {
		return nil, nil, damagedPage("page %d has an element outside of it", id)
	}
	return data[:n], data[n:], nil
}

// freelist checks that no free page is in use, and counts them.
func (w *walker) freelist() (int, error) {
	id := w.meta.Freelist
	page, err := w.page(id, 0)
	if err != nil {
		return 0, err
	}
	if binary.NativeEndian.Uint16(page[8:]) != pageFreelist {
		return 0, damagedPage("page %d is not the list of free pages", id)
	}
	n, ids := uint64(binary.NativeEndian.Uint16(page[10:])), page[PageHeader:]
	if n == 0xFFFF { // Then the first number is the count.
		n, ids = binary.NativeEndian.Uint64(ids), ids[8:]
	}
	if n > uint64(len(ids))/8 {
		return 0, damagedPage("the list of free pages is cut short")
	}
	for i := range n {
		if err := w.mark(binary.NativeEndian.Uint64(ids[8*i:])); err != nil {
			return 0, err
		}
	}
	return int(n), unused(id, ids[8*n:])
}

// ErrDamaged says that a file cannot be what was written.
var ErrDamaged = errors.New("state is damaged")

// damagedPage returns an error that wraps ErrPages.
func damagedPage(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrDamaged, fmt.Errorf(format, args...))
}
