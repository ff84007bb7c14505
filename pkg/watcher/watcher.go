// Package watcher finds out which files of a source have to be uploaded, or
// deleted.
//
// Events of the kernel are hints: they say which path to check soon, never what
// happened to it. The scan, a merge of the tree with the index in path order, is
// the truth: it runs at start, on request, from time to time, and whenever events
// were lost. What either finds goes to a Sink, which decides by opening the file.
//
// A Watcher runs these goroutines for as long as its source is there: those of the
// watches, the dispatcher, which hands events to the debouncer and what is quiet
// to the sink, the scanner, which also polls what cannot be watched, one that
// finds the other names of a file that has several, and one that guards the
// source's identity. When that is lost they all end, the source pauses, and they
// begin again, with a scan, once it is back.
package watcher

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/debounce"
	"github.com/s3syncd/s3syncd/internal/ignore"
	"github.com/s3syncd/s3syncd/internal/mounts"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/internal/watches"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// Change is one path to check. A Refused one may be a directory, with everything
// below it.
type Change struct {
	Path     string
	Trigger  archive.Trigger
	Detected time.Time // When the first event came, or the scan saw it.
	Kind     archive.Kind
	Err      error // Refused only.
	Size     int64 // When a scan saw it, else 0.
	// Confirmed: Gone only, of a mirrored source. A complete scan found it gone,
	// and its object may be deleted.
	Confirmed bool
}

// Sink receives changes. Its methods may be called concurrently.
type Sink interface {
	// Offer blocks while the sink is full and returns an error only when ctx ends.
	Offer(ctx context.Context, c Change) error
	// TryOffer returns false when the sink is full.
	TryOffer(c Change) bool
	// Pending reports whether path is queued, in flight or waits for a retry.
	Pending(path string) bool
	// Paths returns the paths that are pending, in no order.
	Paths() []string
}

// Options are the tunables of one source.
type Options struct {
	Source         string // Its name, for logs and metrics.
	Root           *safefs.Root
	Settle         time.Duration // A path must be quiet this long.
	MaxDelay       time.Duration // Times ceil(size / 64 MiB): a path is offered although it is not quiet.
	RescanInterval time.Duration // With 10% of jitter; 0: no periodic scan.
	PollInterval   time.Duration // Of what cannot be watched; 0: never.
	Include        []string      // Gitignore patterns; if any, only files that match are archived.
	Exclude        []string      // Gitignore patterns; they override everything else.
	IgnoreFiles    bool          // .s3syncignore files are honored.
	Hardlinks      safefs.LinkPolicy
	Reserved       string // This name at the top is refused, whatever has it; "": none.
	// TooDeep, optional, returns why no file below a directory can be archived, nil
	// when one can. Such directories are refused, and not entered.
	TooDeep func(dir string) error
	// Mirror: the sink deletes what is Gone. Stored files are then offered as gone
	// by complete scans of the whole source alone, and by none that finds more
	// than MaxDeletes of them gone, until ConfirmDeletes is called.
	Mirror     bool
	MaxDeletes int

	// Memory is what OnMemory was last given, in whatever run.
	Memory Memory

	// All callbacks are optional and must not block for long.
	OnMemory    func(Memory)                                                // When what is to be remembered of the source changes.
	OnScan      func(ScanResult)                                            // After each scan of the whole source.
	OnSame      func(k scan.Known, st safefs.Stat, trigger archive.Trigger) // For each unchanged file of such a scan.
	OnAvailable func(ok bool, reason string)                                // When the source goes or comes back.

	Log     *zap.Logger
	Metrics *Metrics
}

