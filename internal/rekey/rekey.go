// Package rekey brings objects under the configured KMS key.
package rekey

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/listing"
	"github.com/s3syncd/s3syncd/internal/pipeline"
	"github.com/s3syncd/s3syncd/internal/stages"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/uploader"
)

// Options are what a rekey needs from outside.
type Options struct {
	Config   *config.Config
	Source   string        // "": every source
	Rate     float64       // objects a second that are asked for or rekeyed; 0: no limit
	AskAll   bool          // ask S3 for every object, also where the index says that its key is right
	GiveUp   time.Duration // how long a transient fault is waited for
	DryRun   bool
	Stderr   io.Writer
	Version  string
	Progress pipeline.Progress
}

// Summary counts the objects of a rekey.
type Summary struct {
	Listed  int64 // below the prefixes, the trails left out
	Right   int64 // under the key, gone by now, or a document of another trail
	Rekeyed int64 // or to be rekeyed in a dry run
	Failed  int64 // or to be left to another instance in a dry run
	Bytes   int64 // of what is rekeyed

	// Unlisted: some prefix could not be listed, so that only indexed objects were
	// checked.
	Unlisted bool
	Plan     Plan
}

// Plan is what a dry run foresees.
type Plan struct {
	NoKey, OtherKey      int64 // objects without a KMS key, and under another one
	Heads, Sends, Copies int64 // requests of the run
	Parts                int64 // of sends and copies that are too large for one request
	Lists                int64
	Unindexed            bool // a running daemon holds the state: without its index every object was asked for
}

// rekeyBusy is the advice where another process holds the state.
const rekeyBusy = "stop the daemon first: a rekey writes the same index and trail"

// Run finds the objects of every source that are not under the configured key
// or an accepted one, and brings them under the configured one. It blocks until
// that is done or ctx ends, holds the state, and publishes the trail of what it
// did. It can be interrupted at any point and run again: what was done is durable. It returns ErrSomeFailed when objects failed,
// ErrInterrupted when ctx ended first, and another error when it could not run;
// the summary is valid in each case. A dry run writes nothing, not even a state.
func Run(ctx context.Context, o Options) (Summary, error) {
	at, log, err := pipeline.Prepare(o.Config, o.Stderr)
	if err != nil {
		return Summary{}, err
	}
	if o.DryRun {
		return rekeyDry(ctx, o, log)
	}
	e, err := pipeline.Open(o.Config, at, o.GiveUp, o.Version, log)
	if busy, ok := errors.AsType[*pipeline.BusyError](err); ok {
		return Summary{}, busy.Advise(rekeyBusy)
	}
	if err != nil {
		return Summary{}, err
	}
	r := &rekeyRun{opts: o, trail: map[string]archive.Record{}, limit: o.limiter()}
	if r.Pipeline, err = e.Begin(ctx, r.parts()); err != nil {
		return Summary{}, err
	}
	err = r.run(ctx)
	return r.sum, errors.Join(err, r.Close())
}

// limiter returns the limit on objects.
func (o *Options) limiter() *rate.Limiter {
	if o.Rate <= 0 {
		return rate.NewLimiter(rate.Inf, 1)
	}
	return rate.NewLimiter(rate.Limit(o.Rate), 1)
}

// chosen reports whether a source is one of those that were asked for.
func (o *Options) chosen(name string) bool { return o.Source == "" || o.Source == name }

// rekeyRun is one run of the rekey command.
type rekeyRun struct {
	*pipeline.Pipeline

	opts  Options
	limit *rate.Limiter

	mu    sync.Mutex
	sum   Summary
	trail map[string]archive.Record // by source and path, of what is queued: what the trail knows of its object
	halt  context.CancelCauseFunc   // ends the search for objects
}

