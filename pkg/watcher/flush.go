package watcher

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/s3syncd/s3syncd/internal/safefs"
	scanpkg "github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// flushMargin is how long a flush waits beyond settle, so that what has settled
// is handed on as what it is: found by an event.
const flushMargin = 50 * time.Millisecond

// ErrEnded is returned by Flush when Run ends.
var ErrEnded = errors.New("the watcher ended")

// flushes are the calls of Flush that wait for a scan. They merge: one scan
// serves all that waited when it began.
type flushes struct {
	mu      sync.Mutex
	waiting []chan error
	ended   bool
}

// add returns a channel of capacity 1 that the end of the scan is sent to.
func (f *flushes) add() chan error {
	f.mu.Lock()
	defer f.mu.Unlock()
	done := make(chan error, 1)
	if f.ended {
		done <- ErrEnded
		return done
	}
	f.waiting = append(f.waiting, done)
	return done
}

// take returns those that wait.
func (f *flushes) take() []chan error {
	f.mu.Lock()
	defer f.mu.Unlock()
	waiting := f.waiting
	f.waiting = nil
	return waiting
}

// fail ends those that wait with err.
func (f *flushes) fail(err error) {
	for _, done := range f.take() {
		done <- err
	}
}

// end is fail for those to come as well.
func (f *flushes) end() {
	f.mu.Lock()
	f.ended = true
	f.mu.Unlock()
	f.fail(ErrEnded)
}

// Flush returns nil once every change that was made to the source before the
// call has been offered to the sink, whether its event has been seen or not: it
// waits for settle and then has the source scanned. What is not quiet even then
// is offered as it is. It fails with the reason when the source is not there,
// when the scan does not reach its end, when missing files must not count as
// deleted, and when ctx or Run end first. It may be called concurrently, also
// before Run.
func (w *Watcher) Flush(ctx context.Context) error {
	if err := wait(ctx, w.o.Settle+flushMargin); err != nil {
		return err
	}
	done := w.flushes.add()
	if reason := w.Away(); reason != "" { // After add: whoever finds it away later fails those that wait.
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

// Away returns why the source is not in use, "" while it is or nobody has
// looked yet.
func (w *Watcher) Away() string {
	if reason := w.away.Load(); reason != nil {
		return *reason
	}
	return ""
}

// serveFlushes runs one scan for all flushes that wait.
func (w *Watcher) serveFlushes(ctx context.Context, id safefs.Identity) {
	waiting := w.flushes.take()
	if len(waiting) == 0 {
		return
	}
	err := w.flushScan(ctx, id)
	for _, done := range waiting {
		done <- err
	}
}

func (w *Watcher) flushScan(ctx context.Context, id safefs.Identity) error {
	p := w.scanPolicy(archive.TriggerRescan)
	p.settles, p.onSame = false, w.o.OnSame
	res := w.whole(ctx, id, archive.TriggerRescan, p, &flushPolicy{p})
	p.scanAgain(ctx, id, &res)
	if ctx.Err() != nil && !res.Complete {
		return fmt.Errorf("scan: %w", context.Cause(ctx))
	}
	w.report(&res)
	switch {
	case errors.Is(res.Err, safefs.ErrRootChanged):
		w.suspect()
		return res.Err
	case res.Err != nil:
		return fmt.Errorf("scan: %w", res.Err)
	case res.Held > 0:
		return fmt.Errorf("%d deletions are held back until they are confirmed", res.Held)
	case res.Withheld > 0:
		return fmt.Errorf("%d missing files do not count as deleted until that is confirmed: "+
			"another directory is in the place of the source, or another file system at a mount point in it", res.Withheld)
	}
	return nil
}

// flushPolicy offers every difference, quiet or not, so that nothing is left in
// other hands when the scan ends.
type flushPolicy struct{ *offerer }

func (p *flushPolicy) differs(ctx context.Context, s *scan, path string, st safefs.Stat, _ *scanpkg.Known) error {
	fresh, ok, err := scanpkg.Lookup(p.w.index, path) // The scan may have read the index some time ago.
	switch {
	case err != nil:
		return err
	case ok && scanpkg.Unchanged(&fresh, st):
		s.res.Unchanged++
		return nil
	case ok:
		s.res.Changed++
	default:
		s.res.New++
	}
	p.w.mounts.offered(path)
	return p.offer(ctx, Change{Path: path, Trigger: p.trigger, Detected: time.Now(), Kind: archive.Look, Size: st.Size})
}

// setAway notes why the source is not in use, and tells those who wait for it.
func (w *Watcher) setAway(reason string) {
	w.away.Store(&reason)
	w.flushes.fail(errors.New(reason))
}
