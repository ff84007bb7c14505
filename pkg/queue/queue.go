package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// ErrUnknownSource is returned for a source that the queue does not serve.
var ErrUnknownSource = errors.New("unknown source")

// Queue holds the paths that wait for a worker, those that workers have, and
// those that are delayed. Each path is in it once.
//
// The bound of a source counts what waits: not what workers have, and not what
// is held, which has a bound of its own. Retries and repeated offers are never
// refused. All methods may be called concurrently, also those of Source.
type Queue struct {
	mu        sync.Mutex
	work      *sync.Cond // A task may be ready.
	room      *sync.Cond // A task was taken or has ended.
	perSource int

	order    []*Source
	byName   map[string]*Source
	next     int     // Whose turn it is.
	attempts *Shares // Of all workers.
	large    *Shares // Of those, the ones that may have a large file.

	epoch   time.Time // Delayed tasks count from here: a step of the clock does not move them.
	alarm   *time.Timer
	alarmAt time.Time // Zero: not set.
}

// New returns a queue that lets perSource paths of each source wait before Offer
// blocks.
func New(perSource int) *Queue {
	q := &Queue{epoch: time.Now(), perSource: max(1, perSource), byName: map[string]*Source{}}
	q.work, q.room = sync.NewCond(&q.mu), sync.NewCond(&q.mu)
	return q
}

// Serve adds sources, which divide attempts and, of them, those at large files.
// It is called once, before anything is popped.
func (q *Queue) Serve(attempts, large *Shares, sources ...string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.attempts, q.large = attempts, large
	for _, name := range sources {
		if q.byName[name] == nil {
			s := newSource(q, name)
			q.byName[name] = s
			q.order = append(q.order, s)
		}
	}
}

// Source returns the part of the queue that belongs to the source called name. Of
// a source that the queue does not serve it is empty and stays so.
func (q *Queue) Source(name string) *Source {
	q.mu.Lock()
	defer q.mu.Unlock()
	if s := q.byName[name]; s != nil {
		return s
	}
	return &Source{q: q, name: name}
}

// Offer adds j, and blocks while its source's part is full. It fails when ctx
// ends first, and with ErrUnknownSource.
func (q *Queue) Offer(ctx context.Context, j Job) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.byName[j.Source]
	if s == nil {
		return fmt.Errorf("offer %q: %w: %q", j.Path, ErrUnknownSource, j.Source)
	}
	return q.await(ctx, q.room, func() bool { return s.offer(j) })
}

// TryOffer adds j and reports true, unless its source's part is full or the queue
// does not serve it.
func (q *Queue) TryOffer(j Job) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.byName[j.Source]
	return s != nil && s.offer(j)
}

// OfferIfAbsent adds j, whatever the bound, if its path is not in the queue.
func (q *Queue) OfferIfAbsent(j Job) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if s := q.byName[j.Source]; s != nil && s.tasks[j.Path] == nil {
		s.insert(j)
	}
}

// Pop takes the next task, and blocks while there is none. It returns nil once
// ctx has ended. Done, Delay, PutBack or AwaitSlot ends the attempt.
func (q *Queue) Pop(ctx context.Context) *Task {
	q.mu.Lock()
	defer q.mu.Unlock()
	var t *Task
	err := q.await(ctx, q.work, func() bool {
		if ctx.Err() == nil {
			t = q.take()
		}
		return t != nil
	})
	if err != nil {
		return nil
	}
	return t
}

// take picks a task of the next source in turn that may start one.
func (q *Queue) take() *Task {
	for i := range q.order {
		s := q.order[(q.next+i)%len(q.order)]
		if s.blocked || s.paused || s.inFlight >= s.limit || !q.attempts.Take(s.name, 1) {
			continue
		}
		t := s.take()
		if t == nil {
			q.attempts.Release(s.name, 1)
			continue
		}
		q.next = (q.next + i + 1) % len(q.order)
		t.at = placeFlight
		t.Stuck = false
		s.inFlight++
		q.room.Broadcast()
		return t
	}
	return nil
}

// Stop ends the timer of the delayed tasks, which stay where they are.
func (q *Queue) Stop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.alarm != nil {
		q.alarm.Stop()
		q.alarm, q.alarmAt = nil, time.Time{}
	}
}

// setAlarm sets the timer to the earliest delayed task.
func (q *Queue) setAlarm() {
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
	case at.IsZero() || at.Equal(q.alarmAt):
		return
	case q.alarm == nil:
		q.alarm = time.AfterFunc(time.Until(at), q.wakeDue)
	default:
		q.alarm.Reset(time.Until(at))
	}
	q.alarmAt = at
}

// wakeDue makes ready what is due.
func (q *Queue) wakeDue() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.alarmAt = time.Time{}
	now := time.Since(q.epoch)
	for _, s := range q.order {
		for len(s.delayed) > 0 && s.delayed[0].due <= now {
			s.undelay(s.delayed[0])
		}
	}
	q.setAlarm()
	q.work.Broadcast()
}

// await waits on c until done reports true. It fails when ctx ends first. The
// caller holds q.mu.
func (q *Queue) await(ctx context.Context, c *sync.Cond, done func() bool) error {
	if done() {
		return nil
	}
	defer context.AfterFunc(ctx, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		c.Broadcast()
	})()
	for !done() {
		if err := ctx.Err(); err != nil {
			return err
		}
		c.Wait()
	}
	return nil
}
