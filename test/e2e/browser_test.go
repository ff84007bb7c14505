package e2e_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/heapprofiler"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	cdpruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// browser is a real Chromium with one tab.
type browser struct {
	timed func() (context.Context, context.CancelFunc) // of the tab, for one action

	mu       sync.Mutex
	requests []string // the addresses that it asked for
	problems []string // what it wrote to its console, and script that failed
}

// newBrowser starts Chromium until the end of the test. It skips the test where
// there is none, and in the short runs.
func newBrowser(t *testing.T) *browser {
	t.Helper()
	if !thorough {
		t.Skip("a browser is started by `make e2e` only (S3SYNCD_E2E=1)")
	}
	program := ""
	for _, name := range []string{os.Getenv("S3SYNCD_TEST_CHROMIUM"), "chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil && program == "" {
			program = found
		}
	}
	if program == "" {
		t.Skip("no Chromium here: install Debian's chromium, or name one in S3SYNCD_TEST_CHROMIUM")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true))
	actx, acancel := chromedp.NewExecAllocator(context.WithoutCancel(t.Context()), options...)
	t.Cleanup(acancel)
	ctx, cancel := chromedp.NewContext(actx)
	t.Cleanup(cancel)
	b := &browser{timed: func() (context.Context, context.CancelFunc) { return context.WithTimeout(ctx, wait) }}
	if err := chromedp.Listen(ctx, b.note); err != nil { // This starts it, with a directory of its own.
		t.Fatalf("start %s: %v", program, err)
	}
	call(t, b, network.Enable, network.EnableParams{})
	call(t, b, log.Enable, cdp.Empty{})
	call(t, b, cdpruntime.Enable, cdp.Empty{})
	t.Cleanup(func() {
		stop, end := context.WithTimeout(ctx, wait)
		defer end()
		if err := chromedp.Cancel(stop); err != nil {
			t.Logf("end of the browser: %v", err)
		}
	})
	return b
}

func (b *browser) note(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		b.requests = append(b.requests, e.Request.URL)
	case *cdpruntime.EventExceptionThrown:
		b.problems = append(b.problems, e.ExceptionDetails.Text+" "+e.ExceptionDetails.URL)
	case *log.EventEntryAdded:
		b.problems = append(b.problems, e.Entry.Text+" "+e.Entry.URL)
	}
}

// clean fails the test if the browser asked another origin, or complained.
func (b *browser) clean(t *testing.T, origin string) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.requests) == 0 {
		t.Errorf("the browser asked for nothing")
	}
	for _, r := range b.requests {
		if !strings.HasPrefix(r, origin+"/") {
			t.Errorf("the page asked for %s, which is not %s", r, origin)
		}
	}
	for _, p := range b.problems {
		t.Errorf("the browser says: %s", p)
	}
}

// run does one action.
func run[T any](t *testing.T, b *browser, action chromedp.Action[T]) T {
	t.Helper()
	ctx, cancel := b.timed()
	defer cancel()
	v, err := chromedp.Run(ctx, action)
	if err != nil {
		t.Fatalf("browser: %v", err)
	}
	return v
}

// call sends one command of the browser's protocol.
func call[P, R any](t *testing.T, b *browser, command cdp.Command[P, R], params P) R {
	t.Helper()
	ctx, cancel := b.timed()
	defer cancel()
	v, err := chromedp.Call(ctx, command, params)
	if err != nil {
		t.Fatalf("browser: %v", err)
	}
	return v
}

// open loads address as a browser of this width does.
func (b *browser) open(t *testing.T, address string, width int64, dark bool) {
	t.Helper()
	scheme := "light"
	if dark {
		scheme = "dark"
	}
	call(t, b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
		Width: width, Height: 900, DeviceScaleFactor: 1, Mobile: width < 600,
	})
	call(t, b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
	run(t, b, chromedp.Navigate(address))
}

// eval is the value of an expression, as text.
func (b *browser) eval(t *testing.T, expression string) string {
	t.Helper()
	return run(t, b, chromedp.Evaluate[string]("String("+expression+")"))
}

// see waits until the page's text has all of these.
func (b *browser) see(t *testing.T, texts ...string) {
	t.Helper()
	for _, text := range texts {
		q, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the page says "+text, func() bool {
			return b.eval(t, "document.body.innerText.includes("+string(q)+")") == "true"
		})
	}
}

// picture writes a picture of the whole page into S3SYNCD_TEST_PICTURES, if set.
func (b *browser) picture(t *testing.T, name string) {
	t.Helper()
	dir := os.Getenv("S3SYNCD_TEST_PICTURES")
	if dir == "" {
		return
	}
	png := run(t, b, chromedp.FullScreenshot(100))
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
		t.Fatal(err)
	}
}

// accessible fails the test for whatever axe finds in the page as it is.
func (b *browser) accessible(t *testing.T, what string) {
	t.Helper()
	file := os.Getenv("S3SYNCD_TEST_AXE")
	if file == "" {
		t.Log("axe-core is not here (S3SYNCD_TEST_AXE names its file): accessibility is not checked")
		return
	}
	axe, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	type findings struct {
		Passes     int
		Violations []struct {
			ID, Help string
			Nodes    []struct {
				HTML           string
				FailureSummary string
			}
		}
	}
	run(t, b, chromedp.Evaluate[int](string(axe)+"\n;0"))
	found := run(t, b, chromedp.Evaluate[findings](
		"axe.run(document, {iframes: false}).then(r => ({Passes: r.passes.length, Violations: r.violations.map(v => "+
			"({ID: v.id, Help: v.help, Nodes: v.nodes.map(n => ({HTML: n.html, FailureSummary: n.failureSummary}))}))}))",
		chromedp.EvalAwaitPromise))
	if found.Passes < 10 {
		t.Errorf("%s: axe made only %d checks", what, found.Passes)
	}
	for _, v := range found.Violations {
		for _, n := range v.Nodes {
			t.Errorf("%s: axe: %s (%s): %s\n%s", what, v.ID, v.Help, n.HTML, n.FailureSummary)
		}
	}
}

// holds returns what the page holds: elements of the document, and bytes of
// script after garbage was collected.
func (b *browser) holds(t *testing.T) (elements int, heap float64) {
	t.Helper()
	call(t, b, heapprofiler.CollectGarbage, cdp.Empty{})
	return run(t, b, chromedp.Evaluate[int]("document.getElementsByTagName('*').length")),
		call(t, b, cdpruntime.GetHeapUsage, cdp.Empty{}).UsedSize
}
