package queue

// dueHeap orders delayed tasks by their time (container/heap).
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
	t, ok := x.(*Task)
	if !ok {
		return
	}
	t.slot = int32(len(*h))
	*h = append(*h, t)
}

// Pop is part of heap.Interface.
func (h *dueHeap) Pop() any {
	s := *h
	t := s[len(s)-1]
	s[len(s)-1] = nil
	*h = s[:len(s)-1]
	t.slot = -1
	return t
}
