// Package skips streams the records of unchanged files into the manifests of a
// run that asked for them, past the state.
package skips

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// A SkipWriter reserves blockFirst record numbers at first, then as many as it has
// used since the last seal, up to blockMost at a time: few transactions, and
// hardly more numbers without a line than lines.
const (
	BlockFirst = 1000
	BlockMost  = 8000
)

// spoolHeader is the number and the length before each spooled line.
const spoolHeader = 12

// Writer streams the skips of a requested run into the manifests, past the
// state. Its lines wait in an unnamed file in the local directory until the
// next seal, so any number of them takes little memory. They are not durable
// before that: a run that dies can simply be run again.
//
// It is safe for concurrent use.
type Writer struct {
	st    *state.Source
	dir   string
	many  int    // spooled lines that ask for a seal
	nudge func() // asks for it; must not block

	mu      sync.Mutex
	line    []byte // working space
	Chain   string
	next    uint64 // the number of the next line
	end     uint64 // the first number behind the reserved block
	written uint64 // lines since the last seal
	spools  []*spool
	waiting int64 // lines in spools that no seal has taken
}

// spool is one unnamed file of lines. Only the last one is written to, and only
// until a seal begins.
type spool struct {
	f    *os.File
	w    *bufio.Writer // nil once it is closed for writing
	off  int64         // everything before it is sealed
	size int64
}

// New returns a Writer over st that keeps its lines in dir and asks for a seal by
// nudge after many of them. It makes no file before the first Write.
func New(st *state.Source, dir string, many int, nudge func()) *Writer {
	return &Writer{st: st, dir: dir, many: many, nudge: nudge}
}

// Write adds r, whose Chain and ID it fills in. It blocks for a transaction of
// the state once in a thousand lines at first, later more seldom. The next seal makes r durable.
func (w *Writer) Write(ctx context.Context, r archive.Record) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.next == w.end {
		if err := w.reserve(ctx); err != nil {
			return err
		}
	}
	r.Chain, r.ID = w.Chain, archive.RecordID(w.Chain, w.next)
	w.line = r.AppendLine(w.line[:0])
	if err := w.spool(w.next, w.line); err != nil {
		return fmt.Errorf("spool skip of %s: %w", r.LocalPath, err)
	}
	w.next++
	w.written++
	w.waiting++
	if w.waiting >= int64(w.many) {
		w.nudge()
	}
	return nil
}

// reserve draws the next block of record numbers.
func (w *Writer) reserve(ctx context.Context) error {
	n := min(max(w.written, BlockFirst), BlockMost)
	first, err := w.st.ReserveRecords(ctx, n)
	if err != nil {
		return fmt.Errorf("reserve record numbers: %w", err)
	}
	ch, err := w.st.Chain()
	if err != nil {
		return fmt.Errorf("read chain: %w", err)
	}
	w.Chain, w.next, w.end = ch.ID, first, first+n
	return nil
}

// spool appends one line to the open spool. A line that was written in part
// makes the spool unusable: its error is returned by every later write and by
// the seal.
func (w *Writer) spool(number uint64, line []byte) error {
	s, err := w.open()
	if err != nil {
		return err
	}
	var head [spoolHeader]byte
	binary.BigEndian.PutUint64(head[:], number)
	binary.BigEndian.PutUint32(head[8:], uint32(len(line)))
	if _, err := s.w.Write(head[:]); err != nil {
		return err
	}
	if _, err := s.w.Write(line); err != nil {
		return err
	}
	s.size += int64(spoolHeader + len(line))
	return nil
}

