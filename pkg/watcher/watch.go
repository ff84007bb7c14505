package watcher

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/ignore"
	"github.com/s3syncd/s3syncd/internal/safefs"
	scanpkg "github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// ErrReserved is the Err of the Refused change for the reserved name.
var ErrReserved = errors.New("the name is reserved for the audit trail")

// Change is one path to look at. A Refused one may be a directory, with
// everything below it.
type Change struct {
	Path     string
	Trigger  archive.Trigger
	Detected time.Time // of the first event, or when the scan saw it
	Kind     archive.Kind
	Err      error // Refused only
	Size     int64 // when it was seen, 0 where nobody looked
	// Confirmed: Gone only, of a mirrored source. A complete scan found it gone,
	// and its object may be deleted.
	Confirmed bool
}

// Sink takes changes. Its methods may be called concurrently.
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
	Source         string // its name, for logs and metrics
	Root           *safefs.Root
	Settle         time.Duration // a path must be quiet this long
	MaxDelay       time.Duration // times ceil(size / 64 MiB): offered although it is not
	RescanInterval time.Duration // with 10% of jitter; 0: no periodic scan
	PollInterval   time.Duration // of what cannot be watched; 0: never
	Include        []string      // gitignore patterns; if any, only files that match are archived
	Exclude        []string      // gitignore patterns; they win over everything else
	IgnoreFiles    bool          // .s3syncignore files are honored
	Hardlinks      safefs.LinkPolicy
	Reserved       string // this name at the top is refused, whatever has it; "": none
	// TooDeep, optional, returns why no file below a directory can be archived, nil
	// when one can. Such directories are refused, and not entered.
	TooDeep func(dir string) error
	// Mirror: the sink deletes what is Gone. Stored files are then offered as gone
	// by complete scans of the whole source alone, and by none that finds more
	// than MaxDeletes of them gone, until ConfirmDeletes is called.
	Mirror     bool
	MaxDeletes int

	// Memory is what OnMemory was last told, in whatever run.
	Memory Memory

	// All callbacks are optional and must not block for long.
	OnMemory    func(Memory)                                                   // when what is to be remembered of the source changes
	OnScan      func(ScanResult)                                               // after each scan of the whole source
	OnSame      func(k scanpkg.Known, st safefs.Stat, trigger archive.Trigger) // for each unchanged file of such a scan
	OnAvailable func(ok bool, reason string)                                   // when the source goes or comes back

	Log     *zap.Logger
	Metrics *Metrics
}

// ScanResult is what a scan found.
type ScanResult struct {
	Trigger    archive.Trigger
	Start, End time.Time
	Complete   bool // the scan reached its end and the source was the same all the time
	Err        error
	// Replaced: another directory is in the place of the source. Withheld files
	// count as neither gone nor there until ConfirmDeletes is called.
	Replaced bool
	Withheld int64
	// Held: so many files of a mirrored source are gone that none of them was
	// offered, see Options.Mirror.
	Held int64
	// Waiting files of a mirrored source are most of those of a directory, and
	// gone at once: they are offered when a second scan finds them gone.
	Waiting int64

	Files, Bytes            int64 // regular files that are archived
	New, Changed, Unchanged int64
	Gone                    int64
	Missed                  int64 // New, Changed and Gone that no event had told of
	Excluded, Unreadable    int64
	Special                 int64 // devices, FIFOs, sockets
	Symlinks, Hardlinks     int64 // skipped by policy
	Reserved                int64
	Limited                 int64 // directories that are too deep, or led to by too many links
	Pseudo                  int64 // file systems of the kernel, which are not entered
	ConfigFiles             []ignore.File
	UnusedIncludes          []string // patterns of Include that no file has matched so far

	directories int64
}

// Watcher watches one source.
type Watcher struct {
	o     Options
	sink  Sink
	index scanpkg.Index
	root  *safefs.Root // pinned to the directory in use
	probe *safefs.Root // of what is in its place, before that is used
	log   *zap.Logger
	met   *sourceMetrics
	ign   *ignore.Rules
	t     timings

	dirty    *dirtySet
	requests *requests
	polls    *pollSet
	links    *linkSet
	events   *intake[touched]  // to the settler
	shape    *intake[reshaped] // to the tree: where directories may have come or gone

	watching     chan struct{}
	watchingOnce sync.Once
	started      atomic.Bool // the first scan has been asked for
	suspected    chan struct{}
	renewal      chan struct{} // the watches are to be made anew
	available    atomic.Bool
	hung         atomic.Bool
	replaced     atomic.Bool
	confirmed    atomic.Bool // a person accepts what the source is now
	starved      atomic.Bool // the sink was full when the settler had something for it
	network      atomic.Bool // the source is on a file system of another host
	memory       memory
	overLinked   refusedLinks
	mounts       mountGuard
	away         atomic.Pointer[string] // why the source is not in use; nil: it is, or nobody has looked
	flushes      flushes
	watched      atomic.Int64

	// Of a mirrored source.
	told    toldSet
	consent consent
	losses  losses // used by the scanner alone
	held    atomic.Int64

	newNotifier func() (notifier, error)
}

// timings are the intervals that are not configurable.
type timings struct {
	identity   time.Duration // between looks at the source's identity
	unhealthy  time.Duration // longest time between looks at a source that is away
	generation time.Duration // shortest life of a watcher that overflowed again
	second     time.Duration // between a scan and the second one that a mirror waits for, where somebody waits for both
	removal    time.Duration // shortest time between a scan and one because of removals
}

