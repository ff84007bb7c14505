package app

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/stages"
)

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

// drained waits until what is queued for source is done and its destination has
// proven itself, or was given up: the trail of a run without a file to send needs
// the canary as well, and nothing asks for it once the pool has ended.
func (l *pipeline) drained(ctx context.Context, source string) error {
	if err := l.queue.Source(source).Wait(ctx); err != nil {
		return err
	}
	return l.pool.Await(ctx, source)
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

// unpublished reports whether documents of a trail still wait for their bucket.
func unpublished(sources []*source) (bool, error) {
	late := false
	for _, s := range sources {
		docs, err := s.state.Outbox()
		if err != nil {
			return late, fmt.Errorf("source %s: %w", s.cfg.Name, err)
		}
		if len(docs) > 0 {
			late = true
			s.log.Error("documents of the trail are not published yet, the next run publishes them", zap.Int("documents", len(docs)))
		}
	}
	return late, nil
}

// runJob runs work beside the uploads and the trail that serve it.
func (l *pipeline) runJob(ctx context.Context, work stages.Stage) error {
	defer hurryAtSignal(ctx, l.log, l.sources)()
	return stages.RunJob(ctx, l.grace.total(), work,
		stages.Stage{Name: "uploader", Run: l.pool.Run},
		stages.Stage{Name: "manifest", Run: func(ctx context.Context) error { return runFlushers(ctx, l.sources) }})
}
