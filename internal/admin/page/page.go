// Package page is the status page: what a running daemon does, for an operator
// with a browser. It shows and changes nothing. The server renders the page
// whole; where there is script, a stream of events keeps it up to date, and
// puts texts into the page only as text.
package page

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"html/template"
	"net/http"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/admin"
)

const (
	// Clients is how many streams there may be at once.
	Clients = 16

	refresh = time.Second
	// The page takes at most one part in share of the time to look and encode.
	share = 20
)

//go:embed page.html page.css page.js icon.svg
var files embed.FS

// Meter is what one source has moved so far.
type Meter struct {
	Source       string
	Acknowledged int64         // bytes, since the start
	UnderWay     int64         // bytes of the files in flight that were sent
	Uploads      int64         // since the last time that it was asked
	Slowest      time.Duration // of these, from the first sight of the change to the record
}

// Daemon is what the page shows. Its methods may be called concurrently, except
// that only one goroutine calls Meters. Neither waits for the disk.
type Daemon interface {
	Status() admin.Status
	Meters() []Meter
}

// Page is the page and its stream. ServeHTTP answers from New on; what it shows
// of the last hour, and the stream, need Run.
type Page struct {
	daemon Daemon
	log    *zap.Logger
	mux    *http.ServeMux
	tmpl   *template.Template
	build  string // of the page: a script of another one reloads the page
	begun  time.Time

	mu      sync.Mutex
	past    map[string]*history        // by source
	sent    map[string]json.RawMessage // JSON of each source as the clients have it, by id
	order   []string                   // of the sources, by id and name
	all     []byte                     // the event for a client that has nothing yet
	looked  time.Time                  // when sent, order and all were made
	clients map[*client]struct{}
	running bool
}

// New returns a Page of d.
func New(d Daemon, log *zap.Logger) (*Page, error) {
	tmpl, err := template.ParseFS(files, "page.html")
	if err != nil {
		return nil, err
	}
	p := &Page{
		daemon: d, log: log, tmpl: tmpl, mux: http.NewServeMux(), begun: time.Now(),
		past: map[string]*history{}, clients: map[*client]struct{}{},
	}
	sum := sha256.New()
	for name, kind := range map[string]string{"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"} {
		content, err := files.ReadFile(name)
		if err != nil {
			return nil, err
		}
		p.mux.HandleFunc("GET /page/"+name, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind+"; charset=utf-8")
			_, _ = w.Write(content) // The client may be gone: nothing to do about it.
		})
	}
	for _, name := range []string{"page.css", "page.html", "page.js"} {
		content, err := files.ReadFile(name)
		if err != nil {
			return nil, err
		}
		sum.Write(content)
	}
	p.build = hex.EncodeToString(sum.Sum(nil)[:8])
	p.mux.HandleFunc("GET /{$}", p.whole)
	p.mux.HandleFunc("GET /page/events", p.events)
	return p, nil
}

// policy lets the page load its own three files and its stream, and nothing
// else; text can become neither markup nor script.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// ServeHTTP answers / and what lies under /page/.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
	p.mux.ServeHTTP(w, r)
}

// rendered is what the template gets.
type rendered struct {
	Build   string
	Head    head
	Sources []sourceView
	// Blank is what the script's rows and sections are made from.
	Blank         sourceView
	BlankOverview overview
	BlankFlight   flight
	BlankFailure  failure
	BlankOutcome  outcome
}

// whole renders the page as it is now.
func (p *Page) whole(w http.ResponseWriter, _ *http.Request) {
	st := p.daemon.Status()
	r := rendered{Build: p.build, Head: newHead(&st)}
	p.mu.Lock()
	r.Sources = p.sources(&st)
	p.mu.Unlock()
	var b bytes.Buffer
	if err := p.tmpl.Execute(&b, r); err != nil {
		p.log.Error("the status page was not rendered, the next request tries it again", zap.Error(err))
		http.Error(w, "the page cannot be rendered: see the daemon's log", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(b.Bytes()) // The client is gone.
}

// sources renders every source. The caller holds mu.
func (p *Page) sources(st *admin.Status) []sourceView {
	list := make([]sourceView, len(st.Sources))
	for i := range st.Sources {
		h := p.past[st.Sources[i].Name]
		if h == nil {
			h = &history{}
		}
		list[i] = newSource(i, &st.Sources[i], h, st.Time)
	}
	return list
}

// Run takes the samples of the last hour and feeds the clients until ctx ends,
// which ends the streams.
func (p *Page) Run(ctx context.Context) error {
	p.mu.Lock()
	p.running = true
	p.mu.Unlock()
	defer p.stop()
	tick := time.NewTicker(refresh)
	defer tick.Stop()
	var rest time.Time
	p.sample(time.Now())
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := time.Now()
		p.sample(now)
		if p.watched() && now.After(rest) {
			p.publish()
			rest = time.Now().Add(share * time.Since(now))
		}
	}
}

// sample brings the last hour up to date. It does nothing until a new slot has
// begun.
func (p *Page) sample(now time.Time) {
	slot := int64(now.Sub(p.begun) / slotTime)
	p.mu.Lock()
	due := len(p.past) == 0
	for _, h := range p.past {
		due = due || h.slot < slot
	}
	p.mu.Unlock()
	if !due {
		return
	}
	meters := p.daemon.Meters()
	p.mu.Lock()
	defer p.mu.Unlock()
	past := make(map[string]*history, len(meters))
	for _, m := range meters {
		h := p.past[m.Source]
		if h == nil {
			h = &history{}
		}
		h.add(m, slot, now)
		past[m.Source] = h
	}
	p.past = past // A source that is gone from the configuration is forgotten.
}

// frame is one event of the stream. A first one has the order; a later one only
// the sources that have changed.
type frame struct {
	Build   string                     `json:"build"`
	Head    head                       `json:"head"`
	Order   []string                   `json:"order,omitempty"`
	Sources map[string]json.RawMessage `json:"sources"`
}

// look encodes each source once for all clients. It returns the event for those
// who have what was sent before. The caller holds mu.
func (p *Page) look(st *admin.Status) (change []byte, err error) {
	views := p.sources(st)
	full := frame{Build: p.build, Head: newHead(st), Sources: make(map[string]json.RawMessage, len(views))}
	changed := frame{Build: p.build, Head: full.Head, Sources: map[string]json.RawMessage{}}
	order := make([]string, len(views))
	for i := range views {
		v := &views[i]
		b, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(p.sent[v.ID], b) {
			changed.Sources[v.ID] = b
		}
		full.Sources[v.ID], full.Order = b, append(full.Order, v.ID)
		order[i] = v.ID + " " + v.Name
	}
	all, err := json.Marshal(full)
	if err != nil {
		return nil, err
	}
	change = all
	if slices.Equal(p.order, order) {
		if change, err = json.Marshal(changed); err != nil {
			return nil, err
		}
	}
	p.sent, p.order, p.all, p.looked = full.Sources, order, all, time.Now()
	return change, nil
}
