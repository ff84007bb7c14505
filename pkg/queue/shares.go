package queue

import (
	"context"
	"slices"
	"sync"
)

// Shares divides a number of units of something among sources: workers, requests,
// bytes of memory. Each source owns a few, which no other gets; the rest goes to
// the first that asks. So a source whose destination is slow cannot occupy all of
// them. All methods may be called concurrently.
type Shares struct {
	total   int64
	own     int64
	sources int64

	mu    sync.Mutex
	used  map[string]int64
	sum   int64
	queue []*claim
}

// claim is a caller of Acquire that waits for n.
type claim struct {
	source string
	n      int64
	given  chan struct{}
}

// NewShares divides total among sources, each of which owns own, or an equal part
// where the total is less.
func NewShares(total, own int64, sources ...string) *Shares {
	s := &Shares{total: total, own: own, sources: int64(len(sources)), used: map[string]int64{}}
	for _, name := range sources {
		s.used[name] = 0
	}
	if s.sources > 0 {
		s.own = min(own, total/s.sources)
	}
	return s
}

// Total returns what all sources have together.
func (s *Shares) Total() int64 { return s.total }

// Least returns what one source can have whatever the others use.
func (s *Shares) Least() int64 {
	if s.sources <= 1 {
		return s.total
	}
	return s.own
}

// Most returns what one source can have while the others use nothing.
func (s *Shares) Most() int64 { return s.total - s.own*max(0, s.sources-1) }

// fits reports whether source may have n more now. The caller holds s.mu.
func (s *Shares) fits(source string, n int64) bool {
	free := s.total - s.sum
	for other, used := range s.used {
		if other != source {
			free -= max(0, s.own-used)
		}
	}
	return n <= free
}

// Take gives source n and reports true if it may have them now.
func (s *Shares) Take(source string, n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.fits(source, n) {
		return false
	}
	s.add(source, n)
	return true
}

func (s *Shares) add(source string, n int64) {
	s.used[source] += n
	s.sum += n
}

// Acquire gives source n, and blocks until it may have them. It fails when ctx
// ends first. More than Most is never granted.
func (s *Shares) Acquire(ctx context.Context, source string, n int64) error {
	s.mu.Lock()
	if !s.waits(source) && s.fits(source, n) {
		s.add(source, n)
		s.mu.Unlock()
		return nil
	}
	c := &claim{source: source, n: n, given: make(chan struct{})}
	s.queue = append(s.queue, c)
	s.mu.Unlock()
	select {
	case <-c.given:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.queue, c); i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
		s.serve()
		return ctx.Err()
	}
	return nil // It was given at the same moment.
}

// waits reports whether a claim of source is in the queue. The caller holds s.mu.
func (s *Shares) waits(source string) bool {
	return slices.ContainsFunc(s.queue, func(c *claim) bool { return c.source == source })
}

// Release returns n of source's.
func (s *Shares) Release(source string, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(source, -n)
	s.serve()
}

// serve grants the claims that fit now, in the order in which each source made
// them. The caller holds s.mu.
func (s *Shares) serve() {
	if len(s.queue) == 0 {
		return
	}
	held := map[string]bool{}
	s.queue = slices.DeleteFunc(s.queue, func(c *claim) bool {
		if held[c.source] || !s.fits(c.source, c.n) {
			held[c.source] = true // A small claim does not pass a large one of its source for ever.
			return false
		}
		s.add(c.source, c.n)
		close(c.given)
		return true
	})
}
