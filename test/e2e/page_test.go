package e2e_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/admin"
	statuspage "github.com/s3syncd/s3syncd/internal/admin/page"
)

// staged is a daemon whose state a test sets.
type staged struct {
	mu sync.Mutex
	st admin.Status
	n  int64
}

func (s *staged) Status() admin.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.st
	st.Time = time.Now().UTC()
	return st
}

func (s *staged) Meters() []statuspage.Meter {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	var list []statuspage.Meter
	for i := range s.st.Sources {
		list = append(list, statuspage.Meter{
			Source: s.st.Sources[i].Name, Acknowledged: s.n * s.n * 1000, Uploads: 1, Slowest: time.Duration(s.n%7+1) * time.Second,
		})
	}
	return list
}

func (s *staged) set(change func(st *admin.Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sources := append([]admin.SourceStatus{}, s.st.Sources...)
	s.st.Sources = sources
	change(&s.st)
}

// serve answers with the page of s at address until stop is called.
func (s *staged) serve(t *testing.T, address string) (origin string, stop func()) {
	t.Helper()
	p, err := statuspage.New(s, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	ok := func() error { return nil }
	var srv *admin.Server
	eventually(t, "the listener", func() bool {
		srv, err = admin.Listen(t.Context(), admin.Options{
			Listen: address, Gatherer: prometheus.NewRegistry(), Page: p, Ready: func() error { return nil }, Healthy: ok, Log: zap.NewNop(),
		})
		return err == nil
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	pctx, pcancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	errs := make([]error, 2)
	wg.Go(func() { errs[0] = p.Run(pctx) })
	wg.Go(func() { errs[1] = srv.Run(ctx) })
	stop = sync.OnceFunc(func() {
		pcancel()
		cancel()
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Errorf("end of the listener: %v", err)
		}
	})
	t.Cleanup(stop)
	return "http://" + srv.Addr().String(), stop
}

// healthy is a daemon with two sources, one at work.
func healthy() *staged {
	now := time.Now().UTC()
	return &staged{st: admin.Status{
		Format: 1, Instance: "app-01", Version: "1.4.0", Revision: "abc", PID: 4711, StartedAt: now.Add(-76 * time.Hour), State: "ready", Current: true,
		Sources: []admin.SourceStatus{
			{
				Name: "app-data", State: admin.StateWorking, Sentence: "app-data: working: 412 waiting, the oldest since 09:14:01Z",
				Path: "/opt/app/data", Bucket: "my-company-data", Prefix: "backups/app-01/app-data", Available: true,
				Destination: admin.Destination{State: "ok"},
				Queue:       admin.Queue{Settling: 12, Queued: 396, InFlight: 2, Delayed: 2, Total: 412, Oldest: new(now.Add(-14 * time.Second))},
				Indexed:     admin.Indexed{Files: 1203114, Bytes: 123456789012},
				Outcomes:    map[string]int64{"uploaded": 12031, "skipped": 1190212, "deleted": 31, "failed": 0, "rekeyed": 0},
				InFlight: []admin.InFlight{
					{Name: admin.NewName("exports/2026-03/full-dump.sql.zst"), Size: 1 << 30, Sent: 700 << 20, Phase: "send", StartedAt: now.Add(-41 * time.Second)},
					{Name: admin.NewName("orders/00/18/order-001877.json"), Size: 1877, Phase: "hash", StartedAt: now},
				},
				LastOutcomes: []admin.Outcome{
					{Name: admin.NewName("orders/00/18/order-001876.json"), Status: "uploaded", Size: 1803, At: now.Add(-time.Second)},
					{Name: admin.NewName("orders/00/18/order-001875.json"), Status: "uploaded", Size: 2001, At: now.Add(-2 * time.Second)},
					{Name: admin.NewName("invoices/2026/03/a very long name of an invoice for a customer whose name is long as well.pdf"), Status: "skipped", Size: 88213, At: now.Add(-4 * time.Second)},
					{Name: admin.NewName("orders/00/17/order-001701.json"), Status: "deleted", Size: 0, At: now.Add(-9 * time.Second)},
				},
				Trail: admin.Trail{
					Chain: "c2ea2e8f", Sequence: 1712, LastManifest: "p/_manifests/manifest_20260302_091000_app-01_c2ea2e8f_00001712.json", LastManifestAt: new(now.Add(-4 * time.Minute)),
					LastDigest: "p/_manifests/digest_20260302_091000_app-01_c2ea2e8f_00001712.json", LastDigestAt: new(now.Add(-4 * time.Minute)),
					LastDigestSHA256: strings.Repeat("9f3ab2c4", 8), Signing: true, UnpublishedRecords: 231,
				},
				LastScan: &admin.Scan{Trigger: "rescan", StartedAt: now.Add(-20 * time.Minute), EndedAt: now.Add(-19 * time.Minute), Complete: true, Files: 1203090, New: 3, Changed: 1},
				Watched:  20111, Polled: 0,
			},
			{
				Name: "logs", State: admin.StateCurrent, Sentence: "logs: current", Path: "/var/log/app", Bucket: "my-company-data", Prefix: "backups/app-01/logs",
				Available: true, Destination: admin.Destination{State: "ok"}, Indexed: admin.Indexed{Files: 1412, Bytes: 92 << 20},
				Outcomes: map[string]int64{"uploaded": 1412}, Watched: 12,
				Trail: admin.Trail{Chain: "77aa01c2", Sequence: 76, LastDigestSHA256: strings.Repeat("00ff12ab", 8), LastDigest: "p/_manifests/digest_x.json", LastDigestAt: new(now.Add(-50 * time.Minute))},
			},
		},
	}}
}

// failing is a daemon whose first source has almost every trouble there is.
func failing() *staged {
	s := healthy()
	now := time.Now().UTC()
	s.set(func(st *admin.Status) {
		src := &st.Sources[0]
		denied := "PutObject: AccessDenied (403): User: arn:aws:sts::123456789012:assumed-role/app/i-0abc is not authorized to perform: kms:GenerateDataKey on resource: arn:aws:kms:us-east-1:123456789012:key/abc-123"
		src.State, src.Since, src.Reason = admin.StateParked, new(now.Add(-7*time.Hour)), "kms:GenerateDataKey denied"
		src.Sentence = "app-data: behind since 02:14:00Z: kms:GenerateDataKey denied; 8,412 waiting; next probe in 40 s"
		src.Destination = admin.Destination{State: "parked", Class: "configuration", Error: denied, Since: src.Since, NextProbe: new(now.Add(40 * time.Second))}
		src.Queue = admin.Queue{Settling: 12, Queued: 8398, Delayed: 2, Total: 8412, Oldest: src.Since}
		src.Parked = map[string]int64{"file": 2, "conflict": 1}
		src.InFlight = nil
		src.Failures = []admin.Failure{
			{Name: admin.NewName("orders/00/18/order-001877.json"), Class: "configuration", Error: denied, FirstAt: now, LastAt: now, Count: 33, Advice: admin.Advice("configuration", denied)},
			{Name: admin.NewName("secret/key.pem"), Class: "file", Error: "open: permission denied", FirstAt: now, LastAt: now.Add(-time.Hour), Count: 1, Advice: admin.Advice("file", "open: permission denied")},
			{Name: admin.NewName("cache/session.db"), Class: "transient", Error: "PutObject: read tcp 10.0.0.4:3312->52.216.1.1:443: connection reset by peer", FirstAt: now, LastAt: now.Add(-2 * time.Hour), Count: 2, Retried: true, Advice: admin.Advice("transient", "")},
			{Name: admin.NewName("tmp/a"), Class: "changed", Error: "it changed while it was read", FirstAt: now, LastAt: now.Add(-3 * time.Hour), Count: 1, ResolvedAt: new(now.Add(-2 * time.Hour)), Advice: admin.Advice("changed", "")},
		}
		src.Trail.Error, src.Trail.ErrorSince, src.Trail.WaitingDocuments = "publish manifest: AccessDenied", new(now.Add(-6*time.Hour)), 4
		src.Trail.UnsignedDigests = 2
	})
	return s
}

// hostile are names that a local user may give to files.
func hostile() []string {
	return []string{
		"<script>window.pwned=1</script>", `"><img src=x onerror=window.pwned=1>`, "'; window.pwned=1; '", "{{.Head}}${window.pwned=1}",
		"two\nlines", "esc\x1b[31mred", "abc\u202etxt.exe", "not\xffutf8", "zero\u200bwidth", " leading", "</title></template><script>window.pwned=1</script>",
		strings.Repeat("long/", 800),
	}
}

func TestHostileNamesStayTextInTheBrowser(t *testing.T) {
	b := newBrowser(t)
	s := healthy()
	origin, _ := s.serve(t, "127.0.0.1:0")
	give := func(st *admin.Status, names []string) {
		src := &st.Sources[0]
		src.InFlight, src.Failures, src.LastOutcomes = nil, nil, nil
		for _, n := range names {
			name := admin.NewName(n)
			src.InFlight = append(src.InFlight, admin.InFlight{Name: name, Phase: "hash", StartedAt: time.Now()})
			src.Failures = append(src.Failures, admin.Failure{Name: name, Class: "file", Error: "open " + n, LastAt: time.Now(), Advice: n})
			src.LastOutcomes = append(src.LastOutcomes, admin.Outcome{Name: name, Status: "failed", At: time.Now()})
		}
		st.Sources[1].Path, st.Sources[1].Sentence = "/srv/"+names[0], "logs: "+names[0]
	}
	names := hostile()
	half := len(names) / 2
	check := func(when string) {
		t.Helper()
		for expression, want := range map[string]string{
			"window.pwned": "undefined", "document.scripts.length": "1", "document.images.length": "0",
			`document.querySelectorAll('template').length`:                                     "5",
			"/[\\u0000-\\u0009\\u000b-\\u001f\\u200b\\u202e]/.test(document.body.textContent)": "false",
		} {
			if got := b.eval(t, expression); got != want {
				t.Errorf("%s: %s is %s, want %s", when, expression, got, want)
			}
		}
	}
	s.set(func(st *admin.Status) { give(st, names[:half]) })
	b.open(t, origin, 1200, false)
	b.see(t, `<script>window.pwned=1</script>`, `two\nlines`)
	check("rendered by the server")
	b.picture(t, "hostile")
	s.set(func(st *admin.Status) { give(st, names[half:]) })
	b.see(t, `abc\u202etxt.exe`, `not\xffutf8`, `" leading"`, `</title></template>`)
	check("brought by the stream")
	b.clean(t, origin)
}

func TestThePageIsAccessible(t *testing.T) {
	b := newBrowser(t)
	for name, s := range map[string]*staged{"healthy": healthy(), "failing": failing()} {
		origin, stop := s.serve(t, "127.0.0.1:0")
		for _, dark := range []bool{false, true} {
			for _, width := range []int64{1200, 390} {
				what := name + map[bool]string{false: "-light", true: "-dark"}[dark] + map[bool]string{false: "-desktop", true: "-phone"}[width < 600]
				b.open(t, origin, width, dark)
				b.see(t, "app-data", "Audit trail")
				b.accessible(t, what)
				if got := b.eval(t, "document.documentElement.scrollWidth <= window.innerWidth"); got != "true" {
					t.Errorf("%s: the page is wider than the window", what)
				}
				b.picture(t, what)
			}
		}
		stop()
	}
}

func TestThePageSaysThatTheConnectionIsLost(t *testing.T) {
	b := newBrowser(t)
	s := healthy()
	origin, stop := s.serve(t, "127.0.0.1:0")
	b.open(t, origin, 1200, false)
	s.set(func(st *admin.Status) { st.Sources[1].Sentence = "logs: first news" })
	b.see(t, "first news")
	stop()
	b.see(t, "No connection to the daemon since ")
	b.accessible(t, "lost")
	b.picture(t, "lost")
	again := healthy()
	again.set(func(st *admin.Status) {
		st.Sources = append(st.Sources, st.Sources[1])
		st.Sources[2].Name, st.Sources[2].Sentence = "third", "third: came with the reload"
		st.Sources[1].Sentence = "logs: news after it"
	})
	again.serve(t, strings.TrimPrefix(origin, "http://"))
	b.see(t, "news after it", "came with the reload")
	eventually(t, "the notice goes", func() bool { return b.eval(t, "document.getElementById('lost').hidden") == "true" })
	if got := b.eval(t, "document.querySelectorAll('main section').length"); got != "3" {
		t.Errorf("%s sections, want 3", got)
	}
	again.set(func(st *admin.Status) { st.Sources = st.Sources[:1] })
	eventually(t, "one section is left", func() bool { return b.eval(t, "document.querySelectorAll('main section').length") == "1" })
}

func TestThePageIsWholeWithoutScript(t *testing.T) {
	b := newBrowser(t)
	origin, _ := failing().serve(t, "127.0.0.1:0")
	call(t, b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	b.open(t, origin, 1200, false)
	text := run(t, b, chromedp.Text(chromedp.CSS("body")))
	for _, want := range []string{"8,412 waiting", "Grant kms:GenerateDataKey", "load it again", "c2ea2e8f, sequence 1712"} {
		if !strings.Contains(text, want) {
			t.Errorf("without script the page does not say %q:\n%s", want, text)
		}
	}
	b.clean(t, origin)
}

// origin is the address of the daemon's admin listener.
func (p *process) origin(t *testing.T) string {
	t.Helper()
	m := adminAddress.FindStringSubmatch(p.stderr.String())
	if m == nil {
		t.Fatalf("no admin listener in the log:\n%s", p.stderr)
	}
	return "http://" + m[1]
}

func TestTheDaemonServesItsPage(t *testing.T) {
	s := newSite(t, "", "")
	s.env = append(s.env, "S3SYNCD_ADMIN_PAGE=true")
	write(t, s.path("<b>first\u202e"), "content")
	d := s.daemon(t)
	eventually(t, "the outcome", func() bool {
		_, body := d.get(t, "/")
		return strings.Contains(body, `&lt;b&gt;first\u202e`) && !strings.Contains(body, "<b>")
	})
	if code, _ := d.get(t, "/page/page.js"); code != http.StatusOK {
		t.Errorf("the script = %d, want 200", code)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.origin(t)+"/page/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	write(t, s.path("second"), "content")
	for !strings.Contains(lines.Text(), `"name":"second"`) {
		if !lines.Scan() {
			t.Fatalf("the stream ended before it told of a new file: %v", lines.Err())
		}
	}
	if code := d.stop(t); code != 0 { // The stream is still open.
		t.Errorf("exit code %d, want 0", code)
	}
	for lines.Scan() { // What came until the end.
	}
	if err := lines.Err(); err != nil {
		t.Errorf("the end of the stream: %v", err)
	}
}

func TestThePageShowsARunOf10000FilesWithoutGrowing(t *testing.T) {
	b := newBrowser(t)
	s := newSite(t, "", "")
	s.env = append(s.env, "S3SYNCD_ADMIN_PAGE=true")
	const files = 10_000
	p := spawnProgram(t, plain(t), s.env, "run", "-c", s.file)
	p.isReady(t)
	origin := p.origin(t)
	b.open(t, origin, 1200, false)
	b.see(t, "nothing waits, nothing is in the way")
	_, before := b.holds(t)

	for i := range files {
		write(t, s.path(fmt.Sprintf("d%02d/file-%05d", i%100, i)), fmt.Sprintf("content %d", i))
	}
	most, heap, seen := 0, 0.0, map[string]bool{}
	var took []time.Duration
	deadline := time.After(15 * time.Minute)
	tick := time.NewTicker(500 * time.Millisecond) // Each look collects the browser's garbage.
	defer tick.Stop()
	for done := false; !done; {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("not all files are in S3 after 15 minutes")
		}
		begin := time.Now()
		st := s.status(t)
		took = append(took, time.Since(begin))
		n, h := b.holds(t)
		most, heap = max(most, n), max(heap, h)
		seen[b.eval(t, "document.querySelector('[data-t=stored]').textContent")] = true
		if len(st.Sources) == 1 && st.Sources[0].Indexed.Files > files/2 && len(seen) > 1 {
			b.picture(t, "run")
		}
		done = len(st.Sources) == 1 && st.Sources[0].Indexed.Files == files && st.Sources[0].Queue.Total == 0
	}
	b.see(t, "10,000")
	eventually(t, "a drawing of the last hour", func() bool {
		return b.eval(t, "document.querySelector('.rate').getAttribute('d').length > 0") == "true"
	})
	b.picture(t, "after-the-run")
	after, end := b.holds(t)
	slices.Sort(took)
	t.Logf("elements: at most %d, %d at the end; script: %.0f KiB before, at most %.0f, %.0f at the end; %d states seen",
		most, after, before/1024, heap/1024, end/1024, len(seen))
	t.Logf("status answered %d times: median %v, 95th percentile %v, slowest %v", len(took), took[len(took)/2], took[len(took)*95/100], took[len(took)-1])
	if len(seen) < 3 {
		t.Errorf("the page showed %d numbers of files, want it to follow", len(seen))
	}
	if most > 2000 {
		t.Errorf("the page had %d elements, want at most 2000 whatever the number of files", most)
	}
	if limit := before + 8<<20; heap > limit {
		t.Errorf("the script held %.0f bytes, want at most %.0f", heap, limit)
	}
	if slowest := took[len(took)-1]; slowest > 10*time.Second {
		t.Errorf("status took %v", slowest)
	}
	b.clean(t, origin)
	if code := p.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}
