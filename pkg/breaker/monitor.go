package breaker

import (
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// stallAfter is how long a request may make no progress before it counts as
	// stalled: its body does not move, or its answer does not begin.
	stallAfter = 15 * time.Second
	// stallLogEvery is how often the log says that requests are stalled.
	stallLogEvery = time.Minute
)

// Progress tells when the body of a request last moved; the zero time if it has
// not moved yet. A body that waits for a limit of this host has moved now.
type Progress interface {
	LastMoved(now time.Time) time.Time
}

// Monitor watches the requests to one destination that are under way, and finds
// those that make no progress. Its zero value is ready to use.
type Monitor struct {
	mu     sync.Mutex
	live   map[*transit]struct{}
	logged time.Time
}

// transit is one request under way.
type transit struct {
	begun    time.Time
	progress Progress // Nil: it has no body.
}

// Begin watches a request until end is called. P is nil for one without a body.
func (m *Monitor) Begin(p Progress) (end func()) {
	t := &transit{begun: time.Now(), progress: p}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.live == nil {
		m.live = map[*transit]struct{}{}
	}
	m.live[t] = struct{}{}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.live, t)
	}
}

// Stalled returns how many requests make no progress, and since when.
func (m *Monitor) Stalled(now time.Time) (n int, since time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for t := range m.live {
		at := t.begun
		if t.progress != nil {
			if moved := t.progress.LastMoved(now); moved.After(at) {
				at = moved
			}
		}
		if now.Sub(at) < stallAfter {
			continue
		}
		if n++; since.IsZero() || at.Before(since) {
			since = at
		}
	}
	return n, since
}

// Report returns how many requests make no progress, and logs it once per minute.
func (m *Monitor) Report(now time.Time, log *zap.Logger) int {
	n, since := m.Stalled(now)
	m.mu.Lock()
	defer m.mu.Unlock()
	if n > 0 && now.Sub(m.logged) >= stallLogEvery {
		m.logged = now
		log.Warn("requests make no progress: the server is slow, or the network drops what is sent (an MTU that is too large for it?)",
			zap.Int("requests", n), zap.Duration("for", now.Sub(since).Round(time.Second)))
	}
	return n
}
