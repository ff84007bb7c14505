package uploader

import (
	"io"
	"sync"
	"sync/atomic"
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
// multipart upload is none of them, and no copy is: a server may need minutes for it.
type traffic struct {
	mu   sync.Mutex
	live map[*transit]struct{}
	said time.Time
}

// transit is one request under way.
type transit struct {
	since    time.Time
	progress *progress // nil: it has no body
}

// progress is how far the body of a request or of its answer came.
type progress struct {
	moved atomic.Int64 // When it came there, in nanoseconds since 1970; 0: not yet.
	paced atomic.Bool  // It waits for the bandwidth limit.
}

// watched returns the bytes of r and notes each step in p.
func (p *progress) watched(r io.Reader) io.Reader { return progressReader{r, p} }

type progressReader struct {
	r io.Reader
	p *progress
}

func (r progressReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if n > 0 {
		r.p.moved.Store(time.Now().UnixNano())
	}
	return n, err
}

// moved is when the request last made progress.
func (t *transit) moved(now time.Time) time.Time {
	switch {
	case t.progress == nil:
		return t.since
	case t.progress.paced.Load():
		return now
	}
	if at := time.Unix(0, t.progress.moved.Load()); at.After(t.since) {
		return at
	}
	return t.since
}

// Begin notes a request until end is called, without a body where p is nil.
func (t *traffic) begin(p *progress) (end func()) {
	r := &transit{since: time.Now(), progress: p}
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
