package s3test

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Request is one request as a server of this package saw it.
type Request struct {
	Op     string // HeadObject, PutObject, UploadPart …
	Method string
	Bucket string
	Key    string
	Query  url.Values
	Header http.Header
	Status int // 0: not answered yet, or never

	VersionID string // What the answer names, also one that nobody received.
	Held      bool   // The answer was kept back by Hold.
}

// Match selects requests. Empty fields match everything.
type Match struct {
	Op     string // operation name, as in Request
	Method string
	Bucket string
	Prefix string // of the key
	Key    string // a part of the key
	Query  string // a parameter that must be there
	Skip   int    // so many matching requests pass first
	Times  int    // then so many are taken; 0: one, -1: all
	Every  int    // of these only each so-manieth; 0: each
}

func (m Match) fits(r Request) bool {
	return (m.Op == "" || m.Op == r.Op) && (m.Method == "" || m.Method == r.Method) &&
		(m.Bucket == "" || m.Bucket == r.Bucket) && strings.HasPrefix(r.Key, m.Prefix) && strings.Contains(r.Key, m.Key) && (m.Query == "" || r.Query.Has(m.Query))
}

// Fault is a planned fault. A test fails at its end if a planned fault never
// fired.
type Fault struct {
	match   Match
	act     func(w http.ResponseWriter, r *http.Request, next http.Handler)
	arrived chan struct{}
	release chan struct{}
	holds   bool // The answer is what is kept back.

	seen, fired int  // guarded by Faults.mu
	lifted      bool // likewise
	mayRest     bool // likewise
	once        sync.Once
}

// Arrived receives once for each request that the fault has taken. For a held
// answer that is after the server has processed the request.
func (f *Fault) Arrived() <-chan struct{} { return f.arrived }

// MayRest lets the test end well although the fault has never fired.
func (f *Fault) MayRest() { f.mayRest = true }

// Wait blocks until the fault has taken a request, for at most half a minute.
func (f *Fault) Wait(tb testing.TB) {
	tb.Helper()
	select {
	case <-f.arrived:
	case <-time.After(30 * time.Second):
		tb.Fatalf("planned fault for %+v did not fire within 30s", f.match)
	}
}

// Release lets everything that the fault holds, or will hold, go on.
func (f *Fault) Release() { f.once.Do(func() { close(f.release) }) }

// Faults stands before a server, plays planned faults and keeps a ledger of
// all requests. It is safe for concurrent use.
type Faults struct {
	next http.Handler

	mu     sync.Mutex
	faults []*Fault
	ledger []*Request
}

func newFaults(tb testing.TB, next http.Handler) *Faults {
	tb.Helper()
	f := &Faults{next: next}
	tb.Cleanup(func() { f.verify(tb) })
	return f
}

// verify fails the test for every planned fault that never fired.
func (f *Faults) verify(tb testing.TB) {
	tb.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.faults {
		if p.fired == 0 && !p.mayRest {
			tb.Errorf("planned fault for %+v never fired", p.match)
		}
	}
}

// releaseAll ends all holding, so that a server can be closed.
func (f *Faults) releaseAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.faults {
		p.Release()
	}
}

// ServeHTTP plays the first planned fault that takes the request, or passes it
// on.
func (f *Faults) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rec := requestOf(r)
	f.mu.Lock()
	f.ledger = append(f.ledger, rec)
	p := f.take(*rec)
	f.mu.Unlock()
	sw := &statusWriter{ResponseWriter: w, note: func(status int) {
		f.mu.Lock()
		defer f.mu.Unlock()
		rec.Status, rec.VersionID = status, w.Header().Get("X-Amz-Version-Id")
		rec.Held = p != nil && p.holds
	}}
	if p == nil {
		f.next.ServeHTTP(sw, r)
		return
	}
	p.act(sw, r, f.next)
}

// take finds the fault for r. The caller holds mu.
func (f *Faults) take(r Request) *Fault {
	for _, p := range f.faults {
		if p.lifted || !p.match.fits(r) {
			continue
		}
		p.seen++
		n := p.seen - p.match.Skip
		if n > 0 && !p.lifted && (p.match.Times < 0 || n <= max(1, p.match.Times)) && n%max(1, p.match.Every) == 0 {
			p.fired++
			return p
		}
	}
	return nil
}

