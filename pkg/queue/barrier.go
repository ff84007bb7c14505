package queue

import "slices"

// barriers are those of one source. Each task carries as its mark how many were
// set before its last offer: it holds up those that were set later.
type barriers struct {
	set  uint64 // How many were set so far.
	open []*barrier
}

// barrier waits for the tasks that were there when it was set.
type barrier struct {
	mark uint64
	left int
	done chan struct{}
}

// add sets a barrier that left tasks hold up.
func (b *barriers) add(left int) *barrier {
	b.set++
	one := &barrier{mark: b.set, left: left, done: make(chan struct{})}
	if left == 0 {
		close(one.done)
		return one
	}
	b.open = append(b.open, one)
	return one
}

// pass counts that a task's mark changes, and opens the barriers that no task
// holds up any more.
func (b *barriers) pass(from, to uint64) {
	b.open = slices.DeleteFunc(b.open, func(one *barrier) bool {
		if from < one.mark && to >= one.mark {
			one.left--
		}
		if one.left > 0 {
			return false
		}
		close(one.done)
		return true
	})
}

func (b *barriers) drop(gone *barrier) {
	b.open = slices.DeleteFunc(b.open, func(one *barrier) bool { return one == gone })
}
