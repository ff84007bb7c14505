package scan

import (
	"strings"

	"github.com/s3syncd/s3syncd/internal/safefs"
)

// countFiles counts the archived files that are in dir itself, up to limit.
func CountFiles(index Index, dir string, limit int) (n int, err error) {
	prefix := ""
	if dir != "" {
		prefix = dir + "/"
	}
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

// unchanged reports whether the index says enough about the file to leave it.
func Unchanged(k *Known, st safefs.Stat) bool { return !k.Recheck && SameFence(k, st) }

func SameFence(k *Known, st safefs.Stat) bool {
	return k.Size == st.Size && k.MtimeNs == st.MtimeNs && k.CtimeNs == st.CtimeNs && k.Ino == st.Ino
}

// Known is what the index has of one path.
type Known struct {
	Path             string
	Size             int64
	MtimeNs, CtimeNs int64
	Ino              uint64
	Recheck          bool // offered by every scan, whatever its stat
	Mode, UID, GID   uint32
	Stored           bool
}

// Index is what is archived, in byte order of the paths. It may be called
// concurrently.
type Index interface {
	// Range returns up to n entries with a path greater than after, using buf.
	Range(after string, n int, buf []Known) ([]Known, error)
}