// New returns a Watcher that does nothing yet.
func New(sink Sink, index scanpkg.Index, o Options) (*Watcher, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	ign, err := ignore.New(o.Include, o.Exclude, o.IgnoreFiles)
	if err != nil {
		return nil, err
	}
	w := &Watcher{
		o: o, sink: sink, index: index, root: o.Root, ign: ign,
		probe:       safefs.NewRoot(o.Root.Path(), o.Root.Options()),
		log:         o.Log.Named("watcher").With(zap.String("source", o.Source)),
		met:         o.Metrics.source(o.Source),
		t:           timings{identity: 10 * time.Second, unhealthy: 10 * time.Second, generation: time.Minute, removal: 5 * time.Second, second: 2 * time.Second},
		dirty:       newDirtySet(newSettler(o.Settle, o.MaxDelay)),
		requests:    newRequests(),
		polls:       newPollSet(),
		links:       newLinkSet(),
		events:      newIntake[touched](),
		shape:       newIntake[reshaped](),
		renewal:     make(chan struct{}, 1),
		watching:    make(chan struct{}),
		suspected:   make(chan struct{}, 1),
		newNotifier: newInotify,
	}
	if w.o.TooDeep == nil {
		w.o.TooDeep = func(string) error { return nil }
	}
	w.memory.now, w.memory.keep = o.Memory, o.OnMemory
	w.mounts.place, w.mounts.keep = w.root.Place, w.memory.setMounts
	w.mounts.changed = func() {
		w.log.Info("mounts inside the source changed, it is watched and scanned anew")
		w.renew()
	}
	w.mounts.recall(o.Memory)
	return w, nil
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

// Run watches the source until ctx ends, through every fault of the source. It
// blocks until all its goroutines have returned and is called once.
func (w *Watcher) Run(ctx context.Context) error {
	var a assessor
	defer w.flushes.end()
	for ctx.Err() == nil {
		id, ok := w.await(ctx, &a)
		if !ok {
			return nil
		}
		if reason := w.live(ctx, id); ctx.Err() == nil {
			w.lost(reason.Error())
		}
	}
	return nil
}

// Rescan asks for a scan of the whole source and returns at once. Requests that
// arrive during a scan merge into one more.
func (w *Watcher) Rescan(trigger archive.Trigger) { w.requests.scan(trigger) }

// Watching is closed once watches are everywhere for the first time, before the
// scan that follows. It is closed as well when the source is away at start: it
// is watched as soon as it is there.
func (w *Watcher) Watching() <-chan struct{} { return w.watching }

// Available reports whether the source is there, in use, and answers.
func (w *Watcher) Available() bool { return w.available.Load() && !w.hung.Load() }

// Replaced reports whether another directory is in the place of the source, so
// that nothing counts as deleted until ConfirmDeletes is called.
func (w *Watcher) Replaced() bool { return w.replaced.Load() }

// Directories returns how many directories are watched, and how many polled.
func (w *Watcher) Directories() (watched, polled int64) {
	polled, _ = w.polls.count()
	return w.watched.Load(), polled
}

// Intact reports whether id is the directory in use, and the one that the index
// was made from, and whether what was mounted above path still is: only there
// does a file that is not at path mean a deleted one.
func (w *Watcher) Intact(id safefs.Identity, path string) bool {
	pin, ok := w.root.Pinned()
	return ok && id.SameDirectory(pin) && id.MountID == pin.MountID && !w.withheld(path)
}

// Dirty returns how many paths and directories wait to settle.
func (w *Watcher) Dirty() int { return w.dirty.len() }

// OldestDirty returns when the first change of the path that waits longest was
// seen, the zero time for none.
func (w *Watcher) OldestDirty() time.Time { return w.dirty.oldest() }

// Unsettled reports whether path, its directory or one above waits to settle.
func (w *Watcher) Unsettled(path string) bool { return w.dirty.covered(path) }

// Pending reports whether the sink has path in hand.
func (w *Watcher) Pending(path string) bool { return w.sink.Pending(path) }

// LeavesOut reports whether the policies leave path out, although it may have
// been archived before.
func (w *Watcher) LeavesOut(path string) bool { return w.left(path) }

// Requeue makes path settle again. The sink calls it when a file changed while
// it was read.
func (w *Watcher) Requeue(path string) { w.dirty.touch(path, time.Now(), archive.TriggerEvent) }

// ConfirmDeletes accepts the directory that is in the place of the source, even
// if it is empty, and asks for a scan that counts what is not there as gone. Of
// a mirrored source that scan may delete as much as it finds gone.
func (w *Watcher) ConfirmDeletes() {
	w.consent.give()
	w.confirmed.Store(!w.available.Load())
	w.replaced.Store(false)
	if id, ok := w.root.Pinned(); ok && w.available.Load() {
		w.memory.accept(id)
	}
	w.mounts.confirm()
	w.requests.scan(archive.TriggerRescan)
	w.suspect()
}

// suspect asks for a look at the source's identity.
func (w *Watcher) suspect() {
	select {
	case w.suspected <- struct{}{}:
	default:
	}
}

// renew asks for a new set of watches and a scan.
func (w *Watcher) renew() {
	select {
	case w.renewal <- struct{}{}:
	default:
	}
}

// localClock reports whether the source's timestamps are by this host's clock.
func (w *Watcher) localClock() bool { return !w.network.Load() }

func (w *Watcher) announceWatching() { w.watchingOnce.Do(func() { close(w.watching) }) }
