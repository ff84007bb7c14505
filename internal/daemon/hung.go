package daemon

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/fscheck"
	"github.com/s3syncd/s3syncd/internal/mounts"
	"github.com/s3syncd/s3syncd/internal/safefs"
)

// followHung checks s until ctx ends, beside the watcher: a watcher that waits for
// a file system waits in the kernel, and can report nothing. A check outlives the
// pipeline that began it, so that a reload does not begin another.
func (l *livePipeline) followHung(ctx context.Context, s *liveSource) error {
	root := safefs.NewRoot(s.Config.Path, s.Root.Options())
	for ctx.Err() == nil {
		o := l.d.places.Begin("inside "+s.Config.Path, func() config.Look {
			fscheck.Inside(root, mounts.Points(s.Real))
			return config.Look{}
		})
		late := time.NewTimer(time.Until(o.Since.Add(fscheck.HungAfter)))
		select {
		case <-o.Done:
		case <-ctx.Done():
		case <-late.C:
			s.hang(o.Since) //nolint:contextcheck // The note is kept also when the pipeline ends.
			select {
			case <-o.Done:
				s.answers(time.Since(o.Since)) //nolint:contextcheck // The note is kept too.
			case <-ctx.Done():
			}
		}
		late.Stop()
		wait(ctx, fscheck.Pause)
	}
	return nil
}

// hang notes that s has not answered since then.
func (s *liveSource) hang(since time.Time) {
	s.hungAt.Store(since.UnixNano())
	s.Log.Error("the source hangs: nothing of it is archived until its file system answers, the other sources continue",
		zap.String("path", s.Config.Path), zap.Time("since", since.UTC()))
	s.Watch.SetHung(fscheck.SilentReason)
	s.OnAvailable(false, "hung: "+fscheck.SilentReason)
}

// answers notes that s answers again.
func (s *liveSource) answers(after time.Duration) {
	s.hungAt.Store(0)
	s.Log.Info("the source answers again", zap.Duration("after", after))
	s.Watch.SetHung("")
	if s.Watch.Available() {
		s.OnAvailable(true, "")
	}
}

// hungSince returns when the check began that has not ended, zero while s answers.
func (s *liveSource) hungSince() time.Time {
	if ns := s.hungAt.Load(); ns != 0 {
		return time.Unix(0, ns)
	}
	return time.Time{}
}

// leftAfter is how long what reads a source may take to stop while a check of it
// does not end.
const leftAfter = 3 * time.Second

// unlessHung returns a stage that runs fn for each source. When it is to stop, a
// source that does not answer is left behind: what waits for its file system
// cannot be stopped.
func (l *livePipeline) unlessHung(fn func(context.Context, *liveSource) error) func(context.Context) error {
	return l.each(func(ctx context.Context, s *liveSource) error {
		ended := make(chan error, 1)
		go func() { ended <- fn(ctx, s) }()
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
		}
		o := l.d.places.Begin("inside "+s.Config.Path, func() config.Look {
			fscheck.Inside(safefs.NewRoot(s.Config.Path, s.Root.Options()), nil)
			return config.Look{}
		})
		select {
		case err := <-ended:
			return err
		case <-o.Done:
			return <-ended
		case <-time.After(leftAfter):
			s.Log.Warn("the source does not answer: what waits for it is left behind")
			return nil
		}
	})
}