// parts say how a rekey differs from other runs. Its destinations are not proven
// by an earlier canary: what is behind an alias is asked again.
func (r *rekeyRun) parts() pipeline.Parts {
	return pipeline.Parts{
		Chosen: r.opts.chosen,
		Uploads: func(s *pipeline.Source, u *uploader.Source) {
			u.Copy = s.Store.Copy
			u.Archived = func(path string) (archive.Record, bool) { return r.archived(s.Config.Name, path) }
			u.Proven, u.ProvenAt = false, time.Time{}
		},
		Pool:  func(o *uploader.Options) { o.GiveUp = r.opts.GiveUp },
		Ended: r.ended,
	}
}

func (r *rekeyRun) run(ctx context.Context) error {
	err := r.RunJob(ctx, stages.Stage{Name: "rekey", Run: r.rekeyAll})
	switch {
	case ctx.Err() != nil:
		return errors.Join(pipeline.ErrInterrupted, err)
	case err != nil:
		return err
	}
	failed := r.sum.Failed > 0
	for _, s := range r.Sources {
		late, err := s.Unpublished()
		if err != nil {
			return err
		}
		failed = failed || late
	}
	if failed {
		return pipeline.ErrSomeFailed
	}
	return nil
}

// rekeyAll works on every source side by side: a broken one holds up no other.
func (r *rekeyRun) rekeyAll(ctx context.Context) error {
	ctx, halt := context.WithCancelCause(ctx)
	defer halt(nil)
	r.mu.Lock()
	r.halt = halt
	r.mu.Unlock()
	err := r.Each(func(s *pipeline.Source) error {
		err := r.await(ctx, s)
		if err == nil {
			err = r.find(ctx, s)
		}
		err = errors.Join(err, r.Queue.Source(s.Config.Name).Wait(ctx))
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("source %s: %w", s.Config.Name, err)
		}
		return nil
	})
	if cause := context.Cause(ctx); errors.Is(cause, errUnconfirmed) {
		return cause
	}
	return err
}

// errUnconfirmed ends a run at the first answer that does not confirm the key:
// each further copy would take the encryption from one more object.
var errUnconfirmed = errors.New("stopped at once, because the server did not do what it was asked for")

// await blocks until the canary has passed: it tells which key is behind an alias
// now.
func (r *rekeyRun) await(ctx context.Context, s *pipeline.Source) error {
	if err := r.Pool.Await(ctx, s.Config.Name); err != nil {
		return err
	}
	if d := r.Pool.Destination(s.Config.Name); !d.Proven {
		return fmt.Errorf("nothing was rekeyed: %w", d.Err)
	}
	return nil
}

