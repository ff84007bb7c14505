// Package watches keeps every directory of a source watched by inotify, and knows
// which have to be polled because they cannot be.
//
// What an event says is never trusted: it only causes a check of what is there
// now. Three goroutines do the work of one epoch, the life of one notifier: one
// drains its errors and never calls it, one drains its events without a system
// call, and one, the tree, adds and removes watches and is the only one to do so.
// A new epoch begins when events were lost, and when Renew asks for one.
package watches

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/s3syncd/s3syncd/internal/debounce"
	"github.com/s3syncd/s3syncd/internal/relpath"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/scan"
)

const (
	// eventBuffer is the capacity of a notifier's channel of events.
	eventBuffer = 4096
	// firstLife and longestLife are how long a notifier that lost events is kept, at
	// first and at most, when the one before it did not live for long: a new one
	// costs a scan.
	firstLife   = time.Second
	longestLife = 30 * time.Second
	// longLife is how long a notifier has to live for the next one to be replaced at
	// once.
	longLife = time.Minute
	// noNotifierPause is the pause between attempts to get a notifier.
	noNotifierPause = time.Minute
)

// errLost: events were lost.
var errLost = errors.New("events were lost")

// Notifier watches single directories. Only one goroutine calls it. Its channels
// are closed by Close.
type Notifier interface {
	Add(path string) error
	Remove(path string) error
	Close() error
	Channels() (<-chan fsnotify.Event, <-chan error)
}

// inotify is the kernel's notifier.
type inotify struct{ *fsnotify.Watcher }

// NewInotify returns the kernel's notifier.
func NewInotify() (Notifier, error) {
	w, err := fsnotify.NewBufferedWatcher(eventBuffer)
	if err != nil {
		return nil, err
	}
	return inotify{w}, nil
}

// Channels returns the events and the errors.
func (i inotify) Channels() (<-chan fsnotify.Event, <-chan error) { return i.Events, i.Errors }

// Options are what watches need to know of their source. All is required.
type Options struct {
	Scope        *scan.Scope
	Dirty        *debounce.Debouncer // Learns which directories to list.
	NewNotifier  func() (Notifier, error)
	PollInterval time.Duration // 0: nothing is polled.
	Log          *zap.Logger
	Metrics      Metrics

	// The callbacks must not block.
	OnLost        func() // Events were lost: the source has to be scanned.
	OnPoll        func() // What is polled has changed: it should be polled soon.
	OnRootTouched func() // Something happened to the directory of the source itself.
}

// Metrics are the series that watches keep.
type Metrics struct {
	Event                     func(op fsnotify.Op) // Counts an event.
	Overflows                 prometheus.Counter
	Watched, Polled, Degraded prometheus.Gauge
}

// Watches are those of one source. Run may be called several times, one after the
// other; the other methods may be called concurrently.
type Watches struct {
	o        Options
	polls    polls
	touched  *intake[debounce.Touched]
	reshaped *intake[reshaped]
	renewal  chan struct{}
	watched  atomic.Int64
}

// New returns watches that watch nothing yet.
func New(o Options) *Watches {
	w := &Watches{
		o: o, renewal: make(chan struct{}, 1),
		touched: newIntake[debounce.Touched](), reshaped: newIntake[reshaped](),
	}
	w.polls.reset()
	return w
}

// Reset forgets the events and requests of the time before Run. It is called
// before a scan of the whole source is asked for.
func (w *Watches) Reset() {
	select {
	case <-w.renewal: // All watches are new anyway.
	default:
	}
	w.touched.take(nil)
}

// Renew asks for a new notifier, with new watches, and a scan.
func (w *Watches) Renew() {
	select {
	case w.renewal <- struct{}{}:
	default:
	}
}

// Check asks for the directory at path to be watched, if it is not.
func (w *Watches) Check(path string) { w.reshaped.add(reshaped{path: path, unwatched: true}) }

// Retry asks for another attempt to watch what could not be watched.
func (w *Watches) Retry() { w.reshaped.add(reshaped{retry: true}) }

// Events returns the paths that events named, in order, and uses the memory of
// buf for those to come.
func (w *Watches) Events(buf []debounce.Touched) []debounce.Touched { return w.touched.take(buf) }

// Wake returns a channel that receives when Events has something to return.
func (w *Watches) Wake() <-chan struct{} { return w.touched.wake }

// Backlog returns how many events Events would return, and how many changes of the
// tree wait.
func (w *Watches) Backlog() (events, changes int64) { return w.touched.n.Load(), w.reshaped.n.Load() }

// Polled returns, in path order, the directories to scan with everything below
// them because they are not watched, and those to list.
func (w *Watches) Polled() (roots, lists []string) { return w.polls.all() }

// Counted notes how many directories a scan of a polled one found.
func (w *Watches) Counted(dir string, dirs int64) {
	w.polls.counted(dir, dirs)
	w.gauges()
}

// Count returns how many directories are watched, and how many are polled.
func (w *Watches) Count() (watched, polled int64) {
	polled, _ = w.polls.count()
	return w.watched.Load(), polled
}

func (w *Watches) gauges() {
	w.o.Metrics.Watched.Set(float64(w.watched.Load()))
	dirs, limited := w.polls.count()
	w.o.Metrics.Polled.Set(float64(dirs))
	if limited > 0 {
		w.o.Metrics.Degraded.Set(1)
	} else {
		w.o.Metrics.Degraded.Set(0)
	}
}

