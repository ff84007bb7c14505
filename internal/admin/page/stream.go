package page

import (
	"net/http"
	"time"

	"go.uber.org/zap"
)

const (
	backlog   = 4                // events that a client may lag behind before it is dropped
	writeTime = 10 * time.Second // that a client may take to accept an event
	heartbeat = 15 * time.Second
)

// client is one stream. The page closes events when it has dropped the client.
type client struct{ events chan []byte }

// watched reports whether there is anybody to feed.
func (p *Page) watched() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.clients) > 0
}

// publish sends what has changed to every client. It does not wait for any of
// them: a client that lags is dropped, and comes back for the whole.
func (p *Page) publish() {
	st := p.daemon.Status()
	p.mu.Lock()
	defer p.mu.Unlock()
	change, err := p.look(&st)
	if err != nil {
		p.log.Error("the status page was not brought up to date, the next second tries it again", zap.Error(err))
		return
	}
	for c := range p.clients {
		select {
		case c.events <- change:
		default:
			p.drop(c)
		}
	}
}

// drop ends the stream of a client. The caller holds mu.
func (p *Page) drop(c *client) {
	if _, ok := p.clients[c]; ok {
		delete(p.clients, c)
		close(c.events)
	}
}

// join adds a client whose first event is the whole, as the other clients have
// it; nil when there are too many, or the daemon stops.
func (p *Page) join() (*client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running || len(p.clients) >= Clients {
		return nil, nil
	}
	if len(p.clients) == 0 && time.Since(p.looked) >= refresh {
		st := p.daemon.Status()
		if _, err := p.look(&st); err != nil {
			return nil, err
		}
	}
	c := &client{events: make(chan []byte, backlog)}
	c.events <- p.all
	p.clients[c] = struct{}{}
	return c, nil
}

func (p *Page) leave(c *client) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop(c)
}

// stop ends every stream and admits no more.
func (p *Page) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running = false
	for c := range p.clients {
		p.drop(c)
	}
}

// events is a stream of server-sent events: the whole, then what changes.
func (p *Page) events(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Content-Type", "text/event-stream")
		return // HEAD: there is no end to wait for.
	}
	c, err := p.join()
	if err != nil || c == nil {
		w.Header().Set("Retry-After", "5")
		http.Error(w, "no stream now: too many are open, or the daemon starts or stops; the page itself is there", http.StatusServiceUnavailable)
		return
	}
	defer p.leave(c)
	control := http.NewResponseController(w)
	var forever time.Time // It lasts as long as the client listens.
	if err := control.SetReadDeadline(forever); err != nil {
		http.Error(w, "no stream over this connection", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		var parts [][]byte
		select {
		case <-r.Context().Done():
			return
		case <-beat.C:
			parts = [][]byte{[]byte(": still here\n\n")}
		case event, ok := <-c.events:
			if !ok {
				return
			}
			parts = [][]byte{[]byte("data: "), event, []byte("\n\n")}
		}
		if !send(w, control, parts) {
			return
		}
	}
}

// send writes one event, for at most writeTime.
func send(w http.ResponseWriter, control *http.ResponseController, parts [][]byte) bool {
	if control.SetWriteDeadline(time.Now().Add(writeTime)) != nil {
		return false
	}
	for _, p := range parts {
		if _, err := w.Write(p); err != nil {
			return false
		}
	}
	return control.Flush() == nil
}
