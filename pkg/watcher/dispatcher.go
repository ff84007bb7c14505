package watcher

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/s3syncd/s3syncd/internal/debounce"
	"github.com/s3syncd/s3syncd/internal/ignore"
	"github.com/s3syncd/s3syncd/internal/relpath"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/internal/watches"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

const (
	// batch is how many paths are handled before new events are read.
	batch = 256
	// fullPause is how long the dispatcher leaves a full sink alone at first; it
	// doubles up to fullPauseMax.
	fullPause    = 20 * time.Millisecond
	fullPauseMax = 100 * time.Millisecond
	// listPause is the same for a listing, which costs more to repeat.
	listPause    = 50 * time.Millisecond
	listPauseMax = 5 * time.Second
	// faultPause is how long a path waits after a fault of the source.
	faultPause = time.Second
)

// errFull: the sink is full, and the dispatcher does not wait.
var errFull = errors.New("the sink is full")

// dispatcher hands events to the debouncer, and what is quiet to the sink. Its
// methods are called by one goroutine.
type dispatcher struct {
	source      *scan.Source
	presence    *presence
	mirror      *mirror
	requests    *requests
	watches     *watches.Watches
	dirty       *debounce.Debouncer
	names       *names
	out         *outlet
	busy        *busySet
	listings    debounced // What they have in common.
	ignoreFiles bool
	quiet       time.Duration // How long a file must not have changed.
	log         *zap.Logger

	buf     []debounce.Touched
	removed bool      // Of a mirrored source: a scan is to decide.
	blocked time.Time // The sink was full: nothing is offered before.
	pause   time.Duration
}

// run dispatches until ctx ends.
func (d *dispatcher) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		d.readEvents()
		if d.work(ctx) {
			continue
		}
		timer.Reset(d.untilNext())
		select {
		case <-ctx.Done():
		case <-d.watches.Wake():
		case <-d.dirty.Wake():
		case <-timer.C:
		}
	}
}

// readEvents hands the events that came to the debouncer.
func (d *dispatcher) readEvents() {
	d.buf = d.watches.Events(d.buf)
	kept := slices.DeleteFunc(d.buf, func(t debounce.Touched) bool { return d.source.Ignores(t.Path) })
	for list := range slices.Chunk(kept, batch) { // In batches: others wait for the debouncer.
		d.dirty.TouchAll(list, archive.TriggerEvent)
	}
	for _, t := range kept {
		d.busy.add(relpath.Parent(t.Path), t.At)
	}
	if d.dirty.TakeOverflow() {
		d.log.Warn("too many directories changed to remember each, the source is scanned")
		d.requests.scan(triggerOverflow)
	}
}

func (d *dispatcher) untilNext() time.Duration {
	next := d.dirty.Next()
	if next.IsZero() {
		return time.Hour
	}
	if d.blocked.After(next) {
		next = d.blocked
	}
	return max(0, time.Until(next))
}

// work handles what is due. It returns true when there may be more.
func (d *dispatcher) work(ctx context.Context) bool {
	for range batch {
		now := time.Now()
		if now.Before(d.blocked) || ctx.Err() != nil {
			return false
		}
		p := d.dirty.Pop(now)
		if p == nil {
			d.out.starved.Store(false)
			return false
		}
		if again := d.handle(ctx, p, now); again.IsZero() {
			d.dirty.Done(p)
		} else {
			d.dirty.Again(p, again)
		}
		if d.removed { // Only now: a scan ignores paths that are pending.
			d.removed = false
			d.requests.removals()
		}
	}
	return true
}

// handle checks what p names. It returns when p is to be handed out once more, the
// zero time for never.
func (d *dispatcher) handle(ctx context.Context, p *debounce.Pending, now time.Time) (again time.Time) {
	check := d.check
	if p.Listing() {
		check = d.list
	}
	again, err := check(ctx, p, now)
	switch {
	case err == nil:
		p.Tries = 0
		return again
	case errors.Is(err, errFull):
		return d.block(p, now)
	case errors.Is(err, safefs.ErrRootChanged):
		d.presence.suspect()
	default:
		d.log.Warn("changed path not checked, it is tried again", zap.String("path", p.Path()), zap.Error(err))
	}
	return now.Add(faultPause)
}

// block leaves the sink alone for a while and returns when it is tried again.
func (d *dispatcher) block(p *debounce.Pending, now time.Time) time.Time {
	d.out.starved.Store(true)
	if p.Listing() {
		p.Tries = min(p.Tries+1, 10)
		return time.Now().Add(min(listPause<<p.Tries, listPauseMax))
	}
	d.pause = min(max(2*d.pause, fullPause), fullPauseMax)
	d.blocked = now.Add(d.pause)
	return d.blocked
}

// tryOffer offers a change without waiting.
func (d *dispatcher) tryOffer(_ context.Context, c Change) error {
	if !d.out.TryOffer(c) {
		return errFull
	}
	d.pause = 0
	d.out.starved.Store(false)
	if c.Kind == archive.Check {
		d.renewIfIgnoreFile(c.Path)
	}
	return nil
}

// renewIfIgnoreFile has the source watched and scanned again if path is an ignore
// file: it changed.
func (d *dispatcher) renewIfIgnoreFile(name string) {
	if d.ignoreFiles && path.Base(name) == ignore.FileName {
		d.log.Info("ignore file changed, the source is scanned")
		d.watches.Renew()
	}
}

