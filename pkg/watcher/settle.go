package watcher

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/s3syncd/s3syncd/internal/ignore"
	"github.com/s3syncd/s3syncd/internal/relpath"
	"github.com/s3syncd/s3syncd/internal/safefs"
	scanpkg "github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

const (
	// How many items are worked off before new events are taken in.
	settleBatch = 256
	// How long the settler leaves a full sink alone at first, doubled up to the
	// maximum.
	fullPause    = 20 * time.Millisecond
	fullPauseMax = 100 * time.Millisecond
	// Likewise for a listing, which costs more to repeat.
	listPause    = 50 * time.Millisecond
	listPauseMax = 5 * time.Second
	// How long a path waits after a fault of the source.
	faultPause = time.Second
)

// touched is one event on its way to the settler.
type touched struct {
	path string
	at   time.Time
}

// settling is the state of the goroutine that settles.
type settling struct {
	w       *Watcher
	events  *intake[touched]
	buf     []touched
	removed bool      // of a mirrored source: a scan is to decide
	blocked time.Time // the sink was full: nothing is offered before
	pause   time.Duration
}

// run settles until ctx ends.
func (g *settling) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		g.takeIn()
		if g.work(ctx) {
			continue
		}
		timer.Reset(g.untilNext())
		select {
		case <-ctx.Done():
		case <-g.events.wake:
		case <-g.w.dirty.wake:
		case <-timer.C:
		}
	}
}

// takeIn notes the events that came.
func (g *settling) takeIn() {
	items := g.events.take(g.buf)
	g.buf = items
	d := g.w.dirty
	overflowed := false
	for len(items) > 0 {
		n := min(settleBatch, len(items))
		d.mu.Lock()
		for _, t := range items[:n] {
			if !g.w.ignores(t.path) {
				d.s.touch(t.path, t.at, archive.TriggerEvent)
				d.busy.add(relpath.Parent(t.path), t.at)
			}
		}
		overflowed = overflowed || d.s.overflowed
		d.mu.Unlock()
		items = items[n:]
	}
	d.mu.Lock()
	if overflowed = overflowed || d.s.overflowed; overflowed {
		d.s.reset()
	}
	d.mu.Unlock()
	if overflowed {
		g.w.log.Warn("too many directories changed to remember each, the source is scanned")
		g.w.requests.scan(triggerOverflow)
	}
}

// ignores reports whether nothing that happens at path matters.
func (w *Watcher) ignores(path string) bool {
	if w.o.Reserved != "" && relpath.Below(path, w.o.Reserved) {
		return true
	}
	return w.ign.Excluded(path, false) && w.ign.Excluded(path, true)
}

func (g *settling) untilNext() time.Duration {
	d := g.w.dirty
	d.mu.Lock()
	next := d.s.next()
	d.mu.Unlock()
	if next.IsZero() {
		return time.Hour
	}
	if g.blocked.After(next) {
		next = g.blocked
	}
	return max(0, time.Until(next))
}

// work handles what is due. It returns true when there may be more.
func (g *settling) work(ctx context.Context) bool {
	d := g.w.dirty
	for range settleBatch {
		now := time.Now()
		if now.Before(g.blocked) || ctx.Err() != nil {
			return false
		}
		d.mu.Lock()
		it := d.s.pop(now)
		d.mu.Unlock()
		if it == nil {
			g.w.starved.Store(false)
			return false
		}
		again, at := g.handle(ctx, it, now)
		d.mu.Lock()
		if again {
			d.s.again(it, at)
		} else {
			d.s.done(it)
		}
		d.mu.Unlock()
		if g.removed { // Now that the scan does not find the path dirty any more.
			g.removed = false
			g.w.requests.removals()
		}
	}
	return true
}

// handle looks at one item. Again says that it is to be handed out once more.
func (g *settling) handle(ctx context.Context, it *item, now time.Time) (again bool, at time.Time) {
	var err error
	if it.name == "" {
		at, err = g.listing(ctx, it, now)
	} else {
		at, err = g.path(ctx, it, now)
	}
	switch {
	case err == nil:
		it.tries = 0
		return !at.IsZero(), at
	case errors.Is(err, errBlocked):
		return true, g.block(it, now)
	case errors.Is(err, safefs.ErrRootChanged):
		g.w.suspect()
	default:
		g.w.log.Warn("changed path not looked at, it is tried again", zap.String("path", it.path()), zap.Error(err))
	}
	return true, now.Add(faultPause)
}

// block leaves the sink alone for a while and returns when it is tried again.
func (g *settling) block(it *item, now time.Time) time.Time {
	g.w.starved.Store(true)
	if it.name == "" {
		it.tries = min(it.tries+1, 10)
		return time.Now().Add(min(listPause<<it.tries, listPauseMax))
	}
	g.pause = min(max(2*g.pause, fullPause), fullPauseMax)
	g.blocked = now.Add(g.pause)
	return g.blocked
}

// offer hands a change on without waiting.
func (g *settling) offer(_ context.Context, c Change) error {
	if !g.w.sink.TryOffer(c) {
		return errBlocked
	}
	g.pause = 0
	g.w.starved.Store(false)
	if c.Kind == archive.Look {
		g.w.changedIgnoreFile(c.Path)
	}
	return nil
}

