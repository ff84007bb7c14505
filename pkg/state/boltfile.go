package state

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
	pageHeader = 16 // id uint64, flags uint16, count uint16, overflow uint32
	metaBytes  = 64 // magic … checksum, behind the header
	elemBytes  = 16 // of a branch and of a leaf element

	boltMagic   = 0xED0CDAED
	boltVersion = 2

	pageBranch   = 0x01
	pageLeaf     = 0x02
	pageFreelist = 0x10
	leafBucket   = 0x01 // flag of a leaf element that is a bucket

	maxPageSize = 64 << 10
	maxDepth    = 64 // of the tree, nested buckets included: far more than any real one
)

// metaPage is what a valid meta page says.
type metaPage struct {
	pageSize uint32
	root     uint64
	freelist uint64
	pages    uint64 // the number of the first page that was never used
	txid     uint64
}

// readMetas returns the first bytes of the file with both meta pages.
func readMetas(f io.ReaderAt) ([]byte, error) {
	buf := make([]byte, 2*os.Getpagesize())
	if _, err := f.ReadAt(buf, 0); err != nil {
		return nil, fmt.Errorf("read the meta pages: %w", err)
	}
	return buf, nil
}

// restoreMetas puts back what readMetas returned, durably.
func restoreMetas(f *os.File, metas []byte) error {
	_, err := f.WriteAt(metas, 0)
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return fmt.Errorf("restore the meta pages: %w", err)
	}
	return nil
}

// parseMeta reads a meta page, and returns false for anything but a valid one.
func parseMeta(page []byte) (m metaPage, ok bool) {
	if len(page) < pageHeader+metaBytes {
		return m, false
	}
	b, e := page[pageHeader:], binary.NativeEndian
	h := fnv.New64a()
	_, _ = h.Write(b[:56])
	if e.Uint32(b) != boltMagic || e.Uint32(b[4:]) != boltVersion || e.Uint64(b[56:]) != h.Sum64() {
		return m, false
	}
	m = metaPage{
		pageSize: e.Uint32(b[8:]), root: e.Uint64(b[16:]), freelist: e.Uint64(b[32:]),
		pages: e.Uint64(b[40:]), txid: e.Uint64(b[48:]),
	}
	size := m.pageSize
	return m, size >= 1024 && size <= maxPageSize && size&(size-1) == 0
}

// newestMeta returns the meta page of the last transaction. The library is
// content with one valid page of the two, and then goes back to the transaction
// before, although the last one was acknowledged. A meta page lies within one
// sector, so a power cut does not tear it: transactions take turns with the two
// pages, and one that is not valid, or not next to the other, is damage.
func newestMeta(f io.ReaderAt) (metaPage, error) {
	first, err := metaAt(f, 0)
	if err != nil {
		return metaPage{}, err
	}
	second, err := metaAt(f, int64(first.pageSize))
	if err != nil {
		return metaPage{}, err
	}
	newest, before := first, second
	if second.txid > first.txid {
		newest, before = second, first
	}
	if first.pageSize != second.pageSize || first.txid%2 != 0 || newest.txid != before.txid+1 {
		return metaPage{}, damagedPage("the meta pages of transactions %d and %d are no pair", first.txid, second.txid)
	}
	return newest, nil
}

// metaAt reads the meta page at off.
func metaAt(f io.ReaderAt, off int64) (metaPage, error) {
	buf := make([]byte, pageHeader+metaBytes)
	n, err := f.ReadAt(buf, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return metaPage{}, fmt.Errorf("read a meta page: %w", err)
	}
	m, ok := parseMeta(buf[:n])
	if !ok {
		return metaPage{}, damagedPage("the meta page at byte %d is not valid", off)
	}
	return m, nil
}

