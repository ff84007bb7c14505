package queue

import (
	"container/heap"
	"context"
	"slices"
	"time"
)

// retryTurn: while new paths wait, one look in so many is at a retry.
const retryTurn = 4

// pop takes the next item, and blocks while there is none. It returns nil once
// ctx has ended. The caller ends it with done, delay, back or awaitSlot; until
// then nobody else writes its job.
func (q *Queue) Pop(ctx context.Context) *Task {
	stop := context.AfterFunc(ctx, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.work.Broadcast()
	})
	defer stop()
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		if ctx.Err() != nil {
			return nil
		}
		if it := q.take(); it != nil {
			return it
		}
		q.work.Wait()
	}
}

// take picks from the next source in turn that may go on.
func (q *Queue) take() *Task {
	for i := range q.order {
		s := q.order[(q.next+i)%len(q.order)]
		if s.blocked || s.paused || s.inFlight >= s.limit || !q.looks.Take(s.name, 1) {
			continue
		}
		it := q.takeFrom(s)
		if it == nil {
			q.looks.Release(s.name, 1)
			continue
		}
		q.next = (q.next + i + 1) % len(q.order)
		it.at = placeFlight
		s.inFlight++
		it.Stuck = false
		q.signalRoom()
		return it
	}
	return nil
}

func (q *Queue) takeFrom(s *subqueue) *Task {
	for l := LaneLarge; l > LaneTiny; l-- {
		if s.aside[l].n > 0 && q.slot(s, l) {
			it := s.aside[l].popFront()
			it.lane = l
			return it
		}
	}
	switch {
	case s.retries.n > 0 && int64(s.retrying) < max(1, min(int64(s.limit), q.looks.All()/Ahead)/2) && (s.ready.n == 0 || s.turn%retryTurn == 0):
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

// done ends an item for good, unless it was offered again meanwhile.
func (q *Queue) Done(it *Task) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.land(it)
	if it.again == nil {
		q.remove(s, it)
		return
	}
	s.pass(it.gen, it.again.gen)
	it.set(&it.again.job)
	it.gen, it.again = it.again.gen, nil
	it.trouble = nil
	q.ready(s, it)
}

// delay brings the item back at due. A held one is waiting for a person: when
// too many are held it is forgotten, because the next scan offers it again.
func (q *Queue) Delay(it *Task, due time.Time, held bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.land(it)
	if it.again != nil {
		it.merge(it.again.job)
		it.again = nil
		q.ready(s, it)
		return
	}
	if held && s.held >= q.perSource {
		q.remove(s, it)
		return
	}
	it.at, it.due, it.held = placeDelayed, due.Sub(q.epoch), held
	if held {
		s.held++
	}
	if held || it.Stuck {
		s.pass(it.gen, s.gen)
		it.gen = s.gen
	}
	heap.Push(&s.delayed, it)
	q.schedule()
	q.signalRoom()
}

// back returns an item that was not looked at, to be the next of its source.
func (q *Queue) PutBack(it *Task) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.land(it)
	if it.again != nil {
		it.merge(it.again.job)
		it.again = nil
	}
	it.at = placeReady
	s.ready.pushFront(it)
	q.work.Signal()
}

// slot takes a slot of lane l for s, if there is one: each lane leaves looks to
// those before it.
func (q *Queue) slot(s *subqueue, l Lane) bool {
	looks := int64(min(s.limit, int(q.looks.Most())))
	from := 0 // Looks in lanes from this one on.
	for i := l; i < Lanes; i++ {
		from += s.inLane[i]
	}
	if int64(from) >= max(1, looks-Ahead*int64(min(l, LaneWhole))) || l == LaneLarge && !q.large.Take(s.name, 1) {
		return false
	}
	s.inLane[l]++
	return true
}

// takeSlot gives the item a slot of lane l if there is one. Where there is none
// awaitSlot ends the look.
func (q *Queue) TakeSlot(it *Task, l Lane) bool {
	if l == LaneTiny {
		return true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if it.lane >= l {
		return true
	}
	q.leave(it)
	ok := q.slot(it.s, l)
	if ok {
		it.lane = l
	} else {
		it.wants = l
	}
	return ok
}

// leave gives the slot of the item back.
func (q *Queue) leave(it *Task) {
	if it.lane == LaneTiny {
		return
	}
	it.s.inLane[it.lane]--
	if it.lane == LaneLarge {
		q.large.Release(it.s.name, 1)
	}
	it.lane = LaneTiny
}

// awaitSlot puts an item aside until there is a slot for it.
func (q *Queue) AwaitSlot(it *Task) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.land(it) // A file that waits for a slot is in a lane of its own, also when it is a retry.
	it.at = placeAside
	s.aside[it.wants].pushBack(it)
	q.work.Signal()
}

// land takes an item out of flight, and frees its slot.
func (q *Queue) land(it *Task) *subqueue {
	s := it.s
	s.inFlight--
	q.looks.Release(s.name, 1)
	q.leave(it)
	if it.retry {
		it.retry = false
		s.retrying--
	}
	q.work.Signal() // The limit of the source or a slot may have held others back.
	return s
}

