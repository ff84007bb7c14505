package watcher

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/internal/watches"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && strings.HasSuffix(os.Args[1], "-child") {
		runChild(os.Args[1], os.Args[2])
		return
	}
	goleak.VerifyTestMain(m)
}

// fakeArchive is a Sink and an Index: what is offered is archived at once, as a
// real uploader would after a moment.
type fakeArchive struct {
	root *safefs.Root

	mu      sync.Mutex
	paths   []string // sorted
	known   map[string]scan.Known
	offers  []Change
	at      []time.Time // of offers
	refused []Change
	full    bool   // takes nothing
	held    string // a path whose offers remain pending
}

func newArchive(root string) *fakeArchive {
	return &fakeArchive{root: safefs.NewRoot(root, safefs.RootOptions{CrossMounts: true, Follow: true}), known: make(map[string]scan.Known)}
}

func (a *fakeArchive) Offer(ctx context.Context, c Change) error {
	for !a.TryOffer(c) {
		if err := wait(ctx, time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

func (a *fakeArchive) TryOffer(c Change) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.full {
		return false
	}
	a.offers = append(a.offers, c)
	a.at = append(a.at, time.Now())
	if c.Path == a.held {
		return true
	}
	switch c.Kind {
	case archive.Refused:
		a.refused = append(a.refused, c)
	case archive.Gone:
		a.remove(c.Path)
	default:
		if o, err := a.root.Open(c.Path); err == nil {
			a.put(knownOf(c.Path, o.Stat))
			o.File.Close()
		}
	}
	return true
}

func knownOf(path string, st safefs.Stat) scan.Known {
	return scan.Known{
		Path: path, Size: st.Size, MtimeNs: st.MtimeNs, CtimeNs: st.CtimeNs, Ino: st.Ino,
		Mode: st.Mode & 0o7777, UID: st.UID, GID: st.GID, Stored: true,
	}
}

func (a *fakeArchive) put(k scan.Known) {
	if _, ok := a.known[k.Path]; !ok {
		i, _ := slices.BinarySearch(a.paths, k.Path)
		a.paths = slices.Insert(a.paths, i, k.Path)
	}
	a.known[k.Path] = k
}

func (a *fakeArchive) remove(path string) {
	if i, ok := slices.BinarySearch(a.paths, path); ok {
		a.paths = slices.Delete(a.paths, i, i+1)
		delete(a.known, path)
	}
}

func (a *fakeArchive) Pending(path string) bool { return slices.Contains(a.Paths(), path) }

func (a *fakeArchive) Paths() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.held == "" {
		return nil
	}
	return []string{a.held}
}

func (a *fakeArchive) Range(after string, n int, buf []scan.Known) ([]scan.Known, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i, ok := slices.BinarySearch(a.paths, after)
	if ok {
		i++
	}
	for ; i < len(a.paths) && n > 0; i, n = i+1, n-1 {
		buf = append(buf, a.known[a.paths[i]])
	}
	return buf, nil
}

// hold has the offers of path remain pending, "" of none.
func (a *fakeArchive) hold(path string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.held = path
}

// offered returns the paths of all offers that were not taken.
func (a *fakeArchive) offered() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	paths := make([]string, len(a.offers))
	for i, c := range a.offers {
		paths[i] = c.Path
	}
	return paths
}

func (a *fakeArchive) set(full bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.full = full
}

func (a *fakeArchive) list() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.paths)
}

func (a *fakeArchive) takeOffers() []Change {
	a.mu.Lock()
	defer a.mu.Unlock()
	o := a.offers
	a.offers = nil
	return o
}

