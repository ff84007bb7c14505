package app

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/uploader"
	"github.com/s3syncd/s3syncd/pkg/watcher"
)

// dryRun scans every source against the index and counts what a run would do.
// It makes no request, and leaves a state that does not exist yet unmade.
func dryRun(ctx context.Context, o SyncOptions, log *zap.Logger) (Summary, error) {
	p := &planner{opts: o}
	var db *state.DB
	there, err := state.Exists(o.Config.StateDir)
	switch {
	case err != nil:
		return Summary{}, err
	case there:
		if db, err = openState(o.Config, &clock{}, log); err != nil {
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
		return p.sum, ErrInterrupted
	}
	return p.sum, errors.Join(errs...)
}

// planner is the sink of a dry run.
type planner struct {
	largest int64 // body that would be sent
	opts    SyncOptions
	mu      sync.Mutex
	sum     Summary
	unused  []string // patterns of include without files
}

func (p *planner) scan(ctx context.Context, i int, db *state.DB, log *zap.Logger, m *watcher.Metrics) error {
	c := p.opts.Config.Sources[i]
	env := environment{cfg: p.opts.Config, log: log, metrics: &metrics{watcher: m}}
	s := &source{
		cfg: c, real: realPath(c.Path), log: log.With(zap.String("source", c.Name)),
		root: rootOf(&c),
	}
	var known watcher.Index = noIndex{}
	if db != nil {
		st, err := db.Source(ctx, state.SourceKey{Bucket: c.Bucket, Prefix: c.Prefix, RealPath: s.real})
		if err != nil {
			return err
		}
		known = &index{state: st}
	}
	w := env.watchOptions(s)
	w.OnScan, w.OnAvailable, w.OnMounts = func(watcher.ScanResult) {}, func(bool, string) {}, nil
	w.OnSame = func(watcher.Known, safefs.Stat, string) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.sum.Skipped++
	}
	scanner, err := watcher.New(planSink{p, c.Name}, known, w)
	if err != nil {
		return err
	}
	res, err := scanner.ScanOnce(ctx, string(state.TriggerSync))
	p.unused = append(p.unused, res.UnusedIncludes...)
	return errors.Join(err, res.Err)
}

// The requests of one canary, and how many objects one LIST returns.
const (
	canaryPuts  = 4
	canaryHeads = 2
	listPage    = 1000
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
		plan.Day.List = (sources + files/listPage) * max(1, perDay(every))
	}
	plan.FlushesDay = sources * perDay(m.FlushInterval)
}

func perDay(interval time.Duration) int64 { return int64(24 * time.Hour / interval) }

// planSink counts what would be done for one source.
type planSink struct {
	*planner
	source string
}

// Offer implements watcher.Sink.
func (p planSink) Offer(ctx context.Context, c watcher.Change) error {
	o := Outcome{Source: p.source, Path: c.Path, Size: c.Size}
	switch c.Kind {
	case watcher.Look:
		if o.Status, o.Err = Planned, uploader.CheckSize(c.Size); o.Err != nil {
			o.Status = Failed
		}
	case watcher.Gone:
		o.Status = Deleted
	default:
		o.Status, o.Err = Failed, c.Err
	}
	p.mu.Lock()
	p.sum.add(o)
	if o.Status == Planned {
		p.plan(c.Size)
	}
	p.mu.Unlock()
	p.opts.Progress.Outcome(o)
	return ctx.Err()
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
	part := uploader.PartSize(size, u.PartSize)
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
func (noIndex) Range(string, int, []watcher.Known) ([]watcher.Known, error) { return nil, nil }