func (q *Queue) ready(s *subqueue, it *Task) {
	it.at = placeReady
	s.ready.pushBack(it)
	q.work.Signal()
}

func (q *Queue) remove(s *subqueue, it *Task) {
	delete(s.items, it.path)
	if len(s.items) == 0 {
		s.items = map[string]*Task{} // A map never shrinks by itself.
	}
	s.unlink(it)
	s.pass(it.gen, ^uint64(0))
	q.signalRoom()
}

func (q *Queue) signalRoom() {
	if q.waiters > 0 {
		q.room.Broadcast()
	}
}

// schedule sets the timer to the earliest delayed item.
func (q *Queue) schedule() {
	var at time.Time
	for _, s := range q.order {
		if len(s.delayed) == 0 {
			continue
		}
		if due := q.epoch.Add(s.delayed[0].due); at.IsZero() || due.Before(at) {
			at = due
		}
	}
	switch {
	case at.IsZero() || at.Equal(q.timerAt):
		return
	case q.timer == nil:
		q.timer = time.AfterFunc(time.Until(at), q.wakeDue)
	default:
		q.timer.Reset(time.Until(at))
	}
	q.timerAt = at
}

// wakeDue moves what is due to the ready items.
func (q *Queue) wakeDue() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.timerAt = time.Time{}
	now := time.Since(q.epoch)
	for _, s := range q.order {
		for len(s.delayed) > 0 && s.delayed[0].due <= now {
			q.undelay(s, s.delayed[0])
		}
	}
	q.schedule()
	q.work.Broadcast()
}

// release makes the delayed items of source ready. With held it takes those that
// wait for a person too, and forgets the failures of all: their cause is gone.
func (q *Queue) Release(source string, held bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.byName[source]
	if s == nil {
		return
	}
	for _, it := range slices.Clone(s.delayed) {
		if it.held && !held {
			continue
		}
		if held {
			it.trouble = nil
		}
		q.undelay(s, it)
	}
	q.work.Broadcast()
}

// releaseCause makes what is held for one cause ready: it is gone.
func (q *Queue) ReleaseCause(source, cause string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.byName[source]
	for _, it := range slices.Clone(s.delayed) {
		if it.held && it.Cause() == cause {
			it.trouble = nil
			q.undelay(s, it)
		}
	}
	q.work.Broadcast()
}

// probeHeld makes one path of each cause that holds paths ready, the one that
// was tried longest ago, and returns how many each cause holds.
func (q *Queue) ProbeHeld(source string) map[string]int {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.byName[source]
	held := map[string]int{}
	oldest := map[string]*Task{}
	for _, it := range s.delayed {
		cause := it.Cause()
		if !it.held || cause == "" {
			continue
		}
		held[cause]++
		if o := oldest[cause]; o == nil || it.due < o.due {
			oldest[cause] = it
		}
	}
	for _, it := range oldest {
		q.undelay(s, it)
	}
	q.work.Broadcast()
	return held
}

// setBlocked holds a source back, or lets it go on.
func (q *Queue) SetBlocked(source string, blocked bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.byName[source].blocked = blocked
	q.work.Broadcast()
}

// setPaused is setBlocked for the caller's reasons.
func (q *Queue) SetPaused(source string, paused bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.byName[source].paused = paused
	q.work.Broadcast()
}

// setLimit sets how many items of source may be in hand at once.
func (q *Queue) SetLimit(source string, n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.byName[source].limit = n
	q.work.Broadcast()
}

// setShares sets how sources share looks, and looks at large files.
func (q *Queue) SetShares(looks, large *Shares) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.looks, q.large = looks, large
}

// stop ends the timer. Delayed items stay.
func (q *Queue) Stop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.timer != nil {
		q.timer.Stop()
		q.timer, q.timerAt = nil, time.Time{}
	}
}

// waiting is what the bound of a source counts.
func (s *subqueue) waiting() int { return len(s.items) - s.inFlight - s.held }

func (s *subqueue) unhold(it *Task) {
	if it.held {
		it.held = false
		s.held--
	}
}

func (s *subqueue) link(it *Task) {
	it.prev = s.last
	if s.last != nil {
		s.last.next = it
	} else {
		s.first = it
	}
	s.last = it
}

func (s *subqueue) unlink(it *Task) {
	if it.prev != nil {
		it.prev.next = it.next
	} else {
		s.first = it.next
	}
	if it.next != nil {
		it.next.prev = it.prev
	} else {
		s.last = it.prev
	}
	it.prev, it.next = nil, nil
}

// pass tells the barriers that an item of generation from is now of generation to.
func (s *subqueue) pass(from, to uint64) {
	s.barriers = slices.DeleteFunc(s.barriers, func(b *barrier) bool {
		if from < b.gen && to >= b.gen {
			b.left--
		}
		if b.left > 0 {
			return false
		}
		close(b.done)
		return true
	})
}

func (s *subqueue) dropBarrier(b *barrier) {
	s.barriers = slices.DeleteFunc(s.barriers, func(c *barrier) bool { return c == b })
}
