package watcher

import (
	"context"
	"strings"

	"github.com/s3syncd/s3syncd/internal/relpath"
	"github.com/s3syncd/s3syncd/internal/safefs"
)

// fewLosses: a directory that loses fewer files at once is not remarkable.
const fewLosses = 2

// losses are the directories of a mirrored source that had lost most of their
// files when the last scan of the whole source ended. Whatever hides a whole
// directory for a moment must not have its objects deleted, so what is gone from
// one waits for a second scan that finds it so.
type losses struct{ last map[string]struct{} }

// judge returns those of changes that need not wait, and how many do.
func (l *losses) judge(index Index, changes []Change) (now []Change, waiting int64, err error) {
	gone := make(map[string]int)
	for _, c := range changes {
		gone[relpath.Parent(c.Path)]++
	}
	lost := make(map[string]struct{})
	for dir, n := range gone {
		if n < fewLosses {
			continue
		}
		all, err := countFiles(index, dir, 2*n)
		if err != nil {
			return nil, 0, err
		}
		if all < 2*n {
			lost[dir] = struct{}{}
		}
	}
	for _, c := range changes {
		dir := relpath.Parent(c.Path)
		_, most := lost[dir]
		if _, again := l.last[dir]; most && !again {
			waiting++
			continue
		}
		now = append(now, c)
	}
	l.last = lost
	return now, waiting, nil
}

// countFiles counts the archived files that are in dir itself, up to limit.
func countFiles(index Index, dir string, limit int) (n int, err error) {
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

// goneOnly is the policy of a second scan: it decides on removals and leaves
// everything else to the scan before.
type goneOnly struct{ *offerer }

func (*goneOnly) differs(context.Context, *scan, string, safefs.Stat, *Known) error { return nil }
func (*goneOnly) refuse(context.Context, *scan, string, error) error                { return nil }
func (*goneOnly) same(*Known, safefs.Stat)                                          {}
