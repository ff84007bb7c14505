package watches

import (
	"sync"
	"sync/atomic"
)

// maxIntake is how much may wait in an intake. Beyond it events count as lost.
const maxIntake = 131_072

// intake hands what one goroutine saw to another without blocking the first.
type intake[T any] struct {
	wake chan struct{}
	n    atomic.Int64 // len(list), readable without the lock.

	mu   sync.Mutex
	list []T
}

func newIntake[T any]() *intake[T] { return &intake[T]{wake: make(chan struct{}, 1)} }

// add returns false if too much waits.
func (q *intake[T]) add(x T) bool {
	q.mu.Lock()
	if len(q.list) >= maxIntake {
		q.mu.Unlock()
		return false
	}
	q.list = append(q.list, x)
	q.n.Store(int64(len(q.list)))
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
	return true
}

// take returns what waits, in order, and uses the memory of buf for what comes.
func (q *intake[T]) take(buf []T) []T {
	clear(buf)
	q.mu.Lock()
	defer q.mu.Unlock()
	list := q.list
	q.list = buf[:0]
	q.n.Store(0)
	return list
}