// check reads one path that has been quiet, or pending for long. A time that is
// not zero says when to check again.
func (d *dispatcher) check(ctx context.Context, p *debounce.Pending, now time.Time) (again time.Time, err error) {
	name := p.Path()
	st, err := d.source.Root.Stat(name)
	switch {
	case errors.Is(err, safefs.ErrRootChanged), isExhausted(err):
		return again, err
	case errors.Is(err, fs.ErrNotExist):
		return again, d.goneBelow(ctx, p, name, true)
	case err != nil:
		return again, nil //nolint:nilerr // What is unreadable or leads out of the source the next scan reports.
	case d.source.IsReserved(name):
		return again, d.tryOffer(ctx, Change{Path: name, Trigger: p.Trigger(), Detected: p.First(), Kind: archive.Refused, Err: scan.ErrReserved})
	case st.IsDir():
		d.watches.Check(name)
		return again, d.goneItself(ctx, p, name)
	case !st.IsRegular():
		return again, d.goneItself(ctx, p, name)
	case d.source.LeavesOut(name):
		return again, nil
	}
	return d.checkFile(ctx, p, st, now)
}

// checkFile offers a regular file if it is quiet.
func (d *dispatcher) checkFile(ctx context.Context, p *debounce.Pending, st safefs.Stat, now time.Time) (again time.Time, err error) {
	offer, forced, next := d.dirty.Quiet(p, st, d.presence.localClock(), now)
	if !offer {
		return next, nil
	}
	d.presence.mounts.Offered(p.Path())
	if err := d.tryOffer(ctx, Change{Path: p.Path(), Trigger: p.Trigger(), Detected: p.First(), Kind: archive.Check}); err != nil {
		return again, err
	}
	if st.Nlink > 1 {
		if err := d.names.changed(p, st); err != nil {
			return again, err
		}
		d.names.links.want(st)
	}
	if forced { // It still changes, and stays pending.
		p.Restart(now)
		again = now.Add(d.quiet)
	}
	return again, nil
}

// isExhausted reports whether err says that this host lacks something for a while:
// it says nothing about the path.
func isExhausted(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EINTR, unix.EAGAIN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// goneItself offers name as gone if the index has it as a file.
func (d *dispatcher) goneItself(ctx context.Context, p *debounce.Pending, name string) error {
	d.names.gone(name, p.Last(), p.Trigger())
	k, ok, err := scan.Lookup(d.source.Index, name)
	if err != nil || !ok {
		return err
	}
	return d.offerGone(ctx, p, &k)
}

// goneBelow offers what the index has below name as gone, and if itself is set at
// name as well.
func (d *dispatcher) goneBelow(ctx context.Context, p *debounce.Pending, name string, itself bool) error {
	if itself {
		if err := d.goneItself(ctx, p, name); err != nil {
			return err
		}
		d.renewIfIgnoreFile(name)
	}
	for k, err := range scan.Each(d.source.Index, name) {
		if err != nil {
			return err
		}
		if _, err := d.source.Root.Stat(k.Path); !errors.Is(err, fs.ErrNotExist) {
			if errors.Is(err, safefs.ErrRootChanged) || isExhausted(err) {
				return err
			}
			continue // There again: it has events of its own.
		}
		if err := d.offerGone(ctx, p, k); err != nil {
			return err
		}
	}
	return nil
}

// offerGone offers k as gone. An event alone never deletes an object: of a
// mirrored source it only asks for a scan.
func (d *dispatcher) offerGone(ctx context.Context, p *debounce.Pending, k *scan.Known) error {
	d.names.gone(k.Path, p.Last(), p.Trigger())
	switch {
	case d.source.LeavesOutKnown(k) || d.presence.withheld(k.Path):
		return nil
	case d.mirror.on && k.Stored:
		d.mirror.reported.add(k.Path, true)
		d.removed = true
		return nil
	case k.Stored && d.out.Pending(k.Path):
		return nil // A failure waits there for as long as nothing else is offered.
	case !k.Stored && d.source.StillRefused(k.Path):
		return nil
	}
	return d.tryOffer(ctx, Change{Path: k.Path, Trigger: p.Trigger(), Detected: p.First(), Kind: archive.Gone})
}

// list compares a directory with the index, without its subdirectories. A time
// that is not zero says when to list it again.
func (d *dispatcher) list(ctx context.Context, p *debounce.Pending, now time.Time) (again time.Time, err error) {
	dir := p.Path()
	st, err := d.source.Root.Stat(dir)
	switch {
	case errors.Is(err, safefs.ErrRootChanged), isExhausted(err):
		return again, err
	case errors.Is(err, fs.ErrNotExist) && dir != "":
		return again, d.goneBelow(ctx, p, dir, true)
	case err != nil:
		return again, nil //nolint:nilerr // The next scan reports an unreadable directory.
	case !st.IsDir():
		return again, d.goneBelow(ctx, p, dir, false)
	case d.source.Rules.Excluded(dir, true):
		return again, nil
	}

	var res ScanResult
	compared := d.listings
	compared.trigger, compared.offer, compared.res = p.Trigger(), d.tryOffer, &res
	l := &listing{debounced: &compared, since: p.First()}
	compared.restless = l.touch
	err = d.source.Run(ctx, scan.Options{Dir: dir, Flat: true, Found: l.found, Rest: context.Context.Err}, &res.Result)
	if err != nil {
		return again, err
	}
	if l.forced {
		p.Restart(now)
	}
	if l.again > 0 {
		again = time.Now().Add(d.quiet)
	}
	return again, nil
}
