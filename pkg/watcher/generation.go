package watcher

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/safefs"
)

const (
	// The capacity of a watcher's channel of events.
	eventBuffer = 4096
	// How long a watcher that lost events is kept, at first and at most, when
	// the one before it did not live for long: making it anew costs a scan.
	firstLife   = time.Second
	longestLife = 30 * time.Second
	// The pause between tries to get a watcher.
	noWatcherPause = time.Minute
)

// errLost: events were lost.
var errLost = errors.New("events were lost")

// notifier watches single directories. Only one goroutine calls it.
type notifier interface {
	Add(path string) error
	Remove(path string) error
	Close() error
	channels() (<-chan fsnotify.Event, <-chan error)
}

// inotify is the kernel's notifier.
type inotify struct{ *fsnotify.Watcher }

func newInotify() (notifier, error) {
	w, err := fsnotify.NewBufferedWatcher(eventBuffer)
	if err != nil {
		return nil, err
	}
	return inotify{w}, nil
}

func (i inotify) channels() (<-chan fsnotify.Event, <-chan error) { return i.Events, i.Errors }

// watchTree keeps the source watched until ctx ends: it makes a new watcher
// whenever one lost events. It closes placed when watches are everywhere for
// the first time.
func (w *Watcher) watchTree(ctx context.Context, id safefs.Identity, placed chan<- struct{}) {
	var once sync.Once
	first := true
	ready := func() {
		if !first {
			w.requests.scan(triggerOverflow)
		}
		first = false
		once.Do(func() {
			close(placed)
			w.announceWatching()
		})
	}
	var life time.Duration
	for ctx.Err() == nil {
		begin := time.Now()
		err := w.generation(ctx, id, life, ready)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errLost):
			w.met.overflows.Inc()
			w.log.Warn("events were lost, the source is watched anew and scanned")
			if life = min(max(2*life, firstLife), longestLife); time.Since(begin) > w.t.generation {
				life = 0
			}
		case err != nil:
			w.unwatched(err)
			ready()
			if wait(ctx, w.retryWatcher()) != nil {
				return
			}
		}
	}
}

func (w *Watcher) retryWatcher() time.Duration {
	if w.o.PollInterval > 0 {
		return w.o.PollInterval
	}
	return noWatcherPause
}

// unwatched has the whole source polled.
func (w *Watcher) unwatched(err error) {
	dirs := w.countDirs("")
	w.polls.reset()
	w.polls.add("", pollLimit, dirs)
	w.gauges(0)
	w.log.Warn("no watcher to be had, the whole source is polled and the watcher tried again; see sysctl fs.inotify.max_user_instances",
		zap.Int64("directories", dirs), zap.Duration("retry_in", w.retryWatcher()), zap.Error(err))
}

// generation is the life of one watcher. It returns errLost when that lost
// events and life has passed, nil when a new one was asked for, and another
// error when there was none to be had.
func (w *Watcher) generation(ctx context.Context, id safefs.Identity, life time.Duration, ready func()) error {
	n, err := w.newNotifier()
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
			w.log.Warn("watcher not closed cleanly, a new one replaces it", zap.Error(err))
		}
	}()
	events, errs := n.channels()
	base := strings.TrimSuffix(id.RealPath, "/") + "/"
	wg.Go(func() { w.drainErrors(errs, lose) })
	wg.Go(func() { w.drainEvents(events, base, lose) })
	w.polls.reset()
	w.shape.take(nil)
	earliest := time.Now().Add(life)
	t := newTree(w, n, base)
	t.place(ctx, isNetwork(id.FSType))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	ready()
	return t.run(ctx, lost, earliest)
}

// drainErrors takes errors until the watcher is closed. It never calls the
// watcher, which holds its lock while it reports one.
func (w *Watcher) drainErrors(errs <-chan error, lose func()) {
	for err := range errs {
		// Removing a watch that the kernel removed itself is no fault.
		if !errors.Is(err, fsnotify.ErrNonExistentWatch) && !isInvalid(err) {
			lose()
		}
	}
}

// drainEvents takes events until the watcher is closed. It makes no system
// call, so that it keeps up with any writer.
func (w *Watcher) drainEvents(events <-chan fsnotify.Event, base string, lose func()) {
	for ev := range events {
		w.met.event(ev.Op)
		rel, ok := strings.CutPrefix(ev.Name, base)
		if !ok {
			w.suspect() // The source's directory itself.
			continue
		}
		kept := w.events.add(touched{path: rel, at: time.Now()})
		if ev.Has(fsnotify.Create) || ev.Has(fsnotify.Remove) || ev.Has(fsnotify.Rename) {
			kept = w.shape.add(reshaped{path: rel}) && kept
		}
		if !kept {
			lose()
		}
	}
}
