// Package pipeline is what one run works with, built whole: each source from its
// directory to its trail, the pool that serves them, and what flows back between
// them (feedback). The daemon, sync, rekey, retire, removed sources and dry runs
// use the same one.
package pipeline

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/stages"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/uploader"
	"github.com/s3syncd/s3syncd/pkg/watcher"
)

// QueueLimit is how many paths of one source may wait in the queue. What does
// not fit waits in the watcher, or is found by the next scan.
const QueueLimit = 100_000

// Pipeline is everything that one run does its work with: the sources, each from
// its directory to its trail, and the pool that serves them.
type Pipeline struct {
	*Session

	Sources []*Source
	Pool    *uploader.Pool
}

// Parts say how the pipeline of one kind of run differs from the others.
type Parts struct {
	// Chosen, optional, picks the sources of the run.
	Chosen func(source string) bool
	// Watch, optional, adapts how a source is watched or scanned. Without it, it is
	// not.
	Watch func(s *Source, o *watcher.Options, to *Sink)
	// Uploads, optional, adapts what the pool knows of a source.
	Uploads func(s *Source, u *uploader.Source)
	// Pool adapts the pool.
	Pool func(o *uploader.Options)
	// Ended, optional, is called after each attempt at a file of s.
	Ended func(s *Source, o uploader.Outcome)
}

// Build returns the whole pipeline of a run. It makes no request.
func (e *Session) Build(ctx context.Context, p Parts) (*Pipeline, error) {
	l := &Pipeline{Session: e}
	byName := map[string]*Source{}
	var list []uploader.Source
	for i := range e.Config.Sources {
		name := e.Config.Sources[i].Name
		if p.Chosen != nil && !p.Chosen(name) {
			continue
		}
		s, err := e.OpenSource(ctx, i)
		if err != nil {
			return nil, err
		}
		if p.Watch != nil {
			o, to := e.WatchOptions(s), Sink{Source: name, Queue: e.Queue}
			p.Watch(s, &o, &to)
			if s.Watch, err = watcher.New(to, &Index{State: s.State}, o); err != nil {
				return nil, fmt.Errorf("source %s: %w", name, err)
			}
		}
		u := s.Uploads()
		if p.Uploads != nil {
			p.Uploads(s, &u)
		}
		list = append(list, u)
		l.Sources = append(l.Sources, s)
		byName[name] = s
	}
	o := e.poolOptions()
	o.Paused = func(name string) bool { return byName[name].full() } //nolint:contextcheck // It is asked long after this call.
	o.OnOutcome = func(out uploader.Outcome) {
		s := byName[out.Source]
		s.ended(out)
		p.Ended(s, out)
	}
	p.Pool(&o)
	var err error
	if l.Pool, err = uploader.New(e.Queue, list, o); err != nil {
		return nil, err
	}
	for _, s := range l.Sources {
		s.Pool = l.Pool
	}
	e.Clock.follow(l.Sources)
	return l, nil
}

// Begin builds the pipeline of a run that ends by itself and begins the chain of
// each source. It closes the session where that fails.
func (e *Session) Begin(ctx context.Context, p Parts) (*Pipeline, error) {
	l, err := e.Build(ctx, p)
	if err != nil {
		return nil, errors.Join(Interrupted(ctx, err), e.Close())
	}
	for _, s := range l.Sources {
		if err := s.BeginChain(ctx, archive.NoteStart, e.Program.Version); err != nil {
			return nil, errors.Join(Interrupted(ctx, fmt.Errorf("source %s: %w", s.Config.Name, err)), e.Close())
		}
	}
	return l, nil
}

// RunJob runs work beside the uploads and the trail that serve it. When ctx ends
// it does not wait for an outage any longer than a daemon that is stopped, and says
// what continues until then.
func (l *Pipeline) RunJob(ctx context.Context, work stages.Stage) error {
	over := make(chan struct{})
	defer close(over)
	defer context.AfterFunc(ctx, func() {
		l.Log.Warn("interrupted: what is in flight is finished and the trail published; another signal ends it at once",
			zap.Duration("at_most", StandardGrace().Total()))
		select {
		case <-time.After(DrainTime + publishTime):
		case <-over:
			return
		}
		for _, s := range l.Sources {
			s.Flusher.Abandon()
		}
	})()
	trails := func(ctx context.Context) error {
		return l.Each(func(s *Source) error { return s.Flusher.Run(ctx) })
	}
	return stages.RunJob(ctx, l.Grace.Total(), work, stages.Stage{Name: "uploader", Run: l.Pool.Run}, stages.Stage{Name: "manifest", Run: trails})
}

// Each calls fn for every source side by side, and returns all errors.
func (l *Pipeline) Each(fn func(*Source) error) error {
	errs := make([]error, len(l.Sources))
	var wg sync.WaitGroup
	for i, s := range l.Sources {
		wg.Go(func() { errs[i] = fn(s) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Drained waits until what is queued for source is done and its destination has
// proven itself, or was given up: the trail of a run without a file to send needs
// the canary as well, and nothing asks for it once the pool has ended.
func (l *Pipeline) Drained(ctx context.Context, source string) error {
	if err := l.Queue.Source(source).Wait(ctx); err != nil {
		return err
	}
	return l.Pool.Await(ctx, source)
}
