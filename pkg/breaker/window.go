package breaker

// window is how many attempts may be under way at once. It grows by one for each
// window of answers, and halves when the server throttles: once for everything that
// was under way at that moment.
type window struct {
	size float64
	most float64
	late int // Answers still due to requests from before it was last halved.
}

func newWindow(most int) window { return window{size: float64(most), most: float64(most)} }

// limit is the window in whole attempts.
func (w *window) limit() int { return max(1, int(w.size)) }

// grew notes an answer and reports whether the limit changed.
func (w *window) grew() bool {
	w.answered()
	before := w.limit()
	w.size = min(w.most, w.size+1/max(1, w.size))
	return w.limit() != before
}

// answered notes the end of one request.
func (w *window) answered() { w.late = max(0, w.late-1) }

// halved notes a throttled answer and reports whether the limit changed.
func (w *window) halved() bool {
	if w.late > 0 {
		return false
	}
	before := w.limit()
	w.late, w.size = before, max(1, w.size/2)
	return w.limit() != before
}
