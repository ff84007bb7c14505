// Package daemon is the life of the daemon: its start, the pipeline of one
// configuration after another, what it says of itself, and its end.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/admin"
	"github.com/s3syncd/s3syncd/internal/admin/page"
	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/fscheck"
	"github.com/s3syncd/s3syncd/internal/host"
	"github.com/s3syncd/s3syncd/internal/logsink"
	"github.com/s3syncd/s3syncd/internal/pipeline"
	"github.com/s3syncd/s3syncd/internal/stages"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// Options are what the daemon needs from outside.
type Options struct {
	// Load reads the configuration, at the start and again for each hang-up.
	Load    func() (*config.Config, error)
	Hangup  <-chan os.Signal
	Stderr  io.Writer // the log; it may block
	Version string
	Grace   pipeline.Grace
}

// Run is the daemon. It blocks until ctx ends, which is the order to stop, and
// returns nil when everything that was under way is finished and published, or
// is durable in the state and will be by the next start. A remote fault never
// ends it. It returns an error at once when the configuration or the state
// directory do not allow a start.
func Run(ctx context.Context, o Options) error {
	cfg, err := o.Load()
	if err != nil {
		return err
	}
	if err := host.Supported(cfg); err != nil {
		return err
	}
	sink, ok := o.Stderr.(*logsink.Sink)
	if !ok {
		sink = logsink.New(o.Stderr)
		defer sink.Close(lastLines)
	}
	places := &fscheck.Checker{}
	if _, err := places.Placed(cfg); err != nil {
		return err // Before anything is written, which might be inside a source.
	}
	log, level, err := logsink.NewLogger(cfg.Log, sink)
	if err != nil {
		return err
	}
	if _, err := host.BudgetOf(cfg.Upload, host.MemoryLimit()); err != nil {
		return err
	}
	d, err := openDaemon(ctx, cfg, o, log, level, places)
	if err != nil {
		return err
	}
	promauto.With(d.reg).NewCounterFunc(prometheus.CounterOpts{
		Name: "s3syncd_log_lines_lost_total", Help: "Lines of the log that could not be written: the reader is gone or stalled, or writing failed.",
	}, func() float64 { return float64(sink.Lost()) })
	for _, w := range append(slices.Clone(cfg.Warnings), host.Warnings(cfg)...) {
		log.Warn("configuration", zap.String("warning", w))
	}
	err = d.run(ctx)
	if cerr := d.db.Close(); cerr != nil {
		err = errors.Join(err, fmt.Errorf("close the state: %w", cerr))
	}
	return err
}

// lastLines is how long the end of the daemon waits for the log to be written.
const lastLines = 5 * time.Second

// daemon is what lives as long as the process. What a reload replaces is in a
// livePipeline.
type daemon struct {
	opts       Options
	cfg        *config.Config
	log        *zap.Logger
	level      zap.AtomicLevel
	build      host.Build
	reg        *prometheus.Registry
	metrics    *pipeline.Metrics
	db         *state.DB
	admin      *admin.Server  // nil: no listener
	page       *page.Page     // nil: no page
	control    *admin.Control // nil: no socket
	ledgers    ledgers
	started    time.Time
	notify     notifier
	ready      atomic.Bool
	clock      *pipeline.Clock
	pulse      pulse
	places     *fscheck.Checker
	lastReload atomic.Pointer[admin.Reload] // nil: there was no hang-up yet

	// starting is set while a start or a reload has not said READY=1 yet.
	starting atomic.Bool

	stopping atomic.Bool
	current  atomic.Pointer[livePipeline]
}

