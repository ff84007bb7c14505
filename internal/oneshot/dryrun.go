package oneshot

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/listing"
	"github.com/s3syncd/s3syncd/internal/pipeline"
	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/localfile"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/watcher"
)

// dryRun scans every source against the index, asks S3 for what that does not
// know, and counts what a run would do. It writes nothing, and does not
// create a missing state. Where S3 gives no answer the summary says so.
func dryRun(ctx context.Context, o SyncOptions, log *zap.Logger) (Summary, error) {
	p := &planner{opts: o, asks: true}
	var db *state.DB
	there, err := state.Exists(o.Config.StateDir)
	switch {
	case err != nil:
		return Summary{}, err
	case there:
		if db, err = pipeline.OpenState(o.Config, &pipeline.Clock{}, log); err != nil {
			return Summary{}, err
		}
	}
	m := watcher.NewMetrics(prometheus.NewRegistry())
	var errs []error
	for i := range o.Config.Sources {
		if err := p.scan(ctx, i, db, log, m); err != nil {
			errs = append(errs, fmt.Errorf("source %s: %w", o.Config.Sources[i].Name, err))
		}
	}
	if db != nil {
		errs = append(errs, db.Close())
	}
	p.finish(int64(len(o.Config.Sources)))
	if ctx.Err() != nil {
		return p.sum, pipeline.ErrInterrupted
	}
	return p.sum, errors.Join(errs...)
}

// Forecast is what the next run of one source would do.
type Forecast struct {
	Summary

	Largest        int64    // body that would be sent
	UnusedIncludes []string // patterns of include without files
}

// Foresee scans source i of cfg against the index in db, nil for none, and counts
// what a run would do. It asks S3 nothing.
func Foresee(ctx context.Context, cfg *config.Config, i int, db *state.DB, log *zap.Logger) (Forecast, error) {
	p := &planner{opts: SyncOptions{Config: cfg, Progress: noProgress{}}}
	if err := p.scan(ctx, i, db, log, watcher.NewMetrics(prometheus.NewRegistry())); err != nil {
		return Forecast{}, err
	}
	p.finish(1)
	return Forecast{p.sum, p.largest, p.unused}, nil
}

// noProgress shows nothing.
type noProgress struct{}

// Found implements pipeline.Progress.
func (noProgress) Found(int64) {}

// Outcome implements pipeline.Progress.
func (noProgress) Outcome(pipeline.Outcome) {}

// planner is the sink of a dry run.
type planner struct {
	opts    SyncOptions
	asks    bool // S3 is asked for what the index does not know
	mu      sync.Mutex
	sum     Summary
	largest int64    // body that would be sent
	unused  []string // patterns of include without files
}

func (p *planner) scan(ctx context.Context, i int, db *state.DB, log *zap.Logger, m *watcher.Metrics) error {
	c := p.opts.Config.Sources[i]
	env := pipeline.Session{
		Config: p.opts.Config, DB: db, Log: log, Dry: true,
		Metrics: &pipeline.Metrics{Watcher: m, Store: s3conn.NewMetrics(prometheus.NewPedanticRegistry())},
	}
	s, err := env.Connect(ctx, i, env.StoreOptions(c, log.With(zap.String("source", c.Name))))
	if err != nil {
		return err
	}
	var known scan.Index = noIndex{}
	if s.State != nil {
		known = &pipeline.Index{State: s.State}
	}
	var ask *forecaster // nil: S3 is not asked
	if p.asks {
		ask = p.forecast(ctx, s)
	}
	w := env.WatchOptions(s)
	w.OnScan, w.OnAvailable, w.OnMemory = func(watcher.ScanResult) {}, func(bool, string) {}, nil
	w.OnSame = func(scan.Known, safefs.Stat, archive.Trigger) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.sum.Skipped++
	}
	scanner, err := watcher.New(planSink{p, c.Name, ask}, known, w)
	if err == nil {
		var res watcher.ScanResult
		res, err = scanner.ScanOnce(ctx, archive.TriggerSync)
		p.unused = append(p.unused, res.UnusedIncludes...)
		err = errors.Join(err, res.Err)
	}
	if ask == nil {
		return err
	}
	if silent := ask.wait(); silent != nil && ctx.Err() == nil {
		p.sum.Plan.Silent = append(p.sum.Plan.Silent, fmt.Sprintf("source %s: %v", c.Name, silent))
	}
	return err
}