// find queues what may not be under the key.
func (r *rekeyRun) find(ctx context.Context, s *pipeline.Source) error {
	f := finder{source: s, askAll: r.opts.AskAll, limit: r.limit}
	err := f.run(ctx, func(ctx context.Context, path, _ string, size int64, known *archive.Record) error {
		r.opts.Progress.Found(size)
		if known != nil {
			r.mu.Lock()
			r.trail[trailKey(s.Config.Name, path)] = *known
			r.mu.Unlock()
		}
		return r.Queue.Offer(ctx, queue.Job{Source: s.Config.Name, Path: path, Kind: archive.Rekey, Trigger: archive.TriggerSync})
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	f.addTo(&r.sum)
	return err
}

// trailKey names a path of a source.
func trailKey(source, path string) string { return source + "\x00" + path }

// archived returns what the trail knows of the object of a queued path.
func (r *rekeyRun) archived(source, path string) (archive.Record, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec, ok := r.trail[trailKey(source, path)]
	return rec, ok
}

func (r *rekeyRun) ended(_ *pipeline.Source, o uploader.Outcome) {
	r.mu.Lock()
	if o.Err != nil && o.Class.Stops() && r.halt != nil {
		r.halt(fmt.Errorf("source %s: %w: %w", o.Source, errUnconfirmed, o.Err))
	}
	if !o.Retry {
		delete(r.trail, trailKey(o.Source, o.Path))
	}
	if o.Status == "" && (o.Err != nil || o.Retry) {
		r.mu.Unlock()
		return
	}
	switch o.Status { //nolint:exhaustive // An interrupted upload that was resolved is no part of the sum.
	case archive.StatusRekeyed:
		r.sum.Rekeyed++
		r.sum.Bytes += o.Size
	case archive.StatusFailed:
		r.sum.Failed++
	case "":
		r.sum.Right++
	}
	r.mu.Unlock()
	r.opts.Progress.Outcome(pipeline.Outcome{Source: o.Source, Path: o.Path, Status: o.Status, Size: o.Size, Err: o.Err})
}

// finder finds the objects of one source that may not be under the key.
type finder struct {
	source *pipeline.Source
	askAll bool
	limit  *rate.Limiter

	listed, right int64
	unlisted      bool
}

func (f *finder) addTo(sum *Summary) {
	sum.Listed += f.listed
	sum.Right += f.right
	sum.Unlisted = sum.Unlisted || f.unlisted
	sum.Plan.Lists += f.listed/listing.Page + 1
}

// eachObject is called for one object, with the path of a rekey job and what the
// trail knows of the object, nil for nothing.
type eachObject func(ctx context.Context, path, key string, size int64, known *archive.Record) error

// run calls each for every object that may not be under the key, with the path
// of a rekey job: those that are listed, or where there is no right to list those
// of the index. It calls in the order of the keys, no faster than the limit.
func (f *finder) run(ctx context.Context, each eachObject) error {
	past := readPast(ctx, f.source)
	defer past.stop()
	err := listing.ListData(ctx, f.source.Store, f.source.Mapper, func(o archive.Object) error {
		f.listed++
		path, ok := f.source.Mapper.Path(o.Key)
		if !ok {
			path = queue.KeyPath(o.Key)
		}
		known, err := f.known(path, o)
		if err != nil || known {
			return err
		}
		if err := f.limit.Wait(ctx); err != nil {
			return err
		}
		rec, err := past.of(o.Key)
		if err != nil {
			return err
		}
		return each(ctx, path, o.Key, o.Size, rec)
	})
	if !errors.Is(err, fs.ErrPermission) || f.listed > 0 || f.source.State == nil {
		return err
	}
	f.unlisted = true
	f.source.Log.Warn("s3:ListBucket is not granted: only objects that the index knows are checked", zap.Error(err))
	return f.runIndex(ctx, each)
}

// known reports whether the index shows that o is under the right key. It does
// when it describes the very object that is listed.
func (f *finder) known(path string, o archive.Object) (bool, error) {
	if f.source.State == nil || f.askAll {
		return false, nil
	}
	e, ok, err := f.source.State.Get(path)
	if err != nil || !ok || !e.Stored || e.Suspect || e.ETag != o.ETag || e.Fence.Size != o.Size || !f.accepts(&e) {
		return false, err
	}
	f.right++
	return true, nil
}

func (f *finder) accepts(e *archive.Entry) bool {
	return f.source.Store.KeyVerdict(archive.Object{SSE: e.SSE, KMSKeyID: e.KMSKeyID}) == archive.KeyOK
}

// runIndex does what run does with the entries of the index.
func (f *finder) runIndex(ctx context.Context, each eachObject) error {
	var buf []archive.Item
	for after := ""; ; after = buf[len(buf)-1].Path {
		var err error
		if buf, err = f.source.State.Range(after, listing.Chunk, buf[:0]); err != nil {
			return fmt.Errorf("read the index: %w", err)
		}
		for i := range buf {
			if err := f.offerEntry(ctx, &buf[i], each); err != nil {
				return err
			}
		}
		if len(buf) < listing.Chunk {
			return nil
		}
	}
}

func (f *finder) offerEntry(ctx context.Context, it *archive.Item, each eachObject) error {
	if !it.Entry.Stored {
		return ctx.Err()
	}
	f.listed++
	if f.accepts(&it.Entry) && !f.askAll {
		f.right++
		return ctx.Err()
	}
	key, err := f.source.Mapper.Key(it.Path)
	if err != nil {
		return err
	}
	if err := f.limit.Wait(ctx); err != nil {
		return err
	}
	return each(ctx, it.Path, key, it.Entry.Fence.Size, nil)
}