func (f *Faults) plan(m Match) *Fault {
	return &Fault{match: m, arrived: make(chan struct{}, 1024), release: make(chan struct{})}
}

func (f *Faults) add(p *Fault) *Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, p)
	return p
}

// Hold lets the server process the request and keeps its answer back until
// Release, the end of the client's connection, or the end of the test.
func (f *Faults) Hold(m Match) *Fault {
	p := f.plan(m)
	p.holds = true
	p.act = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		rec := record(next, r)
		p.wait(r)
		replay(w, rec)
	}
	return f.add(p)
}

// Stall takes the request's head and reads nothing more until Release; then
// the server processes it.
func (f *Faults) Stall(m Match) *Fault {
	p := f.plan(m)
	p.act = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		p.wait(r)
		next.ServeHTTP(w, r)
	}
	return f.add(p)
}

// arrive reports an arrival, as long as somebody may still want to know of it.
func (f *Fault) arrive() {
	select {
	case f.arrived <- struct{}{}:
	default:
	}
}

// wait reports the arrival and blocks until the release or the client is gone.
func (f *Fault) wait(r *http.Request) {
	f.arrive()
	select {
	case <-f.release:
	case <-r.Context().Done():
	}
}

// Lose lets the server process the request and closes the connection instead of
// answering: a success that the client does not learn of.
func (f *Faults) Lose(m Match) *Fault {
	p := f.plan(m)
	p.act = func(_ http.ResponseWriter, r *http.Request, next http.Handler) {
		record(next, r)
		p.arrive()
		panic(http.ErrAbortHandler)
	}
	return f.add(p)
}

// Cut closes the connection without passing the request on.
func (f *Faults) Cut(m Match) *Fault {
	p := f.plan(m)
	p.act = func(http.ResponseWriter, *http.Request, http.Handler) {
		p.arrive()
		panic(http.ErrAbortHandler)
	}
	return f.add(p)
}

// Answer answers with status and an S3 error code in place of the server, with
// headers as name, value pairs.
func (f *Faults) Answer(m Match, status int, code string, headers ...string) *Fault {
	p := f.plan(m)
	p.act = func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		p.arrive()
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		writeError(w, r, status, code, "planned fault")
	}
	return f.add(p)
}

// Deny answers 403 in AWS's words for a missing permission: action on resource.
func (f *Faults) Deny(m Match, action, resource string) *Fault {
	p := f.plan(m)
	p.act = func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		p.arrived <- struct{}{}
		_, _ = io.Copy(io.Discard, r.Body) // Else a large body is cut off, and the answer with it.
		writeError(w, r, http.StatusForbidden, "AccessDenied", "User: arn:aws:sts::123456789012:assumed-role/app/i-1 is not authorized to perform: "+
			action+" on resource: "+resource+" because no identity-based policy allows the "+action+" action")
	}
	return f.add(p)
}

// Truncate passes the request on and cuts its answer's body in the middle.
func (f *Faults) Truncate(m Match) *Fault {
	p := f.plan(m)
	p.act = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		rec := record(next, r)
		p.arrive()
		body := rec.Body.Bytes()
		maps.Copy(w.Header(), rec.Header())
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.WriteHeader(rec.Code)
		_, _ = w.Write(body[:len(body)/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	return f.add(p)
}

// Strip passes the request on and removes headers from its answer: those whose
// name begins with one of the prefixes.
func (f *Faults) Strip(m Match, prefixes ...string) *Fault {
	p := f.plan(m)
	p.act = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		rec := record(next, r)
		p.arrive()
		maps.DeleteFunc(rec.Header(), func(name string, _ []string) bool {
			for _, prefix := range prefixes {
				if strings.HasPrefix(strings.ToLower(name), strings.ToLower(prefix)) {
					return true
				}
			}
			return false
		})
		replay(w, rec)
	}
	return f.add(p)
}

// Break reads a part of the request's body and resets the connection.
func (f *Faults) Break(m Match) *Fault {
	p := f.plan(m)
	p.act = func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		_, _ = io.CopyN(io.Discard, r.Body, r.ContentLength/2)
		p.arrive()
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
	}
	return f.add(p)
}