// differences compares the archive with the tree by content fences.
func (a *fakeArchive) differences(tb testing.TB) []string {
	tb.Helper()
	var out []string
	there := make(map[string]bool)
	err := filepath.WalkDir(a.root.Path(), func(p string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !e.Type().IsRegular() {
			return nil
		}
		rel := strings.TrimPrefix(p, a.root.Path()+"/")
		there[rel] = true
		st, err := a.root.Lstat(rel)
		if err != nil {
			return err
		}
		a.mu.Lock()
		k, ok := a.known[rel]
		a.mu.Unlock()
		if !ok {
			out = append(out, "missed "+rel)
		} else if !k.Unchanged(st) {
			out = append(out, "stale "+rel)
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	for _, p := range a.list() {
		if !there[p] {
			out = append(out, "ghost "+p)
		}
	}
	return out
}

// rig is a Watcher with its surroundings.
type rig struct {
	*Watcher
	tb    testing.TB
	dir   string
	sink  *fakeArchive
	reg   *prometheus.Registry
	logs  *observer.ObservedLogs
	scans chan ScanResult
	stop  func()

	notifier func() (watches.Notifier, error)
}

// newRig makes a Watcher of a temporary directory that settles quickly and
// scans only when it is asked to.
func newRig(tb testing.TB, change func(*Options)) *rig {
	tb.Helper()
	dir := filepath.Join(tb.TempDir(), "src")
	if err := os.Mkdir(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	return rigAt(tb, dir, change)
}

func rigAt(tb testing.TB, dir string, change func(*Options)) *rig {
	tb.Helper()
	return rigOf(tb, dir, newArchive(dir), change)
}

// rigOf makes a Watcher of dir, which a is the archive of.
func rigOf(tb testing.TB, dir string, a *fakeArchive, change func(*Options)) *rig {
	tb.Helper()
	core, logs := observer.New(zap.InfoLevel)
	r := &rig{tb: tb, dir: dir, sink: a, reg: prometheus.NewPedanticRegistry(), logs: logs, scans: make(chan ScanResult, 1000), notifier: watches.NewInotify}
	o := Options{
		Source: "src", Root: safefs.NewRoot(dir, safefs.RootOptions{CrossMounts: true}),
		Settle: 20 * time.Millisecond, MaxDelay: 10 * time.Second, PollInterval: 100 * time.Millisecond,
		Hardlinks: safefs.LinksAllow, Reserved: "_manifests",
		OnScan: func(s ScanResult) { r.scans <- s },
		Log:    zap.New(core), Metrics: NewMetrics(r.reg),
	}
	if change != nil {
		change(&o)
	}
	w, err := newWatcher(r.sink, r.sink, o, timings{
		identity: 20 * time.Millisecond, unhealthy: 50 * time.Millisecond, removal: 20 * time.Millisecond, second: 20 * time.Millisecond,
	}, func() (watches.Notifier, error) { return r.notifier() })
	if err != nil {
		tb.Fatal(err)
	}
	r.Watcher = w
	return r
}

// start runs the watcher until the test ends and waits for its first scan.
func (r *rig) start() {
	r.tb.Helper()
	r.run()
	r.scanned()
}

func (r *rig) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				r.tb.Errorf("Run: %v", err)
			}
		})
	}
	r.tb.Cleanup(r.stop)
}

// scanned waits for the end of a scan.
func (r *rig) scanned() ScanResult {
	r.tb.Helper()
	select {
	case s := <-r.scans:
		return s
	case <-time.After(20 * time.Second):
		r.tb.Fatal("no scan ended")
		return ScanResult{}
	}
}

func (r *rig) rescan() ScanResult {
	r.tb.Helper()
	r.Rescan(archive.TriggerRescan)
	return r.scanned()
}

// eventually waits for f.
func (r *rig) eventually(what string, f func() bool) {
	r.tb.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			r.tb.Fatalf("%s: not within 15 s", what)
		}
		wait(context.Background(), 2*time.Millisecond)
	}
}

// agrees waits until archive and tree are the same and nothing waits.
func (r *rig) agrees() {
	r.tb.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for {
		d := r.sink.differences(r.tb)
		if len(d) == 0 && r.Dirty() == 0 {
			return
		}
		if time.Now().After(deadline) {
			r.tb.Fatalf("archive and tree differ after 15 s: %d paths, first %q; %d dirty", len(d), d[:min(len(d), 10)], r.Dirty())
		}
		wait(context.Background(), 5*time.Millisecond)
	}
}

func (r *rig) path(rel string) string { return filepath.Join(r.dir, rel) }

func (r *rig) write(rel, content string) {
	r.tb.Helper()
	write(r.tb, r.path(rel), content)
}

func write(tb testing.TB, path, content string) {
	tb.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		tb.Fatal(err)
	}
}

func (r *rig) must(err error) {
	r.tb.Helper()
	if err != nil {
		r.tb.Fatal(err)
	}
}

// metric returns the sum of the series of a metric whose labels contain all the
// given values.
func (r *rig) metric(name string, labels ...string) float64 {
	r.tb.Helper()
	families, err := r.reg.Gather()
	r.must(err)
	var sum float64
	found := false
	for _, f := range families {
		if f.GetName() != "s3syncd_"+name {
			continue
		}
		for _, m := range f.GetMetric() {
			n := 0
			for _, l := range m.GetLabel() {
				if slices.Contains(labels, l.GetValue()) {
					n++
				}
			}
			if n == len(labels) {
				found = true
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	if !found {
		r.tb.Fatalf("no series %s%v", name, labels)
	}
	return sum
}
