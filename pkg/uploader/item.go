package uploader

import (
	"time"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// place says where in its subqueue an item is.
type place uint8

const (
	placeReady place = iota
	placeLarge
	placeFlight
	placeDelayed
)

// item is one path in the queue. It exists from its first offer until a look
// at it has ended without a reason for another.
type item struct {
	job    Job
	failed time.Time // First of the failures in a row, zero when there are none.
	parked time.Time // When it last met an error that parks a destination.
	due    time.Time // placeDelayed.
	again  *Job      // Offered while in flight.
	cause  string    // Of the refusal that held it: its class and code.

	prev, next *item // All items of a source in the order of their first offer.

	gen      uint64 // Barriers of the source when it was offered.
	againGen uint64
	tries    int // Failures in a row.
	slot     int // Index in the heap of delayed items, -1 outside it.
	at       place
	held     bool // Delayed until a person has done something, or for long.
	large    bool // Holds one of the slots for large files.
	alone    bool // Its destination works, it alone is refused.
	retry    bool // In the lane of retries, or in hand from there.
}

// merge takes in what a later offer of the same path says.
func (j *Job) merge(later Job) {
	j.Confirmed = later.Kind == Gone && (later.Confirmed || j.Kind == Gone && j.Confirmed)
	j.Kind, j.Err = later.Kind, later.Err
	if j.Detected.IsZero() || !later.Detected.IsZero() && later.Detected.Before(j.Detected) {
		j.Detected = later.Detected
	}
	if later.Trigger == state.TriggerEvent || j.Trigger == "" {
		j.Trigger = later.Trigger
	}
}

// deque is a double-ended queue of items in a ring. The zero value is empty.
type deque struct {
	ring []*item
	head int
	n    int
}

func (d *deque) pushBack(it *item) {
	d.grow()
	d.ring[(d.head+d.n)%len(d.ring)] = it
	d.n++
}

func (d *deque) pushFront(it *item) {
	d.grow()
	d.head = (d.head + len(d.ring) - 1) % len(d.ring)
	d.ring[d.head] = it
	d.n++
}

func (d *deque) popFront() *item {
	it := d.ring[d.head]
	d.ring[d.head] = nil
	d.head = (d.head + 1) % len(d.ring)
	d.n--
	if d.n == 0 {
		*d = deque{} // A burst does not hold its memory for ever.
	}
	return it
}

func (d *deque) grow() {
	if d.n < len(d.ring) {
		return
	}
	ring := make([]*item, max(16, 2*len(d.ring)))
	for i := range d.n {
		ring[i] = d.ring[(d.head+i)%len(d.ring)]
	}
	d.ring, d.head = ring, 0
}

// dueHeap orders delayed items by their time (container/heap).
type dueHeap []*item

// Len is part of heap.Interface.
func (h *dueHeap) Len() int { return len(*h) }

// Less is part of heap.Interface.
func (h *dueHeap) Less(i, j int) bool { return (*h)[i].due.Before((*h)[j].due) }

// Swap is part of heap.Interface.
func (h *dueHeap) Swap(i, j int) {
	s := *h
	s[i], s[j] = s[j], s[i]
	s[i].slot, s[j].slot = i, j
}

// Push is part of heap.Interface.
func (h *dueHeap) Push(x any) {
	it, ok := x.(*item)
	if !ok {
		return
	}
	it.slot = len(*h)
	*h = append(*h, it)
}

// Pop is part of heap.Interface.
func (h *dueHeap) Pop() any {
	s := *h
	it := s[len(s)-1]
	s[len(s)-1] = nil
	*h = s[:len(s)-1]
	it.slot = -1
	return it
}
