package daemon

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/host"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// followHangups answers each hang-up until ctx ends: it reads the configuration
// again, and either replaces the pipeline, and returns what follows it, or rescans
// every source of it.
func (l *livePipeline) followHangups(ctx context.Context, replace context.CancelFunc) *plan {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.d.opts.Hangup:
		}
		l.d.notify.reloading()
		if next := l.reload(ctx); next != nil {
			l.d.starting.Store(true)
			replace() // The next pipeline says READY=1 and scans.
			time.AfterFunc(handover, l.hurry)
			<-ctx.Done()
			return next
		}
		for _, s := range l.sources {
			l.Pool.Release(s.Config.Name)
			s.Watch.Rescan(archive.TriggerHangup)
		}
		l.d.notify.ready()
	}
}

// reload reads the configuration again and returns what replaces the present one,
// nil where that stays: it is the same, or faulty, or cannot be applied, or not
// without a restart. What cannot change is named, and the rest is applied.
func (l *livePipeline) reload(ctx context.Context) *plan {
	next, err := l.d.opts.Load()
	if err == nil {
		err = host.Supported(next)
	}
	if err != nil {
		l.refuse("the new configuration is refused, the old one stays; every source is rescanned", err)
		return nil
	}
	fixed := needRestart(config.Diff(l.Config, next))
	if slices.Contains(fixed, "instance") || slices.Contains(fixed, "state_dir") {
		l.refuse("these settings need a restart: nothing of the new configuration is applied until then, every source is rescanned",
			errRestart, zap.Strings("keys", fixed))
		return nil
	}
	if len(fixed) > 0 {
		l.Log.Warn("these settings need a restart and stay as they are; the rest of the new configuration is applied", zap.Strings("keys", fixed))
		next = withFixed(l.Config, next)
	}
	changed := config.Diff(l.Config, next)
	if len(changed) == 0 {
		l.d.reloaded(nil)
		l.Log.Info("hang-up: the configuration in force is the same, every source is rescanned")
		return nil
	}
	p, err := l.rehearse(ctx, next)
	if err != nil {
		l.refuse("the new configuration cannot be applied, the old one stays; every source is rescanned", err, zap.Strings("keys", changed))
		return nil
	}
	l.Log.Info("hang-up: the configuration changed, the pipeline is rebuilt with it", zap.Strings("keys", changed))
	return &p
}

// errRestart is why only another process can apply a configuration.
var errRestart = errors.New("instance and state_dir cannot change without a restart")

// refuse notes why a new configuration is not applied.
func (l *livePipeline) refuse(said string, err error, fields ...zap.Field) {
	l.d.reloaded(err)
	l.Log.Error(said, append(fields, zap.Error(err))...)
}

// withFixed returns next with what lives as long as the process.
func withFixed(now, next *config.Config) *config.Config {
	c := *next
	c.Admin, c.Log.Format = now.Admin, now.Log.Format
	return &c
}

// needRestart picks the keys whose owner lives as long as the process.
func needRestart(keys []string) []string {
	return slices.DeleteFunc(slices.Clone(keys), func(k string) bool {
		return k != "instance" && k != "state_dir" && k != "log.format" && !strings.HasPrefix(k, "admin.")
	})
}

// reloadDetail is what the trail of a source says of a reload: the version, and
// which of the settings that decide what is archived from it changed.
func reloadDetail(version, source string, changed []string) string {
	mine := slices.DeleteFunc(slices.Clone(changed), func(k string) bool {
		other := strings.HasPrefix(k, "sources[") && !strings.HasPrefix(k, "sources["+source+"]")
		return other || strings.HasPrefix(k, "log.")
	})
	if len(mine) == 0 {
		return version
	}
	return version + "; changed: " + strings.Join(mine, ", ")
}
