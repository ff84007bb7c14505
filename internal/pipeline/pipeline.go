// Package pipeline is what one run works with, built whole: each source from its
// directory to its trail, the pool that serves them, and what flows back between
// them (feedback). The daemon, sync, rekey, retire, removed sources and dry runs
// use the same one.
package pipeline

import (
	"context"
	"errors"
	"fmt"

	"github.com/s3syncd/s3syncd/pkg/state"
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
	// chosen, optional, picks the sources of the run.
	Chosen func(source string) bool
	// watch, optional, adapts how a source is watched or scanned. Without it, it is
	// not.
	Watch func(s *Source, o *watcher.Options, to *Sink)
	// uploads, optional, adapts what the pool knows of a source.
	Uploads func(s *Source, u *uploader.Source)
	// pool adapts the pool.
	Pool func(o *uploader.Options)
	// ended, optional, is called after each attempt at a file of s.
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
		if err := s.BeginChain(ctx, state.NoteStart, e.Program.Version); err != nil {
			return nil, errors.Join(Interrupted(ctx, fmt.Errorf("source %s: %w", s.Config.Name, err)), e.Close())
		}
	}
	return l, nil
}
