package scan

import (
	"iter"
	"strings"

	"github.com/s3syncd/s3syncd/internal/relpath"
	"github.com/s3syncd/s3syncd/internal/safefs"
)

// Known is what the index has of one path.
type Known struct {
	Path             string
	Size             int64
	MtimeNs, CtimeNs int64
	Ino              uint64
	Recheck          bool // Every scan finds it to differ, whatever its stat.
	Mode, UID, GID   uint32
	Stored           bool // It is archived; false: only its failure is recorded.
}

// Index is what is archived of a source, in byte order of the paths. It may be
// called concurrently.
type Index interface {
	// Range returns up to n entries with a path greater than after, using buf.
	Range(after string, n int, buf []Known) ([]Known, error)
}

// Unchanged reports whether the index describes the file st, so that a scan can
// leave it.
func (k *Known) Unchanged(st safefs.Stat) bool {
	return !k.Recheck && k.Size == st.Size && k.MtimeNs == st.MtimeNs && k.CtimeNs == st.CtimeNs && k.Ino == st.Ino
}

// Lookup returns the entry of path.
func Lookup(index Index, path string) (k Known, ok bool, err error) {
	last := path[len(path)-1]
	before := path[:len(path)-1] + string([]byte{last - 1}) + strings.Repeat("\xff", highest)
	got, err := index.Range(before, 1, nil)
	if err != nil || len(got) == 0 || got[0].Path != path {
		return Known{}, false, err
	}
	return got[0], true, nil
}

// Each returns the entries below dir, "" for all, in order. An entry is valid
// until the next one; an error is the last element.
func Each(index Index, dir string) iter.Seq2[*Known, error] {
	return func(yield func(*Known, error) bool) {
		for cur := newCursor(index, dir); ; cur.next() {
			k, err := cur.peek()
			if err == nil && k == nil || !yield(k, err) || err != nil {
				return
			}
		}
	}
}

// CountStored counts the stored files that are in dir itself, up to limit.
func CountStored(index Index, dir string, limit int) (n int, err error) {
	prefix := relpath.Join(dir, "")
	after, buf := prefix, []Known(nil)
	for n < limit {
		if buf, err = index.Range(after, firstChunk, buf[:0]); err != nil || len(buf) == 0 {
			return n, err
		}
		for i := range buf {
			rest, inside := strings.CutPrefix(buf[i].Path, prefix)
			if !inside {
				return n, nil
			}
			after = buf[i].Path
			if sub, _, deeper := strings.Cut(rest, "/"); deeper {
				after = prefix + sub + "/" + strings.Repeat("\xff", highest)
				break
			}
			if buf[i].Stored {
				n++
			}
		}
	}
	return n, nil
}
