package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"syscall"
	"time"

	"github.com/s3syncd/s3syncd/internal/anchor"
	"github.com/s3syncd/s3syncd/internal/ignore"
	"github.com/s3syncd/s3syncd/internal/pipeline"
	"github.com/s3syncd/s3syncd/internal/restore"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/verify"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// sortMemory is what sorting the trail's records may take.
const sortMemory = 64 << 20

// RestoreOptions are what a restore needs from outside.
type RestoreOptions struct {
	Vouchers
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
	Progress restore.Progress
}

// Restore rebuilds files from the audit trail, as manifest.Restore does. Beside
// its errors it returns ErrWrongUse where the options do not say which files are
// meant, ErrNothingToRestore where they choose no file at all, and ErrInterrupted
// when ctx ended first.
func Restore(ctx context.Context, o RestoreOptions) (restore.Summary, error) {
	var none restore.Summary
	filter, dir, err := o.chosen()
	if err != nil {
		return none, err
	}
	log, err := plainLogger(o.Stderr)
	if err != nil {
		return none, err
	}
	if err := o.load(); err != nil {
		return none, err
	}
	store, err := o.Origin.open(ctx, o.Workers, log)
	if err != nil {
		return none, err
	}
	defer store.CloseIdle()
	trail := trail.NewTrail(store, o.Origin.mapper().Prefix())
	instance, err := o.Origin.pickInstance(ctx, trail, o.Instance)
	if err != nil {
		return none, pipeline.Interrupted(ctx, err)
	}
	check, err := o.check(ctx, instance, store.Now)
	if err != nil {
		return none, pipeline.Interrupted(ctx, err)
	}
	sum, err := restore.Run(ctx, trail, store, restore.Options{
		Verify: check,
		Prefix: o.Origin.mapper().Prefix(), At: o.At, Instance: instance, Dir: dir, Wants: filter.Wants,
		Target: o.To, DirMode: o.DirMode, DryRun: o.DryRun, Overwrite: o.Overwrite, Owner: o.Owner, Unverified: o.Unverified, CheckSpace: o.CheckSpace,
		Workers: o.Workers, GiveUp: o.GiveUp, TempDir: o.TempDir, Memory: sortMemory, Progress: o.Progress,
	})
	err = restoreAdvice(err, o.To)
	if chosen := dir != "" || len(o.Include) > 0 || !o.At.IsZero(); chosen && err == nil && sum.Restored+sum.Kept+sum.Failed+sum.FaultCount == 0 {
		err = fmt.Errorf("%w under %s", ErrNothingToRestore, o.Origin.trail())
	}
	return sum, pipeline.Interrupted(ctx, err)
}

// chosen returns which files are meant, and the directory that they are below.
func (o *RestoreOptions) chosen() (*ignore.Filter, string, error) {
	filter, err := ignore.NewFilter(o.Include)
	if err != nil {
		return nil, "", fmt.Errorf("%w: --include: %w", ErrWrongUse, err)
	}
	dir, err := o.Origin.below(o.Path)
	if err != nil {
		return nil, "", fmt.Errorf("--path: %w", err)
	}
	return filter, dir, nil
}

// check returns what the trail is checked against: what the options name, what
// this host knows of its own trail, and, where that is nothing, the key that its
// configuration signs with.
func (o *RestoreOptions) check(ctx context.Context, instance string, server func() time.Time) (*verify.Options, error) {
	from := &o.Origin
	other := func(a anchor.Anchor) bool { return a.Instance != "" && a.Instance != instance }
	v := &verify.Options{
		Bucket: from.Bucket, Instance: instance, Now: time.Now(), Server: server, Keys: o.keys,
		Anchors: slices.DeleteFunc(o.heads(from.Bucket, from.mapper().Prefix()), other),
	}
	if o.AnchorFile != "" && !slices.ContainsFunc(v.Anchors, func(a anchor.Anchor) bool { return a.Instance != "" }) {
		return nil, fmt.Errorf("--anchor: %s has no head of instance %s under %s", o.AnchorFile, instance, from.trail())
	}
	if h := from.host; h != nil && h.cfg.Instance == instance {
		known, err := h.anchors(ctx)
		if err != nil && !errors.Is(err, fs.ErrPermission) { // A user who may not read them has no anchors, and the output says so.
			return nil, err
		}
		v.Anchors, v.Again = append(v.Anchors, slices.DeleteFunc(known, other)...), h.again(err)
		if h.cfg.Manifest.Sign != "none" {
			v.Signing = instance
		}
		if len(v.Keys)+len(v.Anchors) == 0 {
			v.Keys = h.keys(ctx)
		}
	}
	return v, nil
}

// restoreAdvice adds to err what an operator can do about it.
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
