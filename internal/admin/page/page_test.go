package page

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/admin"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// staged is a daemon whose state a test sets.
type staged struct {
	mu     sync.Mutex
	st     admin.Status
	meters []Meter
}

func (s *staged) Status() admin.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.st
	st.Time = time.Now().UTC()
	st.Sources = slices.Clone(s.st.Sources)
	return st
}

func (s *staged) Meters() []Meter {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.meters)
}

func (s *staged) set(change func(s *staged)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func source(name, state string) admin.SourceStatus {
	return admin.SourceStatus{Name: name, State: state, Sentence: name + ": " + state, Path: "/srv/" + name, Destination: admin.Destination{State: "ok"}}
}

func twoSources() *staged {
	return &staged{st: admin.Status{
		Instance: "app-01", State: "ready", Sources: []admin.SourceStatus{source("a", admin.StateCurrent), source("b", admin.StateWorking)},
	}}
}

func newPage(t *testing.T, d Daemon) *Page {
	t.Helper()
	p, err := New(d, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// runs has the page run until the end of the test, or until stop is called.
func runs(t *testing.T, p *Page) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func ask(p *Page, method, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequestWithContext(context.Background(), method, path, nil))
	return w
}

func TestEveryAnswerIsLockedDown(t *testing.T) {
	p := newPage(t, twoSources())
	for _, path := range []string{"/", "/page/page.css", "/page/page.js", "/page/icon.svg", "/page/events", "/page/none"} {
		h := ask(p, http.MethodHead, path).Header()
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store", "X-Frame-Options": "DENY",
			"Cross-Origin-Resource-Policy": "same-origin",
		} {
			if got := h.Get(name); got != want {
				t.Errorf("%s: %s: %q, want %q", path, name, got, want)
			}
		}
		csp := h.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "trusted-types 'none'"} {
			if !strings.Contains(csp, want) {
				t.Errorf("%s: Content-Security-Policy %q lacks %q", path, csp, want)
			}
		}
		if strings.Contains(csp, "unsafe") || strings.Contains(csp, "*") || strings.Contains(csp, "data:") {
			t.Errorf("%s: Content-Security-Policy %q lets too much in", path, csp)
		}
	}
}

func TestThePageIsReadOnly(t *testing.T) {
	p := newPage(t, twoSources())
	for _, path := range []string{"/", "/page/page.js", "/page/events"} {
		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions} {
			if got := ask(p, method, path).Code; got != http.StatusMethodNotAllowed {
				t.Errorf("%s %s = %d, want 405", method, path, got)
			}
		}
	}
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		if got := ask(p, method, "/").Code; got != http.StatusOK {
			t.Errorf("%s / = %d, want 200", method, got)
		}
	}
}

func TestThePageHasNothingInlineAndNothingFromElsewhere(t *testing.T) {
	body := ask(newPage(t, twoSources()), http.MethodGet, "/").Body.String()
	for _, forbidden := range []string{`(?i)<style`, `(?i)\sstyle=`, `(?i)\son[a-z]+=`, `(?i)javascript:`, `(?i)<script(?: [^>]*)?>[^<]`, `(?i)(?:href|src)="(?:https?:|//)`, `(?i)<form`} {
		if m := regexp.MustCompile(forbidden).FindString(body); m != "" {
			t.Errorf("the page has %q", m)
		}
	}
}

// hostile are names that a local user may give to files.
func hostile() []string {
	return []string{
		"<script>alert(1)</script>", `"><img src=x onerror=alert(1)>`, "' onmouseover='alert(1)", "</template></title><script>alert(1)</script>",
		"two\nlines\r", "esc\x1b[31m\x07", "abc\u202etxt.exe", "\u2066x\u2069", "not\xffutf8", "zero\u200bwidth\ufeff", "c1\u0085\u009b", "\x00", " both ends ", "",
		strings.Repeat("long/", 800), strings.Repeat("\u202e", 1000),
	}
}

