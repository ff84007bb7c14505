package pipeline

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/fscheck"
	"github.com/s3syncd/s3syncd/internal/host"
	"github.com/s3syncd/s3syncd/internal/logsink"
	"github.com/s3syncd/s3syncd/internal/s3store"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// Session is what the sources of one run share.
type Session struct {
	Config  *config.Config
	DB      *state.DB // nil: a dry run whose state does not exist yet
	Log     *zap.Logger
	Metrics *Metrics
	Program host.Build
	Queue   *queue.Queue
	Clock   *Clock

	Grace     Grace            // of an orderly end
	Budget    host.Budget      // of memory
	Found     fscheck.Found    // what is at the paths; nil: they were not checked
	KeysMoved chan struct{}    // capacity 1: the key behind an alias moved; nil: nothing waits for that
	Removed   *state.SourceKey // the only source, which left the configuration: its trail is closed, nothing is uploaded
	once      bool             // the run ends by itself
	Dry       bool             // the run writes nothing
	ListSkips bool             // each skip that the index alone decides gets a record
}

// DrainTime and publishTime are what StandardGrace says of a run of the daemon,
// and what a sync gives its uploads and, at least, its last documents.
const (
	DrainTime   = 25 * time.Second
	publishTime = 20 * time.Second
)

// Grace bounds an orderly end: Drain is how long uploads that are under way may
// continue, Publish how long the last documents of the trail may take after that.
// What is not done by then is durable and done by the next start.
type Grace struct{ Drain, Publish time.Duration }

// StandardGrace is that of the service: its unit allows for more than both.
func StandardGrace() Grace { return Grace{Drain: DrainTime, Publish: publishTime} }

// Total is how long a stage may take to stop before it is left behind.
func (g Grace) Total() time.Duration { return g.Drain + g.Publish + 10*time.Second }

// OpenState opens the state directory of cfg and says what it found.
func OpenState(cfg *config.Config, c *Clock, log *zap.Logger) (*state.DB, error) {
	db, err := state.Open(cfg.StateDir, state.Options{
		Instance: cfg.Instance, MachineID: host.MachineID(), Log: log.Named("state"), Now: c.now,
	})
	if locked, ok := errors.AsType[*state.LockedError](err); ok {
		busy := &BusyError{locked: locked}
		return nil, busy.Advise("ask a running daemon with 's3syncd rescan', or give this run a state directory of its own")
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

// BusyError says that another process holds the state, and what to do.
type BusyError struct {
	locked *state.LockedError
	advice string
}

func (e *BusyError) Error() string { return e.locked.Error() + ": " + e.advice }

// Unwrap returns what the state said.
func (e *BusyError) Unwrap() error { return e.locked }

// Advise returns e with other advice.
func (e *BusyError) Advise(advice string) *BusyError {
	return &BusyError{locked: e.locked, advice: advice}
}

// Prepare refuses a configuration that no run can work with, before anything is
// written, which might be inside a source. It returns what is at its paths, and
// the logger of a command that writes to stderr.
func Prepare(cfg *config.Config, stderr io.Writer) (fscheck.Found, *zap.Logger, error) {
	if err := host.Supported(cfg); err != nil {
		return nil, nil, err
	}
	at, err := new(fscheck.Checker).Placed(cfg)
	if err != nil {
		return nil, nil, err
	}
	log, err := logsink.NewConsole(cfg.Log, stderr)
	return at, log, err
}

// Open opens the state for a run that ends by itself. The caller closes it.
func Open(cfg *config.Config, at fscheck.Found, giveUp time.Duration, version string, log *zap.Logger) (*Session, error) {
	b, err := host.Fit(cfg, log)
	if err != nil {
		return nil, err
	}
	var c Clock
	db, err := OpenState(cfg, &c, log)
	if err != nil {
		return nil, err
	}
	program := host.ReadBuild(version)
	return &Session{
		Config: cfg, DB: db, Log: log, Program: program, Queue: queue.New(QueueLimit), Clock: &c, once: true, Found: at, Budget: b,
		Metrics: NewMetrics(prometheus.NewPedanticRegistry(), program, db, func() []Snapshot { return nil }),
		Grace:   Grace{Drain: DrainTime, Publish: max(publishTime, giveUp)},
	}, nil
}

// Close closes the state.
func (e *Session) Close() error {
	if err := e.DB.Close(); err != nil {
		return fmt.Errorf("close the state: %w", err)
	}
	return nil
}

// Clock is the host's clock corrected by what the servers' answers say, for the
// timestamps of the trail. The zero value is the host's clock.
type Clock struct {
	stores atomic.Pointer[[]*s3store.Store]
}

// follow takes the corrections of these sources from now on.
func (c *Clock) follow(sources []*Source) {
	stores := make([]*s3store.Store, 0, len(sources))
	for _, s := range sources {
		stores = append(stores, s.Store)
	}
	c.stores.Store(&stores)
}

// now returns the time of the first server that disagrees with the host.
func (c *Clock) now() time.Time {
	now := time.Now()
	if stores := c.stores.Load(); stores != nil {
		for _, s := range *stores {
			if off := s.ClockOffset(); off != 0 {
				return now.Add(off)
			}
		}
	}
	return now
}
