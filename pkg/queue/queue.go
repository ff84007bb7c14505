package queue

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// ErrUnknownSource is returned for a job of a source that was never added.
var ErrUnknownSource = errors.New("unknown source")

// Queue holds the paths that wait for a look, those in hand and those that are
// tried again later. A path is in it once: offers of a queued path are merged,
// and a path that is offered while a worker has it in hand is looked at once
// more afterwards. Sources take turns, so that none waits for another's crowd.
//
// The bound of a source counts what waits: not what is in hand, and not what is
// held until a person has done something, which has a bound of its own. Retries
// and repeated offers are never refused. All methods may be called concurrently.
type Queue struct {
	mu        sync.Mutex
	work      *sync.Cond // There may be something to pop.
	room      *sync.Cond // Something was popped or ended.
	perSource int
	order     []*subqueue
	byName    map[string]*subqueue
	next      int       // Whose turn it is.
	waiters   int       // On room.
	epoch     time.Time // What delayed items' times are told from: a step of the clock does not move them.
	timer     *time.Timer
	timerAt   time.Time

	looks *Shares // Looks at once, of all sources.
	large *Shares // And of those the ones at large files.
}

// subqueue is one source's part of a Queue.
type subqueue struct {
	name        string
	items       map[string]*Task
	ready       deque
	retries     deque        // Ready again after a failure.
	retrying    int          // Of those, in hand.
	turn        int          // Of new paths and retries.
	aside       [Lanes]deque // Their size is known, and they wait for a slot.
	inLane      [Lanes]int   // Slots in use.
	delayed     dueHeap
	first, last *Task // In the order of the first offer.
	inFlight    int
	held        int
	limit       int // Looks at once.
	blocked     bool
	paused      bool
	gen         uint64
	barriers    []*barrier
}

// barrier waits for the items that were there when it was set.
type barrier struct {
	gen  uint64
	left int
	done chan struct{}
}

// NewQueue returns a queue that lets perSource paths of each source wait before
// Offer blocks.
func New(perSource int) *Queue {
	q := &Queue{epoch: time.Now(), perSource: max(1, perSource), byName: map[string]*subqueue{}, looks: NewShares(1<<30, 0), large: NewShares(1, 0)}
	q.work, q.room = sync.NewCond(&q.mu), sync.NewCond(&q.mu)
	return q
}

// Add makes source known. Adding it again does nothing.
func (q *Queue) AddSource(source string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.byName[source] != nil {
		return
	}
	s := &subqueue{name: source, items: map[string]*Task{}, limit: 1 << 30}
	q.byName[source] = s
	q.order = append(q.order, s)
}

// Offer adds j, and blocks while its source's part is full. It fails when ctx
// ends first or the source is not known.
func (q *Queue) Offer(ctx context.Context, j Job) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.byName[j.Source]
	if s == nil {
		return fmt.Errorf("offer %q: %w: %q", j.Path, ErrUnknownSource, j.Source)
	}
	if q.tryOffer(s, j) {
		return nil
	}
	defer q.wakeOnEnd(ctx)()
	for !q.tryOffer(s, j) {
		if err := ctx.Err(); err != nil {
			return err
		}
		q.waiters++
		q.room.Wait()
		q.waiters--
	}
	return nil
}

// TryOffer adds j unless its source's part is full or the source not known.
func (q *Queue) TryOffer(j Job) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.byName[j.Source]
	return s != nil && q.tryOffer(s, j)
}

// offerSettle adds a look at an interrupted write, whatever the bound. A path
// that is queued already is left alone: every look settles first.
func (q *Queue) OfferIfAbsent(j Job) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if s := q.byName[j.Source]; s != nil && s.items[j.Path] == nil {
		q.insert(s, j)
	}
}

func (q *Queue) tryOffer(s *subqueue, j Job) bool {
	if it := s.items[j.Path]; it != nil {
		q.offerAgain(s, it, j)
		return true
	}
	if s.waiting() >= q.perSource {
		return false
	}
	q.insert(s, j)
	return true
}

func (q *Queue) insert(s *subqueue, j Job) {
	it := &Task{s: s, path: j.Path, slot: -1, gen: s.gen}
	it.set(&j)
	s.items[j.Path] = it
	s.link(it)
	s.ready.pushBack(it)
	q.work.Signal()
}

func (q *Queue) offerAgain(s *subqueue, it *Task, j Job) {
	switch it.at {
	case placeFlight:
		if it.again == nil {
			it.again = &repeat{job: j, gen: s.gen}
			return
		}
		it.again.job.merge(j)
	case placeDelayed:
		it.merge(j)
		q.undelay(s, it)
		q.work.Signal()
	case placeReady, placeAside:
		it.merge(j)
	}
}

