package app

import (
	"context"
	"errors"
	"fmt"

	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/uploader"
	"github.com/s3syncd/s3syncd/pkg/watcher"
)

// queueLimit is how many paths of one source may wait in the queue. What does
// not fit waits in the watcher, or is found by the next scan.
const queueLimit = 100_000

// pipeline is everything that one run does its work with: the sources, each from
// its directory to its trail, and the pool that serves them.
type pipeline struct {
	*environment

	sources []*source
	pool    *uploader.Pool
}

// parts say how the pipeline of one kind of run differs from the others.
type parts struct {
	// chosen, optional, picks the sources of the run.
	chosen func(source string) bool
	// watch, optional, adapts how a source is watched or scanned. Without it, it is
	// not.
	watch func(s *source, o *watcher.Options, to *sink)
	// uploads, optional, adapts what the pool knows of a source.
	uploads func(s *source, u *uploader.Source)
	// pool adapts the pool.
	pool func(o *uploader.Options)
	// ended, optional, is called after each attempt at a file of s.
	ended func(s *source, o uploader.Outcome)
}

// build returns the whole pipeline of a run. It makes no request.
func (e *environment) build(ctx context.Context, p parts) (*pipeline, error) {
	l := &pipeline{environment: e}
	byName := map[string]*source{}
	var list []uploader.Source
	for i := range e.cfg.Sources {
		name := e.cfg.Sources[i].Name
		if p.chosen != nil && !p.chosen(name) {
			continue
		}
		s, err := e.openSource(ctx, i)
		if err != nil {
			return nil, err
		}
		if p.watch != nil {
			o, to := e.watchOptions(s), sink{source: name, queue: e.queue}
			p.watch(s, &o, &to)
			if s.watch, err = watcher.New(to, &index{state: s.state}, o); err != nil {
				return nil, fmt.Errorf("source %s: %w", name, err)
			}
		}
		u := s.uploads()
		if p.uploads != nil {
			p.uploads(s, &u)
		}
		list = append(list, u)
		l.sources = append(l.sources, s)
		byName[name] = s
	}
	o := e.poolOptions()
	o.Paused = func(name string) bool { return byName[name].full() } //nolint:contextcheck // It is asked long after this call.
	o.OnOutcome = func(out uploader.Outcome) {
		s := byName[out.Source]
		s.ended(out)
		p.ended(s, out)
	}
	p.pool(&o)
	var err error
	if l.pool, err = uploader.New(e.queue, list, o); err != nil {
		return nil, err
	}
	for _, s := range l.sources {
		s.pool = l.pool
	}
	e.clock.follow(l.sources)
	return l, nil
}

// begun builds the pipeline of a run that ends by itself and begins the chain of
// each source. It closes the session where that fails.
func (e *environment) begun(ctx context.Context, p parts) (*pipeline, error) {
	l, err := e.build(ctx, p)
	if err != nil {
		return nil, errors.Join(interrupted(ctx, err), e.close())
	}
	for _, s := range l.sources {
		if err := s.beginChain(ctx, state.NoteStart, e.program.Version); err != nil {
			return nil, errors.Join(interrupted(ctx, fmt.Errorf("source %s: %w", s.cfg.Name, err)), e.close())
		}
	}
	return l, nil
}