// The requests of one canary.
const (
	canaryPuts  = 4
	canaryHeads = 2
)

// finish adds the requests that do not belong to a file.
func (p *planner) finish(sources int64) {
	cfg, plan := p.opts.Config, &p.sum.Plan
	m, files := cfg.Manifest, p.sum.Uploaded+p.sum.Skipped
	signed := int64(1)
	if m.Sign != "none" {
		signed = 2
	}
	plan.Run.Head += sources * canaryHeads
	plan.Run.Put += sources * canaryPuts
	plan.Run.List += sources
	plan.Run.Trail = sources*(2+signed) + files/int64(m.MaxRecords) // Configuration, first manifest, digest.
	plan.Day.Head += sources * canaryHeads
	plan.Day.Put += sources * canaryPuts
	if m.DigestInterval > 0 {
		plan.Day.Trail = sources * signed * perDay(m.DigestInterval)
	}
	if every := cfg.Watch.RemoteCheckInterval; every > 0 {
		plan.Day.List = (sources + files/listing.Page) * max(1, perDay(every))
	}
	plan.FlushesDay = sources * perDay(m.FlushInterval)
}

func perDay(interval time.Duration) int64 { return int64(24 * time.Hour / interval) }

// planSink counts what would be done for one source.
type planSink struct {
	*planner
	source string
	ask    *forecaster // nil: S3 is not asked
}

// Offer implements watcher.Sink.
func (p planSink) Offer(ctx context.Context, c watcher.Change) error {
	o := pipeline.Outcome{Source: p.source, Path: c.Path, Size: c.Size}
	switch c.Kind {
	case archive.Look:
		if o.Err = localfile.CheckSize(c.Size); o.Err != nil {
			o.Status = pipeline.Failed
			break
		}
		if p.ask != nil {
			p.ask.offer(c.Path, c.Size)
			return ctx.Err()
		}
		o.Status = pipeline.Planned
	case archive.Gone:
		o.Status = pipeline.Deleted
	default:
		o.Status, o.Err = pipeline.Failed, c.Err
	}
	p.note(o)
	return ctx.Err()
}

// note counts what would become of one file.
func (p *planner) note(o pipeline.Outcome) {
	if o.Status == "" {
		return
	}
	p.mu.Lock()
	p.sum.add(o)
	if o.Status == pipeline.Planned {
		p.plan(o.Size)
	}
	p.mu.Unlock()
	p.opts.Progress.Outcome(o)
}

// count changes the plan.
func (p *planner) count(change func(*Plan)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.sum.Plan)
}

// plan counts the requests of one file of size bytes.
func (p *planner) plan(size int64) {
	u := p.opts.Config.Upload
	run := &p.sum.Plan.Run
	run.Head++
	if size <= u.SinglePutMax {
		run.Put++
		p.largest = max(p.largest, size)
		return
	}
	part := localfile.PartSize(size, u.PartSize)
	run.Put += 2 // Create and Complete.
	run.Parts += (size + part - 1) / part
	p.largest = max(p.largest, part)
}

// TryOffer implements watcher.Sink.
func (p planSink) TryOffer(watcher.Change) bool { return false }

// Pending implements watcher.Sink.
func (p planSink) Pending(string) bool { return false }

// Paths implements watcher.Sink.
func (p planSink) Paths() []string { return nil }

// noIndex is the index of a state that does not exist yet.
type noIndex struct{}

// Range implements watcher.Index.
func (noIndex) Range(string, int, []scan.Known) ([]scan.Known, error) { return nil, nil }
