package daemon

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/fscheck"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// plan is a configuration with what is at its paths.
type plan struct {
	cfg *config.Config
	at  fscheck.Found
}

// succession runs one pipeline after another. Only the first must be able to
// work: where a later one does not, the configuration before it continues, and that
// is tried for as long as it takes.
type succession struct {
	d       *daemon
	next    plan
	last    *plan // what worked before; nil: nothing has yet
	trigger archive.Trigger
	wait    time.Duration // before the next try
}

// pipeline runs the pipelines until ctx ends.
func (d *daemon) pipeline(ctx context.Context) error {
	s := succession{d: d, next: plan{cfg: d.cfg, at: d.places.All(d.cfg)}, trigger: archive.TriggerStartup, wait: time.Second}
	for ctx.Err() == nil {
		d.starting.Store(true)
		l, err := s.begin(ctx)
		if err != nil {
			err = s.goBack(ctx, err)
		} else {
			err = s.live(ctx, l)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// goBack handles that the next pipeline cannot begin. It returns an error
// where that ends the daemon.
func (s *succession) goBack(ctx context.Context, err error) error {
	switch {
	case s.last == nil || ctx.Err() != nil:
		return stopping(ctx, err)
	case s.next.cfg != s.last.cfg:
		s.d.log.Error("the new configuration cannot be applied, the old one continues", zap.Error(err))
		s.d.reloaded(err)
		s.next = *s.last
	default:
		s.d.log.Error("the pipeline cannot begin, this is repeated", zap.Duration("retry_in", s.wait), zap.Error(err))
		wait(ctx, s.wait)
		s.wait = min(2*s.wait, time.Minute)
	}
	return nil
}

// live runs l to its end. It returns an error where that ends the daemon.
func (s *succession) live(ctx context.Context, l *livePipeline) error {
	s.wait = time.Second
	fresh := s.last != nil && s.next.cfg != s.last.cfg
	if fresh {
		s.d.reloaded(nil)
	}
	before, this := s.last, s.next
	s.last = &this
	after, err := l.run(ctx)
	l.close()
	switch {
	case after != nil:
		if err != nil {
			s.d.log.Error("the pipeline ended with an error, the next one begins", zap.Error(err))
		}
		s.next, s.trigger = *after, archive.TriggerHangup
	case err != nil && ctx.Err() == nil && fresh:
		s.d.log.Error("the new configuration does not work, the old one continues", zap.Error(err))
		s.d.reloaded(err)
		s.next, s.last = *before, before
	default:
		return err
	}
	return nil
}

// begin makes the next pipeline and begins its chains. Status shows it from
// then on.
func (s *succession) begin(ctx context.Context) (*livePipeline, error) {
	d := s.d
	l, err := newLive(ctx, d, s.next)
	if err != nil {
		return nil, err
	}
	var changed []string
	if s.last != nil {
		changed = config.Diff(s.last.cfg, l.Config)
	}
	if err := l.beginChains(ctx, s.trigger, changed); err != nil {
		l.close()
		return nil, err
	}
	if err := d.level.UnmarshalText([]byte(l.Config.Log.Level)); err != nil {
		d.log.Warn("the log level stays", zap.Error(err))
	}
	d.current.Store(l)
	d.metrics.Only(l.Config)
	return l, nil
}

// stopping is err, nil where it only says that ctx ended.
func stopping(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}