func (o Options) check() error {
	switch {
	case o.Root == nil || o.Log == nil || o.Metrics == nil:
		return errors.New("watcher: Root, Log and Metrics must be given")
	case o.Settle <= 0:
		return fmt.Errorf("watcher: settle must be positive, got %v", o.Settle)
	case o.MaxDelay <= 0:
		return fmt.Errorf("watcher: max_delay must be positive, got %v", o.MaxDelay)
	case o.MaxDeletes < 0:
		return fmt.Errorf("watcher: max_deletes must not be negative, got %d", o.MaxDeletes)
	case o.RescanInterval < 0 || o.PollInterval < 0:
		return fmt.Errorf("watcher: intervals must not be negative, got %v and %v", o.RescanInterval, o.PollInterval)
	}
	if !o.Hardlinks.Valid() {
		return fmt.Errorf("watcher: hardlinks must be %s, %s or %s, got %q", safefs.LinksSameOwner, safefs.LinksAllow, safefs.LinksSkip, o.Hardlinks)
	}
	return nil
}

// scope returns what of the source is archived.
func (o Options) scope() (*scan.Scope, error) {
	rules, err := ignore.New(o.Include, o.Exclude, o.IgnoreFiles)
	if err != nil {
		return nil, err
	}
	s := &scan.Scope{Root: o.Root, Rules: rules, Reserved: o.Reserved, TooDeep: o.TooDeep, Hardlinks: o.Hardlinks}
	if s.TooDeep == nil {
		s.TooDeep = func(string) error { return nil }
	}
	return s, nil
}

// timings are the intervals that are not configurable.
type timings struct {
	identity  time.Duration // Between checks of the source's identity.
	unhealthy time.Duration // Longest time between checks of a source that is away.
	second    time.Duration // Between the two scans of a mirror that a flush or ScanOnce waits for.
	removal   time.Duration // Shortest time between a scan and one because of removals.
}

// Watcher watches one source.
type Watcher struct {
	rescanInterval time.Duration
	pollInterval   time.Duration
	settle         time.Duration

	presence   *presence
	requests   *requests
	flushes    *flushes
	mirror     *mirror
	out        *outlet
	source     *scan.Source
	dirty      *debounce.Debouncer
	watches    *watches.Watches
	names      *names
	busy       *busySet
	dispatcher *dispatcher
	scanner    *scanner

	watching     chan struct{}
	watchingOnce sync.Once
	started      bool // The first scan has been asked for.
}

// New returns a Watcher that does nothing yet.
func New(sink Sink, index scan.Index, o Options) (*Watcher, error) {
	t := timings{identity: 10 * time.Second, unhealthy: 10 * time.Second, removal: 5 * time.Second, second: 2 * time.Second}
	return newWatcher(sink, index, o, t, watches.NewInotify)
}

func newWatcher(sink Sink, index scan.Index, o Options, t timings, notifier func() (watches.Notifier, error)) (*Watcher, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	scope, err := o.scope()
	if err != nil {
		return nil, err
	}
	log := o.Log.Named("watcher").With(zap.String("source", o.Source))
	met := o.Metrics.source(o.Source)

	w := &Watcher{
		rescanInterval: o.RescanInterval, pollInterval: o.PollInterval, settle: o.Settle,
		requests: newRequests(), flushes: &flushes{}, out: &outlet{Sink: sink}, busy: &busySet{},
		dirty: debounce.New(o.Settle, o.MaxDelay), watching: make(chan struct{}),
	}
	remembered := &memory{now: o.Memory, keep: o.OnMemory}
	begun := o.Memory.Path != "" || len(o.Memory.Mounts) > 0
	guard := mounts.New(o.Memory.Mounts, begun, o.Root.Place, remembered.setMounts, func() {
		log.Info("mounts inside the source changed, it is watched and scanned again")
		w.watches.Renew()
	})
	w.presence = &presence{
		root: o.Root, probe: safefs.NewRoot(o.Root.Path(), o.Root.Options()), index: index, memory: remembered, mounts: guard,
		flushes: w.flushes, onAvailable: o.OnAvailable, identity: t.identity, unhealthy: t.unhealthy,
		met: met, log: log, suspected: make(chan struct{}, 1),
	}
	w.watches = watches.New(watches.Options{
		Scope: scope, Dirty: w.dirty, NewNotifier: notifier, PollInterval: o.PollInterval, Log: log, Metrics: met.watches(),
		OnLost: func() { w.requests.scan(triggerOverflow) }, OnPoll: w.requests.polls, OnRootTouched: w.presence.suspect,
	})
	links := newLinkSet()
	w.names = &names{links: links, root: o.Root, index: index, sink: sink, dirty: w.dirty, log: log}
	w.source = &scan.Source{
		Scope: scope, Index: index, Log: log, MountPoint: guard.At,
		Linked: func(path string, st safefs.Stat) { links.see(path, st) },
	}
	w.mirror = &mirror{on: o.Mirror, maxDeletes: o.MaxDeletes, index: index, presence: w.presence, requests: w.requests, log: log}

	scans := debounced{
		offerer: offerer{source: w.source, presence: w.presence, mirror: w.mirror},
		out:     w.out, dirty: w.dirty, names: w.names, quiet: o.Settle, log: log,
	}
	w.dispatcher = &dispatcher{
		source: w.source, presence: w.presence, mirror: w.mirror, requests: w.requests, watches: w.watches,
		dirty: w.dirty, names: w.names, out: w.out, busy: w.busy, listings: scans,
		ignoreFiles: o.IgnoreFiles, quiet: o.Settle, log: log,
	}
	w.scanner = &scanner{
		source: w.source, presence: w.presence, mirror: w.mirror, requests: w.requests, flushes: w.flushes, watches: w.watches,
		dirty: w.dirty, out: w.out, scans: scans, settle: o.Settle, pollInterval: o.PollInterval,
		second: t.second, removal: t.removal, onScan: o.OnScan, onSame: o.OnSame, met: met, log: log,
	}
	return w, nil
}

