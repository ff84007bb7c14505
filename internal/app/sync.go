package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/fscheck"
	"github.com/s3syncd/s3syncd/internal/host"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/internal/stages"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/manifest"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/state"
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
	r, err := newSyncRun(o, at, log)
	if err != nil {
		return Summary{}, err
	}
	err = r.run(ctx)
	return r.sum, errors.Join(err, r.close())
}

// newSyncRun opens the state for one run. The caller closes the run.
func newSyncRun(o SyncOptions, at fscheck.Found, log *zap.Logger) (*syncRun, error) {
	b, err := host.Fit(o.Config, log)
	if err != nil {
		return nil, err
	}
	var c clock
	db, err := openState(o.Config, &c, log)
	if err != nil {
		return nil, err
	}
	reg := prometheus.NewPedanticRegistry()
	r := &syncRun{opts: o, byName: map[string]*source{}, clock: &c}
	build := host.ReadBuild(o.Version)
	r.environment = environment{
		cfg: o.Config, db: db, log: log, build: build, runsOnce: true, found: at, budget: b,
		metrics: newMetrics(reg, build, db, func() []snapshot { return nil }), queue: queue.New(queueLimit),
	}
	return r, nil
}

// close gives the state back.
func (r *syncRun) close() error {
	if err := r.db.Close(); err != nil {
		return fmt.Errorf("close the state: %w", err)
	}
	return nil
}

// syncLogger writes warnings and errors for a person, or what the configured
// level says when that is debug.
func syncLogger(o SyncOptions) (*zap.Logger, error) {
	c := o.Config.Log
	c.Format = "console"
	if c.Level == "info" {
		c.Level = "warn"
	}
	log, _, err := newLogger(c, o.Stderr)
	return log, err
}

// syncRun is one run of the sync command.
type syncRun struct {
	environment
	opts    SyncOptions
	sources []*source
	byName  map[string]*source
	pool    *uploader.Pool
	clock   *clock

	mu  sync.Mutex
	sum Summary
	err error // the first that the scan's callbacks met
}

func (r *syncRun) run(ctx context.Context) error {
	if err := r.open(ctx); err != nil {
		return interrupted(ctx, err)
	}
	defer hurryAtSignal(ctx, r.log, r.sources)()
	err := stages.RunJob(ctx, r.grace.total(),
		stages.Stage{Name: "sync", Run: r.scanAll}, stages.Stage{Name: "uploader", Run: r.pool.Run}, stages.Stage{Name: "manifest", Run: func(ctx context.Context) error { return runFlushers(ctx, r.sources) }})
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
	ctx, cancel := context.WithTimeout(ctx, r.publishTime())
	defer cancel()
	departures{environment: &r.environment, sources: r.sources}.closeAll(ctx)
}

// hurryAtSignal sees to it that a run whose ctx ends does not wait for an outage
// any longer than a daemon that is stopped, and says what goes on until then.
// The function that it returns ends that.
func hurryAtSignal(ctx context.Context, log *zap.Logger, sources []*source) (end func()) {
	over := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		log.Warn("interrupted: what is in flight is finished and the trail published; another signal ends it at once",
			zap.Duration("at_most", StandardGrace().total()))
		select {
		case <-time.After(drainTime + publishTime):
		case <-over:
			return
		}
		for _, s := range sources {
			s.flusher.Abandon()
		}
	})
	return func() { stop(); close(over) }
}

// publishTime is how long the last manifests may take: an outage is waited for
// as it is for a file. A signal shortens it, a second one ends the wait at once.
func (r *syncRun) publishTime() time.Duration { return max(publishTime, r.opts.GiveUp) }

func (r *syncRun) open(ctx context.Context) error {
	var list []uploader.Source
	r.grace = Grace{Drain: drainTime, Publish: r.publishTime()}
	for i := range r.cfg.Sources {
		s, err := r.openSource(ctx, i)
		if err != nil {
			return err
		}
		if err := r.watchSource(ctx, s); err != nil {
			return fmt.Errorf("source %s: %w", s.cfg.Name, err)
		}
		if err := r.beginChain(ctx, s, state.NoteStart, r.build.Version); err != nil {
			return fmt.Errorf("source %s: %w", s.cfg.Name, err)
		}
		r.sources = append(r.sources, s)
		r.byName[s.cfg.Name] = s
		list = append(list, s.uploaderSource(r.cfg.Instance))
	}
	po := r.poolOptions()
	po.GiveUp = r.opts.GiveUp
	po.ListSkips = r.cfg.Manifest.ListSkipped != "none"
	po.OnOutcome = r.onOutcome
	po.Paused = func(name string) bool { return r.byName[name].full(r.cfg) } //nolint:contextcheck // It is asked long after this call.
	pool, err := uploader.New(r.queue, list, po)
	if err != nil {
		return err
	}
	r.pool = pool
	r.clock.follow(r.sources)
	for _, s := range r.sources {
		s.pool.Store(pool)
	}
	return nil
}

// watchSource gives s a scanner that lists what the index alone decides.
func (r *syncRun) watchSource(ctx context.Context, s *source) error {
	o := r.watchOptions(s)
	s.listSkips = r.cfg.Manifest.ListSkipped != "none"
	if s.listSkips {
		skips := s.flusher.Skips()
		o.OnSame = func(k scan.Known, st safefs.Stat, _ archive.Trigger) { r.same(ctx, s, skips, k, st) }
	} else {
		o.OnSame = func(scan.Known, safefs.Stat, archive.Trigger) { r.skipped() }
	}
	w, err := watcher.New(sink{source: s.cfg.Name, queue: r.queue, progress: r.opts.Progress.Found}, &index{state: s.state}, o)
	s.watch = w
	return err
}

// same records a file that the index alone shows as unchanged.
func (r *syncRun) same(ctx context.Context, s *source, skips *manifest.SkipWriter, k scan.Known, st safefs.Stat) {
	if err := skips.Write(ctx, s.skipRecord(k, st, archive.TriggerSync, r.cfg.Instance)); err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.err = errors.Join(r.err, fmt.Errorf("record a skip: %w", err))
		return
	}
	r.skipped()
}

// skipped counts a file that the index alone shows as unchanged. There is no line
// for it: there may be a million.
func (r *syncRun) skipped() {
	r.mu.Lock()
	defer r.mu.Unlock()
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
			if err := settled(ctx, r.queue, r.pool, s.cfg.Name); err != nil && ctx.Err() == nil {
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

// settled waits until what is queued for source is done and its destination has
// proven itself, or was given up: the trail of a run without a file to send needs
// the canary as well, and nobody asks for it once the pool has ended.
func settled(ctx context.Context, queue *queue.Queue, pool *uploader.Pool, source string) error {
	if err := queue.Source(source).Wait(ctx); err != nil {
		return err
	}
	return pool.Await(ctx, source)
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

// runFlushers runs the trail of every source side by side.
func runFlushers(ctx context.Context, sources []*source) error {
	errs := make([]error, len(sources))
	var wg sync.WaitGroup
	for i, s := range sources {
		wg.Go(func() { errs[i] = s.flusher.Run(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
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

func (r *syncRun) onOutcome(o uploader.Outcome) {
	if s := r.byName[o.Source]; s != nil {
		s.after(o)
	}
	if o.Status != "" {
		r.note(Outcome{Source: o.Source, Path: o.Path, Status: o.Status, Size: o.Size, Err: o.Err})
	}
}

func (r *syncRun) note(o Outcome) {
	r.mu.Lock()
	r.sum.add(o)
	r.mu.Unlock()
	r.opts.Progress.Outcome(o)
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
