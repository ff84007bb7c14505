package watcher

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/mounts"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/internal/watches"
)

// errReplaced: the directory in use is not at the source's path any more.
var errReplaced = errors.New("another directory is in the place of the source")

// presence knows whether the source is there, whether it is the one that is
// archived, and what of it may be out of sight. One goroutine calls await, assess,
// use and lost; the other methods may be called concurrently.
type presence struct {
	root        *safefs.Root // Pinned to the directory in use.
	probe       *safefs.Root // Of what is in its place, before that is used.
	index       scan.Index
	memory      *memory
	mounts      *mounts.Guard
	flushes     *flushes                     // Fail when the source goes.
	onAvailable func(ok bool, reason string) // nil: not wanted.
	identity    time.Duration                // Between checks of the source's identity.
	unhealthy   time.Duration                // Longest time between checks of a source that is away.
	met         *sourceMetrics
	log         *zap.Logger

	suspected chan struct{}
	available atomic.Bool
	hung      atomic.Bool
	replaced  atomic.Bool
	confirmed atomic.Bool            // An operator accepts what the source is now.
	network   atomic.Bool            // The source is on a file system of another host.
	away      atomic.Pointer[string] // Why the source is not in use; nil: it is, or it has not been checked.
}

// candidate is what the checks of a source that is not in use found.
type candidate struct {
	proposed safefs.Identity // Another directory, seen once.
	reason   string          // Why the source is away, "" while it is not.
}

// await returns the identity of the source as soon as it may be used, or false
// when ctx ended. It calls onLost when the source is not there.
func (p *presence) await(ctx context.Context, c *candidate, onLost func()) (id safefs.Identity, ok bool) {
	pause := 100 * time.Millisecond
	for ctx.Err() == nil {
		id, reason := p.assess(c)
		if reason == "" {
			p.use(c, id)
			return id, true
		}
		if reason != c.reason {
			c.reason = reason
			p.lost(reason)
			onLost()
		}
		pause = min(2*pause, p.unhealthy)
		if c.proposed != (safefs.Identity{}) {
			pause = p.unhealthy // The second check must be at another time.
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-p.suspected:
		case <-t.C:
		}
		t.Stop()
	}
	return safefs.Identity{}, false
}

// assess decides whether what is in the place of the source may be used; reason
// is "" then. Another directory that is not empty may be used at the second check.
func (p *presence) assess(c *candidate) (id safefs.Identity, reason string) {
	id, err := p.probe.Identify()
	if err != nil {
		return id, err.Error()
	}
	if safefs.Pseudo(id.FSType) {
		return id, "the kernel's own file systems are not archived"
	}
	p.probe.Pin(id)
	empty, err := isEmpty(p.probe)
	if err != nil {
		return id, err.Error()
	}
	same, err := proof{p.index, p.probe}.isSame(p.memory.get(), id)
	switch {
	case err != nil:
		return id, err.Error()
	case same, p.confirmed.Load():
		p.replaced.Store(false)
		p.confirmed.Store(false) // Consent was to this directory, not to any that comes later.
		p.memory.accept(id)
		return id, ""
	case empty:
		c.proposed = safefs.Identity{}
		return id, "the directory is empty, but files of it are archived"
	case !id.SameDirectory(c.proposed):
		c.proposed = id
		return id, errReplaced.Error()
	}
	p.memory.suspectReplaced()
	if !p.replaced.Swap(true) {
		p.log.Warn("another directory is in the place of the source: it is archived, and nothing counts as deleted until 's3syncd rescan --confirm-deletes'",
			zap.String("path", id.RealPath))
	}
	return id, ""
}

func isEmpty(root *safefs.Root) (bool, error) {
	d, err := root.OpenDir("")
	if err != nil {
		return false, err
	}
	defer d.Close()
	empty := true
	err = d.Visit(func(*safefs.Entry) bool {
		empty = false
		return false
	})
	return empty, err
}

// use notes that the source is in use from now on.
func (p *presence) use(c *candidate, id safefs.Identity) {
	*c = candidate{}
	p.root.Pin(id)
	p.network.Store(watches.IsNetwork(id.FSType))
	p.available.Store(true)
	p.away.Store(nil)
	p.met.available.Set(1)
	p.log.Info("source available", zap.String("path", id.RealPath), zap.Bool("network", p.network.Load()), zap.Bool("replaced", p.replaced.Load()))
	if p.onAvailable != nil {
		p.onAvailable(true, "")
	}
}

// lost notes that the source is not in use any more, and fails the flushes that
// wait for it.
func (p *presence) lost(reason string) {
	p.available.Store(false)
	p.away.Store(&reason)
	p.flushes.fail(errors.New(reason))
	p.met.available.Set(0)
	p.log.Warn("source not available, it is paused and used again when it is back", zap.String("reason", reason))
	if p.onAvailable != nil {
		p.onAvailable(false, reason)
	}
}

// guard ends with an error when the source is not id any more, or not mounted
// as it was.
func (p *presence) guard(ctx context.Context, id safefs.Identity) error {
	t := time.NewTicker(p.identity)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.suspected:
		case <-t.C:
		}
		if err := p.verify(id); err != nil {
			return err
		}
		p.mounts.Check(id.RealPath)
	}
}

// verify compares the source with id.
func (p *presence) verify(id safefs.Identity) error {
	now, err := p.root.Identify()
	switch {
	case err != nil:
		return err
	case !now.SameDirectory(id):
		return errReplaced
	case now.MountID != id.MountID:
		return errors.New("the source was mounted again")
	}
	d, err := p.root.OpenDir("")
	if err != nil {
		return err
	}
	d.Close()
	return nil
}

// suspect asks for a check of the source's identity.
func (p *presence) suspect() {
	select {
	case p.suspected <- struct{}{}:
	default:
	}
}

// confirm accepts what is in the place of the source, and what is mounted in it.
func (p *presence) confirm() {
	p.confirmed.Store(!p.available.Load())
	p.replaced.Store(false)
	if id, ok := p.root.Pinned(); ok && p.available.Load() {
		p.memory.accept(id)
	}
	p.mounts.Confirm()
}

// withheld reports whether a file that was not found must not count as deleted:
// it may be out of sight.
func (p *presence) withheld(path string) bool {
	hidden := p.mounts.Hides(path) // Always: it notes that the scan misses files there.
	return p.replaced.Load() || hidden
}

// intact reports whether id is the directory in use, and path is not withheld.
func (p *presence) intact(id safefs.Identity, path string) bool {
	pin, ok := p.root.Pinned()
	return ok && id.SameDirectory(pin) && id.MountID == pin.MountID && !p.withheld(path)
}

// localClock reports whether the source's timestamps are by this host's clock.
func (p *presence) localClock() bool { return !p.network.Load() }

// reason returns why the source is not in use, "" if it is.
func (p *presence) reason() string {
	if reason := p.away.Load(); reason != nil {
		return *reason
	}
	return ""
}

// setHung notes why the file system of the source does not answer, "" that it does
// again.
func (p *presence) setHung(reason string) {
	p.hung.Store(reason != "")
	p.met.available.Set(0)
	if reason != "" {
		p.flushes.fail(errors.New(reason))
		return
	}
	if p.available.Load() {
		p.met.available.Set(1)
	}
}