// Run keeps the source id watched until ctx ends. It calls placed when every
// directory is watched for the first time, or polled.
func (w *Watches) Run(ctx context.Context, id safefs.Identity, placed func()) {
	first := true
	ready := func() {
		if first {
			placed()
		} else {
			w.o.OnLost()
		}
		first = false
	}
	var life time.Duration
	for ctx.Err() == nil {
		begin := time.Now()
		err := w.epoch(ctx, id, life, ready)
		switch {
		case ctx.Err() != nil:
		case errors.Is(err, errLost):
			w.o.Metrics.Overflows.Inc()
			w.o.Log.Warn("events were lost, the source is watched again and scanned")
			if life = min(max(2*life, firstLife), longestLife); time.Since(begin) > longLife {
				life = 0
			}
		case err != nil:
			retry := w.o.PollInterval
			if retry <= 0 {
				retry = noNotifierPause
			}
			w.pollAll(err, retry)
			ready()
			select {
			case <-time.After(retry):
			case <-ctx.Done():
			}
		}
	}
	w.polls.reset()
	w.watched.Store(0)
	w.gauges()
}

// pollAll has the whole source polled, because there is no notifier.
func (w *Watches) pollAll(err error, retry time.Duration) {
	dirs := w.countDirs("")
	w.polls.reset()
	w.polls.add("", pollLimit, dirs)
	w.watched.Store(0)
	w.gauges()
	w.o.Log.Warn("no inotify instance, the whole source is polled and inotify tried again; see sysctl fs.inotify.max_user_instances",
		zap.Int64("directories", dirs), zap.Duration("retry_in", retry), zap.Error(err))
}

// epoch is the life of one notifier. It returns errLost when that lost events and
// life has passed, nil when Renew was called, and another error when there is no
// notifier.
func (w *Watches) epoch(ctx context.Context, id safefs.Identity, life time.Duration, ready func()) error {
	n, err := w.o.NewNotifier()
	if err != nil {
		return err
	}
	lost := make(chan struct{}, 1)
	lose := func() {
		select {
		case lost <- struct{}{}:
		default:
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() {
		if err := n.Close(); err != nil {
			w.o.Log.Warn("watcher not closed cleanly, a new one replaces it", zap.Error(err))
		}
	}()
	events, errs := n.Channels()
	base := strings.TrimSuffix(id.RealPath, "/") + "/"
	wg.Go(func() {
		// It never calls the notifier, which holds its lock while it reports an error.
		for err := range errs {
			// Removing a watch that the kernel removed itself is no fault.
			if !errors.Is(err, fsnotify.ErrNonExistentWatch) && !errors.Is(err, unix.EINVAL) {
				lose()
			}
		}
	})
	wg.Go(func() { w.drain(events, base, lose) })

	w.polls.reset()
	w.reshaped.take(nil)
	earliest := time.Now().Add(life)
	t := newTree(w, n, base)
	t.place(ctx, IsNetwork(id.FSType))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	ready()
	return t.run(ctx, lost, earliest)
}

// drain takes events until the notifier is closed. It makes no system call, so that
// it keeps up with any writer.
func (w *Watches) drain(events <-chan fsnotify.Event, base string, lose func()) {
	for ev := range events {
		w.o.Metrics.Event(ev.Op)
		path, ok := strings.CutPrefix(ev.Name, base)
		if !ok {
			w.o.OnRootTouched() // The source's directory itself.
			continue
		}
		kept := w.touched.add(debounce.Touched{Path: path, At: time.Now()})
		if ev.Has(fsnotify.Create) || ev.Has(fsnotify.Remove) || ev.Has(fsnotify.Rename) {
			kept = w.reshaped.add(reshaped{path: path}) && kept
		}
		if !kept {
			lose()
		}
	}
}

// countDirs counts the directories at and below dir.
func (w *Watches) countDirs(dir string) int64 {
	var n int64
	for stack := []string{dir}; len(stack) > 0; {
		path := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		d, err := w.o.Scope.Root.OpenDir(path)
		if err != nil {
			continue
		}
		n++
		_ = d.Visit(func(e *safefs.Entry) bool { // What is unreadable is not counted.
			if e.IsDir() && !e.Linked {
				if sub := relpath.Join(path, e.Name); w.o.Scope.Enters(sub) {
					stack = append(stack, sub)
				}
			}
			return true
		})
		d.Close()
	}
	return n
}

// IsNetwork reports whether a file system of this type changes without events: its
// files belong to another host or to a program (FUSE).
func IsNetwork(fsType int64) bool {
	switch uint32(fsType) {
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC,
		unix.FUSE_SUPER_MAGIC, unix.V9FS_MAGIC, unix.CEPH_SUPER_MAGIC, unix.AFS_SUPER_MAGIC, unix.AFS_FS_MAGIC,
		unix.CODA_SUPER_MAGIC, unix.OCFS2_SUPER_MAGIC, unix.NCP_SUPER_MAGIC,
		0x0bd00bd0, // LLNL's cluster file system
		0x01161970, // GFS2
		0x47504653, // GPFS
		0x786f4256: // VirtualBox shared folders
		return true
	}
	return false
}
