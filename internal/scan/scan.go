// Package scan compares a source with the index: it merges the tree, which it
// walks in path order, with the entries of the index, and reports what differs.
// Its memory grows with the depth of the tree and the largest directory alone.
package scan

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/ignore"
	"github.com/s3syncd/s3syncd/internal/safefs"
)

// Source is what the scans of a source have in common.
type Source struct {
	*Scope
	Index      Index
	Log        *zap.Logger
	MountPoint func(path string) bool            // Whether something is mounted at path.
	Linked     func(path string, st safefs.Stat) // Called for each archived file with several names.
	OverLinked OverLinked
}

// Options say what is scanned, and who learns of it.
type Options struct {
	Dir  string // "": the whole source.
	Flat bool   // This directory alone, without its subdirectories.
	// Found is called for each difference. Its error ends the scan.
	Found func(ctx context.Context, f Finding) error
	// Same, optional, is called for each file that is as the index has it. k is
	// valid during the call.
	Same func(k *Known, st safefs.Stat)
	// Rest is called after each directory. Its error ends the scan.
	Rest func(ctx context.Context) error
}

// Kind says what a scan found.
type Kind uint8

// What a scan finds.
const (
	Differs Kind = iota // The file is not as the index has it, or not in the index.
	Missing             // The index has it, the source does not.
	Refused             // A file or directory that cannot be archived: Err says why.
)

// Finding is one difference between source and index.
type Finding struct {
	Kind  Kind
	Path  string
	Stat  safefs.Stat // Differs
	Known *Known      // Differs: nil for a new file; Missing.
	Err   error       // Refused
}

// Result counts what a scan saw in the tree.
type Result struct {
	Start, End           time.Time
	Files, Bytes         int64 // Regular files that are archived.
	Unchanged            int64
	Excluded, Unreadable int64
	Special              int64 // Devices, FIFOs, sockets.
	Symlinks, Hardlinks  int64 // Skipped by policy.
	Reserved             int64
	Limited              int64 // Directories that are too deep, or that too many links point to.
	Pseudo               int64 // File systems of the kernel, which are not entered.
	Directories          int64
	ConfigFiles          []ignore.File
}

// Run scans, and counts in res what it sees. An error means that the scan is not
// complete; what it found until then holds.
func (s *Source) Run(ctx context.Context, o Options, res *Result) error {
	return newWalk(s, &o, res).run(ctx)
}

func newWalk(s *Source, o *Options, res *Result) *walk {
	cur := newCursor(s.Index, o.Dir)
	return &walk{
		Source: s, flat: o.Flat, rest: o.Rest, res: res, budget: listBudget,
		merge: merge{cur: cur, found: o.Found, same: o.Same, res: res},
	}
}

// run scans the directory that the cursor was made for.
func (w *walk) run(ctx context.Context) error {
	dir := w.merge.cur.dir
	w.merge.cur.readAhead = !w.flat // A flat scan skips what it would read.
	defer w.merge.cur.close()
	w.res.Start = time.Now()
	defer func() { w.res.End = time.Now() }()
	w.noteAncestors(dir)
	d, err := w.Root.OpenDir(dir)
	if err != nil {
		err = w.unopened(ctx, dir, err)
	} else {
		d, err = w.directory(ctx, d, 0)
		d.Close()
	}
	if err != nil {
		return err
	}
	return w.merge.drain(ctx, "")
}

// StillRefused reports whether path is a directory that cannot be read, or that a
// limit keeps out.
func (s *Source) StillRefused(path string) bool {
	d, err := s.Root.OpenDir(path)
	if err == nil {
		d.Close()
		return s.TooDeep(path) != nil || s.OverLinked.Has(path)
	}
	return !isGone(err) && !errors.Is(err, safefs.ErrOtherMount) && !errors.Is(err, safefs.ErrPseudo)
}
