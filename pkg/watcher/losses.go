package watcher

import (
	"context"

	"github.com/s3syncd/s3syncd/internal/relpath"
	"github.com/s3syncd/s3syncd/internal/safefs"
	scanpkg "github.com/s3syncd/s3syncd/internal/scan"
)

// fewLosses: a directory that loses fewer files at once is not remarkable.
const fewLosses = 2

// losses are the directories of a mirrored source that had lost most of their
// files when the last scan of the whole source ended. Whatever hides a whole
// directory for a moment must not have its objects deleted, so what is gone from
// one waits for a second scan that finds it so.
type losses struct{ last map[string]struct{} }

// judge returns those of changes that need not wait, and how many do.
func (l *losses) judge(index scanpkg.Index, changes []Change) (now []Change, waiting int64, err error) {
	gone := make(map[string]int)
	for _, c := range changes {
		gone[relpath.Parent(c.Path)]++
	}
	lost := make(map[string]struct{})
	for dir, n := range gone {
		if n < fewLosses {
			continue
		}
		all, err := scanpkg.CountFiles(index, dir, 2*n)
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

// goneOnly is the policy of a second scan: it decides on removals and leaves
// everything else to the scan before.
type goneOnly struct{ *offerer }

func (*goneOnly) differs(context.Context, *scan, string, safefs.Stat, *scanpkg.Known) error {
	return nil
}
func (*goneOnly) refuse(context.Context, *scan, string, error) error { return nil }
func (*goneOnly) same(*scanpkg.Known, safefs.Stat)                   {}
