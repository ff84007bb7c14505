// Package extsort sorts more records than fit into memory, in unnamed files.
package extsort

import (
	"bufio"
	"bytes"
	"cmp"
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/s3syncd/s3syncd/internal/safefs"
)

const (
	sorterItem  = 40      // what one record takes beside its bytes
	sorterRuns  = 64      // runs that are merged at once
	sorterLeast = 4 << 20 // the least memory that a sort works in
	runHeader   = 24      // time, number, and the lengths of key and record
)

// Sorter sorts records by key, time and order of arrival, on disk where they
// are too many for its memory.
type Sorter struct {
	dir   string
	arena []byte // keys and records of items
	items []item
	max   int // items
	n     uint64
	runs  []*os.File // unnamed
}

// item is one record in the arena.
type item struct {
	off      int
	key, raw int32 // lengths
	time     int64
	n        uint64
}

// NewSorter returns a sorter that takes about memory bytes and puts the rest into
// unnamed files in dir. Close must be called.
func NewSorter(dir string, memory int64) *Sorter {
	memory = max(memory, sorterLeast)
	items := int(memory / 8 / sorterItem)
	return &Sorter{dir: dir, arena: make([]byte, 0, memory/2), max: items}
}

// Close removes what was put on disk.
func (s *Sorter) Close() {
	for _, f := range s.runs {
		_ = f.Close() // Nothing of it is kept.
	}
	s.runs = nil
}

// Add adds a record; raw is copied.
func (s *Sorter) Add(key string, at int64, raw []byte) error {
	if len(s.items) == s.max || len(s.arena)+len(key)+len(raw) > cap(s.arena) {
		if err := s.spill(); err != nil {
			return err
		}
	}
	s.items = append(s.items, item{off: len(s.arena), key: int32(len(key)), raw: int32(len(raw)), time: at, n: s.n})
	s.arena = append(append(s.arena, key...), raw...)
	s.n++
	return nil
}

func (s *Sorter) keyOf(i *item) []byte { return s.arena[i.off : i.off+int(i.key)] }

func (s *Sorter) rawOf(i *item) []byte {
	from := i.off + int(i.key)
	return s.arena[from : from+int(i.raw)]
}

func (s *Sorter) order() {
	slices.SortFunc(s.items, func(a, b item) int {
		return cmp.Or(bytes.Compare(s.keyOf(&a), s.keyOf(&b)), cmp.Compare(a.time, b.time), cmp.Compare(a.n, b.n))
	})
}

// spill writes what is in memory to a run.
func (s *Sorter) spill() error {
	s.order()
	err := s.write(func(w *bufio.Writer) error {
		for i := range s.items {
			it := &s.items[i]
			if err := writeRun(w, s.keyOf(it), s.rawOf(it), it.time, it.n); err != nil {
				return err
			}
		}
		return nil
	})
	s.items, s.arena = s.items[:0], s.arena[:0]
	if err != nil || len(s.runs) < sorterRuns {
		return err
	}
	return s.compact()
}

// compact merges all runs into one.
func (s *Sorter) compact() error {
	old := s.runs
	s.runs = nil
	defer func() {
		for _, f := range old {
			_ = f.Close() // Nothing of it is kept.
		}
	}()
	return s.write(func(w *bufio.Writer) error {
		return mergeRuns(old, func(c *runCursor) error { return writeRun(w, c.key, c.raw, c.time, c.n) })
	})
}

// write makes a run of what fn writes.
func (s *Sorter) write(fn func(w *bufio.Writer) error) error {
	f, err := safefs.Unnamed(s.dir)
	if err != nil {
		return fmt.Errorf("sort the trail: %w", err)
	}
	s.runs = append(s.runs, f)
	w := bufio.NewWriterSize(f, 1<<18)
	if err := errors.Join(fn(w), w.Flush()); err != nil {
		return fmt.Errorf("sort the trail: %w", err)
	}
	return nil
}

func writeRun(w *bufio.Writer, key, raw []byte, at int64, n uint64) error {
	h := binary.LittleEndian.AppendUint64(w.AvailableBuffer(), uint64(at))
	h = binary.LittleEndian.AppendUint64(h, n)
	h = binary.LittleEndian.AppendUint32(h, uint32(len(key)))
	h = binary.LittleEndian.AppendUint32(h, uint32(len(raw)))
	_, _ = w.Write(h) // A bufio.Writer keeps its error.
	_, _ = w.Write(key)
	_, err := w.Write(raw)
	return err
}

// Each calls fn for every record in order. It is called once, and nothing is
// added after it. The slices are valid during the call.
func (s *Sorter) Each(fn func(key, raw []byte) error) error {
	if len(s.runs) == 0 {
		s.order()
		for i := range s.items {
			if err := fn(s.keyOf(&s.items[i]), s.rawOf(&s.items[i])); err != nil {
				return err
			}
		}
		return nil
	}
	if err := s.spill(); err != nil {
		return err
	}
	s.arena, s.items = nil, nil
	return mergeRuns(s.runs, func(c *runCursor) error { return fn(c.key, c.raw) })
}

// runCursor is at one record of a run.
type runCursor struct {
	r    *bufio.Reader
	key  []byte
	raw  []byte
	time int64
	n    uint64
}

// next reads the next record; io.EOF says that there is none.
func (c *runCursor) next() error {
	var h [runHeader]byte
	if _, err := io.ReadFull(c.r, h[:]); err != nil {
		return err
	}
	c.time, c.n = int64(binary.LittleEndian.Uint64(h[:])), binary.LittleEndian.Uint64(h[8:])
	c.key = slices.Grow(c.key[:0], int(binary.LittleEndian.Uint32(h[16:])))[:binary.LittleEndian.Uint32(h[16:])]
	c.raw = slices.Grow(c.raw[:0], int(binary.LittleEndian.Uint32(h[20:])))[:binary.LittleEndian.Uint32(h[20:])]
	if _, err := io.ReadFull(c.r, c.key); err != nil {
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	_, err := io.ReadFull(c.r, c.raw)
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// runHeap has the run with the first record on top.
type runHeap []*runCursor

func (h *runHeap) Len() int      { return len(*h) }
func (h *runHeap) Swap(i, j int) { (*h)[i], (*h)[j] = (*h)[j], (*h)[i] }
func (h *runHeap) Less(i, j int) bool {
	a, b := (*h)[i], (*h)[j]
	return cmp.Or(bytes.Compare(a.key, b.key), cmp.Compare(a.time, b.time), cmp.Compare(a.n, b.n)) < 0
}

// Push is never called.
func (h *runHeap) Push(any) {}

func (h *runHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}

// mergeRuns calls fn for the records of all runs in order.
func mergeRuns(runs []*os.File, fn func(c *runCursor) error) error {
	var h runHeap
	for _, f := range runs {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("sort the trail: %w", err)
		}
		c := &runCursor{r: bufio.NewReaderSize(f, 1<<16)}
		switch err := c.next(); {
		case errors.Is(err, io.EOF):
		case err != nil:
			return fmt.Errorf("sort the trail: %w", err)
		default:
			h = append(h, c)
		}
	}
	heap.Init(&h)
	for len(h) > 0 {
		if err := fn(h[0]); err != nil {
			return err
		}
		switch err := h[0].next(); {
		case errors.Is(err, io.EOF):
			heap.Pop(&h)
		case err != nil:
			return fmt.Errorf("sort the trail: %w", err)
		default:
			heap.Fix(&h, 0)
		}
	}
	return nil
}
