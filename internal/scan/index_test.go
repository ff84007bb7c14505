package scan

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/s3syncd/s3syncd/internal/relpath"
)

// entries are an index.
type entries []Known

func comparePath(k Known, path string) int { return strings.Compare(k.Path, path) }

// add adds entries, in any order.
func (e *entries) add(list ...Known) {
	for _, k := range list {
		i, _ := slices.BinarySearchFunc(*e, k.Path, comparePath)
		*e = slices.Insert(*e, i, k)
	}
}

// Range implements Index.
func (e *entries) Range(after string, n int, buf []Known) ([]Known, error) {
	i, ok := slices.BinarySearchFunc(*e, after, comparePath)
	if ok {
		i++
	}
	return append(buf, (*e)[i:min(i+n, len(*e))]...), nil
}

// counted is an index that counts the entries that are read.
type counted struct {
	Index
	read int
}

func (c *counted) Range(after string, n int, buf []Known) ([]Known, error) {
	buf, err := c.Index.Range(after, n, buf)
	c.read += len(buf)
	return buf, err
}

// Thousands of new directories are listed one by one: each must not read
// thousands of entries that come after it.
func TestASmallDirectoryReadsLittleOfTheIndex(t *testing.T) {
	var a entries
	a.add(Known{Path: "a/f"})
	for i := range 5000 {
		a.add(Known{Path: fmt.Sprintf("b/%04d", i)})
	}
	for dir, want := range map[string]int{"a": 1, "b": 5000} {
		index := &counted{Index: &a}
		cur, n := newCursor(index, dir), 0
		for k, err := cur.peek(); k != nil; k, err = cur.peek() {
			if err != nil {
				t.Fatal(err)
			}
			n++
			cur.next()
		}
		if n != want || index.read > 64+2*n {
			t.Errorf("%s: %d entries, %d were read, want %d and at most %d", dir, n, index.read, want, 64+2*n)
		}
	}
}

// A cursor that reads ahead finds what one that does not finds, over chunks,
// skipped directories and the end of its own.
func TestReadingAheadFindsTheSame(t *testing.T) {
	var a entries
	for d := range 30 {
		for i := range 1000 {
			a.add(Known{Path: fmt.Sprintf("a/d%02d/%04d", d, i)})
		}
	}
	for i := range 3 * chunk {
		a.add(Known{Path: fmt.Sprintf("b/%05d", i)})
	}
	walk := func(dir string, ahead bool, skip int) (found []string, started bool) {
		c := newCursor(&a, dir)
		c.readAhead = ahead
		defer c.close()
		for {
			k, err := c.peek()
			if err != nil {
				t.Fatal(err)
			}
			started = started || c.ahead != nil
			if k == nil {
				return found, started
			}
			found = append(found, k.Path)
			if skip > 0 && len(found)%skip == 0 && strings.HasPrefix(k.Path, "a/") {
				c.skipDir(relpath.Parent(k.Path))
				continue
			}
			c.next()
		}
	}
	for _, dir := range []string{"", "a", "a/d07", "b", "c"} {
		for _, skip := range []int{0, 1, 300, 7001} {
			want, _ := walk(dir, false, skip)
			got, started := walk(dir, true, skip)
			if !slices.Equal(got, want) {
				t.Errorf("below %q, skipping after %d: %d entries, want %d", dir, skip, len(got), len(want))
			}
			if long := len(want) > 4*chunk; long && !started {
				t.Errorf("below %q, skipping after %d: nothing was read ahead", dir, skip)
			}
		}
	}
}

// An error of what was read ahead comes when its turn has come, not before.
func TestReadingAheadKeepsErrorsForTheirTurn(t *testing.T) {
	var a entries
	for i := range 4 * chunk {
		a.add(Known{Path: fmt.Sprintf("%05d", i)})
	}
	broken := &breaking{Index: &a, after: fmt.Sprintf("%05d", 3*chunk)}
	c := newCursor(broken, "")
	c.readAhead = true
	defer c.close()
	n := 0
	for ; ; n++ {
		k, err := c.peek()
		if errors.Is(err, errBroken) {
			break
		}
		if k == nil || err != nil {
			t.Fatalf("after %d entries: %v, %v, want the error", n, k, err)
		}
		c.next()
	}
	if n < 2*chunk {
		t.Errorf("the error came after %d entries, want those before it first", n)
	}
}

var errBroken = errors.New("broken")

// breaking is an index that cannot be read after a path.
type breaking struct {
	Index

	after string
}

func (b *breaking) Range(after string, n int, buf []Known) ([]Known, error) {
	if after >= b.after {
		return nil, errBroken
	}
	return b.Index.Range(after, n, buf)
}

func TestSkipDir(t *testing.T) {
	var a entries
	for _, p := range []string{"a-", "a/b", "a/c/d", "a/\xff\xff", "a0", "ab"} {
		a.add(Known{Path: p})
	}
	c := newCursor(&a, "")
	c.peek()
	c.next()
	c.skipDir("a")
	if k, err := c.peek(); err != nil || k == nil || k.Path != "a0" {
		t.Errorf("after a/: got %v, %v, want a0", k, err)
	}
	for _, p := range []string{"a-", "a/b", "a0", "ab", "a/\xff\xff"} {
		if k, ok, err := Lookup(&a, p); err != nil || !ok || k.Path != p {
			t.Errorf("lookup(%q): got %v, %v, %v", p, k, ok, err)
		}
	}
	for _, p := range []string{"a", "a/", "b", "0", "a1"} {
		if k, ok, _ := Lookup(&a, p); ok {
			t.Errorf("lookup(%q): got %v", p, k)
		}
	}
}

func TestStoredFilesOfADirectoryAreCounted(t *testing.T) {
	var a entries
	for _, path := range []string{
		"a", "b", "c", "d/1", "d/2", "d/3", "d/sub/1", "d/sub/2", "d/sub/3", "d/sub/4", "e/1", "f!/1", "f/1", "f/2", "f/z/1", "f/z/2",
	} {
		a.add(Known{Path: path, Stored: true})
	}
	a.add(Known{Path: "d/failed"})
	for dir, want := range map[string]int{"": 3, "d": 3, "d/sub": 4, "e": 1, "f": 2, "f!": 1, "none": 0} {
		if got, err := CountStored(&a, dir, 100); got != want || err != nil {
			t.Errorf("CountStored(%q) = %d, %v, want %d", dir, got, err, want)
		}
	}
	if got, _ := CountStored(&a, "d/sub", 2); got < 2 {
		t.Errorf("CountStored up to 2 = %d", got)
	}
}
