package app

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/fscheck"
	"github.com/s3syncd/s3syncd/internal/host"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// environment is what the sources of one run share.
type environment struct {
	cfg     *config.Config
	db      *state.DB // nil: a dry run whose state does not exist yet
	log     *zap.Logger
	metrics *metrics
	program host.Build
	queue   *queue.Queue
	clock   *clock

	grace     Grace            // of an orderly end
	budget    host.Budget      // of memory
	found     fscheck.Found    // what is at the paths; nil: they were not checked
	keysMoved chan struct{}    // capacity 1, nil: nothing waits for it; the key behind an alias moved
	removed   *state.SourceKey // the only source, which left the configuration: its trail is closed, nothing is uploaded
	once      bool             // the run ends by itself
	dry       bool             // the run writes nothing
	listSkips bool             // each skip that the index alone decides gets a record
}

// drainTime and publishTime are what StandardGrace says of a run of the daemon,
// and what a sync gives its uploads and, at least, its last documents.
const (
	drainTime   = 25 * time.Second
	publishTime = 20 * time.Second
)

// Grace bounds an orderly end: Drain is how long uploads that are under way may
// go on, Publish how long the last documents of the trail may take after that.
// What is not done by then is durable and done by the next start.
type Grace struct{ Drain, Publish time.Duration }

// StandardGrace is that of the service: its unit allows for more than both.
func StandardGrace() Grace { return Grace{Drain: drainTime, Publish: publishTime} }

// total is after how long a stage that does not stop is left behind.
func (g Grace) total() time.Duration { return g.Drain + g.Publish + 10*time.Second }

// openState opens the state directory of cfg and says what it found.
func openState(cfg *config.Config, c *clock, log *zap.Logger) (*state.DB, error) {
	db, err := state.Open(cfg.StateDir, state.Options{
		Instance: cfg.Instance, MachineID: host.MachineID(), Log: log.Named("state"), Now: c.now,
	})
	if locked, ok := errors.AsType[*state.LockedError](err); ok {
		busy := &busyError{locked: locked}
		return nil, busy.advise("ask a running daemon with 's3syncd rescan', or give this run a state directory of its own")
	}
	if err != nil {
		return nil, fmt.Errorf("open the state in %s: %w", cfg.StateDir, err)
	}
	if r := db.Report(); r.SetAside != "" {
		log.Error("the state was damaged; it is kept, a new one begins, the index is rebuilt from S3 without uploading again",
			zap.String("kept", r.SetAside))
	}
	return db, nil
}

// busyError says that another process holds the state, and what to do.
type busyError struct {
	locked *state.LockedError
	advice string
}

func (e *busyError) Error() string { return e.locked.Error() + ": " + e.advice }

// Unwrap returns what the state said.
func (e *busyError) Unwrap() error { return e.locked }

// advise returns e with other advice.
func (e *busyError) advise(advice string) *busyError {
	return &busyError{locked: e.locked, advice: advice}
}

// openSession opens the state for a run that ends by itself. The caller closes it.
func openSession(cfg *config.Config, at fscheck.Found, giveUp time.Duration, version string, log *zap.Logger) (*environment, error) {
	b, err := host.Fit(cfg, log)
	if err != nil {
		return nil, err
	}
	var c clock
	db, err := openState(cfg, &c, log)
	if err != nil {
		return nil, err
	}
	program := host.ReadBuild(version)
	return &environment{
		cfg: cfg, db: db, log: log, program: program, queue: queue.New(queueLimit), clock: &c, once: true, found: at, budget: b,
		metrics: newMetrics(prometheus.NewPedanticRegistry(), program, db, func() []snapshot { return nil }),
		grace:   Grace{Drain: drainTime, Publish: max(publishTime, giveUp)},
	}, nil
}

// close gives the state back.
func (e *environment) close() error {
	if err := e.db.Close(); err != nil {
		return fmt.Errorf("close the state: %w", err)
	}
	return nil
}
