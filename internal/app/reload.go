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

// reload returns the new configuration where it differs from the old one in
// what can change while the process runs. A faulty one is logged and counted,
// and the old one stays.
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
	g.metrics.reloaded(true, time.Now())
	changed := config.Diff(g.cfg, next)
	if fixed := needRestart(changed); len(fixed) > 0 {
		g.log.Warn("these settings need a restart: nothing of the new configuration is applied until then, every source is rescanned",
			zap.Strings("keys", fixed))
		return nil
	}
	if len(changed) == 0 {
		g.log.Info("hang-up: the configuration is the same, every source is rescanned")
		return nil
	}
	if err := g.d.level.UnmarshalText([]byte(next.Log.Level)); err != nil {
		g.log.Warn("the log level stays", zap.Error(err))
	}
	g.log.Info("hang-up: the configuration changed, the pipeline begins anew with it", zap.Strings("keys", changed))
	return next
}

// needRestart picks the keys whose owner lives as long as the process.
func needRestart(keys []string) []string {
	return slices.DeleteFunc(slices.Clone(keys), func(k string) bool {
		return k != "instance" && k != "state_dir" && k != "log.format" && !strings.HasPrefix(k, "admin.")
	})
}