// path looks at one path that has been quiet, or has waited for long. A time
// that is not zero says when to look again.
func (g *settling) path(ctx context.Context, it *item, now time.Time) (time.Time, error) {
	w, path := g.w, it.path()
	st, err := w.root.Stat(path)
	switch {
	case errors.Is(err, safefs.ErrRootChanged):
		return time.Time{}, err
	case errors.Is(err, fs.ErrNotExist):
		return time.Time{}, g.gone(ctx, it, path, true)
	case exhausted(err):
		return time.Time{}, err
	case err != nil:
		return time.Time{}, nil //nolint:nilerr // What is unreadable or leads out of the source is for the scans to report.
	}
	switch {
	case w.reserved(path):
		return time.Time{}, g.offer(ctx, Change{Path: path, Trigger: it.trigger, Detected: it.first, Kind: archive.Refused, Err: ErrReserved})
	case st.IsDir():
		w.recheck(path)
		return time.Time{}, g.goneItself(ctx, it, path)
	case !st.IsRegular():
		return time.Time{}, g.goneItself(ctx, it, path)
	case w.left(path):
		return time.Time{}, nil
	}
	return g.file(ctx, it, st, now)
}

// file offers a regular file if it is quiet.
func (g *settling) file(ctx context.Context, it *item, st safefs.Stat, now time.Time) (time.Time, error) {
	w := g.w
	offer, forced, next := w.dirty.s.quiet(view{
		now: now, first: it.first, last: it.handed, st: st, seen: it.seen, seenAt: it.seenAt, localClock: w.localClock(),
	})
	if !offer {
		if it.seen == nil || !sameFence(*it.seen, st) {
			it.seen, it.seenAt = &st, now
		}
		return next, nil
	}
	w.mounts.offered(it.path())
	if err := g.offer(ctx, Change{Path: it.path(), Trigger: it.trigger, Detected: it.first, Kind: archive.Look}); err != nil {
		return time.Time{}, err
	}
	if st.Nlink > 1 {
		if err := w.otherNames(it, it.path(), st); err != nil {
			return time.Time{}, err
		}
		w.links.want(st)
	}
	if forced { // It is still changing: it stays dirty.
		it.begun = now
		return now.Add(w.o.Settle), nil
	}
	return time.Time{}, nil
}

// changedIgnoreFile has the source watched and scanned anew by patterns that
// changed.
func (w *Watcher) changedIgnoreFile(path string) {
	if w.o.IgnoreFiles && (path == ignore.FileName || strings.HasSuffix(path, "/"+ignore.FileName)) {
		w.log.Info("ignore file changed, the source is scanned")
		w.renew()
	}
}

// goneItself reports path as gone if the index has it as a file.
func (g *settling) goneItself(ctx context.Context, it *item, path string) error {
	g.w.goneName(path, it.handed, it.trigger)
	k, ok, err := scanpkg.Lookup(g.w.index, path)
	if err != nil || !ok {
		return err
	}
	return g.offerGone(ctx, it, &k)
}

// gone reports what the index has at path and below it.
func (g *settling) gone(ctx context.Context, it *item, path string, itself bool) error {
	if itself {
		if err := g.goneItself(ctx, it, path); err != nil {
			return err
		}
		g.w.changedIgnoreFile(path)
	}
	cur := scanpkg.NewCursor(g.w.index, path)
	for {
		k, err := cur.Peek()
		if err != nil || k == nil {
			return err
		}
		known := *k
		cur.Next()
		if _, err := g.w.root.Stat(known.Path); !errors.Is(err, fs.ErrNotExist) {
			if errors.Is(err, safefs.ErrRootChanged) || exhausted(err) {
				return err
			}
			continue // There again: its own events tell.
		}
		if err := g.offerGone(ctx, it, &known); err != nil {
			return err
		}
	}
}

// offerGone reports that k is gone. An event alone never has an object deleted:
// of a mirrored source it only asks for a scan.
func (g *settling) offerGone(ctx context.Context, it *item, k *scanpkg.Known) error {
	w := g.w
	w.goneName(k.Path, it.handed, it.trigger)
	switch {
	case leaves(w, k) || w.withheld(k.Path):
		return nil
	case w.o.Mirror && k.Stored:
		w.told.add(k.Path, true)
		g.removed = true
		return nil
	case k.Stored && w.sink.Pending(k.Path):
		return nil // A failure waits there for as long as nothing else is offered.
	case !k.Stored && w.stillRefused(k.Path):
		return nil
	}
	return g.offer(ctx, Change{Path: k.Path, Trigger: it.trigger, Detected: it.first, Kind: archive.Gone})
}

// exhausted reports whether err says that this host lacks something for a while:
// it says nothing about the path.
func exhausted(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EINTR, unix.EAGAIN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// listing compares a directory with the index, without its subdirectories.
func (g *settling) listing(ctx context.Context, it *item, now time.Time) (time.Time, error) {
	w, dir := g.w, it.dir.path
	st, err := w.root.Stat(dir)
	switch {
	case errors.Is(err, safefs.ErrRootChanged):
		return time.Time{}, err
	case errors.Is(err, fs.ErrNotExist) && dir != "":
		return time.Time{}, g.gone(ctx, it, dir, true)
	case exhausted(err):
		return time.Time{}, err
	case err == nil && !st.IsDir():
		return time.Time{}, g.gone(ctx, it, dir, false)
	}
	// An unreadable directory is for the scans to report.
	if err == nil && !w.ign.Excluded(dir, true) {
		return g.compare(ctx, it, now)
	}
	return time.Time{}, nil
}

// compare offers what differs between a directory and the index.
func (g *settling) compare(ctx context.Context, it *item, now time.Time) (time.Time, error) {
	p := &offerer{w: g.w, trigger: it.trigger, offer: g.offer, settles: true, listed: it.first}
	s := g.w.newScan(it.dir.path, it.trigger, p)
	s.flat = true
	if err := s.run(ctx); err != nil {
		return time.Time{}, err
	}
	if p.forced {
		it.begun = now
	}
	if p.restless > 0 {
		return time.Now().Add(g.w.o.Settle), nil
	}
	return time.Time{}, nil
}
