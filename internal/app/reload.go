package app

import (
	"context"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// followHangups answers each hang-up until ctx ends: it reads the configuration
// again, and either replaces the generation or rescans every source of it.
func (g *generation) followHangups(ctx context.Context, replace context.CancelFunc) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.d.opts.Hangup:
		}
		g.d.notify.reloading()
		next := g.reload()
		if next != nil {
			g.next = next
			g.d.settling.Store(true)
			replace() // The next generation says READY=1 and scans.
			<-ctx.Done()
			return nil
		}
		for _, s := range g.sources {
			g.pool.Release(s.cfg.Name)
			s.watch.Rescan(string(state.TriggerHangup))
		}
		g.d.notify.ready()
	}
}

// reload reads the configuration again and returns the one to go on with, nil
// where the present one stays: it is the same, or faulty, or nothing of it can
// be put to work without a restart. What cannot change is named, and the rest is
// applied.
func (g *generation) reload() *config.Config {
	next, err := g.d.opts.Load()
	if err == nil {
		err = Supported(next)
	}
	if err != nil {
		g.metrics.reloaded(false, time.Now())
		g.log.Error("the new configuration is refused, the old one stays; every source is rescanned", zap.Error(err))
		return nil
	}
	fixed := needRestart(config.Diff(g.cfg, next))
	if slices.Contains(fixed, "instance") || slices.Contains(fixed, "state_dir") {
		g.metrics.reloaded(false, time.Now())
		g.log.Error("these settings need a restart: nothing of the new configuration is applied until then, every source is rescanned",
			zap.Strings("keys", fixed))
		return nil
	}
	g.metrics.reloaded(true, time.Now())
	if len(fixed) > 0 {
		g.log.Warn("these settings need a restart and stay as they are; the rest of the new configuration is applied", zap.Strings("keys", fixed))
		next = g.withFixed(next)
	}
	changed := config.Diff(g.cfg, next)
	if len(changed) == 0 {
		g.log.Info("hang-up: the configuration in force is the same, every source is rescanned")
		return nil
	}
	g.log.Info("hang-up: the configuration changed, the pipeline begins anew with it", zap.Strings("keys", changed))
	return next
}

// withFixed returns next with what lives as long as the process.
func (g *generation) withFixed(next *config.Config) *config.Config {
	c := *next
	c.Admin, c.Log.Format = g.cfg.Admin, g.cfg.Log.Format
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
