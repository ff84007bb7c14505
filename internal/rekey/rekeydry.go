package rekey

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/s3syncd/s3syncd/internal/pipeline"
	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/remote"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// rekeyDry asks S3 and counts what a rekey would do. It writes nothing. While a
// daemon holds the state it does without the index.
func rekeyDry(ctx context.Context, o Options, log *zap.Logger) (Summary, error) {
	p := &rekeyPlanner{opts: o, log: log}
	db, err := p.openIndex()
	if err != nil {
		return Summary{}, err
	}
	p.db = db
	p.metrics = s3conn.NewMetrics(prometheus.NewPedanticRegistry())
	var errs []error
	for i := range o.Config.Sources {
		if c := &o.Config.Sources[i]; o.chosen(c.Name) {
			if err := p.plan(ctx, i); err != nil {
				errs = append(errs, fmt.Errorf("source %s: %w", c.Name, err))
			}
		}
	}
	if db != nil {
		errs = append(errs, db.Close())
	}
	if ctx.Err() != nil {
		return p.sum, pipeline.ErrInterrupted
	}
	return p.sum, errors.Join(errs...)
}

// rekeyPlanner is one dry run.
type rekeyPlanner struct {
	opts    Options
	log     *zap.Logger
	db      *state.DB
	metrics *s3conn.Metrics

	mu  sync.Mutex
	sum Summary
}

// openIndex opens the state if there is one and no other process holds it.
func (p *rekeyPlanner) openIndex() (*state.DB, error) {
	there, err := state.Exists(p.opts.Config.StateDir)
	if err != nil || !there {
		return nil, err
	}
	db, err := pipeline.OpenState(p.opts.Config, &pipeline.Clock{}, p.log)
	if _, busy := errors.AsType[*pipeline.BusyError](err); busy {
		p.sum.Plan.Unindexed = true
		return nil, nil //nolint:nilnil // Without an index every object is asked for.
	}
	return db, err
}

// plan counts what a rekey of one source would do.
func (p *rekeyPlanner) plan(ctx context.Context, i int) error {
	c := p.opts.Config.Sources[i]
	env := pipeline.Session{Config: p.opts.Config, DB: p.db, Log: p.log, Metrics: &pipeline.Metrics{Store: p.metrics}, Dry: true}
	s, err := env.Connect(ctx, i, env.StoreOptions(c, p.log.With(zap.String("source", c.Name))))
	if err != nil {
		return err
	}
	if !s.Store.Resolved() {
		return fmt.Errorf("the key behind %s is not known yet: 's3syncd preflight' finds out, or configure the key's ARN", c.KMSKeyID)
	}
	f := finder{source: s, askAll: p.opts.AskAll, limit: p.opts.limiter()}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(p.opts.Config.Upload.Workers)
	err = f.run(gctx, func(ctx context.Context, path, key string, size int64, known *archive.Record) error {
		group.Go(func() error { return p.ask(ctx, s, path, key, size, known) })
		return ctx.Err()
	})
	if gerr := group.Wait(); gerr != nil {
		err = gerr
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	f.addTo(&p.sum)
	return err
}

// ask finds out what would be done with one object.
func (p *rekeyPlanner) ask(ctx context.Context, s *pipeline.Source, path, key string, size int64, known *archive.Record) error {
	o, err := s.Store.Head(ctx, key)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	verdict := s.Store.KeyVerdict(o)
	right := err != nil || verdict == archive.KeyOK || remote.IsTrailDocument(o)
	var why error
	if !right {
		if why, err = p.refuses(ctx, s, path, o, known); err != nil {
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sum.Plan.Heads++
	switch {
	case right:
		p.sum.Right++
		return nil
	case why != nil:
		p.sum.Failed++
		p.opts.Progress.Outcome(pipeline.Outcome{Source: s.Config.Name, Path: path, Status: pipeline.Failed, Size: size, Err: why})
		return nil
	case verdict == archive.KeyMissing:
		p.sum.Plan.NoKey++
	default:
		p.sum.Plan.OtherKey++
	}
	p.sum.Rekeyed++
	p.sum.Bytes += o.Size
	p.count(s, path, o)
	p.opts.Progress.Outcome(pipeline.Outcome{Source: s.Config.Name, Path: path, Status: pipeline.PlannedRekey, Size: o.Size})
	return nil
}

// refuses returns why an object would be left as it is, nil where it would not.
func (p *rekeyPlanner) refuses(ctx context.Context, s *pipeline.Source, path string, o archive.Object, known *archive.Record) (why, err error) {
	var entry archive.Entry
	if s.State != nil {
		if entry, _, err = s.State.Get(path); err != nil {
			return nil, err
		}
	}
	if id, ok := archive.ParseObjectID(o.Metadata[archive.MetaID]); o.Metadata[archive.MetaID] != "" && (!ok || id.Instance != p.opts.Config.Instance) {
		return fmt.Errorf("it was written by another instance: %s", o.Metadata[archive.MetaID]), nil
	}
	if why = remote.CheckArchived(ctx, s.Fetch, o, &entry, known); why != nil && !errors.Is(why, remote.ErrUnarchived) {
		return nil, why
	}
	return why, nil
}

// count adds the requests that bring o under the key. A file that has its size
// counts as one that has its content. The caller holds mu.
func (p *rekeyPlanner) count(s *pipeline.Source, path string, o archive.Object) {
	plan, u := &p.sum.Plan, p.opts.Config.Upload
	if st, err := s.Root.Lstat(path); err == nil && st.IsRegular() && st.Size == o.Size && !o.Dressed && indexed(s.State, path) {
		plan.Sends++
		if o.Size > u.SinglePutMax {
			plan.Sends++ // Create and Complete.
			plan.Parts += (o.Size + u.PartSize - 1) / u.PartSize
		}
		return
	}
	plan.Heads++ // Of the copy itself, for the headers to keep.
	plan.Copies++
	if parts := s.Store.CopyParts(o.Size); parts > 1 {
		plan.Copies++
		plan.Parts += parts
	}
}

// indexed reports whether the index has path as stored.
func indexed(index *state.Source, path string) bool {
	if index == nil {
		return false
	}
	e, ok, err := index.Get(path)
	return err == nil && ok && e.Stored
}
