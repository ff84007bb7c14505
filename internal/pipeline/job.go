package pipeline

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/stages"
)

// hurryAtSignal sees to it that a run whose ctx ends does not wait for an outage
// any longer than a daemon that is stopped, and says what continues until then.
// The function that it returns ends that.
func hurryAtSignal(ctx context.Context, log *zap.Logger, sources []*Source) (end func()) {
	over := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		log.Warn("interrupted: what is in flight is finished and the trail published; another signal ends it at once",
			zap.Duration("at_most", StandardGrace().Total()))
		select {
		case <-time.After(DrainTime + publishTime):
		case <-over:
			return
		}
		for _, s := range sources {
			s.Flusher.Abandon()
		}
	})
	return func() { stop(); close(over) }
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

// runFlushers runs the trail of every source side by side.
func runFlushers(ctx context.Context, sources []*Source) error {
	errs := make([]error, len(sources))
	var wg sync.WaitGroup
	for i, s := range sources {
		wg.Go(func() { errs[i] = s.Flusher.Run(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Unpublished reports whether documents of a trail still wait for their bucket.
func Unpublished(sources []*Source) (bool, error) {
	late := false
	for _, s := range sources {
		docs, err := s.State.Outbox()
		if err != nil {
			return late, fmt.Errorf("source %s: %w", s.Config.Name, err)
		}
		if len(docs) > 0 {
			late = true
			s.Log.Error("documents of the trail are not published yet, the next run publishes them", zap.Int("documents", len(docs)))
		}
	}
	return late, nil
}

// RunJob runs work beside the uploads and the trail that serve it.
func (l *Pipeline) RunJob(ctx context.Context, work stages.Stage) error {
	defer hurryAtSignal(ctx, l.Log, l.Sources)()
	return stages.RunJob(ctx, l.Grace.Total(), work,
		stages.Stage{Name: "uploader", Run: l.Pool.Run},
		stages.Stage{Name: "manifest", Run: func(ctx context.Context) error { return runFlushers(ctx, l.Sources) }})
}