// Say answers with status and body in place of the server. With act the server
// has processed the request before.
func (f *Faults) Say(m Match, act bool, status int, body string) *Fault {
	p := f.plan(m)
	p.act = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if act {
			record(next, r)
		} else {
			_, _ = io.Copy(io.Discard, r.Body)
		}
		p.arrive()
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
	return f.add(p)
}

// Delay passes every request that it takes on after a while.
func (f *Faults) Delay(m Match, by time.Duration) *Fault {
	p := f.plan(m)
	p.act = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		p.arrive()
		select {
		case <-time.After(by):
		case <-r.Context().Done():
		}
		next.ServeHTTP(w, r)
	}
	return f.add(p)
}

// Lift ends a fault: it takes no more requests, and lets go what it holds.
func (f *Faults) Lift(p *Fault) {
	f.mu.Lock()
	p.lifted = true
	f.mu.Unlock()
	p.Release()
}

// Fired returns how many requests a fault has taken.
func (f *Faults) Fired(p *Fault) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return p.fired
}

// Ledger returns a copy of all requests so far, oldest first.
func (f *Faults) Ledger() []Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]Request, len(f.ledger))
	for i, r := range f.ledger {
		out[i] = *r
	}
	return out
}

// Count returns how many requests so far match; Skip and Times do not count.
func (f *Faults) Count(m Match) int {
	n := 0
	for _, r := range f.Ledger() {
		if m.fits(r) {
			n++
		}
	}
	return n
}

// Forget empties the ledger.
func (f *Faults) Forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ledger = nil
}

// requestOf reads a path-style request.
func requestOf(r *http.Request) *Request {
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	q := r.URL.Query()
	return &Request{
		Op: operation(r, key, q), Method: r.Method, Bucket: bucket, Key: key, Query: q, Header: r.Header.Clone(),
	}
}

// operation names what a request asks for; "" for what this package does not
// know.
func operation(r *http.Request, key string, q url.Values) string {
	switch {
	case key == "" && q.Has("uploads"):
		return map[string]string{http.MethodGet: "ListMultipartUploads"}[r.Method]
	case key == "" && q.Has("versions"):
		return map[string]string{http.MethodGet: "ListObjectVersions"}[r.Method]
	case key == "":
		return map[string]string{http.MethodGet: "ListObjectsV2", http.MethodPut: "CreateBucket"}[r.Method]
	case q.Has("tagging"):
		return map[string]string{http.MethodGet: "GetObjectTagging", http.MethodPut: "PutObjectTagging"}[r.Method]
	case q.Has("uploads"):
		return map[string]string{http.MethodPost: "CreateMultipartUpload"}[r.Method]
	case q.Has("uploadId"):
		return copying(r, map[string]string{
			http.MethodPost: "CompleteMultipartUpload", http.MethodPut: "UploadPart",
			http.MethodDelete: "AbortMultipartUpload", http.MethodGet: "ListParts",
		}[r.Method], "UploadPartCopy")
	}
	return copying(r, map[string]string{
		http.MethodHead: "HeadObject", http.MethodGet: "GetObject", http.MethodPut: "PutObject", http.MethodDelete: "DeleteObject",
	}[r.Method], "CopyObject")
}

// copying returns op, or name where r asks for the same with another object's
// content.
func copying(r *http.Request, op, name string) string {
	if r.Method == http.MethodPut && r.Header.Get("X-Amz-Copy-Source") != "" {
		return name
	}
	return op
}

// record runs next and keeps its answer.
func record(next http.Handler, r *http.Request) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	next.ServeHTTP(rec, r)
	return rec
}

func replay(w http.ResponseWriter, rec *httptest.ResponseRecorder) {
	maps.Copy(w.Header(), rec.Header())
	w.WriteHeader(rec.Code)
	_, _ = w.Write(rec.Body.Bytes()) // A client that is gone is the point of some faults.
}

// statusWriter notes the status of an answer.
type statusWriter struct {
	http.ResponseWriter

	note func(status int)
}

func (w *statusWriter) WriteHeader(status int) {
	w.note(status)
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	if err != nil {
		return n, fmt.Errorf("write answer: %w", err)
	}
	return n, nil
}

// Unwrap serves http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