// Run watches the source until ctx ends, through every fault of the source. It
// blocks until all its goroutines have returned and is called once.
func (w *Watcher) Run(ctx context.Context) error {
	var c candidate
	defer w.flushes.end()
	for ctx.Err() == nil {
		id, ok := w.presence.await(ctx, &c, w.setWatching)
		if !ok {
			return nil
		}
		if reason := w.live(ctx, id); ctx.Err() == nil {
			w.presence.lost(reason.Error())
		}
	}
	return nil
}

// live runs everything that a source needs while it is there. It returns why
// the source is not in use any more, after all its goroutines have.
func (w *Watcher) live(ctx context.Context, id safefs.Identity) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w.presence.mounts.Check(id.RealPath) // Against the mounts from before the source went away: one that is missing may come back.
	w.watches.Reset()
	w.dirty.Reset()
	w.names.links.reset()
	w.mirror.reported.reset()
	if w.started {
		w.requests.scan(archive.TriggerRescan)
	} else {
		w.requests.scan(archive.TriggerStartup)
	}
	w.started = true

	placed := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { w.dispatcher.run(ctx) })
	wg.Go(func() {
		w.watches.Run(ctx, id, func() {
			close(placed)
			w.setWatching()
		})
	})
	wg.Go(func() { w.scanner.run(ctx, id, placed) })
	wg.Go(func() {
		every(ctx, w.rescanInterval, func() { w.requests.scan(archive.TriggerRescan) })
	})
	wg.Go(func() {
		every(ctx, w.pollInterval, func() {
			w.watches.Retry()
			w.requests.polls()
		})
	})
	wg.Go(func() { w.names.run(ctx) })
	wg.Go(func() { cancel(w.presence.guard(ctx, id)) })
	wg.Wait()
	return context.Cause(ctx)
}

// every calls f after each interval, give or take 10%, until ctx ends. An
// interval of 0 is never.
func every(ctx context.Context, interval time.Duration, f func()) {
	if interval <= 0 {
		return
	}
	for wait(ctx, jitter(interval)) == nil {
		f()
	}
}

// jitter spreads d by 10% to both sides.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration((rand.Float64()-0.5)*0.2*float64(d))
}

// Rescan asks for a scan of the whole source and returns at once. Requests that
// arrive during a scan merge into one more.
func (w *Watcher) Rescan(trigger archive.Trigger) { w.requests.scan(trigger) }

