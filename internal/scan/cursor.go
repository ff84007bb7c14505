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
	Chunk      = 4096
)

// highest sorts behind every name: no component is longer than 255 bytes.
const highest = 256

// cursor walks the entries of the index that are below a directory, in order.
type Cursor struct {
	index Index
	Dir   string
	after string
	n     int // to be read next
	buf   []Known
	i     int
	end   bool

	ReadAhead bool         // the next chunk is read while one is walked; close is needed
	Ahead     chan reading // what is being read; nil: nothing
	aheadOf   string       // behind what it is read
	spare     []Known
}

// reading is a chunk of the index.
type reading struct {
	buf []Known
	err error
}

func NewCursor(index Index, dir string) *Cursor {
	c := &Cursor{index: index, Dir: dir, n: firstChunk}
	if dir != "" {
		c.after = dir + "/"
	}
	return c
}

// peek returns the entry at the cursor, nil behind the last one. It is valid
// until the cursor moves.
func (c *Cursor) Peek() (*Known, error) {
	for c.i == len(c.buf) && !c.end {
		if err := c.fill(); err != nil {
			return nil, err
		}
	}
	if c.end || !relpath.Below(c.buf[c.i].Path, c.Dir) {
		c.end = true
		return nil, nil
	}
	return &c.buf[c.i], nil
}

// fill reads the next chunk, or takes the one that was read meanwhile.
func (c *Cursor) fill() error {
	r, ok := c.taken()
	if !ok {
		r.buf, r.err = c.index.Range(c.after, c.n, c.buf[:0])
	}
	if r.err != nil {
		return r.err
	}
	full := len(r.buf) == c.n
	c.n = min(2*c.n, Chunk)
	c.buf, c.i = r.buf, 0
	if len(c.buf) == 0 {
		c.end = true
		return nil
	}
	c.after = c.buf[len(c.buf)-1].Path
	if c.ReadAhead && full && c.n == Chunk {
		c.begin()
	}
	return nil
}

// begin reads the chunk behind the cursor's in the background. What changes in
// the index meanwhile is what changes after any other chunk was read.
func (c *Cursor) begin() {
	ahead, after, spare := make(chan reading, 1), c.after, c.spare
	c.Ahead, c.aheadOf, c.spare = ahead, after, nil
	go func() { // Ends with one chunk; close waits for it.
		buf, err := c.index.Range(after, Chunk, spare[:0])
		ahead <- reading{buf, err}
	}()
}

// taken returns what was read ahead, if it is what comes next, and keeps the
// memory of the other chunk.
func (c *Cursor) taken() (r reading, ok bool) {
	if c.Ahead == nil {
		return r, false
	}
	r = <-c.Ahead
	c.Ahead = nil
	if c.aheadOf != c.after { // A directory was passed over.
		c.spare = r.buf
		return reading{}, false
	}
	if r.err == nil {
		c.spare = c.buf
	}
	return r, true
}

// close ends the cursor's use of the index.
func (c *Cursor) Close() {
	if c.Ahead != nil {
		<-c.Ahead
		c.Ahead = nil
	}
}

func (c *Cursor) Next() { c.i++ }

// skipDir goes behind everything below dir, which must not be before the cursor.
func (c *Cursor) SkipDir(dir string) {
	for ; c.i < len(c.buf); c.i++ {
		if p := c.buf[c.i].Path; !relpath.Below(p, dir) && p > dir+"/" {
			return
		}
	}
	if last := dir + "/" + strings.Repeat("\xff", highest); last > c.after {
		c.after = last
	}
}

// lookup returns the entry of path.
func Lookup(index Index, path string) (Known, bool, error) {
	last := path[len(path)-1]
	before := path[:len(path)-1] + string([]byte{last - 1}) + strings.Repeat("\xff", highest)
	got, err := index.Range(before, 1, nil)
	if err != nil || len(got) == 0 || got[0].Path != path {
		return Known{}, false, err
	}
	return got[0], true, nil
}