// open returns the spool that takes lines. Its file has no name any more, so
// that nothing of it outlives the process.
func (w *Writer) open() (*spool, error) {
	if n := len(w.spools); n > 0 && w.spools[n-1].w != nil {
		return w.spools[n-1], nil
	}
	f, err := os.CreateTemp(w.dir, SpoolPrefix+"*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s := &spool{f: f, w: bufio.NewWriterSize(f, 1<<18)}
	w.spools = append(w.spools, s)
	return s, nil
}

// SpoolPrefix begins the name that a spool has for a moment.
const SpoolPrefix = ".spool-"

// Rotate ends the current spool and gives up the rest of the reserved block, so
// that every later line has a higher number than any that the coming seal can
// see. While mark runs no number is reserved.
func (w *Writer) Rotate(mark func() error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.next, w.end, w.written = 0, 0, 0
	if n := len(w.spools); n > 0 && w.spools[n-1].w != nil {
		if err := w.spools[n-1].w.Flush(); err != nil {
			return fmt.Errorf("write spooled skips: %w", err)
		}
		w.spools[n-1].w = nil
	}
	return mark()
}

// Cursor returns a reader over the lines that ended spools hold and that are
// not sealed. There may be one at a time.
func (w *Writer) Cursor() *Cursor {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := &Cursor{}
	for _, s := range w.spools {
		if s.w == nil {
			c.spools = append(c.spools, s)
		}
	}
	return c
}

// Sealed forgets the lines that c has passed: they are in a sealed manifest.
func (w *Writer) Sealed(c *Cursor) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting -= c.taken
	c.taken = 0
	if c.i < len(c.spools) {
		c.spools[c.i].off = c.off
	}
	var errs []error
	for range c.i {
		errs = append(errs, w.spools[0].f.Close())
		w.spools = w.spools[1:]
	}
	c.spools, c.i = c.spools[c.i:], 0
	return errors.Join(errs...)
}

// Restart drops every line, returns how many it dropped, and has begin begin
// another chain. Until then no number is reserved: none of the old chain gets into
// the new one.
func (w *Writer) Restart(begin func() error) (dropped int64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.waiting
	var errs []error
	for _, s := range w.spools {
		errs = append(errs, s.f.Close())
	}
	w.spools, w.waiting, w.next, w.end, w.written = nil, 0, 0, 0, 0
	if err := errors.Join(errs...); err != nil {
		return n, fmt.Errorf("drop spooled skips: %w", err)
	}
	return n, begin()
}

// Discard drops every line and returns how many it dropped.
func (w *Writer) Discard() (int64, error) { return w.Restart(func() error { return nil }) }

// Unused returns how many numbers are reserved for lines to come.
func (w *Writer) Unused() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return int64(w.end - w.next)
}

// Lines returns how many lines wait for a seal.
func (w *Writer) Lines() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.waiting
}

// Cursor walks the lines of ended spools in order.
type Cursor struct {
	spools []*spool
	i      int // the spool under way
	r      *bufio.Reader
	off    int64 // in spool i, behind the last line taken
	taken  int64 // lines since the last call of sealed

	have   bool // number and line hold the next line
	number uint64
	Line   []byte
}

// Peek returns the number of the next line; ok is false at the end.
func (c *Cursor) Peek() (number uint64, ok bool, err error) {
	for !c.have {
		if c.i == len(c.spools) {
			return 0, false, nil
		}
		s := c.spools[c.i]
		if c.r == nil {
			c.off = s.off
			c.r = bufio.NewReaderSize(io.NewSectionReader(s.f, c.off, s.size-c.off), 1<<16)
		}
		if c.off == s.size {
			c.i, c.r, c.off = c.i+1, nil, 0
			continue
		}
		if err := c.read(); err != nil {
			return 0, false, fmt.Errorf("read spooled skips: %w", err)
		}
	}
	return c.number, true, nil
}

// read loads the next line of the current spool.
func (c *Cursor) read() error {
	var head [spoolHeader]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return err
	}
	n := int(binary.BigEndian.Uint32(head[8:]))
	if cap(c.Line) < n {
		c.Line = make([]byte, n)
	}
	c.Line = c.Line[:n]
	if _, err := io.ReadFull(c.r, c.Line); err != nil {
		return err
	}
	c.number, c.have = binary.BigEndian.Uint64(head[:]), true
	return nil
}

// Take passes the line that peek announced.
func (c *Cursor) Take() {
	c.off += int64(spoolHeader + len(c.Line))
	c.taken++
	c.have = false
}
