// Package oneshot is the runs that end by themselves: sync, its dry run, and the last
// one of a host that retires.
package oneshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/fscheck"
	"github.com/s3syncd/s3syncd/internal/mounts"
	"github.com/s3syncd/s3syncd/internal/pipeline"
	"github.com/s3syncd/s3syncd/internal/removed"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/internal/stages"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/manifest"
	"github.com/s3syncd/s3syncd/pkg/uploader"
	"github.com/s3syncd/s3syncd/pkg/watcher"
)

// SyncOptions are what a sync run needs from outside.
type SyncOptions struct {
	Config *config.Config
	GiveUp time.Duration // how long a transient fault is waited for
	DryRun bool
	// ConfirmDeletes accepts what the directories are now: what is missing in them
	// counts as deleted, also above max_deletes.
	ConfirmDeletes bool
	ManifestOut    string // "": no extra file
	Stderr         io.Writer
	Version        string
	Progress       pipeline.Progress
}

// Sync scans every source once, uploads what is new or changed, publishes the
// manifests of the run, and returns what it did. It blocks until that is done
// or ctx ends. It returns ErrSomeFailed when files failed, a source could not be
// scanned or deletions wait for a confirmation, ErrInterrupted when ctx ended
// first, and another error when it could not run; the summary is valid in each
// case, and empty (no Sources) where nothing was begun. What it did is durable: after
// an interruption the next run continues.
func Sync(ctx context.Context, o SyncOptions) (Summary, error) {
	at, log, err := pipeline.Prepare(o.Config, o.Stderr)
	if err != nil {
		return Summary{}, err
	}
	if o.DryRun {
		return dryRun(ctx, o, log)
	}
	r, err := newSyncRun(ctx, o, at, log)
	if err != nil {
		return Summary{}, err
	}
	err = r.run(ctx)
	return r.sum, errors.Join(err, r.Close())
}

// syncRun is one run of the sync command.
type syncRun struct {
	*pipeline.Pipeline

	opts SyncOptions

	mu  sync.Mutex
	sum Summary
	err error // the first that the scan's callbacks met
}

// newSyncRun opens the state, builds the pipeline and begins the chains. The caller
// closes the run.
func newSyncRun(ctx context.Context, o SyncOptions, at fscheck.Found, log *zap.Logger) (*syncRun, error) {
	e, err := pipeline.Open(o.Config, at, o.GiveUp, o.Version, log)
	if err != nil {
		return nil, err
	}
	e.ListSkips = o.Config.Manifest.ListSkipped != "none"
	r := &syncRun{opts: o}
	r.Pipeline, err = e.Begin(ctx, pipeline.Parts{
		Watch: func(s *pipeline.Source, w *watcher.Options, to *pipeline.Sink) {
			w.OnSame = func(k scan.Known, st safefs.Stat, _ archive.Trigger) { r.skipped(ctx, s, k, st) }
			to.Progress = o.Progress.Found
		},
		Pool:  func(u *uploader.Options) { u.GiveUp = o.GiveUp },
		Ended: r.ended,
	})
	return r, err
}

func (r *syncRun) run(ctx context.Context) error {
	err := r.RunJob(ctx, stages.Stage{Name: "sync", Run: r.scanAll})
	switch {
	case ctx.Err() != nil:
		return errors.Join(pipeline.ErrInterrupted, err)
	case err != nil:
		return err
	}
	limited, cancel := context.WithTimeout(ctx, r.Grace.Publish)
	defer cancel()
	removed.CloseAll(limited, r.Pipeline) // What fails is done by the next run.
	return r.result(ctx)
}

// skipped counts a file that the index alone shows as unchanged, and records it
// where the run does that. It logs no line: there may be a million.
func (r *syncRun) skipped(ctx context.Context, s *pipeline.Source, k scan.Known, st safefs.Stat) {
	var err error
	if r.ListSkips {
		err = s.Flusher.Skips().Write(ctx, s.SkipRecord(k, st, archive.TriggerSync))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.err = errors.Join(r.err, fmt.Errorf("record a skip: %w", err))
		return
	}
	r.sum.Skipped++
}

// scanAll scans every source and waits until what it found is done. A source
// that cannot be scanned does not keep the others from it.
func (r *syncRun) scanAll(ctx context.Context) error {
	r.sum.Sources = len(r.Sources)
	err := r.Each(func(s *pipeline.Source) error {
		if err := r.scan(ctx, s); err != nil && ctx.Err() == nil {
			r.unread(s, err)
		}
		if err := r.Drained(ctx, s.Config.Name); err != nil && ctx.Err() == nil {
			return fmt.Errorf("source %s: %w", s.Config.Name, err)
		}
		return nil
	})
	return errors.Join(err, r.err)
}

// scan scans one source, and leaves it behind where it does not answer.
func (r *syncRun) scan(ctx context.Context, s *pipeline.Source) error {
	if r.opts.ConfirmDeletes {
		s.Watch.ConfirmDeletes()
	}
	return r.unlessHung(ctx, s, func() error {
		res, err := s.Watch.ScanOnce(ctx, archive.TriggerSync)
		r.held(s, res)
		return err
	})
}

