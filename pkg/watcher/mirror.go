package watcher

import (
	"context"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/relpath"
	"github.com/s3syncd/s3syncd/internal/scan"
)

const (
	// deleteBatch is how many deletions a scan offers when an operator has allowed
	// more than MaxDeletes; another scan offers the rest.
	deleteBatch = 4096
	// maxReported is how many removals that events reported are remembered one by one.
	maxReported = 16_384
	// fewLosses: a directory that loses fewer files at once is not remarkable.
	fewLosses = 2
)

// mirror decides which objects of a mirrored source are deleted. Its methods
// other than held and those of its parts are the scanner's.
type mirror struct {
	on         bool // false: the source is not mirrored, nothing is deleted.
	maxDeletes int
	index      scan.Index
	presence   *presence
	requests   *requests
	log        *zap.Logger

	reported reportedSet
	consent  consent
	losses   losses
	held     atomic.Int64
}

// deletions are what one scan of a whole mirrored source found gone: they are
// offered only when that scan is complete, and only up to limit.
type deletions struct {
	changes   []Change // At most as many as may be offered.
	limit     int
	count     int64 // Of all that are gone.
	consented bool  // An operator has allowed what this scan finds gone to be deleted.
}

func (d *deletions) add(c Change) {
	d.count++
	if len(d.changes) < d.limit {
		d.changes = append(d.changes, c)
	}
}

// begin begins a scan of the whole source; nil: it is not mirrored.
func (m *mirror) begin() *deletions {
	if !m.on {
		return nil
	}
	return &deletions{limit: max(deleteBatch, m.maxDeletes), consented: m.consent.take()}
}

// decide ends a complete scan of a mirrored source: it offers what is gone for
// deletion, or holds all of it back. The identity has been verified after the
// scan, and so are the mounts inside the source: one that went during the scan
// took its files out of sight.
func (m *mirror) decide(ctx context.Context, d *deletions, offer func(context.Context, Change) error, res *ScanResult) error {
	toDelete := d.changes[:0]
	for _, c := range d.changes {
		if m.presence.withheld(c.Path) {
			d.count--
			res.Gone--
			res.Withheld++
			continue
		}
		toDelete = append(toDelete, c)
	}
	if reason := m.holds(d.count, d.consented, res); reason != "" {
		res.Held = d.count
		m.held.Store(d.count)
		m.log.Error("nothing is deleted in the mirror until 's3syncd rescan --confirm-deletes', or until a scan finds otherwise",
			zap.String("reason", reason), zap.Int64("gone", d.count), zap.Int("max_deletes", m.maxDeletes),
			zap.Int64("unreadable", res.Unreadable))
		return nil
	}
	m.held.Store(0)
	rest := d.count - int64(len(toDelete))
	if !d.consented && m.consent.remaining() == 0 {
		var err error
		if toDelete, res.Waiting, err = m.losses.judge(m.index, toDelete); err != nil {
			return err
		}
	}
	if res.Waiting > 0 {
		m.log.Info("a directory of the mirror lost most of its files at once: they are deleted when a second scan finds the same",
			zap.Int64("waiting", res.Waiting))
		m.requests.removals()
	}
	m.consent.spend(d.count, int64(len(toDelete)), d.consented)
	for _, c := range toDelete {
		if err := offer(ctx, c); err != nil {
			return err
		}
		m.reported.remove(c.Path)
	}
	if rest > 0 {
		m.requests.scan(triggerRemoval)
	}
	return nil
}

// holds says why count deletions must wait for an operator, "" if they need not.
func (m *mirror) holds(count int64, consented bool, res *ScanResult) string {
	switch {
	case count == 0, consented, count <= m.consent.remaining():
		return ""
	case count > int64(m.maxDeletes):
		return "more files are gone than max_deletes"
	case res.Unreadable > 0:
		return "parts of the source cannot be read"
	case res.Files == 0:
		return "the source has no file left"
	}
	return ""
}

// consent is what an operator allowed. It may be used concurrently.
type consent struct {
	mu    sync.Mutex
	asked bool  // The next scan that is complete may delete what it finds gone.
	left  int64 // Of what that scan counted, not offered yet.
}

func (c *consent) give() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = true
}

// take reports whether a scan that begins now has an operator's consent. It is
// given back if the scan is not complete.
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

// spend notes that n of count deletions are offered. Consent reaches no further
// than what the first scan with it counted.
func (c *consent) spend(count, n int64, fresh bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if fresh || count < c.left {
		c.left = count
	}
	c.left = max(0, c.left-n)
}

// reportedSet are removals that no scan has had deleted yet: those that events
// reported, and those that were counted as missed. It may be used concurrently;
// the zero value is empty.
type reportedSet struct {
	mu    sync.Mutex
	paths map[string]bool // true: by an event.
	full  bool            // More than are kept: every removal counts as reported.
}

func (r *reportedSet) add(path string, byEvent bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.paths == nil {
		r.paths = make(map[string]bool)
	}
	if len(r.paths) >= maxReported {
		r.full = true
		return
	}
	r.paths[path] = byEvent
}

func (r *reportedSet) byEvent(path string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.paths[path]
}

// covers reports whether the removal of path is not news: it is in the set, or
// too many are.
func (r *reportedSet) covers(path string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.paths[path]
	return ok || r.full
}

func (r *reportedSet) remove(path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.paths, path)
	if len(r.paths) == 0 {
		r.full = false
	}
}

func (r *reportedSet) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.paths, r.full = nil, false
}

// losses are the directories of a mirrored source that had lost most of their
// files when the last scan of the whole source ended. Whatever hides a whole
// directory for a moment must not have its objects deleted, so what is gone from
// one waits for a second scan that finds it so.
type losses struct{ last map[string]struct{} }

// judge returns those of changes that need not wait, and how many do.
func (l *losses) judge(index scan.Index, changes []Change) (now []Change, waiting int64, err error) {
	gone := make(map[string]int)
	for _, c := range changes {
		gone[relpath.Parent(c.Path)]++
	}
	lost := make(map[string]struct{})
	for dir, n := range gone {
		if n < fewLosses {
			continue
		}
		all, err := scan.CountStored(index, dir, 2*n)
		if err != nil {
			return nil, 0, err
		}
		if all < 2*n {
			lost[dir] = struct{}{}
		}
	}
	for _, c := range changes {
		dir := relpath.Parent(c.Path)
		_, most := lost[dir]
		if _, again := l.last[dir]; most && !again {
			waiting++
			continue
		}
		now = append(now, c)
	}
	l.last = lost
	return now, waiting, nil
}