func TestHostileNamesStayTextAndAreSeen(t *testing.T) {
	d := twoSources()
	src := &d.st.Sources[0]
	for _, n := range hostile() {
		name := admin.NewName(n)
		src.InFlight = []admin.InFlight{{Name: name, Phase: n}}
		src.Failures = []admin.Failure{{Name: name, Class: n, Error: admin.Plain("open "+n, 400), Advice: n}}
		src.LastOutcomes = []admin.Outcome{{Name: name, Status: "failed"}}
		src.Name, src.Path, src.Prefix, src.Sentence, src.Destination.Error, src.Trail.Error = "s"+n, n, n, "s"+n+": "+n, n, n
		d.st.Instance = n
		p := newPage(t, d)
		body := ask(p, http.MethodGet, "/").Body.String()
		if got := strings.Count(body, "<script"); got != 1 {
			t.Errorf("%q: the page has %d scripts, want its own", n, got)
		}
		if strings.Contains(body, "<img") || strings.Contains(body, "onmouseover='") {
			t.Errorf("%q became markup", n)
		}
		for _, r := range body {
			if r != '\n' && !unicode.IsPrint(r) {
				t.Errorf("%.20q: the page has %U, which nobody sees", n, r)
				break
			}
		}
		st := d.Status()
		all, err := p.look(&st)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.ContainsAny(all, "<>\n\u2028") {
			t.Errorf("%q: the event has markup or more than one line: %.300s", n, all)
		}
		if limit := 40_000; len(all) > limit {
			t.Errorf("%.20q…: the event has %d bytes, want at most %d", n, len(all), limit)
		}
	}
}

func TestPlainNamesAreShownAsTheyAre(t *testing.T) {
	for in, want := range map[string]string{
		"a/b c.txt": "a/b c.txt", "grün/日本.txt": "grün/日本.txt", "tab\t": `"tab\t"`, `back\slash`: `"back\\slash"`, `"q"`: `"\"q\""`,
		" x": `" x"`, "": `""`, "\xff": `"\xff"`, "\u202e": `"\u202e"`,
	} {
		if got := shown(admin.NewName(in)); got != want {
			t.Errorf("shown(%q) = %s, want %s", in, got, want)
		}
	}
}

// tags collects the keys of the JSON of a type.
func tags(t reflect.Type, into map[string]bool) {
	switch t.Kind() {
	case reflect.Slice:
		tags(t.Elem(), into)
	case reflect.Struct:
		for f := range t.Fields() {
			into[f.Tag.Get("json")] = true
			tags(f.Type, into)
		}
	default:
	}
}

func TestThePageAndTheStreamHaveTheSameKeys(t *testing.T) {
	sent := map[string]bool{}
	tags(reflect.TypeFor[head](), sent)
	tags(reflect.TypeFor[sourceView](), sent)
	html, err := files.ReadFile("page.html")
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]bool{"id": true}
	for _, m := range regexp.MustCompile(`data-(?:t|show|list|value|d|href|label|tone-key)="([a-z_.]+)"`).FindAllStringSubmatch(string(html), -1) {
		for part := range strings.SplitSeq(m[1], ".") {
			shown[part] = true
			if !sent[part] {
				t.Errorf("page.html shows %s, which the stream does not bring", m[1])
			}
		}
	}
	for key := range sent {
		if !shown[key] && key != "summary" {
			t.Errorf("the stream brings %s, which page.html does not show", key)
		}
	}
}

// event reads the next event of a client that is there already.
func event(t *testing.T, c *client) frame {
	t.Helper()
	b, ok := <-c.events
	if !ok {
		t.Fatal("the client was dropped")
	}
	var f frame
	if err := json.Unmarshal(b, &f); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestAStreamBeginsWithTheWholeAndGoesOnWithWhatChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := twoSources()
		p := newPage(t, d)
		stop := runs(t, p)
		synctest.Wait()
		c, err := p.join()
		if err != nil || c == nil {
			t.Fatalf("join() = %v, %v", c, err)
		}
		if f := event(t, c); !slices.Equal(f.Order, []string{"source-1", "source-2"}) || len(f.Sources) != 2 {
			t.Errorf("the first event has the order %q and %d sources, want both", f.Order, len(f.Sources))
		}
		if f := event(t, c); f.Order != nil || len(f.Sources) != 0 || f.Head.Verdict != "At work, nothing is in the way" {
			t.Errorf("an event without news has %q, %d sources and %q", f.Order, len(f.Sources), f.Head.Verdict)
		}
		d.set(func(s *staged) { s.st.Sources[1] = source("b", admin.StateParked) })
		f := event(t, c)
		if len(f.Sources) != 1 || !strings.Contains(string(f.Sources["source-2"]), `"parked"`) || f.Head.Verdict != "1 of 2 sources needs attention" {
			t.Errorf("after a change of the second source: %s, %q", f.Sources, f.Head.Verdict)
		}
		if f.Head.Overview[0].Name != "b" {
			t.Errorf("the first in the overview is %s, want the one that is parked", f.Head.Overview[0].Name)
		}
		d.set(func(s *staged) { s.st.Sources = s.st.Sources[1:] })
		if f := event(t, c); !slices.Equal(f.Order, []string{"source-1"}) || len(f.Sources) != 1 {
			t.Errorf("after a reload with other sources: order %q, %d sources; want the whole", f.Order, len(f.Sources))
		}
		stop()
		for range c.events { // What is left, until it is closed.
		}
		if c, err := p.join(); c != nil || err != nil {
			t.Errorf("join() after the stop = %v, %v, want none", c, err)
		}
	})
}

