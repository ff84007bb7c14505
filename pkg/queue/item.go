package queue

import (
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// Job is one path to be looked at. Jobs are hints: a worker looks for itself.
type Job struct {
	Source   string
	Path     string // Raw bytes below the source, slash-separated.
	Kind     archive.Kind
	Err      error // Refused only.
	Trigger  archive.Trigger
	Detected time.Time // When the change was first seen.
	// Confirmed allows a Gone job to delete the object of a source whose policy
	// is mirror. A later sight of the file takes it back.
	Confirmed bool
}

// place says where in its subqueue an item is.
type place uint8

const (
	placeReady place = iota
	placeAside
	placeFlight
	placeDelayed
)

// item is one path in the queue. It exists from its first offer until a look
// at it has ended without a reason for another. As many as there are paths on
// the host may wait in an outage: its size is the memory that an outage costs.
type Task struct {
	s        *subqueue
	path     string // These six are its Job.
	trigger  archive.Trigger
	err      error
	detected int64 // Nanoseconds since 1970, 0: not known.
	kind     archive.Kind

	confirmed bool
	at        place
	held      bool          // Delayed until a person has done something, or for long.
	lane      Lane          // Whose slot it holds.
	wants     Lane          // Whose slot it waits for.
	Stuck     bool          // It fails again and again, or cannot be read: no barrier waits for it.
	retry     bool          // In the lane of retries, or in hand from there.
	slot      int32         // Index in the heap of delayed items, -1 outside it.
	due       time.Duration // placeDelayed: since the queue's epoch.
	gen       uint64        // Barriers of the source when it was offered.

	prev, next *Task // All items of a source in the order of their first offer.

	trouble *Streak // Its failures in a row, nil when there are none.
	again   *repeat // Offered while in flight.
}

// trouble is what few of the waiting paths have behind them.
type Streak struct {
	Since    time.Time // First of the failures in a row.
	ParkedAt time.Time // When it met an error that parks a destination, which a canary since has judged or will.
	Cause    string    // Of the refusal that held it: its class and code.
	Tries    int       // Failures in a row.
	Alone    bool      // It was taken to be refused alone, by a destination that works.
}

// repeat is an offer of a path that is in flight.
type repeat struct {
	job Job
	gen uint64
}

// job is what the item asks for.
func (it *Task) Job() Job {
	j := Job{Source: it.s.name, Path: it.path, Kind: it.kind, Err: it.err, Trigger: it.trigger, Confirmed: it.confirmed}
	if it.detected != 0 {
		j.Detected = time.Unix(0, it.detected)
	}
	return j
}

// set makes the item ask for what j does, of the same path.
func (it *Task) set(j *Job) {
	it.kind, it.err, it.trigger, it.confirmed, it.detected = j.Kind, j.Err, j.Trigger, j.Confirmed, 0
	if !j.Detected.IsZero() {
		it.detected = j.Detected.UnixNano()
	}
}

// merge takes in what a later offer of the same path says.
func (it *Task) merge(later Job) {
	j := it.Job()
	j.merge(later)
	it.set(&j)
}

// tries is how many failures in a row the item has behind it.
func (it *Task) Tries() int {
	if it.trouble == nil {
		return 0
	}
	return it.trouble.Tries
}

// cause names the refusal that held the item, "" when there was none.
func (it *Task) Cause() string {
	if it.trouble == nil {
		return ""
	}
	return it.trouble.Cause
}

// troubles returns the item's trouble, to be changed.
func (it *Task) Streak() *Streak {
	if it.trouble == nil {
		it.trouble = &Streak{}
	}
	return it.trouble
}

// merge takes in what a later offer of the same path says.
func (j *Job) merge(later Job) {
	j.Confirmed = later.Kind == archive.Gone && (later.Confirmed || j.Kind == archive.Gone && j.Confirmed)
	j.Kind, j.Err = later.Kind, later.Err
	if j.Detected.IsZero() || !later.Detected.IsZero() && later.Detected.Before(j.Detected) {
		j.Detected = later.Detected
	}
	if later.Trigger == archive.TriggerEvent || j.Trigger == "" {
		j.Trigger = later.Trigger
	}
}

// deque is a double-ended queue of items in a ring. The zero value is empty.
type deque struct {
	ring []*Task
	head int
	n    int
}

func (d *deque) pushBack(it *Task) {
	d.grow()
	d.ring[(d.head+d.n)%len(d.ring)] = it
	d.n++
}

func (d *deque) pushFront(it *Task) {
	d.grow()
	d.head = (d.head + len(d.ring) - 1) % len(d.ring)
	d.ring[d.head] = it
	d.n++
}

func (d *deque) popFront() *Task {
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
	ring := make([]*Task, max(16, 2*len(d.ring)))
	for i := range d.n {
		ring[i] = d.ring[(d.head+i)%len(d.ring)]
	}
	d.ring, d.head = ring, 0
}

// dueHeap orders delayed items by their time (container/heap).
type dueHeap []*Task

// Len is part of heap.Interface.
func (h *dueHeap) Len() int { return len(*h) }

// Less is part of heap.Interface.
func (h *dueHeap) Less(i, j int) bool { return (*h)[i].due < (*h)[j].due }

// Swap is part of heap.Interface.
func (h *dueHeap) Swap(i, j int) {
	s := *h
	s[i], s[j] = s[j], s[i]
	s[i].slot, s[j].slot = int32(i), int32(j)
}

// Push is part of heap.Interface.
func (h *dueHeap) Push(x any) {
	it, ok := x.(*Task)
	if !ok {
		return
	}
	it.slot = int32(len(*h))
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
