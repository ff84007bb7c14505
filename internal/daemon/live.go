package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/host"
	"github.com/s3syncd/s3syncd/internal/listing"
	"github.com/s3syncd/s3syncd/internal/logsink"
	"github.com/s3syncd/s3syncd/internal/pipeline"
	"github.com/s3syncd/s3syncd/internal/removed"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/internal/stages"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/breaker"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/uploader"
	"github.com/s3syncd/s3syncd/pkg/watcher"
)

// liveSource is a source of the daemon: also what became of its files, and its
// remote checks.
type liveSource struct {
	*pipeline.Source

	ledger *ledger
	remote *listing.Checks
	hungAt atomic.Int64 // Unix nanoseconds of when the check began that does not end, 0: it answers
}

// livePipeline is the pipeline of one configuration, from its start to the stop
// or the reload that replaces it.
type livePipeline struct {
	*pipeline.Pipeline

	d       *daemon
	sources []*liveSource
	leaving chan struct{} // closed when it is to stop
	hurried chan struct{} // closed when what is in flight is to be cut
}

func newLive(ctx context.Context, d *daemon, p plan) (*livePipeline, error) {
	cfg := p.cfg
	b, err := host.Fit(cfg, d.log)
	if err != nil {
		return nil, err
	}
	d.metrics.Configured(cfg, b)
	e := &pipeline.Session{
		Config: cfg, DB: d.db, Log: d.log, Metrics: d.metrics, Program: d.build, Queue: queue.New(pipeline.QueueLimit), Clock: d.clock,
		Grace: d.opts.Grace, Found: p.at, Budget: b, KeysMoved: make(chan struct{}, 1), ListSkips: cfg.Manifest.ListSkipped == "all",
	}
	l := &livePipeline{
		d: d, leaving: make(chan struct{}), hurried: make(chan struct{}),
	}
	perFile := logsink.Sampled(d.log.Named("file"))
	ledgers := map[string]*ledger{}
	for _, s := range cfg.Sources {
		ledgers[s.Name] = d.ledgers.of(s)
	}
	l.Pipeline, err = e.Build(ctx, pipeline.Parts{
		Watch: func(s *pipeline.Source, o *watcher.Options, _ *pipeline.Sink) {
			if e.ListSkips {
				o.OnSame = listSkip(context.WithoutCancel(ctx), s)
			}
		},
		Pool: func(o *uploader.Options) { o.Hurry = l.hurried },
		Ended: func(_ *pipeline.Source, o uploader.Outcome) {
			ledgers[o.Source].add(o, time.Now().UTC())
			logOutcome(perFile, o)
		},
	})
	if err != nil {
		return nil, err
	}
	for _, s := range l.Sources {
		l.Metrics.WrongKey.WithLabelValues(s.Config.Name) // There from the start.
		l.sources = append(l.sources, &liveSource{Source: s, ledger: ledgers[s.Config.Name], remote: listing.New(listing.Options{
			Store: s.Store, State: s.State, DB: e.DB, Watch: s.Watch, Mapper: s.Mapper, Log: s.Log,
			Key: fmt.Sprintf("remote-check/%s/%s/%s", s.Config.Bucket, s.Config.Prefix, s.FirstPath()),
		})})
	}
	return l, nil
}

// listSkip returns what lists the files that the index alone shows as unchanged
// to a scan of the daemon. While too many records are unpublished, or the disk
// takes no more, they are counted instead.
func listSkip(ctx context.Context, s *pipeline.Source) func(scan.Known, safefs.Stat, archive.Trigger) {
	skips := s.Flusher.Skips()
	return func(k scan.Known, st safefs.Stat, trigger archive.Trigger) {
		if s.Backlog.Records() >= s.Session.Config.Manifest.MaxUnpublished {
			s.Counters.Unlisted.Add(1)
			return
		}
		r := s.SkipRecord(k, st, trigger)
		if err := skips.Write(ctx, r); err != nil && s.Counters.Unlisted.Add(1) == 1 {
			s.Log.Warn("unchanged files are counted instead of listed", zap.Error(err))
		}
	}
}

// close closes the connections of the sources, which nothing uses any more.
func (l *livePipeline) close() {
	for _, s := range l.sources {
		s.Store.Close()
	}
}

