// Package listing compares what a bucket lists with what the index holds.
package listing

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

const (
	// Page is how many objects one LIST returns.
	Page = 1000
	// Chunk is how many entries are read in one short transaction.
	Chunk = 4096
	// oddChunk bounds how many entries whose keys sort elsewhere than their
	// paths are held at once.
	oddChunk = 16_384
)

// errUnordered: the bucket's listing is not in the order of the keys, so what it
// passes over need not be missing.
var errUnordered = errors.New("the listing is not in the order of the keys")

// lister lists objects in the order of their keys.
type lister interface {
	List(ctx context.Context, prefix, startAfter string, fn func(archive.Object) error) error
}

// ranger reads the index in the order of its paths.
type ranger interface {
	Range(after string, n int, buf []archive.Item) ([]archive.Item, error)
}

// compareListing lists everything under the mapper's prefix and merges it with
// the stored entries of the index, in memory that is bounded whatever the number
// of either. It calls each for every stored entry in the order of the keys, with
// the listed object or nil where there is none: never before the listing has
// gone beyond the entry's key. Objects that the index does not know are passed
// over, the trail unlisted. An entry that is written at the same time may be compared
// with what was there before.
func compareListing(ctx context.Context, l lister, x ranger, m archive.Mapper, each func(key string, it archive.Item, o *archive.Object) error) (listed int64, err error) {
	g := merging{cur: newKeyCursor(x, m), each: each}
	if err = ListData(ctx, l, m, g.object); err == nil {
		err = g.before("")
	}
	return g.listed, err
}

// errTrail ends a listing at the first document of the trail.
var errTrail = errors.New("the trail begins")

// ListData lists everything under the mapper's prefix but the trail, which is
// left out unlisted.
func ListData(ctx context.Context, l lister, m archive.Mapper, fn func(archive.Object) error) error {
	trail := m.TrailPrefix()
	data := func(o archive.Object) error {
		if len(o.Key) > len(trail) && strings.HasPrefix(o.Key, trail) {
			return errTrail
		}
		return fn(o)
	}
	err := l.List(ctx, m.Prefix(), "", data)
	if errors.Is(err, errTrail) {
		err = l.List(ctx, m.Prefix(), trail+"~", data) // Behind every name in the trail.
	}
	return err
}

// merging is the state of one compareListing.
type merging struct {
	cur    *keyCursor
	each   func(key string, it archive.Item, o *archive.Object) error
	last   string
	listed int64
}

// object merges the next object of the listing.
func (g *merging) object(o archive.Object) error {
	if g.listed > 0 && o.Key <= g.last {
		return fmt.Errorf("%w: %q after %q", errUnordered, o.Key, g.last)
	}
	g.last = o.Key
	g.listed++
	if err := g.before(o.Key); err != nil {
		return err
	}
	k, err := g.cur.peek()
	if err != nil || k == nil || k.key != o.Key {
		return err
	}
	found := *k
	g.cur.next()
	return g.each(found.key, found.item, &o)
}

// before reports the entries with keys before key, "" for all, as not listed.
func (g *merging) before(key string) error {
	for {
		k, err := g.cur.peek()
		if err != nil || k == nil || key != "" && k.key >= key {
			return err
		}
		found := *k
		g.cur.next()
		if err := g.each(found.key, found.item, nil); err != nil {
			return err
		}
	}
}

// keyed is a stored entry with its key.
type keyed struct {
	key  string
	item archive.Item
}

// keyCursor walks the stored entries of the index in the order of their keys.
// That is the order of their paths but for the few whose names are escaped:
// those are selected from the index by themselves, a bounded number at a time.
type keyCursor struct {
	index  ranger
	mapper archive.Mapper
	buf    []archive.Item

	plain   []keyed // in order, from i on
	i       int
	after   string // the last path that was read for plain
	read    bool   // all of it
	odd     []keyed
	j       int
	last    string // the last key that was selected for odd
	oddMore bool
}

func newKeyCursor(x ranger, m archive.Mapper) *keyCursor {
	return &keyCursor{index: x, mapper: m, oddMore: true}
}

// peek returns the entry at the cursor, nil behind the last one.
func (c *keyCursor) peek() (*keyed, error) {
	if err := c.fillPlain(); err != nil {
		return nil, err
	}
	if err := c.fillOdd(); err != nil {
		return nil, err
	}
	switch hasPlain, hasOdd := c.i < len(c.plain), c.j < len(c.odd); {
	case hasOdd && (!hasPlain || c.odd[c.j].key < c.plain[c.i].key):
		return &c.odd[c.j], nil
	case hasPlain:
		return &c.plain[c.i], nil
	}
	return nil, nil
}

// next passes what peek returned.
func (c *keyCursor) next() {
	if c.j < len(c.odd) && (c.i == len(c.plain) || c.odd[c.j].key < c.plain[c.i].key) {
		c.j++
		return
	}
	c.i++
}

// keyOf returns the key of a stored entry; odd says that it sorts elsewhere in
// the order than the path. An entry without an object is not ok.
func (c *keyCursor) keyOf(it *archive.Item) (key string, odd, ok bool) {
	if !it.Entry.Stored {
		return "", false, false
	}
	key, err := c.mapper.Key(it.Path)
	return key, key != c.mapper.Prefix()+it.Path, err == nil
}

// fillPlain reads on until there is an entry.
func (c *keyCursor) fillPlain() error {
	for c.i == len(c.plain) && !c.read {
		c.plain, c.i = c.plain[:0], 0
		err := c.chunk(&c.after, func(it *archive.Item) {
			if key, odd, ok := c.keyOf(it); ok && !odd {
				c.plain = append(c.plain, keyed{key, *it})
			}
		})
		if errors.Is(err, errIndexEnd) {
			c.read, err = true, nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// fillOdd selects the next entries whose names are escaped.
func (c *keyCursor) fillOdd() error {
	if c.j < len(c.odd) || !c.oddMore {
		return nil
	}
	c.odd, c.j, c.oddMore = c.odd[:0], 0, false
	after, err := "", error(nil)
	for err == nil {
		err = c.chunk(&after, func(it *archive.Item) {
			if key, odd, ok := c.keyOf(it); ok && odd && key > c.last {
				c.odd = append(c.odd, keyed{key, *it})
			}
			if len(c.odd) == 2*oddChunk {
				c.cutOdd()
			}
		})
	}
	if !errors.Is(err, errIndexEnd) {
		return err
	}
	c.cutOdd()
	if n := len(c.odd); n > 0 {
		c.last = c.odd[n-1].key
	}
	return nil
}

// cutOdd keeps the first oddChunk of what is selected.
func (c *keyCursor) cutOdd() {
	slices.SortFunc(c.odd, func(a, b keyed) int { return cmp.Compare(a.key, b.key) })
	if len(c.odd) > oddChunk {
		clear(c.odd[oddChunk:])
		c.odd, c.oddMore = c.odd[:oddChunk], true
	}
}

// errIndexEnd: there are no more entries.
var errIndexEnd = errors.New("the index ends")

// chunk calls fn for the next entries after *after, and moves it behind them.
func (c *keyCursor) chunk(after *string, fn func(*archive.Item)) error {
	var err error
	if c.buf, err = c.index.Range(*after, Chunk, c.buf[:0]); err != nil {
		return fmt.Errorf("read the index: %w", err)
	}
	for i := range c.buf {
		fn(&c.buf[i])
	}
	if len(c.buf) < Chunk {
		return errIndexEnd
	}
	*after = c.buf[len(c.buf)-1].Path
	return nil
}
