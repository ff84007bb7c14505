// Package debounce holds what changed in a source until it is quiet: until no
// event has come for a while and the file itself shows no younger change, or
// until it has waited for too long.
package debounce

import (
	"container/heap"
	"strings"
	"sync"
	"time"

	"github.com/s3syncd/s3syncd/internal/relpath"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

const (
	// When maxNames names are pending in all, a directory with more than maxPerDir
	// of them is listed instead.
	maxPerDir = 64
	maxNames  = 16_384
	// When maxDirs directories have something pending, everything is forgotten and
	// the source has to be scanned.
	maxDirs = 200_000
)

// Debouncer holds the paths that changed and the directories to list. One
// goroutine takes what is due with Pop and ends it with Done or Again; the other
// methods may be called concurrently.
type Debouncer struct {
	delays delays
	wake   chan struct{}

	mu         sync.Mutex
	dirs       map[string]*directory
	due        dueHeap
	names      int
	overflowed bool
}

// Touched is one path that changed.
type Touched struct {
	Path string
	At   time.Time
}

// New returns an empty Debouncer. A path is due when it has been quiet for settle,
// or has been pending for maxDelay, which large files have several times.
func New(settle, maxDelay time.Duration) *Debouncer {
	return &Debouncer{delays: delays{settle: settle, max: maxDelay}, wake: make(chan struct{}, 1), dirs: make(map[string]*directory)}
}

// Wake returns a channel that receives after Touch and List: Next may be sooner.
func (d *Debouncer) Wake() <-chan struct{} { return d.wake }

// Touch notes that path changed, or may have, at the given time.
func (d *Debouncer) Touch(path string, at time.Time, trigger archive.Trigger) {
	d.mu.Lock()
	d.touch(path, at, trigger)
	d.mu.Unlock()
	d.signal()
}

// TouchAll is Touch for several paths. It is for the goroutine that calls Pop,
// and does not wake it.
func (d *Debouncer) TouchAll(list []Touched, trigger archive.Trigger) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, t := range list {
		d.touch(t.Path, t.At, trigger)
	}
}

func (d *Debouncer) touch(path string, at time.Time, trigger archive.Trigger) {
	parent, name := split(path)
	dir := d.dir(parent)
	if dir == nil || name == "" {
		return
	}
	if p := dir.names[name]; p != nil {
		p.last, p.after = at, time.Time{}
		return
	}
	if d.names >= maxNames && (dir.list != nil || len(dir.names) >= maxPerDir) {
		d.collapse(dir, at, trigger)
		return
	}
	if dir.names == nil {
		dir.names = make(map[string]*Pending)
	}
	p := &Pending{dir: dir, name: strings.Clone(name), trigger: trigger, first: at, last: at}
	dir.names[p.name] = p
	d.names++
	d.push(p, at.Add(d.delays.least()))
}

// List notes that the directory dir, without its subdirectories, is to be
// compared with the index.
func (d *Debouncer) List(dir string, at time.Time, trigger archive.Trigger) {
	defer d.signal()
	d.mu.Lock()
	defer d.mu.Unlock()
	in := d.dir(dir)
	switch {
	case in == nil:
	case in.list != nil:
		in.list.last, in.list.after = at, time.Time{}
	default:
		in.list = &Pending{dir: in, trigger: trigger, first: at, last: at}
		d.push(in.list, at.Add(d.delays.least()))
	}
}

// collapse replaces the names of dir by a listing, which finds them again. Further
// changes do not postpone it: it leaves out the files that are not quiet and is
// repeated for them.
func (d *Debouncer) collapse(dir *directory, at time.Time, trigger archive.Trigger) {
	if dir.list == nil {
		first := at
		for _, p := range dir.names {
			if p.first.Before(first) {
				first = p.first
			}
		}
		dir.list = &Pending{dir: dir, trigger: trigger, first: first, last: at}
		d.push(dir.list, at.Add(d.delays.settle))
	} else if dir.list.index < 0 { // Handed out: the listing may have passed the name.
		dir.list.last = at
	}
	for _, p := range dir.names {
		if p.index >= 0 {
			heap.Remove(&d.due, p.index)
		}
	}
	d.names -= len(dir.names)
	dir.names = nil
}