// run blocks until ctx ends or a reload replaces the pipeline; then next is
// the configuration that follows. The stages stop in the direction of the
// data: first the watchers, then the uploads, then the trail.
func (l *livePipeline) run(ctx context.Context) (next *plan, err error) {
	gctx, replace := context.WithCancel(ctx)
	defer replace()
	context.AfterFunc(gctx, func() { close(l.leaving) })
	err = stages.Run(gctx, l.Grace.Total(),
		stages.Stage{Name: "hangup", Run: func(ctx context.Context) error {
			next = l.followHangups(ctx, replace)
			return nil
		}},
		stages.Stage{Name: "ready", Run: l.reportReady},
		stages.Stage{Name: "removed", Run: l.closeRemoved},
		stages.Stage{Name: "credentials", Run: l.keepCredentials},
		stages.Stage{Name: "remote", Run: l.each(func(ctx context.Context, s *liveSource) error {
			s.remote.Run(ctx, l.Config.Watch.RemoteCheckInterval, s.inService)
			return nil
		})},
		stages.Stage{Name: "hung", Run: l.each(l.followHung)},
		stages.Stage{Name: "reread", Run: l.unlessHung(reread)},
		stages.Stage{Name: "watcher", Run: l.unlessHung(func(ctx context.Context, s *liveSource) error { return s.Watch.Run(ctx) })},
		stages.Stage{Name: "uploader", Run: l.Pool.Run},
		stages.Stage{Name: "manifest", Run: l.each(publish)},
	)
	return next, err
}

// each returns a stage that runs fn for every source side by side. An error of
// one ends the others only when all have ended: a broken source must not hold
// up the rest.
func (l *livePipeline) each(fn func(context.Context, *liveSource) error) func(context.Context) error {
	return func(ctx context.Context) error {
		errs := make([]error, len(l.sources))
		var wg sync.WaitGroup
		for i, s := range l.sources {
			wg.Go(func() {
				if err := fn(ctx, s); err != nil {
					errs[i] = fmt.Errorf("source %s: %w", s.Config.Name, err)
					s.Log.Error("this source stopped, the others continue", zap.Error(err))
				}
			})
		}
		wg.Wait()
		return errors.Join(errs...)
	}
}

// beginChains opens the chain of each source and notes the start in it, or the
// reload and the keys that changed. It asks for all at once, because a bucket that
// does not answer costs seconds.
func (l *livePipeline) beginChains(ctx context.Context, trigger archive.Trigger, changed []string) error {
	return l.each(func(ctx context.Context, s *liveSource) error {
		if trigger == archive.TriggerHangup {
			return s.BeginChain(ctx, archive.NoteReload, reloadDetail(l.Program.Version, s.Config.Name, changed))
		}
		return s.BeginChain(ctx, archive.NoteStart, l.Program.Version)
	})(ctx)
}

// publish is the manifest stage of one source.
func publish(ctx context.Context, s *liveSource) error {
	err := s.Flusher.Run(ctx)
	for ctx.Err() == nil {
		s.Log.Error("the trail stopped, it is restarted in a minute", zap.Error(err))
		wait(ctx, time.Minute)
		err = s.Flusher.Run(ctx)
	}
	return err
}

// handover is how long uploads and trails may finish when another configuration
// waits: what is cut is durable, and the next pipeline resumes it.
const handover = 3 * time.Second

// hurry cuts what is in flight.
func (l *livePipeline) hurry() {
	close(l.hurried)
	for _, s := range l.sources {
		s.Flusher.Abandon()
	}
}

// reportReady tells systemd and the readiness probe once the first canary of every
// destination has an answer, or the server is silent, and the sources are watched.
func (l *livePipeline) reportReady(ctx context.Context) error {
	for !l.started() {
		if !wait(ctx, 100*time.Millisecond) {
			return nil
		}
	}
	l.d.starting.Store(false)
	l.d.ready.Store(true)
	l.d.notify.ready()
	l.Log.Info("ready", zap.Int("sources", len(l.sources)))
	l.followKeys(ctx)
	return nil
}

// keepEvery is how often expired credentials are renewed where no request does it.
const keepEvery = time.Minute

// keepCredentials renews expired credentials until ctx ends.
func (l *livePipeline) keepCredentials(ctx context.Context) error {
	for {
		for _, s := range l.sources {
			if err := s.Store.KeepCredentials(ctx); err != nil && ctx.Err() == nil {
				s.Log.Warn("expired credentials were not renewed, this is repeated", zap.Error(err))
			}
		}
		if !wait(ctx, keepEvery) {
			return nil
		}
	}
}

