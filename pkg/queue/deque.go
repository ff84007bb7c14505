package queue

// deque is a double-ended queue of tasks in a ring. The zero value is empty.
type deque struct {
	ring []*Task
	head int
	n    int
}

func (d *deque) pushBack(t *Task) {
	d.grow()
	d.ring[(d.head+d.n)%len(d.ring)] = t
	d.n++
}

func (d *deque) pushFront(t *Task) {
	d.grow()
	d.head = (d.head + len(d.ring) - 1) % len(d.ring)
	d.ring[d.head] = t
	d.n++
}

func (d *deque) popFront() *Task {
	t := d.ring[d.head]
	d.ring[d.head] = nil
	d.head = (d.head + 1) % len(d.ring)
	d.n--
	if d.n == 0 {
		*d = deque{} // A burst does not hold its memory for ever.
	}
	return t
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