// ScanOnce scans the source once without watching and offers what differs from
// the index; it blocks while the sink is full. It must not be called during Run.
// The error is that of the result.
func (w *Watcher) ScanOnce(ctx context.Context, trigger archive.Trigger) (ScanResult, error) {
	return w.scanner.once(ctx, trigger)
}

// Flush returns nil once every change that was made to the source before the
// call has been offered to the sink, whether its event has been seen or not: it
// waits for settle and then has the source scanned. What is not quiet even then
// is offered as it is. It fails with the reason when the source is not there,
// when the scan does not reach its end, when missing files must not count as
// deleted, and when ctx or Run end first. It may be called concurrently, also
// before Run.
func (w *Watcher) Flush(ctx context.Context) error {
	if err := wait(ctx, w.settle+flushMargin); err != nil {
		return err
	}
	done := w.flushes.add()
	if reason := w.Away(); reason != "" { // After add: if the source goes later, that fails the flushes that wait.
		return errors.New(reason)
	}
	w.requests.signal()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Watching is closed once watches are everywhere for the first time, before the
// scan that follows. It is closed as well when the source is away at start: it
// is watched as soon as it is there.
func (w *Watcher) Watching() <-chan struct{} { return w.watching }

func (w *Watcher) setWatching() { w.watchingOnce.Do(func() { close(w.watching) }) }

// Available reports whether the source is there, in use, and answers.
func (w *Watcher) Available() bool { return w.presence.available.Load() && !w.presence.hung.Load() }

// Away returns why the source is not in use, "" while it is, or before it has been
// checked.
func (w *Watcher) Away() string { return w.presence.reason() }

// SetHung says why the file system of the source does not answer, "" that it does
// again. The caller has to find out: whatever reads the file system blocks. While
// it hangs the source does not count as available, and flushes that wait for it
// fail.
func (w *Watcher) SetHung(reason string) { w.presence.setHung(reason) }

// Replaced reports whether another directory is in the place of the source, so
// that nothing counts as deleted until ConfirmDeletes is called.
func (w *Watcher) Replaced() bool { return w.presence.replaced.Load() }

// Intact reports whether id is the directory in use, and the one that the index
// was made from, and whether what was mounted above path still is: only there
// does a file that is not at path mean a deleted one.
func (w *Watcher) Intact(id safefs.Identity, path string) bool { return w.presence.intact(id, path) }

// ConfirmDeletes accepts the directory that is in the place of the source, even
// if it is empty, and asks for a scan that counts what is not there as gone. Of
// a mirrored source that scan may delete as much as it finds gone.
func (w *Watcher) ConfirmDeletes() {
	w.mirror.consent.give()
	w.presence.confirm()
	w.requests.scan(archive.TriggerRescan)
	w.presence.suspect()
}

// HeldDeletes returns how many files of a mirrored source the last scan found
// gone whose objects stay until ConfirmDeletes is called.
func (w *Watcher) HeldDeletes() int64 { return w.mirror.held.Load() }

// Directories returns how many directories are watched, and how many polled.
func (w *Watcher) Directories() (watched, polled int64) { return w.watches.Count() }

// Dirty returns how many paths and directories wait to be quiet.
func (w *Watcher) Dirty() int { return w.dirty.Len() }

// OldestDirty returns when the first change of the path that waits longest was
// seen, the zero time for none.
func (w *Watcher) OldestDirty() time.Time { return w.dirty.Oldest() }

// Busiest returns the n directories with the most events lately.
func (w *Watcher) Busiest(n int) []Busy { return w.busy.top(n, time.Now()) }

// Pending reports whether path will be checked in any case: it, its directory or
// one above waits to be quiet, or it is in the sink.
func (w *Watcher) Pending(path string) bool { return w.dirty.Covered(path) || w.out.Pending(path) }

// LeavesOut reports whether the configuration leaves path out, although it may
// have been archived before.
func (w *Watcher) LeavesOut(path string) bool { return w.source.LeavesOut(path) }

// Requeue has path debounced again. The sink calls it when a file changed while
// it was read.
func (w *Watcher) Requeue(path string) { w.dirty.Touch(path, time.Now(), archive.TriggerEvent) }
