package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"
	"time"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/manifest"
	"github.com/s3syncd/s3syncd/pkg/watcher"
)

// sortMemory is what sorting the trail's records may take.
const sortMemory = 64 << 20

// RestoreOptions are what a restore needs from outside.
type RestoreOptions struct {
	Origin   Origin
	Instance string // whose files, "": there is only one, or the configuration's own

	To      string      // the directory to write below
	DirMode fs.FileMode // of the directories that are made
	Path    string      // this directory or file alone, "": everything
	At      time.Time   // zero: what the trail has last
	Include []string    // gitignore patterns, "": everything

	Workers    int
	Overwrite  bool
	Owner      bool
	Unverified bool
	DryRun     bool
	CheckSpace bool
	GiveUp     time.Duration
	TempDir    string // "": To, or in a dry run the directory for temporary files

	Stderr   io.Writer
	Progress manifest.RestoreProgress
}

// Restore rebuilds files from the audit trail, as manifest.Restore does. Beside
// its errors it returns ErrWrongUse where the options do not say which files are
// meant, ErrNothingToRestore where they choose no file at all, and ErrInterrupted
// when ctx ended first.
func Restore(ctx context.Context, o RestoreOptions) (manifest.RestoreSummary, error) {
	var none manifest.RestoreSummary
	filter, err := watcher.NewFilter(o.Include)
	if err != nil {
		return none, fmt.Errorf("%w: --include: %w", ErrWrongUse, err)
	}
	dir, err := o.Origin.below(o.Path)
	if err != nil {
		return none, fmt.Errorf("--path: %w", err)
	}
	log, err := plainLogger(o.Stderr)
	if err != nil {
		return none, err
	}
	store, err := o.Origin.open(ctx, o.Workers, log)
	if err != nil {
		return none, err
	}
	defer store.CloseIdle()
	trail := manifest.NewTrail(store, o.Origin.mapper().Prefix())
	instance, err := o.Origin.pickInstance(ctx, trail, o.Instance)
	if err != nil {
		return none, interrupted(ctx, err)
	}
	sum, err := manifest.Restore(ctx, trail, store, manifest.RestoreOptions{
		Prefix: o.Origin.mapper().Prefix(), At: o.At, Instance: instance, Dir: dir, Wants: filter.Wants,
		Target: o.To, DirMode: o.DirMode, DryRun: o.DryRun, Overwrite: o.Overwrite, Owner: o.Owner, Unverified: o.Unverified, CheckSpace: o.CheckSpace,
		Workers: o.Workers, GiveUp: o.GiveUp, TempDir: o.TempDir, Memory: sortMemory, Progress: o.Progress,
	})
	err = restoreAdvice(err, o.To)
	if chosen := dir != "" || len(o.Include) > 0 || !o.At.IsZero(); chosen && err == nil && sum.Restored+sum.Kept+sum.Failed+sum.FaultCount == 0 {
		err = fmt.Errorf("%w under %s", ErrNothingToRestore, o.Origin.trail())
	}
	return sum, interrupted(ctx, err)
}

// restoreAdvice adds to err what a person can do about it.
func restoreAdvice(err error, to string) error {
	switch {
	case errors.Is(err, safefs.ErrTargetBusy):
		return fmt.Errorf("%w: wait for it, or end it and run this one again", err)
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("%w: make room in %s and run it again; what is restored is kept", err, to)
	}
	return err
}

// ErrNothingToRestore says that files were chosen by path, pattern or time, and the trail
// has none of them.
var ErrNothingToRestore = errors.New("nothing to restore: no file is as --path, --include and --at say")

// interrupted makes ErrInterrupted of an error that only says that ctx ended.
func interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return ErrInterrupted
	}
	return err
}
