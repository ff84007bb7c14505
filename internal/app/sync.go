package app

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
	Progress       Progress
}

// Sync scans every source once, uploads what is new or changed, publishes the
// manifests of the run, and returns what it did. It blocks until that is done
// or ctx ends. It returns ErrSomeFailed when files failed, a source could not be
// scanned or deletions wait for a confirmation, ErrInterrupted when ctx ended
// first, and another error when it could not run; the summary is valid in each
// case, and empty (no Sources) where nothing was begun. What it did is durable: a run that was cut short is
// simply run again.
func Sync(ctx context.Context, o SyncOptions) (Summary, error) {
	if err := Supported(o.Config); err != nil {
		return Summary{}, err
	}
	at, err := new(fscheck.Checker).Placed(o.Config)
	if err != nil {
		return Summary{}, err
	}
	log, err := syncLogger(o)
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
	return r.sum, errors.Join(err, r.close())
}

// syncRun is one run of the sync command.
type syncRun struct {
	*pipeline

	opts SyncOptions

	mu  sync.Mutex
	sum Summary
	err error // the first that the scan's callbacks met
}

// newSyncRun opens the state, builds the pipeline and begins the chains. The caller
// closes the run.
func newSyncRun(ctx context.Context, o SyncOptions, at fscheck.Found, log *zap.Logger) (*syncRun, error) {
	e, err := openSession(o.Config, at, o.GiveUp, o.Version, log)
	if err != nil {
		return nil, err
	}
	e.listSkips = o.Config.Manifest.ListSkipped != "none"
	r := &syncRun{opts: o}
	r.pipeline, err = e.begun(ctx, parts{
		watch: func(s *source, w *watcher.Options, to *sink) {
			w.OnSame = func(k scan.Known, st safefs.Stat, _ archive.Trigger) { r.skipped(ctx, s, k, st) }
			to.progress = o.Progress.Found
		},
		pool:  func(u *uploader.Options) { u.GiveUp = o.GiveUp },
		ended: r.ended,
	})
	return r, err
}

func (r *syncRun) run(ctx context.Context) error {
	err := r.runJob(ctx, stages.Stage{Name: "sync", Run: r.scanAll})
	switch {
	case ctx.Err() != nil:
		return errors.Join(ErrInterrupted, err)
	case err != nil:
		return err
	}
	r.closeDeparted(ctx)
	return r.verdict(ctx)
}

// closeDeparted ends the chains of sources that left the configuration. What does
// not succeed is tried by the next run.
func (r *syncRun) closeDeparted(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, r.grace.Publish)
	defer cancel()
	departures{environment: r.environment, sources: r.sources}.closeAll(ctx)
}

// skipped counts a file that the index alone shows as unchanged, and records it
// where the run does that. There is no line for it: there may be a million.
func (r *syncRun) skipped(ctx context.Context, s *source, k scan.Known, st safefs.Stat) {
	var err error
	if r.listSkips {
		err = s.flusher.Skips().Write(ctx, s.skipRecord(k, st, archive.TriggerSync))
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
	r.sum.Sources = len(r.sources)
	errs := make([]error, len(r.sources))
	var wg sync.WaitGroup
	for i, s := range r.sources {
		wg.Go(func() {
			if err := r.scan(ctx, s); err != nil && ctx.Err() == nil {
				r.unread(s, err)
			}
			if err := r.drained(ctx, s.cfg.Name); err != nil && ctx.Err() == nil {
				errs[i] = fmt.Errorf("source %s: %w", s.cfg.Name, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errors.Join(errs...), r.err)
}

// scan scans one source, and leaves it behind where it does not answer.
func (r *syncRun) scan(ctx context.Context, s *source) error {
	if r.opts.ConfirmDeletes {
		s.watch.ConfirmDeletes()
	}
	return r.unlessHung(ctx, s, func() error {
		res, err := s.watch.ScanOnce(ctx, archive.TriggerSync)
		r.held(s, res)
		return err
	})
}

// unread takes in that s could not be scanned to its end.
func (r *syncRun) unread(s *source, err error) {
	s.log.Error("the source could not be scanned, what is missing of it is not known", zap.Error(fmt.Errorf("source %s: %w", s.cfg.Name, err)))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sum.Unread++
}

// held takes in what the scan of s did not take for deleted.
func (r *syncRun) held(s *source, res watcher.ScanResult) {
	if res.Held+res.Withheld == 0 {
		return
	}
	s.log.Error("missing files do not count as deleted until that is confirmed: --confirm-deletes does it, for a mirror a larger max_deletes too",
		zap.Int64("held", res.Held), zap.Int64("withheld", res.Withheld))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sum.Held += res.Held
	r.sum.Withheld += res.Withheld
}

// verdict says how a run that went to its end went.
func (r *syncRun) verdict(ctx context.Context) error {
	if err := r.copyRecords(); err != nil {
		return err
	}
	answered, late := false, false
	for _, s := range r.sources {
		waits, err := unpublished([]*source{s})
		if err != nil {
			return err
		}
		answered = answered || !waits || r.pool.Destination(s.cfg.Name).Answered
		late = late || waits
	}
	switch {
	case r.sum.Unread == len(r.sources):
		return errors.New("no source could be scanned")
	case !answered:
		return errors.New("no destination answered; what failed is recorded and published by the next run")
	case r.sum.lacks() || late:
		return ErrSomeFailed
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
	for _, s := range r.sources {
		flushers = append(flushers, s.flusher)
	}
	if err := manifest.CopyRun(out, flushers...); err != nil {
		return fmt.Errorf("--manifest-out %s: %w", r.opts.ManifestOut, err)
	}
	return out.Commit()
}

func (r *syncRun) ended(_ *source, o uploader.Outcome) {
	if o.Status == "" {
		return
	}
	out := Outcome{Source: o.Source, Path: o.Path, Status: o.Status, Size: o.Size, Err: o.Err}
	r.mu.Lock()
	r.sum.add(out)
	r.mu.Unlock()
	r.opts.Progress.Outcome(out)
}

// unlessHung runs a scan of s, and leaves it behind with errSilent as soon as a
// look at s lasts longer than fscheck.HungAfter.
func (r *syncRun) unlessHung(ctx context.Context, s *source, scan func() error) error {
	ended := make(chan error, 1)
	go func() { ended <- scan() }()
	root := safefs.NewRoot(s.cfg.Path, s.root.Options())
	looked := time.NewTimer(0)
	defer looked.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-looked.C:
		}
		err := fscheck.Within(ctx, fscheck.HungAfter, func() error { fscheck.Inside(root, watcher.MountPoints(s.real)); return nil })
		if errors.Is(err, fscheck.ErrSilent) {
			return err
		}
		looked.Reset(fscheck.Pause)
	}
}