// unread counts a source that could not be scanned to its end.
func (r *syncRun) unread(s *pipeline.Source, err error) {
	s.Log.Error("the source could not be scanned, what is missing of it is not known", zap.Error(fmt.Errorf("source %s: %w", s.Config.Name, err)))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sum.Unread++
}

// held counts what the scan of s did not take for deleted.
func (r *syncRun) held(s *pipeline.Source, res watcher.ScanResult) {
	if res.Held+res.Withheld == 0 {
		return
	}
	s.Log.Error("missing files do not count as deleted until that is confirmed: --confirm-deletes does it, for a mirror a larger max_deletes too",
		zap.Int64("held", res.Held), zap.Int64("withheld", res.Withheld))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sum.Held += res.Held
	r.sum.Withheld += res.Withheld
}

// result is how a run ended that was not cut short.
func (r *syncRun) result(ctx context.Context) error {
	if err := r.copyRecords(); err != nil {
		return err
	}
	answered, late := false, false
	for _, s := range r.Sources {
		waits, err := s.Unpublished()
		if err != nil {
			return err
		}
		answered = answered || !waits || r.Pool.Destination(s.Config.Name).Answered
		late = late || waits
	}
	switch {
	case r.sum.Unread == len(r.Sources):
		return errors.New("no source could be scanned")
	case !answered:
		return errors.New("no destination answered; what failed is recorded and published by the next run")
	case r.sum.lacks() || late:
		return pipeline.ErrSomeFailed
	}
	return ctx.Err()
}

// copyRecords writes all records of the run into the file that was asked for.
func (r *syncRun) copyRecords() error {
	if r.opts.ManifestOut == "" {
		return nil
	}
	out, err := safefs.CreatePending(r.opts.ManifestOut, 0o600)
	if err != nil {
		return fmt.Errorf("--manifest-out: %w", err)
	}
	defer out.Close()
	var flushers []*manifest.Flusher
	for _, s := range r.Sources {
		flushers = append(flushers, s.Flusher)
	}
	if err := manifest.CopyRun(out, flushers...); err != nil {
		return fmt.Errorf("--manifest-out %s: %w", r.opts.ManifestOut, err)
	}
	return out.Commit()
}

func (r *syncRun) ended(_ *pipeline.Source, o uploader.Outcome) {
	if o.Status == "" {
		return
	}
	out := pipeline.Outcome{Source: o.Source, Path: o.Path, Status: o.Status, Size: o.Size, Err: o.Err}
	r.mu.Lock()
	r.sum.add(out)
	r.mu.Unlock()
	r.opts.Progress.Outcome(out)
}

// unlessHung runs a scan of s, and leaves it behind with fscheck.ErrSilent as soon as a
// check of s lasts longer than fscheck.HungAfter.
func (r *syncRun) unlessHung(ctx context.Context, s *pipeline.Source, scan func() error) error {
	ended := make(chan error, 1)
	go func() { ended <- scan() }()
	root := safefs.NewRoot(s.Config.Path, s.Root.Options())
	due := time.NewTimer(0)
	defer due.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-due.C:
		}
		err := fscheck.Within(ctx, fscheck.HungAfter, func() error { fscheck.Inside(root, mounts.Points(s.Real)); return nil })
		if errors.Is(err, fscheck.ErrSilent) {
			return err
		}
		due.Reset(fscheck.Pause)
	}
}

// RetireOptions are what retiring a host needs from outside.
type RetireOptions struct {
	SyncOptions

	Force bool // close the trails although files failed or a source could not be read
}

// Retire is a last sync run, after which the chain of each source ends with a
// final digest: what follows is silence, and meant to be. It blocks until the
// digests are acknowledged. Without Force nothing is closed unless every file of
// every source is in S3; the error is ErrSomeFailed then. A later run begins new
// chains. It does not run beside a daemon that holds the state.
func Retire(ctx context.Context, o RetireOptions) (Summary, error) {
	at, log, err := pipeline.Prepare(o.Config, o.Stderr)
	if err != nil {
		return Summary{}, err
	}
	r, err := newSyncRun(ctx, o.SyncOptions, at, log)
	if busy, ok := errors.AsType[*pipeline.BusyError](err); ok {
		return Summary{}, busy.Advise("stop the daemon first (systemctl disable --now s3syncd), then retire")
	}
	if err != nil {
		return Summary{}, err
	}
	err = r.run(ctx)
	if err == nil || (o.Force && ctx.Err() == nil) {
		err = errors.Join(err, r.closeChains(ctx))
	}
	return r.sum, errors.Join(pipeline.Interrupted(ctx, err), r.Close())
}

// closeChains ends the chains of all sources, side by side.
func (r *syncRun) closeChains(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.Grace.Publish)
	defer cancel()
	return r.Each(func(s *pipeline.Source) error { return s.CloseChain(ctx) })
}