func TestASlowClientIsDroppedAndTheOthersStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPage(t, twoSources())
		defer runs(t, p)()
		synctest.Wait()
		slow, err := p.join()
		if err != nil {
			t.Fatal(err)
		}
		quick, err := p.join()
		if err != nil {
			t.Fatal(err)
		}
		for range 3 * backlog {
			event(t, quick)
		}
		n := 0
		for range slow.events {
			n++
		}
		if n > backlog {
			t.Errorf("%d events were kept for a client that reads none, want at most %d", n, backlog)
		}
		p.leave(quick)
		p.leave(slow)
	})
}

func TestNobodyIsAskedForWhileNobodyLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &counting{staged: twoSources()}
		p := newPage(t, d)
		defer runs(t, p)()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if got := d.asked(); got != 0 {
			t.Errorf("the status was asked for %d times without a client", got)
		}
	})
}

type counting struct {
	*staged

	n int
}

func (c *counting) Status() admin.Status {
	c.set(func(*staged) { c.n++ })
	return c.staged.Status()
}

func (c *counting) asked() (n int) {
	c.set(func(*staged) { n = c.n })
	return n
}

func TestTheStreamGoesOverHTTP2(t *testing.T) {
	p := newPage(t, twoSources())
	stop := runs(t, p)
	srv := httptest.NewUnstartedServer(p)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	defer stop()
	eventually(t, func() bool { return isRunning(p) })
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+"/page/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	events := 0
	for events < 3 && lines.Scan() {
		if strings.HasPrefix(lines.Text(), "data: {") {
			events++
		}
	}
	if resp.ProtoMajor != 2 || events != 3 {
		t.Errorf("%s %s, %d events, want 3 over HTTP/2 (%v)", resp.Proto, resp.Status, events, lines.Err())
	}
}

func isRunning(p *Page) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running
}

// eventually polls ok until it is true.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("not within a minute")
		}
	}
}

// stream is the answer to one client.
type stream struct {
	code   int
	header http.Header
	body   io.ReadCloser
}

func TestStreamsAreFewAndEndWithTheDaemon(t *testing.T) {
	p := newPage(t, twoSources())
	stop := runs(t, p)
	srv := httptest.NewServer(p)
	defer srv.Close()
	eventually(t, func() bool { return isRunning(p) })
	open := func() stream {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+"/page/events", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return stream{resp.StatusCode, resp.Header, resp.Body}
	}
	var streams []stream
	for range Clients {
		streams = append(streams, open())
	}
	for i, s := range streams {
		if s.code != http.StatusOK || s.header.Get("Content-Type") != "text/event-stream" {
			t.Fatalf("stream %d = %d %s, want 200", i+1, s.code, s.header)
		}
	}
	if s := open(); s.code != http.StatusServiceUnavailable || s.header.Get("Retry-After") == "" {
		t.Errorf("stream %d = %d, want 503 with Retry-After", Clients+1, s.code)
	}
	first := make([]byte, 6)
	if _, err := io.ReadFull(streams[0].body, first); err != nil || string(first) != "data: " {
		t.Errorf("a stream begins with %q, %v", first, err)
	}
	streams[0].body.Close() // One who goes makes room for another.
	eventually(t, func() bool { return open().code == http.StatusOK })
	stop()
	for _, s := range streams[1:] {
		if _, err := io.Copy(io.Discard, s.body); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("the end of a stream: %v", err)
		}
	}
}