// openDaemon opens the state and the listeners, none of which answers yet.
func openDaemon(ctx context.Context, cfg *config.Config, o Options, log *zap.Logger, level zap.AtomicLevel, places *fscheck.Checker) (*daemon, error) {
	d := &daemon{
		opts: o, cfg: cfg, log: log, level: level, places: places, build: host.ReadBuild(o.Version),
		reg: prometheus.NewPedanticRegistry(), notify: notifier{log: log}, clock: &pipeline.Clock{}, started: time.Now(),
	}
	db, err := pipeline.OpenState(cfg, d.clock, log)
	if err != nil {
		return nil, err
	}
	d.db = db
	d.metrics = pipeline.NewMetrics(d.reg, d.build, db, d.snapshots)
	if err := d.listenAdmin(ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	if err := d.listenControl(ctx); err != nil {
		return nil, errors.Join(err, d.closeAdmin(), db.Close())
	}
	return d, nil
}

// listenAdmin opens the admin listener, with the page where that is configured.
func (d *daemon) listenAdmin(ctx context.Context) error {
	a := d.cfg.Admin
	if a.Listen == "" {
		return nil
	}
	o := admin.Options{
		Listen: a.Listen, Gatherer: d.reg, Ready: d.isReady, Healthy: d.isHealthy, WebConfig: a.WebConfig, Log: d.log.Named("admin"),
	}
	if a.Page {
		p, err := page.New(d, d.log.Named("page"))
		if err != nil {
			return fmt.Errorf("the status page: %w", err)
		}
		d.page, o.Page = p, p
	}
	var err error
	if d.admin, err = admin.Listen(ctx, o); err != nil {
		return err
	}
	d.log.Info("admin listener", zap.Stringer("address", d.admin.Addr()), zap.Bool("page", a.Page), zap.String("web_config", a.WebConfig))
	return nil
}

// closeAdmin closes the listener of a daemon that does not run.
func (d *daemon) closeAdmin() error {
	if d.admin == nil {
		return nil
	}
	return d.admin.Close()
}

// run starts the daemon's parts and stops them in the direction of the data;
// the admin listener and the control socket go last, so that the end can still
// be seen.
func (d *daemon) run(ctx context.Context) error {
	d.log.Info("starting", zap.String("version", d.build.Version), zap.String("revision", d.build.Revision),
		zap.String("instance", d.cfg.Instance), zap.Int("sources", len(d.cfg.Sources)))
	parts := []stages.Stage{{Name: "pipeline", Run: d.pipeline}, {Name: "systemd", Run: d.tellSystemd}}
	if d.page != nil { // Its streams end before the listener waits for them.
		parts = append(parts, stages.Stage{Name: "page", Run: d.page.Run})
	}
	if d.admin != nil {
		parts = append(parts, stages.Stage{Name: "admin", Run: d.admin.Run})
	}
	if d.control != nil {
		parts = append(parts, stages.Stage{Name: "control", Run: d.control.Run})
	}
	defer context.AfterFunc(ctx, func() {
		d.stopping.Store(true)
		d.notify.stopping()
	})()
	err := stages.Run(ctx, d.opts.Grace.Total()+15*time.Second, parts...)
	d.log.Info("stopped", zap.Error(err))
	return err
}

func (d *daemon) isReady() error {
	if !d.ready.Load() {
		return errors.New("starting: the state is open, the first canary and the first watches are not done")
	}
	return nil
}

// isHealthy reports whether the pipeline progresses or is idle. An outage of S3,
// a full disk and a source that does not answer are no reasons to restart a
// process that keeps watching. It does not block.
func (d *daemon) isHealthy() error {
	if l := d.current.Load(); l != nil {
		return d.pulse.check(l.works(), time.Now())
	}
	return nil
}

// How often STATUS= may change, in general and before READY=1, and how often
// and by how much systemd is asked for more time until then.
const (
	statusPause   = 10 * time.Second
	startingPause = time.Second
	extendPause   = 5 * time.Second
	extension     = time.Minute
)

// tellSystemd keeps STATUS= and the watchdog up to date until ctx ends. A start
// or a reload that takes long is given more time for as long as the pipeline
// makes progress; how far it has come is in STATUS=.
func (d *daemon) tellSystemd(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.notify.watch(ctx, d.isHealthy)
	}()
	tick := time.NewTicker(startingPause)
	defer tick.Stop()
	var last string
	var next time.Time // of STATUS=
	for extended := time.Now(); ctx.Err() == nil; {
		now, starting := time.Now(), d.starting.Load()
		if starting || !now.Before(next) {
			next = now.Add(statusPause)
			if starting {
				next = now // READY=1 is followed by the present status.
			}
			if line := d.statusLine(starting); line != last {
				d.notify.status(line)
				last = line
			}
		}
		if starting && now.Sub(extended) >= extendPause && d.isHealthy() == nil {
			extended = now
			d.notify.extend(extension)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	<-done
	return nil
}

// statusLine is STATUS=.
func (d *daemon) statusLine(starting bool) string {
	line := ""
	if l := d.current.Load(); l != nil {
		line = l.statusLine()
	}
	switch {
	case !starting:
		return line
	case d.ready.Load():
		return strings.TrimSuffix("reloading: "+line, ": ")
	default:
		return strings.TrimSuffix("starting: "+line, ": ")
	}
}
