package debounce

import (
	"time"

	"github.com/s3syncd/s3syncd/internal/relpath"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// directory is one in which something changed.
type directory struct {
	path  string
	names map[string]*Pending
	list  *Pending // The directory itself is to be listed.
}

// Pending is one path, or one directory to list. From Pop to Done or Again it
// belongs to the caller of Pop. Touches change last and after all the same.
type Pending struct {
	Tries int // Attempts that failed in a row, for the holder to count.

	dir     *directory
	name    string // "" for a listing.
	trigger archive.Trigger
	first   time.Time // Of the changes since it was last handed on.
	last    time.Time
	handed  time.Time // last, when it was handed out.
	restart time.Time // What first becomes with Again; zero: no change.
	after   time.Time // Not before; zero: when it is quiet.
	at      time.Time // When the heap hands it out; never later than it is due.
	seen    *safefs.Stat
	seenAt  time.Time
	index   int // In the heap, -1: handed out.
}

// Path returns the path that changed, or the directory to list.
func (p *Pending) Path() string {
	if p.name == "" {
		return p.dir.path
	}
	return relpath.Join(p.dir.path, p.name)
}

// Listing reports whether p is a directory to list.
func (p *Pending) Listing() bool { return p.name == "" }

// Trigger returns what found the change.
func (p *Pending) Trigger() archive.Trigger { return p.trigger }

// First returns when the first change was seen, Last when the last one before p
// was handed out.
func (p *Pending) First() time.Time { return p.first }

// Last returns when the last change before p was handed out was seen.
func (p *Pending) Last() time.Time { return p.handed }

// Restart begins the time for which p may stay pending at now: the holder has
// offered a file that still changes.
func (p *Pending) Restart(now time.Time) { p.restart = now }

// dueHeap orders what is pending by when it is handed out (container/heap).
type dueHeap []*Pending

// Len implements heap.Interface.
func (h *dueHeap) Len() int { return len(*h) }

// Less implements heap.Interface.
func (h *dueHeap) Less(i, j int) bool { return (*h)[i].at.Before((*h)[j].at) }

// Swap implements heap.Interface.
func (h *dueHeap) Swap(i, j int) {
	s := *h
	s[i], s[j] = s[j], s[i]
	s[i].index, s[j].index = i, j
}

// Push implements heap.Interface.
func (h *dueHeap) Push(x any) {
	if p, ok := x.(*Pending); ok {
		p.index = len(*h)
		*h = append(*h, p)
	}
}

// Pop implements heap.Interface.
func (h *dueHeap) Pop() any {
	s := *h
	last := len(s) - 1
	p := s[last]
	s[last] = nil
	*h = s[:last]
	p.index = -1
	return p
}
