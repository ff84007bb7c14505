package watcher

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/s3syncd/s3syncd/internal/relpath"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// requests merges what the scanner is asked for: at most one scan of the source
// and one poll wait.
type requests struct {
	mu      sync.Mutex
	trigger archive.Trigger // of the scan that waits, "" for none
	poll    bool
	removed bool // a scan is wanted that decides on removals
	wake    chan struct{}
}

func newRequests() *requests { return &requests{wake: make(chan struct{}, 1)} }

// scan asks for a scan. A person's request lends its trigger to one that waits.
func (r *requests) scan(trigger archive.Trigger) {
	r.mu.Lock()
	if r.trigger == "" || trigger == archive.TriggerHangup {
		r.trigger = trigger
	}
	r.mu.Unlock()
	r.signal()
}

// polls asks for a scan of what is polled.
func (r *requests) polls() {
	r.mu.Lock()
	r.poll = true
	r.mu.Unlock()
	r.signal()
}

// removals asks for a scan that decides on removals. Any scan will do.
func (r *requests) removals() {
	r.mu.Lock()
	r.removed = true
	r.mu.Unlock()
	r.signal()
}

// wantsRemovals reports whether such a scan waits.
func (r *requests) wantsRemovals() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.removed
}

func (r *requests) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// take returns what waits and forgets it. A scan because of removals goes on
// waiting unless they are due.
func (r *requests) take(removalsDue bool) (trigger archive.Trigger, poll bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	trigger, poll = r.trigger, r.poll
	if trigger == "" && r.removed && removalsDue {
		trigger = triggerRemoval
	}
	r.trigger, r.poll = "", false
	r.removed = r.removed && trigger == ""
	return trigger, poll
}

// maxIntake events may wait to be settled, and as many directories to be
// watched. Beyond that events count as lost.
const maxIntake = 131_072

// intake hands what one goroutine saw to another without blocking the first.
type intake[T any] struct {
	mu    sync.Mutex
	items []T
	wake  chan struct{}
	n     atomic.Int64 // for those who only want to know whether there is work
}

func newIntake[T any]() *intake[T] { return &intake[T]{wake: make(chan struct{}, 1)} }

// add returns false when too much waits.
func (q *intake[T]) add(x T) bool {
	q.mu.Lock()
	if len(q.items) >= maxIntake {
		q.mu.Unlock()
		return false
	}
	q.items = append(q.items, x)
	q.n.Store(int64(len(q.items)))
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
	return true
}

// take returns what waits, in order, and gives the memory of buf to what comes.
func (q *intake[T]) take(buf []T) []T {
	clear(buf)
	q.mu.Lock()
	defer q.mu.Unlock()
	items := q.items
	q.items = buf[:0]
	q.n.Store(0)
	return items
}

// dirtySet is the settler, shared by those who find changes.
type dirtySet struct {
	mu   sync.Mutex
	s    *settler
	busy busySet
	wake chan struct{}
}

func newDirtySet(s *settler) *dirtySet { return &dirtySet{s: s, wake: make(chan struct{}, 1)} }

func (d *dirtySet) touch(path string, now time.Time, trigger archive.Trigger) {
	d.mu.Lock()
	d.s.touch(path, now, trigger)
	d.mu.Unlock()
	d.signal()
}

func (d *dirtySet) list(dir string, now time.Time, trigger archive.Trigger) {
	d.mu.Lock()
	d.s.list(dir, now, trigger)
	d.mu.Unlock()
	d.signal()
}

func (d *dirtySet) signal() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

func (d *dirtySet) has(path string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.s.has(path)
}

func (d *dirtySet) covered(path string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.s.covered(path)
}

func (d *dirtySet) len() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.s.len()
}

func (d *dirtySet) oldest() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.s.oldest()
}

func (d *dirtySet) reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.s.reset()
}

// pollRoot is a directory that is looked at from time to time instead of being
// watched, with everything below it.
type pollRoot struct {
	reason string
	dirs   int64 // below and with it, as last counted
}

// Reasons for polling.
const (
	pollLimit   = "limit"   // of watches or of watchers: tried again
	pollNetwork = "network" // others change the file system without events here
	pollAlias   = "alias"   // a directory that is watched under another path
	pollDeep    = "deep"    // its path is too long for a watch
	pollFailed  = "failed"  // the watch was refused for another reason: tried again
)

// pollSet is what is polled. It may be used concurrently.
type pollSet struct {
	mu    sync.Mutex
	roots map[string]pollRoot
	lists map[string]struct{} // single directories
}

func newPollSet() *pollSet {
	p := &pollSet{}
	p.reset()
	return p
}

func (p *pollSet) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.roots, p.lists = make(map[string]pollRoot), make(map[string]struct{})
}

func (p *pollSet) add(dir, reason string, dirs int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.roots[dir] = pollRoot{reason: reason, dirs: dirs}
}

// counted notes how many directories are at dir.
func (p *pollSet) counted(dir string, dirs int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r, ok := p.roots[dir]; ok {
		r.dirs = dirs
		p.roots[dir] = r
	}
}

func (p *pollSet) addList(dir string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lists[dir] = struct{}{}
}

// removeBelow forgets dir and everything below it.
func (p *pollSet) removeBelow(dir string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for r := range p.roots {
		if r == dir || relpath.Below(r, dir) {
			delete(p.roots, r)
		}
	}
	for l := range p.lists {
		if l == dir || relpath.Below(l, dir) {
			delete(p.lists, l)
		}
	}
}

// all returns copies in path order.
func (p *pollSet) all() (roots, lists []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for r := range p.roots {
		roots = append(roots, r)
	}
	for l := range p.lists {
		lists = append(lists, l)
	}
	slices.Sort(roots)
	slices.Sort(lists)
	return roots, lists
}

// retryable returns what might be watched by now.
func (p *pollSet) retryable() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for dir, r := range p.roots {
		if r.reason == pollLimit || r.reason == pollFailed {
			out = append(out, dir)
		}
	}
	slices.Sort(out)
	return out
}

// count returns the number of polled directories and of those that a limit
// keeps from being watched.
func (p *pollSet) count() (dirs, limited int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.roots {
		dirs += r.dirs
		if r.reason == pollLimit {
			limited += r.dirs
		}
	}
	return dirs + int64(len(p.lists)), limited
}