// checkPages walks the file's tree of pages and its list of free pages. It
// finds what would make the library panic, read outside the file, use a page
// twice, not see what is there, or go astray at the next write; the checksums of
// the values find the rest. It reads every used page once, and returns the number
// of free pages.
func checkPages(f io.ReaderAt, fileSize int64) (m metaPage, free int, err error) {
	m, err = newestMeta(f)
	if err != nil {
		return m, 0, err
	}
	if m.pages < 4 || m.pages > uint64(fileSize)/uint64(m.pageSize) {
		return m, 0, damagedPage("%d pages of %d bytes do not fit the file of %d bytes", m.pages, m.pageSize, fileSize)
	}
	w := &walker{file: f, meta: m, seen: make([]uint64, m.pages/64+1)}
	if err := w.tree(m.root, 0, span{}); err != nil {
		return m, 0, err
	}
	if free, err = w.freelist(); err != nil {
		return m, 0, err
	}
	if w.marked != m.pages-2 {
		return m, 0, damagedPage("%d of %d pages are neither in use nor free", m.pages-2-w.marked, m.pages)
	}
	return m, free, nil
}

// walker checks the pages that can be reached.
type walker struct {
	file   io.ReaderAt
	meta   metaPage
	seen   []uint64 // one bit a page
	marked uint64   // bits in seen
	bufs   [maxDepth][]byte
	keys   [][]byte // of the leaf at hand
}

// mark notes that page id is in use, once.
func (w *walker) mark(id uint64) error {
	if id < 2 || id >= w.meta.pages {
		return damagedPage("page %d is outside of %d pages", id, w.meta.pages)
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
	size := int(w.meta.pageSize)
	buf := slices.Grow(w.bufs[depth][:0], size)[:size]
	if err := w.read(buf, id); err != nil {
		return nil, err
	}
	if got := binary.NativeEndian.Uint64(buf); got != id {
		return nil, damagedPage("page %d has the number %d", id, got)
	}
	over := uint64(binary.NativeEndian.Uint32(buf[12:]))
	if over >= w.meta.pages-id {
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
	if _, err := w.file.ReadAt(buf, int64(id)*int64(w.meta.pageSize)); err != nil {
		return fmt.Errorf("read page %d: %w", id, err)
	}
	return nil
}

// span is the range of keys that a page holds: from low, below high. The first
// key is low itself: a write replaces the page in its parent under that name. A
// nil bound is none.
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
	keys := make([][]byte, 0, len(elems)/elemBytes+1)
	data := page[pageHeader+len(elems):]
	for off := 0; off < len(elems); off += elemBytes {
		e := elems[off:]
		pos, ksize := binary.NativeEndian.Uint32(e), binary.NativeEndian.Uint32(e[4:])
		if err := follows(id, page[pageHeader+off:], pos, data); err != nil {
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
		child := binary.NativeEndian.Uint64(elems[i*elemBytes+8:])
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
	data := page[pageHeader+len(elems):]
	for off := 0; off < len(elems); off += elemBytes {
		e := elems[off:]
		flags, pos := binary.NativeEndian.Uint32(e), binary.NativeEndian.Uint32(e[4:])
		if err := follows(id, page[pageHeader+off:], pos, data); err != nil {
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
	if len(inline) < pageHeader || binary.NativeEndian.Uint16(inline[8:]) != pageLeaf || depth+1 >= maxDepth {
		return damagedPage("page %d has a bucket without a page", id)
	}
	return w.leaf(id, inline, depth+1, span{})
}

// elements returns the element headers of a page.
func elements(id uint64, page []byte) ([]byte, error) {
	n := int(binary.NativeEndian.Uint16(page[10:])) * elemBytes
	if n > len(page)-pageHeader {
		return nil, damagedPage("page %d has too many elements", id)
	}
	return page[pageHeader : pageHeader+n], nil
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
	id := w.meta.freelist
	page, err := w.page(id, 0)
	if err != nil {
		return 0, err
	}
	if binary.NativeEndian.Uint16(page[8:]) != pageFreelist {
		return 0, damagedPage("page %d is not the list of free pages", id)
	}
	n, ids := uint64(binary.NativeEndian.Uint16(page[10:])), page[pageHeader:]
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

// ErrPages says that a file cannot be what was written.
var ErrPages = errors.New("state is damaged")

// damagedPage returns an error that wraps ErrPages.
func damagedPage(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrPages, fmt.Errorf(format, args...))
}
