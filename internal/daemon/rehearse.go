package daemon

import (
	"context"
	"fmt"
	"reflect"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/s3syncd/s3syncd/internal/admin"
	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/host"
	"github.com/s3syncd/s3syncd/internal/pipeline"
	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/internal/s3store"
)

// rehearsalTime bounds how long a new configuration is tried.
const rehearsalTime = 30 * time.Second

// rehearse tries what next needs that l does not have, while l keeps running: the
// places of the sources, the signing key, and the canary of each destination
// that is new. What it learns the next pipeline need not ask again.
func (l *livePipeline) rehearse(ctx context.Context, next *config.Config) (plan, error) {
	if _, err := host.Fit(next, zap.NewNop()); err != nil {
		return plan{}, err
	}
	at, err := l.d.places.Placed(next)
	if err != nil {
		return plan{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, rehearsalTime)
	defer cancel()
	env := pipeline.Session{
		Config: next, DB: l.DB, Log: l.Log, Metrics: &pipeline.Metrics{Store: s3conn.NewMetrics(prometheus.NewPedanticRegistry())},
	}
	var group errgroup.Group
	for i := range next.Sources {
		group.Go(func() error {
			if err := tryDestination(ctx, &env, i, l.Config); err != nil {
				return fmt.Errorf("source %s: %w", next.Sources[i].Name, err)
			}
			return nil
		})
	}
	return plan{next, at}, group.Wait()
}

// tryDestination proves that source i can be archived where it should be, unless
// before has the same destination.
func tryDestination(ctx context.Context, e *pipeline.Session, i int, before *config.Config) error {
	c := e.Config.Sources[i]
	if _, _, err := e.Signers(ctx, c); err != nil {
		return fmt.Errorf("manifest.sign: %w", err)
	}
	for _, b := range before.Sources {
		if b.Name == c.Name && reflect.DeepEqual(destinationOf(before, b), destinationOf(e.Config, c)) {
			return nil
		}
	}
	store, err := s3store.Open(ctx, e.StoreOptions(c, zap.NewNop()))
	if err != nil {
		return err
	}
	defer store.Close()
	if err := store.Probe(ctx); err != nil {
		return err
	}
	pipeline.CapabilitiesOf(&c, store, e.DB, e.Log.With(zap.String("source", c.Name))).Remember() //nolint:contextcheck // What was learned is kept.
	return nil
}

// destination is what decides where requests go, and what they ask for.
type destination struct {
	s3     config.S3
	lock   config.ObjectLock
	source config.Source
}

// destinationOf leaves out of s what only decides which files are archived, and
// when.
func destinationOf(c *config.Config, s config.Source) destination {
	s.Path, s.Include, s.Exclude, s.IgnoreFiles, s.Symlinks, s.Hardlinks = "", nil, nil, false, "", ""
	s.Deletes, s.MaxDeletes, s.CrossMounts, s.Settle, s.MaxDelay = "", 0, false, 0, 0
	return destination{c.S3, c.Manifest.ObjectLock, s}
}

// reloaded notes how a hang-up ended: err is why the old configuration stays.
func (d *daemon) reloaded(err error) {
	d.metrics.Reloaded(err == nil, time.Now())
	r := &admin.Reload{At: time.Now().UTC(), Successful: err == nil}
	if err != nil {
		r.Error = admin.Plain(err.Error(), errorText)
	}
	d.lastReload.Store(r)
}
