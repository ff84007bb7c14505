package queue

import (
	"container/heap"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// retryTurn: while new paths wait, one attempt in retryTurn is a retry.
const retryTurn = 4

// Source is the part of a Queue that belongs to one source.
type Source struct {
	q    *Queue
	name string

	tasks       map[string]*Task // By path. nil: the queue does not serve the source.
	first, last *Task            // In the order of their first offers.
	ready       deque
	retries     deque        // Ready again after a failure.
	aside       [Lanes]deque // Their lane is known, and they wait for a slot.
	delayed     dueHeap
	barriers    barriers

	inFlight int        // Tasks that workers have.
	retrying int        // Of those, from retries.
	inLane   [Lanes]int // Of those, with a slot of the lane.
	held     int        // Of the delayed tasks.
	turn     int        // Counts what take returned.

	limit   int // Tasks that workers may have at once.
	blocked bool
	paused  bool
}

func newSource(q *Queue, name string) *Source {
	return &Source{q: q, name: name, tasks: map[string]*Task{}, limit: 1 << 30}
}

// Pending reports whether path is in the queue, a worker has it, or it is delayed.
func (s *Source) Pending(path string) bool {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	return s.tasks[path] != nil
}

// Begun reports whether path is ready or a worker has it: pending, and not
// delayed.
func (s *Source) Begun(path string) bool {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	t := s.tasks[path]
	return t != nil && t.at != placeDelayed
}

// Paths returns the pending paths, in no order.
func (s *Source) Paths() []string {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	return slices.Collect(maps.Keys(s.tasks))
}

// Depth returns how many paths are ready, how many workers have, and how many
// wait for a retry. What is held is in none of the three.
func (s *Source) Depth() (queued, inFlight, delayed int) {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	queued = s.ready.n + s.retries.n
	for l := range s.aside {
		queued += s.aside[l].n
	}
	return queued, s.inFlight, len(s.delayed) - s.held
}

// Held returns how many paths wait for an operator, each by itself.
func (s *Source) Held() int {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	return s.held
}

// Waiting returns the job that has waited longest of those that no worker has and
// that are not held; ok is false if there is none.
func (s *Source) Waiting() (j Job, ok bool) {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	for t := s.first; t != nil; t = t.next {
		if !t.held && t.at != placeFlight {
			return t.Job(), true
		}
	}
	return Job{}, false
}

// Oldest returns when the path that has been in the queue longest was first
// seen, leaving out those that are held; the zero time if there is none.
func (s *Source) Oldest() time.Time {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	for t := s.first; t != nil; t = t.next {
		if !t.held {
			return t.Job().Detected
		}
	}
	return time.Time{}
}

// Wait blocks until no path is pending, held ones included. It fails when ctx
// ends first, and with ErrUnknownSource.
func (s *Source) Wait(ctx context.Context) error {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	if s.tasks == nil {
		return fmt.Errorf("wait: %w: %q", ErrUnknownSource, s.name)
	}
	return s.q.await(ctx, s.q.room, func() bool { return len(s.tasks) == 0 })
}

// Barrier blocks until every path that is pending now has left the queue, is
// held, is stuck, or had an attempt that began after its last offer before the
// call. Unlike Wait it ends while new paths keep coming. It fails when ctx ends
// first, and with ErrUnknownSource.
func (s *Source) Barrier(ctx context.Context) error {
	s.q.mu.Lock()
	if s.tasks == nil {
		s.q.mu.Unlock()
		return fmt.Errorf("barrier: %w: %q", ErrUnknownSource, s.name)
	}
	b := s.barriers.add(len(s.tasks))
	for _, t := range s.delayed {
		if t.held || t.Stuck {
			s.barriers.pass(t.mark, b.mark)
			t.mark = b.mark // It does not count, also if it is released before the end.
		}
	}
	s.q.mu.Unlock()

	select {
	case <-b.done:
		return nil
	case <-ctx.Done():
		s.q.mu.Lock()
		defer s.q.mu.Unlock()
		if b.left == 0 {
			return nil
		}
		s.barriers.drop(b)
		return ctx.Err()
	}
}

// SetBlocked keeps workers from the source's paths, or lets them go on: its
// destination is out of service.
func (s *Source) SetBlocked(blocked bool) {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	s.blocked = blocked
	s.q.work.Broadcast()
}

// SetPaused does the same for another reason of the caller's.
func (s *Source) SetPaused(paused bool) {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	s.paused = paused
	s.q.work.Broadcast()
}

// SetLimit sets how many of the source's paths workers may have at once.
func (s *Source) SetLimit(n int) {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	s.limit = n
	s.q.work.Broadcast()
}

// Release makes the delayed paths ready. With held it also makes ready what is
// held, and forgets the failures of all: their cause is gone.
func (s *Source) Release(held bool) {
	s.release(held, func(t *Task) bool { return held || !t.held })
}

// ReleaseCause makes what is held for cause ready, and forgets its failures.
func (s *Source) ReleaseCause(cause string) {
	s.release(true, func(t *Task) bool { return t.held && t.Cause() == cause })
}

func (s *Source) release(forget bool, which func(*Task) bool) {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	for _, t := range slices.Clone(s.delayed) {
		if !which(t) {
			continue
		}
		if forget {
			t.streak = nil
		}
		s.undelay(t)
	}
	s.q.work.Broadcast()
}

// ProbeHeld makes one path of each cause that holds paths ready, the one that was
// tried longest ago, and returns how many paths each cause holds.
func (s *Source) ProbeHeld() map[string]int {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	held := map[string]int{}
	oldest := map[string]*Task{}
	for _, t := range s.delayed {
		cause := t.Cause()
		if !t.held || cause == "" {
			continue
		}
		held[cause]++
		if o := oldest[cause]; o == nil || t.due < o.due {
			oldest[cause] = t
		}
	}
	for _, t := range oldest {
		s.undelay(t)
	}
	s.q.work.Broadcast()
	return held
}

// offer adds j, or merges it into the task of its path. It reports false if the
// source's part is full.
func (s *Source) offer(j Job) bool {
	t := s.tasks[j.Path]
	if t == nil {
		if len(s.tasks)-s.inFlight-s.held >= s.q.perSource {
			return false
		}
		s.insert(j)
		return true
	}
	switch t.at {
	case placeFlight:
		if t.again == nil {
			t.again = &offer{job: j, mark: s.barriers.set}
		} else {
			t.again.job.merge(j)
		}
	case placeDelayed:
		t.merge(j)
		s.undelay(t)
		s.q.work.Signal()
	case placeReady, placeAside:
		t.merge(j)
	}
	return true
}

func (s *Source) insert(j Job) {
	t := &Task{s: s, path: j.Path, slot: -1, mark: s.barriers.set, prev: s.last}
	t.set(&j)
	s.tasks[j.Path] = t
	if s.last != nil {
		s.last.next = t
	} else {
		s.first = t
	}
	s.last = t
	s.makeReady(t)
}

func (s *Source) remove(t *Task) {
	delete(s.tasks, t.path)
	if len(s.tasks) == 0 {
		s.tasks = map[string]*Task{} // A map never shrinks by itself.
	}
	if t.prev != nil {
		t.prev.next = t.next
	} else {
		s.first = t.next
	}
	if t.next != nil {
		t.next.prev = t.prev
	} else {
		s.last = t.prev
	}
	t.prev, t.next = nil, nil
	s.barriers.pass(t.mark, ^uint64(0))
	s.q.room.Broadcast()
}

func (s *Source) makeReady(t *Task) {
	t.at = placeReady
	s.ready.pushBack(t)
	s.q.work.Signal()
}

// undelay makes a delayed task ready. One that has failed joins the retries, which
// leave workers to new paths.
func (s *Source) undelay(t *Task) {
	heap.Remove(&s.delayed, int(t.slot))
	if t.held {
		t.held = false
		s.held--
	}
	t.at = placeReady
	if t.retry = t.Tries() > 0; t.retry {
		s.retries.pushBack(t)
	} else {
		s.ready.pushBack(t)
	}
}

// take returns the next task that may start, nil if there is none: first what
// waits for a slot and gets one, then new paths, with a retry now and then.
func (s *Source) take() *Task {
	for l := LaneLarge; l > LaneTiny; l-- {
		if s.aside[l].n > 0 && s.enter(l) {
			t := s.aside[l].popFront()
			t.lane = l
			return t
		}
	}
	mayRetry := int64(s.retrying) < max(1, min(int64(s.limit), s.q.attempts.Total()/Ahead)/2)
	switch {
	case s.retries.n > 0 && mayRetry && (s.ready.n == 0 || s.turn%retryTurn == 0):
		s.turn++
		s.retrying++
		return s.retries.popFront()
	case s.ready.n > 0:
		s.turn++
		return s.ready.popFront()
	default:
		return nil
	}
}

// enter takes a slot of lane l if there is one: each lane leaves attempts to
// those before it.
func (s *Source) enter(l Lane) bool {
	attempts := min(int64(s.limit), s.q.attempts.Most())
	var taken int // In l and the lanes after it.
	for _, n := range s.inLane[l:] {
		taken += n
	}
	if int64(taken) >= max(1, attempts-Ahead*int64(min(l, LaneWhole))) || l == LaneLarge && !s.q.large.Take(s.name, 1) {
		return false
	}
	s.inLane[l]++
	return true
}
