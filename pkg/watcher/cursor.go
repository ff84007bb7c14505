package watcher

import "strings"

// How many entries of the index are read at once: few at first, because most
// directories are small, then twice as many each time. The read transactions
// must stay short.
const (
	firstChunk = 16
	chunk      = 4096
)

// highest sorts behind every name: no component is longer than 255 bytes.
const highest = 256

// cursor walks the entries of the index that are below a directory, in order.
type cursor struct {
	index Index
	dir   string
	after string
	n     int // to be read next
	buf   []Known
	i     int
	end   bool
}

func newCursor(index Index, dir string) *cursor {
	c := &cursor{index: index, dir: dir, n: firstChunk}
	if dir != "" {
		c.after = dir + "/"
	}
	return c
}

// peek returns the entry at the cursor, nil behind the last one. It is valid
// until the cursor moves.
func (c *cursor) peek() (*Known, error) {
	for c.i == len(c.buf) && !c.end {
		buf, err := c.index.Range(c.after, c.n, c.buf[:0])
		if err != nil {
			return nil, err
		}
		c.n = min(2*c.n, chunk)
		c.buf, c.i = buf, 0
		if len(buf) == 0 {
			c.end = true
			break
		}
		c.after = buf[len(buf)-1].Path
	}
	if c.end || !below(c.buf[c.i].Path, c.dir) {
		c.end = true
		return nil, nil
	}
	return &c.buf[c.i], nil
}

func (c *cursor) next() { c.i++ }

// skipDir goes behind everything below dir, which must not be before the cursor.
func (c *cursor) skipDir(dir string) {
	for ; c.i < len(c.buf); c.i++ {
		if p := c.buf[c.i].Path; !below(p, dir) && p > dir+"/" {
			return
		}
	}
	if last := dir + "/" + strings.Repeat("\xff", highest); last > c.after {
		c.after = last
	}
}

// lookup returns the entry of path.
func lookup(index Index, path string) (Known, bool, error) {
	last := path[len(path)-1]
	before := path[:len(path)-1] + string([]byte{last - 1}) + strings.Repeat("\xff", highest)
	got, err := index.Range(before, 1, nil)
	if err != nil || len(got) == 0 || got[0].Path != path {
		return Known{}, false, err
	}
	return got[0], true, nil
}