// undelay moves a delayed item to the ready ones. One that has failed goes to the
// lane of retries, which leaves workers to new paths.
func (q *Queue) undelay(s *subqueue, it *Task) {
	heap.Remove(&s.delayed, int(it.slot))
	s.unhold(it)
	it.at = placeReady
	if it.retry = it.Tries() > 0; it.retry {
		s.retries.pushBack(it)
		return
	}
	s.ready.pushBack(it)
}

// Pending reports whether path is queued, in hand, or waiting for a retry.
func (q *Queue) Pending(source, path string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.byName[source]
	return s != nil && s.items[path] != nil
}

// Begun reports whether path is queued or in hand: pending, and not put off until
// a retry or until somebody has done something.
func (q *Queue) Begun(source, path string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.byName[source]
	if s == nil {
		return false
	}
	it := s.items[path]
	return it != nil && it.at != placeDelayed
}

// Paths returns the paths of source that are pending, in no order.
func (q *Queue) Paths(source string) []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.byName[source]
	if s == nil {
		return nil
	}
	return slices.Collect(maps.Keys(s.items))
}

// Depth returns how many paths of source are ready, in hand, and waiting for a
// retry or a person.
func (q *Queue) Depth(source string) (queued, inFlight, delayed int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.byName[source]
	if s == nil {
		return 0, 0, 0
	}
	queued = s.ready.n + s.retries.n
	for l := range s.aside {
		queued += s.aside[l].n
	}
	return queued, s.inFlight, len(s.delayed) - s.held
}

// waitingJob returns the job that has waited longest, leaving out those that
// are held by themselves; ok is false when none waits.
func (q *Queue) WaitingJob(source string) (j Job, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if s := q.byName[source]; s != nil {
		for it := s.first; it != nil; it = it.next {
			if !it.held && it.at != placeFlight {
				return it.Job(), true
			}
		}
	}
	return Job{}, false
}

// Held returns how many paths of source wait for a person, each by itself.
func (q *Queue) Held(source string) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.byName[source]
	if s == nil {
		return 0
	}
	return s.held
}

// Oldest returns when the path that has been in the queue longest was first
// seen, leaving out those that wait for a person; the zero time when there is
// none.
func (q *Queue) Oldest(source string) time.Time {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.byName[source]
	if s == nil {
		return time.Time{}
	}
	for it := s.first; it != nil; it = it.next {
		if !it.held {
			return it.Job().Detected
		}
	}
	return time.Time{}
}

// Wait blocks until nothing of source is queued, in hand or delayed; what is
// held for a person counts. It fails when ctx ends first.
func (q *Queue) Wait(ctx context.Context, source string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.byName[source]
	if s == nil {
		return fmt.Errorf("wait: %w: %q", ErrUnknownSource, source)
	}
	defer q.wakeOnEnd(ctx)()
	for len(s.items) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		q.waiters++
		q.room.Wait()
		q.waiters--
	}
	return nil
}

// Barrier blocks until every path of source that is in the queue now has left
// it, is held for a person, keeps failing, or had a look that began after its last offer before
// the call. Unlike Wait it ends while new paths keep coming. It fails when ctx
// ends first.
func (q *Queue) Barrier(ctx context.Context, source string) error {
	q.mu.Lock()
	s := q.byName[source]
	if s == nil {
		q.mu.Unlock()
		return fmt.Errorf("barrier: %w: %q", ErrUnknownSource, source)
	}
	s.gen++
	b := &barrier{gen: s.gen, left: len(s.items), done: make(chan struct{})}
	for _, it := range s.delayed {
		if it.held || it.Stuck {
			it.gen = s.gen // It is not counted, also when it is released before the end.
			b.left--
		}
	}
	if b.left == 0 {
		q.mu.Unlock()
		return nil
	}
	s.barriers = append(s.barriers, b)
	q.mu.Unlock()
	select {
	case <-b.done:
		return nil
	case <-ctx.Done():
		q.mu.Lock()
		defer q.mu.Unlock()
		s.dropBarrier(b)
		return ctx.Err()
	}
}

// wakeOnEnd makes the waiters on room look at their contexts when ctx ends.
func (q *Queue) wakeOnEnd(ctx context.Context) (stop func()) {
	end := context.AfterFunc(ctx, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.room.Broadcast()
	})
	return func() { end() }
}
