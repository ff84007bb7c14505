package queue

import (
	"context"
	"slices"
	"sync"
)

// shares divides so many of something among sources. Each source has a few for
// itself, which no other takes; what is left goes to who comes first. So a
// source whose destination is slow cannot keep all of it.
type Shares struct {
	total   int64
	own     int64
	sources int64

	mu    sync.Mutex
	used  map[string]int64
	sum   int64
	queue []*claim
}

// claim is somebody who waits for n.
type claim struct {
	source string
	n      int64
	given  chan struct{}
}

// newShares divides total among sources, each of which has own for itself, or
// as much as there is.
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

// all is what all sources have together.
func (s *Shares) All() int64 { return s.total }

// least is what one source can have whatever the others have.
func (s *Shares) Least() int64 {
	if s.sources <= 1 {
		return s.total
	}
	return s.own
}

// most is what one source can have when the others have nothing.
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

// take gives source n if it may have them now.
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

// acquire is take, and blocks until source may have them. It fails when ctx ends
// first. N must not be over most.
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

// release takes n back from source.
func (s *Shares) Release(source string, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(source, -n)
	s.serve()
}

// serve gives what is free to those who wait, in the order in which each source
// asked. The caller holds s.mu.
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

// lane says how much of a destination's time a file is likely to take. Each lane
// leaves workers, slots and memory to those before it: small files pass large
// ones, also where nothing large gets through.
type Lane uint8

const (
	LaneTiny  Lane = iota // fits into a packet or two
	LaneSmall             // up to headAlways
	LaneWhole             // sent in one request
	LaneLarge             // sent in parts
	Lanes
)

// ahead is how many attempts there are for each request at a time: while one
// waits for the server, another reads its file or waits for the disk that its
// intent or its record goes to.
const Ahead = 3
