package watcher

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

const (
	// TriggerRemoval is that of a scan because events told of removals, which a
	// mirrored source waits for.
	triggerRemoval archive.Trigger = "removal"
	// So many deletions a scan offers when a person has allowed more than
	// MaxDeletes; another scan goes on with the rest.
	doomBatch = 4096
	// So many removals that events told of are remembered one by one.
	maxTold = 16_384
)

// doomed is what one scan of a whole mirrored source found gone: deletions are
// offered only when that scan is complete, and only so many of them.
type doomed struct {
	changes []Change // at most as many as may be offered
	limit   int
	count   int64 // of all that are gone
}

func (w *Watcher) newDoomed() *doomed {
	return &doomed{limit: max(doomBatch, w.o.MaxDeletes)}
}

func (d *doomed) add(c Change) {
	d.count++
	if len(d.changes) < d.limit {
		d.changes = append(d.changes, c)
	}
}

// offerGone offers that f is gone, or leaves that to the end of the scan.
func (p *offerer) offerGone(ctx context.Context, f *finding) error {
	c := Change{Path: f.path, Trigger: p.trigger, Detected: time.Now(), Kind: archive.Gone}
	if p.w.o.Mirror && f.known.Stored {
		p.doom(c)
		return nil
	}
	return p.offer(ctx, c)
}

// missedGone reports whether the removal of f counts as missed. In a mirror it
// may be found again and again, and counts once.
func (p *offerer) missedGone(f *finding) bool {
	if !p.isMissed(*f) || p.w.told.covers(f.path) || !p.w.goneLongAgo(f.path) {
		return false
	}
	if p.w.o.Mirror {
		p.w.told.add(f.path, false)
	}
	return true
}

// doom takes in that the stored file of c is gone. Only a scan of the whole
// source may find it so; any other look asks for one.
func (p *offerer) doom(c Change) {
	if p.doomed == nil {
		p.w.told.add(c.Path, true)
		p.w.requests.removals()
		return
	}
	if p.w.told.byEvent(c.Path) {
		c.Trigger = archive.TriggerEvent
	}
	c.Confirmed = true
	p.doomed.add(c)
}

// decide ends a complete scan of a mirrored source: it offers what is gone for
// deletion, or holds all of it back. The identity has been verified after the
// scan, and so are the mounts inside the source: one that went while the scan
// was under way took its files out of sight.
func (w *Watcher) decide(ctx context.Context, p *offerer, res *ScanResult) error {
	d := p.doomed
	kept := d.changes[:0]
	for _, c := range d.changes {
		if w.withheld(c.Path) {
			d.count--
			res.Gone--
			res.Withheld++
			continue
		}
		kept = append(kept, c)
	}
	if reason := w.holds(d.count, p.consented, res); reason != "" {
		res.Held = d.count
		w.held.Store(d.count)
		w.log.Error("nothing is deleted in the mirror until 's3syncd rescan --confirm-deletes', or until a scan finds otherwise",
			zap.String("reason", reason), zap.Int64("gone", d.count), zap.Int("max_deletes", w.o.MaxDeletes),
			zap.Int64("unreadable", res.Unreadable))
		return nil
	}
	w.held.Store(0)
	rest := d.count - int64(len(kept))
	if !p.consented && w.consent.remaining() == 0 {
		var err error
		if kept, res.Waiting, err = w.losses.judge(w.index, kept); err != nil {
			return err
		}
	}
	if res.Waiting > 0 {
		w.log.Info("a directory of the mirror lost most of its files at once: they are deleted when a second scan finds the same",
			zap.Int64("waiting", res.Waiting))
		w.requests.removals()
	}
	w.consent.spend(d.count, int64(len(kept)), p.consented)
	for _, c := range kept {
		if err := p.offer(ctx, c); err != nil {
			return err
		}
		w.told.remove(c.Path)
	}
	if rest > 0 {
		w.requests.scan(triggerRemoval)
	}
	return nil
}

// scanAgain scans a second time where res left deletions waiting, and adds what
// that decides to res.
func (p *offerer) scanAgain(ctx context.Context, id safefs.Identity, res *ScanResult) {
	if !res.Complete || res.Waiting == 0 || wait(ctx, p.w.t.second) != nil {
		return
	}
	again := p.w.whole(ctx, id, res.Trigger, p, &goneOnly{p})
	res.End, res.Complete, res.Err = again.End, again.Complete, again.Err
	res.Gone += again.Gone - res.Waiting
	res.Waiting, res.Held, res.Withheld = again.Waiting, again.Held, again.Withheld
}

// holds says why count deletions must wait for a person, "" when they need not.
func (w *Watcher) holds(count int64, consented bool, res *ScanResult) string {
	switch {
	case count == 0, consented, count <= w.consent.remaining():
		return ""
	case count > int64(w.o.MaxDeletes):
		return "more files are gone than max_deletes"
	case res.Unreadable > 0:
		return "parts of the source cannot be read"
	case res.Files == 0:
		return "the source has no file left"
	}
	return ""
}

// HeldDeletes returns how many files of a mirrored source the last scan found
// gone whose objects stay until ConfirmDeletes is called.
func (w *Watcher) HeldDeletes() int64 { return w.held.Load() }

// consent is what a person allowed. It may be used concurrently.
type consent struct {
	mu    sync.Mutex
	asked bool  // the next scan that is complete may delete what it finds gone
	left  int64 // of what that scan counted, not offered yet
}

func (c *consent) give() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = true
}

// take reports whether a scan that begins now has a person's consent. It goes
// back with give when the scan is not complete.
func (c *consent) take() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	asked := c.asked
	c.asked = false
	return asked
}

func (c *consent) remaining() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.left
}

// spend takes in that n of count deletions are offered. Consent reaches no
// further than what the first scan with it counted.
func (c *consent) spend(count, n int64, fresh bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if fresh || count < c.left {
		c.left = count
	}
	c.left = max(0, c.left-n)
}

// toldSet are removals that no scan has had deleted yet: those that events told
// of, and those that were counted as missed. It may be used concurrently; the
// zero value is empty.
type toldSet struct {
	mu    sync.Mutex
	paths map[string]bool // true: by an event
	full  bool            // more than are kept: every removal counts as told
}

func (t *toldSet) add(path string, byEvent bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.paths == nil {
		t.paths = make(map[string]bool)
	}
	if len(t.paths) >= maxTold {
		t.full = true
		return
	}
	t.paths[path] = byEvent
}

func (t *toldSet) byEvent(path string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.paths[path]
}

// covers reports whether the removal of path is not news: it is in the set, or
// too many are.
func (t *toldSet) covers(path string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.paths[path]
	return ok || t.full
}

func (t *toldSet) remove(path string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.paths, path)
	if len(t.paths) == 0 {
		t.full = false
	}
}

func (t *toldSet) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.paths, t.full = nil, false
}
