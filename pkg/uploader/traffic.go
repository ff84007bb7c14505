package uploader

import (
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// StallAfter is how long a request may make no progress before it counts as
	// stalled: its body does not move on, or its answer does not begin.
	stallAfter = 15 * time.Second
	// StallSaid is how often the log says that requests are stalled.
	stallSaid = time.Minute
)

// traffic is the requests of one destination that are under way. The end of a
// multipart upload is none of them: a server may need minutes for it.
type traffic struct {
	mu   sync.Mutex
	live map[*transit]struct{}
	said time.Time
}

// transit is one request under way.
type transit struct {
	since time.Time
	body  *body // nil: it has none
}

// moved is when the request last made progress.
func (t *transit) moved(now time.Time) time.Time {
	switch {
	case t.body == nil:
		return t.since
	case t.body.paced.Load():
		return now
	}
	if at := time.Unix(0, t.body.moved.Load()); at.After(t.since) {
		return at
	}
	return t.since
}

// begin notes a request until end is called.
func (t *traffic) begin(b *body) (end func()) {
	r := &transit{since: time.Now(), body: b}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live == nil {
		t.live = map[*transit]struct{}{}
	}
	t.live[r] = struct{}{}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.live, r)
	}
}

// stalled returns how many requests make no progress, and since when.
func (t *traffic) stalled(now time.Time) (n int, since time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for r := range t.live {
		at := r.moved(now)
		if now.Sub(at) < stallAfter {
			continue
		}
		if n++; since.IsZero() || at.Before(since) {
			since = at
		}
	}
	return n, since
}

// watchTraffic shows how many requests make no progress, and says it once a
// minute.
func (d *destination) watchTraffic(now time.Time) {
	n, since := d.traffic.stalled(now)
	d.metrics.stalled.Set(float64(n))
	d.metrics.failing.Set(float64(d.failing.list(now).Files))
	if n == 0 || now.Sub(d.traffic.said) < stallSaid {
		return
	}
	d.traffic.said = now
	d.log.Warn("requests make no progress: the server is slow, or the network drops what is sent (an MTU that is too large for it?)",
		zap.Int("requests", n), zap.Duration("for", now.Sub(since).Round(time.Second)))
}
