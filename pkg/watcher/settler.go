package watcher

import (
	"container/heap"
	"strings"
	"time"

	"github.com/s3syncd/s3syncd/internal/relpath"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

const (
	// So many names of one directory are kept once maxNames are kept in all:
	// beyond that the directory is listed instead.
	maxPerDir = 64
	maxNames  = 16_384
	// So many directories may be dirty; beyond that the source is scanned.
	maxDirs = 200_000
	// The size that one max_delay stands for.
	maxDelayUnit = 64 << 20
)

// settler holds what changed until it is quiet. It is a value without locks:
// time is passed in, and what is due is handed out one by one.
type settler struct {
	settle, maxDelay time.Duration
	dirs             map[string]*dirtyDir
	due              itemHeap
	names            int
	overflowed       bool // too much changed to be remembered
}

// dirtyDir is one directory in which something changed.
type dirtyDir struct {
	path  string
	names map[string]*item
	list  *item // the directory itself is to be listed
}

// item is one name, or one directory to list. While it is handed out, touches
// go on changing last and after; whoever has it in hand reads handed instead.
type item struct {
	dir     *dirtyDir
	name    string // "" for a listing
	trigger archive.Trigger
	first   time.Time // of the changes since it was last handed on
	last    time.Time
	handed  time.Time // last, when it was handed out
	begun   time.Time // set in hand: what first becomes with again; zero: as it is
	after   time.Time // not before; zero: when it is quiet
	at      time.Time // when the heap hands it out; never later than it is due
	seen    *safefs.Stat
	seenAt  time.Time
	tries   int
	index   int // in the heap, -1: handed out
}

func (it *item) path() string {
	if it.name == "" {
		return it.dir.path
	}
	return relpath.Join(it.dir.path, it.name)
}

func newSettler(settle, maxDelay time.Duration) *settler {
	return &settler{settle: settle, maxDelay: maxDelay, dirs: make(map[string]*dirtyDir)}
}

// touch notes that path changed.
func (s *settler) touch(path string, now time.Time, trigger archive.Trigger) {
	dir := relpath.Parent(path)
	name := path
	if dir != "" {
		name = path[len(dir)+1:]
	}
	d := s.dir(dir)
	if d == nil || name == "" {
		return
	}
	if it := d.names[name]; it != nil {
		it.last, it.after = now, time.Time{}
		return
	}
	if s.names >= maxNames && (d.list != nil || len(d.names) >= maxPerDir) {
		s.collapse(d, now, trigger)
		return
	}
	if d.names == nil {
		d.names = make(map[string]*item)
	}
	it := &item{dir: d, name: strings.Clone(name), trigger: trigger, first: now, last: now}
	d.names[it.name] = it
	s.names++
	s.push(it, now.Add(min(s.settle, s.maxDelay)))
}

// list notes that the directory dir is to be compared with the index.
func (s *settler) list(dir string, now time.Time, trigger archive.Trigger) {
	d := s.dir(dir)
	if d == nil {
		return
	}
	if d.list != nil {
		d.list.last, d.list.after = now, time.Time{}
		return
	}
	d.list = &item{dir: d, trigger: trigger, first: now, last: now}
	s.push(d.list, now.Add(min(s.settle, s.maxDelay)))
}

// collapse forgets the names of d: a listing finds them again. What goes on
// changing does not keep the listing from being due, because it leaves out the
// files that are not quiet and is repeated for them.
func (s *settler) collapse(d *dirtyDir, now time.Time, trigger archive.Trigger) {
	if d.list == nil {
		first := now
		for _, it := range d.names {
			if it.first.Before(first) {
				first = it.first
			}
		}
		d.list = &item{dir: d, trigger: trigger, first: first, last: now}
		s.push(d.list, now.Add(s.settle))
	} else if d.list.index < 0 { // Handed out: the listing may be past the name.
		d.list.last = now
	}
	for _, it := range d.names {
		if it.index >= 0 {
			heap.Remove(&s.due, it.index)
		}
	}
	s.names -= len(d.names)
	d.names = nil
}

// dir returns the state of a directory, nil when there are too many.
func (s *settler) dir(path string) *dirtyDir {
	d := s.dirs[path]
	if d != nil {
		return d
	}
	if len(s.dirs) >= maxDirs {
		s.reset()
		s.overflowed = true
	}
	if s.overflowed {
		return nil
	}
	d = &dirtyDir{path: strings.Clone(path)}
	s.dirs[d.path] = d
	return d
}

// reset forgets everything.
func (s *settler) reset() {
	s.dirs = make(map[string]*dirtyDir)
	s.due, s.names, s.overflowed = itemHeap{}, 0, false
}

func (s *settler) push(it *item, at time.Time) {
	it.at = at
	heap.Push(&s.due, it)
}

// next returns when pop may hand something out, the zero time for never.
func (s *settler) next() time.Time {
	if s.due.Len() == 0 {
		return time.Time{}
	}
	return s.due.items[0].at
}

// pop hands out one item that is due, nil for none. The caller ends it with
// done or again.
func (s *settler) pop(now time.Time) *item {
	for s.due.Len() > 0 && !s.due.items[0].at.After(now) {
		it := s.due.items[0]
		if d := s.dueAt(it); d.After(now) { // Touched since it was pushed.
			it.at = d
			heap.Fix(&s.due, 0)
			continue
		}
		heap.Pop(&s.due)
		it.handed = it.last
		return it
	}
	return nil
}

// dueAt returns when it has been quiet for long enough, or has waited for too
// long.
func (s *settler) dueAt(it *item) time.Time {
	at := it.last.Add(s.settle)
	if m := it.first.Add(s.maxDelay); m.Before(at) {
		at = m
	}
	if it.after.After(at) {
		at = it.after
	}
	return at
}

// done ends an item, unless it was touched since it was handed out.
func (s *settler) done(it *item) {
	d := it.dir
	if s.dirs[d.path] != d {
		return // Everything was forgotten meanwhile.
	}
	if it.last.After(it.handed) && (d.list == it || d.names[it.name] == it) {
		it.first, it.seen, it.tries = it.last, nil, 0
		s.push(it, s.dueAt(it))
		return
	}
	if d.list == it {
		d.list = nil
	} else if d.names[it.name] == it {
		delete(d.names, it.name)
		s.names--
	}
	if d.list == nil && len(d.names) == 0 {
		delete(s.dirs, d.path)
	}
}

// again hands it out once more, at the given time.
func (s *settler) again(it *item, at time.Time) {
	d := it.dir
	if s.dirs[d.path] != d || d.list != it && d.names[it.name] != it {
		return // Forgotten or collapsed meanwhile.
	}
	if !it.begun.IsZero() {
		it.first, it.begun = it.begun, time.Time{}
	}
	it.after = at
	s.push(it, at)
}

// has reports whether path waits to settle by itself.
func (s *settler) has(path string) bool {
	dir := relpath.Parent(path)
	d := s.dirs[dir]
	if d == nil {
		return false
	}
	name := path
	if dir != "" {
		name = path[len(dir)+1:]
	}
	return d.names[name] != nil
}

// covered reports whether path waits to settle, by itself, with its directory
// or with one above that.
func (s *settler) covered(path string) bool {
	if s.has(path) {
		return true
	}
	for dir := path; dir != ""; {
		if s.has(dir) { // A parent that came or went.
			return true
		}
		dir = relpath.Parent(dir)
		if d := s.dirs[dir]; d != nil && d.list != nil {
			return true
		}
	}
	return false
}

func (s *settler) len() int {
	n := s.names
	for _, d := range s.dirs {
		if d.list != nil {
			n++
		}
	}
	return n
}

func (s *settler) oldest() time.Time {
	var oldest time.Time
	see := func(it *item) {
		if it != nil && (oldest.IsZero() || it.first.Before(oldest)) {
			oldest = it.first
		}
	}
	for _, d := range s.dirs {
		see(d.list)
		for _, it := range d.names {
			see(it)
		}
	}
	return oldest
}

// view is what is known of a file that may be quiet.
type view struct {
	now         time.Time
	first, last time.Time // events
	st          safefs.Stat
	seen        *safefs.Stat // by an earlier look, nil for none
	seenAt      time.Time
	localClock  bool // ctime is this host's clock
}

// quiet decides whether a file is offered now or looked at again at next. It is
// when its content and attributes have not changed for settle: no event came,
// and either its ctime, which no program can set and every change moves, is
// that old, or two looks that far apart saw the same. Forced says that it was
// not, but has waited for max_delay.
func (s *settler) quiet(v view) (offer, forced bool, next time.Time) {
	limit := v.first.Add(s.limit(v.st.Size))
	if !v.now.Before(limit) {
		return true, true, time.Time{}
	}
	next = v.last.Add(s.settle)
	if next.After(v.now) {
		return false, false, earlier(next, limit)
	}
	age := time.Duration(v.now.UnixNano() - v.st.CtimeNs)
	switch {
	case v.localClock && age >= s.settle:
		return true, false, time.Time{}
	case v.localClock && age >= 0:
		next = v.now.Add(s.settle - age)
	case v.seen == nil || !sameFence(*v.seen, v.st):
		next = v.now.Add(s.settle)
	default:
		next = v.seenAt.Add(s.settle)
		if !next.After(v.now) {
			return true, false, time.Time{}
		}
	}
	return false, false, earlier(next, limit)
}

// limit returns how long a file of this size may stay restless.
func (s *settler) limit(size int64) time.Duration {
	units := max(1, (size+maxDelayUnit-1)/maxDelayUnit)
	if units > int64(1<<62/s.maxDelay) {
		return 1 << 62
	}
	return s.maxDelay * time.Duration(units)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// sameFence reports whether a and b are the same content of one inode.
func sameFence(a, b safefs.Stat) bool {
	return a.Size == b.Size && a.MtimeNs == b.MtimeNs && a.CtimeNs == b.CtimeNs && a.Ino == b.Ino
}

// itemHeap orders items by when they are handed out.
type itemHeap struct{ items []*item }

// Len implements heap.Interface.
func (h *itemHeap) Len() int { return len(h.items) }

// Less implements heap.Interface.
func (h *itemHeap) Less(i, j int) bool { return h.items[i].at.Before(h.items[j].at) }

// Swap implements heap.Interface.
func (h *itemHeap) Swap(i, j int) {
	h.items[i], h.items[j] = h.items[j], h.items[i]
	h.items[i].index, h.items[j].index = i, j
}

// Push implements heap.Interface.
func (h *itemHeap) Push(x any) {
	if it, ok := x.(*item); ok {
		it.index = len(h.items)
		h.items = append(h.items, it)
	}
}

// Pop implements heap.Interface.
func (h *itemHeap) Pop() any {
	last := len(h.items) - 1
	it := h.items[last]
	h.items[last] = nil
	h.items = h.items[:last]
	it.index = -1
	return it
}
