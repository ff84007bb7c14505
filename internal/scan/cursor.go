package scan

import (
	"strings"

	"github.com/s3syncd/s3syncd/internal/relpath"
)

// How many entries of the index are read at once: few at first, because most
// directories are small, then twice as many each time. The read transactions
// must stay short.
const (
	firstChunk = 16
	chunk      = 4096
)

// highest bytes 0xff sort after every name: no component is longer than 255.
const highest = 256

// cursor walks the entries of the index that are below a directory, in order.
type cursor struct {
	index Index
	dir   string
	after string
	n     int // How many to read next.
	buf   []Known
	i     int
	end   bool

	readAhead bool         // Reads the next chunk while one is walked; needs close.
	ahead     chan reading // The chunk being read; nil: none.
	aheadOf   string       // The path that it follows.
	spare     []Known
}

// reading is a chunk of the index.
type reading struct {
	buf []Known
	err error
}

func newCursor(index Index, dir string) *cursor {
	return &cursor{index: index, dir: dir, n: firstChunk, after: relpath.Join(dir, "")}
}

// peek returns the entry at the cursor, nil after the last one. It is valid until
// the cursor moves.
func (c *cursor) peek() (*Known, error) {
	for c.i == len(c.buf) && !c.end {
		if err := c.fill(); err != nil {
			return nil, err
		}
	}
	if c.end || !relpath.Below(c.buf[c.i].Path, c.dir) {
		c.end = true
		return nil, nil
	}
	return &c.buf[c.i], nil
}

// fill reads the next chunk, or takes the one that was read ahead.
func (c *cursor) fill() error {
	r, ok := c.taken()
	if !ok {
		r.buf, r.err = c.index.Range(c.after, c.n, c.buf[:0])
	}
	if r.err != nil {
		return r.err
	}
	full := len(r.buf) == c.n
	c.n = min(2*c.n, chunk)
	c.buf, c.i = r.buf, 0
	if len(c.buf) == 0 {
		c.end = true
		return nil
	}
	c.after = c.buf[len(c.buf)-1].Path
	if c.readAhead && full && c.n == chunk {
		c.begin()
	}
	return nil
}

// begin reads the next chunk in the background. An entry that changes after it
// was read is found as it was, like one of any other chunk.
func (c *cursor) begin() {
	ahead, after, spare := make(chan reading, 1), c.after, c.spare
	c.ahead, c.aheadOf, c.spare = ahead, after, nil
	go func() { // Ends with one chunk; close waits for it.
		buf, err := c.index.Range(after, chunk, spare[:0])
		ahead <- reading{buf, err}
	}()
}

// taken returns what was read ahead, if it comes next, and keeps the memory of
// the other chunk.
func (c *cursor) taken() (r reading, ok bool) {
	if c.ahead == nil {
		return r, false
	}
	r = <-c.ahead
	c.ahead = nil
	if c.aheadOf != c.after { // A directory was skipped.
		c.spare = r.buf
		return reading{}, false
	}
	if r.err == nil {
		c.spare = c.buf
	}
	return r, true
}

// close ends the cursor's use of the index.
func (c *cursor) close() {
	if c.ahead != nil {
		<-c.ahead
		c.ahead = nil
	}
}

func (c *cursor) next() { c.i++ }

// skipDir moves past everything below dir, which must not be before the cursor.
func (c *cursor) skipDir(dir string) {
	for ; c.i < len(c.buf); c.i++ {
		if p := c.buf[c.i].Path; !relpath.Below(p, dir) && p > dir+"/" {
			return
		}
	}
	if last := dir + "/" + strings.Repeat("\xff", highest); last > c.after {
		c.after = last
	}
}
