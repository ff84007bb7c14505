package queue

import (
	"container/heap"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// Task is one path in the queue, from its first offer until a worker is done with
// it and it was not offered again. Between Pop and the call that ends the attempt
// (Done, Delay, PutBack or AwaitSlot) the task belongs to the worker: only that
// worker may use it, and the job does not change.
//
// In an outage every changed path of the host may wait here, so the size of a
// task decides what an outage costs in memory.
type Task struct {
	// Stuck marks a path that fails again and again, or cannot be read: no barrier
	// waits for it. The worker sets it before Delay; Pop clears it.
	Stuck bool

	s         *Source
	path      string // From here to confirmed: the job.
	trigger   archive.Trigger
	err       error
	detected  int64 // Nanoseconds since 1970, 0: not known.
	kind      archive.Kind
	confirmed bool

	at    place
	held  bool          // Delayed until an operator has acted, or for long.
	retry bool          // In the source's retries, or taken from there.
	lane  Lane          // Whose slot it has.
	wants Lane          // Whose slot it waits for.
	slot  int32         // Index in the heap of delayed tasks, -1 outside it.
	due   time.Duration // placeDelayed: since the queue's epoch.
	mark  uint64        // How many barriers of the source were set before its last offer.

	prev, next *Task // The tasks of a source in the order of their first offers.

	streak *Streak // nil after a success.
	again  *offer  // Made while a worker has the path.
}

// place says where in its source's part a task is.
type place uint8

const (
	placeReady place = iota
	placeAside
	placeFlight
	placeDelayed
)

// offer is one offer of a path that a worker has.
type offer struct {
	job  Job
	mark uint64
}

// Streak is what the worker remembers of a path's failures in a row. Few of the
// waiting paths have one.
type Streak struct {
	Since    time.Time // The first failure.
	ParkedAt time.Time // When it met an error that parks its destination, which a canary then judges.
	Cause    string    // Class and code of the refusal that held it.
	Tries    int       // Failures so far.
	Alone    bool      // The refusal concerned this path only: its destination works.
}

// Job returns what the task asks for.
func (t *Task) Job() Job {
	j := Job{Source: t.s.name, Path: t.path, Kind: t.kind, Err: t.err, Trigger: t.trigger, Confirmed: t.confirmed}
	if t.detected != 0 {
		j.Detected = time.Unix(0, t.detected)
	}
	return j
}

func (t *Task) set(j *Job) {
	t.kind, t.err, t.trigger, t.confirmed, t.detected = j.Kind, j.Err, j.Trigger, j.Confirmed, 0
	if !j.Detected.IsZero() {
		t.detected = j.Detected.UnixNano()
	}
}

func (t *Task) merge(later Job) {
	j := t.Job()
	j.merge(later)
	t.set(&j)
}

// Streak returns the task's failures in a row, for the worker to change.
func (t *Task) Streak() *Streak {
	if t.streak == nil {
		t.streak = &Streak{}
	}
	return t.streak
}

// Tries returns how often in a row the task has failed.
func (t *Task) Tries() int {
	if t.streak == nil {
		return 0
	}
	return t.streak.Tries
}

// Cause returns the refusal that held the task, "" if there was none.
func (t *Task) Cause() string {
	if t.streak == nil {
		return ""
	}
	return t.streak.Cause
}

// Done removes the task from the queue and forgets its failures. If the path was
// offered while the worker had it, the task is ready again instead.
func (t *Task) Done() {
	t.s.q.mu.Lock()
	defer t.s.q.mu.Unlock()
	s := t.land()
	if t.again == nil {
		s.remove(t)
		return
	}
	s.barriers.pass(t.mark, t.again.mark)
	t.set(&t.again.job)
	t.mark, t.again, t.streak = t.again.mark, nil, nil
	s.makeReady(t)
}

// Delay makes the task ready again at due, or at once if the path was offered
// while the worker had it. A held task waits for an operator: it does not count
// towards the source's bound, and when as many are held as that bound allows it
// is dropped, because the next scan offers the path again.
func (t *Task) Delay(due time.Time, held bool) {
	t.s.q.mu.Lock()
	defer t.s.q.mu.Unlock()
	s := t.land()
	switch {
	case t.again != nil:
		t.merge(t.again.job)
		t.again = nil
		s.makeReady(t)
		return
	case held && s.held >= s.q.perSource:
		s.remove(t)
		return
	case held:
		s.held++
	}
	t.at, t.due, t.held = placeDelayed, due.Sub(s.q.epoch), held
	if held || t.Stuck {
		s.barriers.pass(t.mark, s.barriers.set)
		t.mark = s.barriers.set
	}
	heap.Push(&s.delayed, t)
	s.q.setAlarm()
	s.q.room.Broadcast()
}

// PutBack ends an attempt that did not take place: the task is the next one of
// its source.
func (t *Task) PutBack() {
	t.s.q.mu.Lock()
	defer t.s.q.mu.Unlock()
	s := t.land()
	if t.again != nil {
		t.merge(t.again.job)
		t.again = nil
	}
	t.at = placeReady
	s.ready.pushFront(t)
	s.q.work.Signal()
}

// TakeSlot gives the task a slot of lane l and reports whether there was one. If
// there was none the worker calls AwaitSlot.
func (t *Task) TakeSlot(l Lane) bool {
	if l == LaneTiny {
		return true
	}
	t.s.q.mu.Lock()
	defer t.s.q.mu.Unlock()
	if t.lane >= l {
		return true
	}
	t.leaveLane()
	if !t.s.enter(l) {
		t.wants = l
		return false
	}
	t.lane = l
	return true
}

// AwaitSlot ends the attempt until there is a slot of the lane that TakeSlot did
// not get. From then on the task is no retry, but in its lane.
func (t *Task) AwaitSlot() {
	t.s.q.mu.Lock()
	defer t.s.q.mu.Unlock()
	s := t.land()
	t.at = placeAside
	s.aside[t.wants].pushBack(t)
	s.q.work.Signal()
}

// land takes the task and its slot from the worker. What it frees may let another
// task start. The caller holds the queue's lock.
func (t *Task) land() *Source {
	s := t.s
	s.inFlight--
	s.q.attempts.Release(s.name, 1)
	t.leaveLane()
	if t.retry {
		t.retry = false
		s.retrying--
	}
	s.q.work.Signal()
	return s
}

func (t *Task) leaveLane() {
	if t.lane == LaneTiny {
		return
	}
	t.s.inLane[t.lane]--
	if t.lane == LaneLarge {
		t.s.q.large.Release(t.s.name, 1)
	}
	t.lane = LaneTiny
}