// dir returns the entry of a directory, nil when there are too many.
func (d *Debouncer) dir(path string) *directory {
	if dir := d.dirs[path]; dir != nil {
		return dir
	}
	if len(d.dirs) >= maxDirs {
		d.reset()
		d.overflowed = true
	}
	if d.overflowed {
		return nil
	}
	dir := &directory{path: strings.Clone(path)}
	d.dirs[dir.path] = dir
	return dir
}

func (d *Debouncer) push(p *Pending, at time.Time) {
	p.at = at
	heap.Push(&d.due, p)
}

// Reset forgets everything.
func (d *Debouncer) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reset()
}

func (d *Debouncer) reset() {
	d.dirs = make(map[string]*directory)
	d.due, d.names, d.overflowed = nil, 0, false
}

// TakeOverflow reports whether more changed than is kept, and begins again with
// nothing: a scan has to find what changed.
func (d *Debouncer) TakeOverflow() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.overflowed {
		return false
	}
	d.reset()
	return true
}

// Next returns when Pop may return something, the zero time for never.
func (d *Debouncer) Next() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.due) == 0 {
		return time.Time{}
	}
	return d.due[0].at
}

// Pop hands out what is due at now, one at a time, nil if nothing is.
func (d *Debouncer) Pop(now time.Time) *Pending {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.due) > 0 && !d.due[0].at.After(now) {
		p := d.due[0]
		if at := d.delays.due(p); at.After(now) { // Touched since it was pushed.
			p.at = at
			heap.Fix(&d.due, 0)
			continue
		}
		heap.Pop(&d.due)
		p.handed = p.last
		return p
	}
	return nil
}

// Done ends p. If it was touched since Pop, it is pending again.
func (d *Debouncer) Done(p *Pending) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.holds(p) {
		return
	}
	dir := p.dir
	switch {
	case p.last.After(p.handed):
		p.first, p.seen, p.Tries = p.last, nil, 0
		d.push(p, d.delays.due(p))
		return
	case dir.list == p:
		dir.list = nil
	default:
		delete(dir.names, p.name)
		d.names--
	}
	if dir.list == nil && len(dir.names) == 0 {
		delete(d.dirs, dir.path)
	}
}

// Again has p handed out once more, at the given time.
func (d *Debouncer) Again(p *Pending, at time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.holds(p) {
		return
	}
	if !p.restart.IsZero() {
		p.first, p.restart = p.restart, time.Time{}
	}
	p.after = at
	d.push(p, at)
}

// holds reports whether p was neither forgotten nor collapsed since it was handed
// out.
func (d *Debouncer) holds(p *Pending) bool {
	return d.dirs[p.dir.path] == p.dir && (p.dir.list == p || p.dir.names[p.name] == p)
}

// Has reports whether path itself is pending.
func (d *Debouncer) Has(path string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.has(path)
}

func (d *Debouncer) has(path string) bool {
	parent, name := split(path)
	dir := d.dirs[parent]
	return dir != nil && dir.names[name] != nil
}

// Covered reports whether path is pending, by itself, with its directory or with
// one above that.
func (d *Debouncer) Covered(path string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for up := path; ; {
		if d.has(up) { // Or a parent that was created or removed.
			return true
		}
		if up == "" {
			return false
		}
		up = relpath.Parent(up)
		if dir := d.dirs[up]; dir != nil && dir.list != nil {
			return true
		}
	}
}

// Len returns how many paths and listings are pending.
func (d *Debouncer) Len() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.names
	for _, dir := range d.dirs {
		if dir.list != nil {
			n++
		}
	}
	return n
}

// Oldest returns when the first change of what has been pending longest was
// seen, the zero time if nothing is.
func (d *Debouncer) Oldest() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	var oldest time.Time
	see := func(p *Pending) {
		if p != nil && (oldest.IsZero() || p.first.Before(oldest)) {
			oldest = p.first
		}
	}
	for _, dir := range d.dirs {
		see(dir.list)
		for _, p := range dir.names {
			see(p)
		}
	}
	return oldest
}

func (d *Debouncer) signal() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

func split(path string) (dir, name string) {
	dir = relpath.Parent(path)
	if dir == "" {
		return "", path
	}
	return dir, path[len(dir)+1:]
}