// keyCountInterval is how often the objects that wait for a rekey are counted:
// the number falls as files change and are uploaded under the new key.
const keyCountInterval = 10 * time.Minute

// followKeys shows how many objects still wait for a rekey, until ctx ends. A
// number is logged when it has changed.
func (l *livePipeline) followKeys(ctx context.Context) {
	tick := time.NewTicker(keyCountInterval)
	defer tick.Stop()
	logged := map[string]int64{}
	for ctx.Err() == nil {
		for _, s := range l.sources {
			name := s.Config.Name
			n, err := s.State.WrongKey(func(o archive.Object) bool { return s.Store.KeyVerdict(o) == archive.KeyOK })
			if err != nil {
				s.Log.Warn("objects under other keys were not counted", zap.Error(err))
				continue
			}
			l.Metrics.WrongKey.WithLabelValues(name).Set(float64(n))
			if n > 0 && n != logged[name] {
				s.Log.Warn("objects are encrypted under a key that is neither configured nor accepted; they stay until they change or are rekeyed",
					zap.Int64("objects", n))
			}
			logged[name] = n
		}
		select {
		case <-tick.C:
		case <-l.KeysMoved:
		case <-ctx.Done():
		}
	}
}

// started reports whether the start is done: every source is watched, or known
// not to be there, and no destination's first canary is still open. A server
// that refuses encryption for every source is a refusal, not an outage.
func (l *livePipeline) started() bool {
	stopped := 0
	for _, s := range l.sources {
		select {
		case <-s.Watch.Watching():
		default:
			if s.Watch.Available() {
				return false
			}
		}
		d := l.Pool.Destination(s.Config.Name)
		if d.State == breaker.HealthWaiting && d.Err == nil {
			return false
		}
		if d.State == breaker.HealthStopped {
			stopped++
		}
	}
	return l.d.ready.Load() || stopped < len(l.sources)
}

// logOutcome logs a line for o.
func logOutcome(log *zap.Logger, o uploader.Outcome) {
	fields := []zap.Field{
		zap.String("source", o.Source), zap.String("path", o.Path), zap.String("trigger", string(o.Trigger)),
		zap.Int64("bytes", o.Size), zap.Duration("took", o.Took),
	}
	switch {
	case o.Status == archive.StatusFailed:
		log.Error("failed", append(fields, zap.String("class", string(o.Class)), zap.Error(o.Err))...)
	case o.Status != "":
		if o.Basis != "" {
			fields = append(fields, zap.String("basis", string(o.Basis)))
		}
		log.Info(string(o.Status), fields...)
	}
}

// removedRetry is how long a trail that could not be closed waits, at first and at
// most.
const (
	removedRetry     = time.Minute
	removedRetryMost = time.Hour
)

// closeRemoved closes the trails of sources that were removed from the
// configuration. It tries until ctx ends; nothing else waits for it.
func (l *livePipeline) closeRemoved(ctx context.Context) error {
	pause := removedRetry
	for !removed.CloseAll(ctx, l.Pipeline) {
		l.Log.Info("trails of removed sources are closed later", zap.Duration("retry_in", pause))
		if !wait(ctx, pause) {
			return nil
		}
		pause = min(2*pause, removedRetryMost)
	}
	<-ctx.Done()
	return nil
}

// errNotNow reports a destination that is out of service.
var errNotNow = errors.New("nothing is asked of it now")

// inService fails while the destination of s takes no requests.
func (s *liveSource) inService() error {
	d := s.Pool.Destination(s.Config.Name)
	if d.State == breaker.HealthOK {
		return nil
	}
	return fmt.Errorf("the destination is %s: %w", d.State, errors.Join(errNotNow, d.Err))
}

// snapshots is what the gauges show of the running pipeline.
func (d *daemon) snapshots() []pipeline.Snapshot {
	l := d.current.Load()
	if l == nil {
		return nil
	}
	var list []pipeline.Snapshot
	for _, s := range l.sources {
		files, bytes := s.State.Totals()
		list = append(list, pipeline.Snapshot{Name: s.Config.Name, Files: files, Bytes: bytes, Work: s.Pending(), Withheld: s.withholds(), HungSince: s.hungSince()})
	}
	return list
}

// statusLine is STATUS= of systemd: a sentence a source.
func (l *livePipeline) statusLine() string {
	var parts []string
	for _, s := range l.sources {
		st := s.status(nil, time.Now())
		parts = append(parts, st.Sentence)
	}
	return strings.Join(parts, "; ")
}
