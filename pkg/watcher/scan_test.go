package watcher

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/s3syncd/s3syncd/internal/relpath"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

func (r *rig) once() ScanResult {
	r.tb.Helper()
	s, err := r.ScanOnce(context.Background(), archive.TriggerSync)
	if err != nil {
		r.tb.Fatal(err)
	}
	<-r.scans
	return s
}

func (r *rig) offers() string {
	var out []string
	for _, c := range r.sink.takeOffers() {
		out = append(out, c.Kind.String()+" "+c.Path)
	}
	return fmt.Sprint(out)
}

func TestScanFindsWhatDiffers(t *testing.T) {
	var same []string
	r := newRig(t, func(o *Options) {
		o.OnSame = func(k scan.Known, _ safefs.Stat, _ archive.Trigger) { same = append(same, k.Path) }
	})
	for _, f := range []string{"a/x", "a.txt", "a-", "b/c/d", "b/e", "z"} {
		r.write(f, "x")
	}
	if s := r.once(); s.New != 6 || s.Files != 6 || s.Bytes != 6 || !s.Complete {
		t.Errorf("first scan: %+v", s)
	}
	if got, want := r.offers(), "[check a- check a.txt check a/x check b/c/d check b/e check z]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if s := r.once(); s.Unchanged != 6 || s.New+s.Changed+s.Gone != 0 {
		t.Errorf("second scan: %+v", s)
	}
	if got := r.offers(); got != "[]" || len(same) != 6 {
		t.Errorf("unchanged: offered %s, reported %v", got, same)
	}
	r.must(os.RemoveAll(r.path("b")))
	r.must(os.Remove(r.path("a-")))
	r.write("b", "a file now")
	r.write("a.txt", "longer")
	r.must(os.Remove(r.path("z")))
	r.must(os.Symlink("b", r.path("z")))
	r.sink.mu.Lock()
	k := r.sink.known["a/x"]
	k.Recheck = true
	r.sink.put(k)
	r.sink.mu.Unlock()
	s := r.once()
	if s.New != 1 || s.Changed != 2 || s.Gone != 4 || s.Symlinks != 1 {
		t.Errorf("third scan: %+v", s)
	}
	if got, want := r.offers(), "[gone a- check a.txt check a/x check b gone b/c/d gone b/e gone z]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestScanLeavesOut(t *testing.T) {
	r := newRig(t, func(o *Options) {
		o.Exclude, o.IgnoreFiles, o.Hardlinks = []string{"*.tmp", "/cache/"}, true, safefs.LinksSkip
	})
	for _, f := range []string{"f", "x.tmp", "cache/y", "d/cache/y", "d/skipped", "_manifests/m", "d/_manifests/n", "l1"} {
		r.write(f, "x")
	}
	r.write("d/.s3syncignore", "skipped\n")
	r.must(os.Link(r.path("l1"), r.path("l2")))
	r.must(unix.Mkfifo(r.path("fifo"), 0o644))
	r.must(os.Symlink("f", r.path("link")))
	for _, p := range []string{"x.tmp", "cache/y", "cache/gone", "d/skipped", "_manifests/old", "l1", "gone.tmp", "d/gone"} {
		r.sink.put(scan.Known{Path: p, Stored: true})
	}
	st, err := r.source.Root.Lstat("f")
	r.must(err)
	r.sink.put(knownOf("f", st)) // Proves that the tree is the one that was archived.
	s := r.once()
	want := "[refused _manifests check d/.s3syncignore check d/_manifests/n check d/cache/y gone d/gone]"
	if got := r.offers(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if !errors.Is(r.sink.refused[0].Err, scan.ErrReserved) {
		t.Errorf("the reserved directory is refused for %v", r.sink.refused[0].Err)
	}
	if s.Excluded != 3 || s.Reserved != 1 || s.Hardlinks != 2 || s.Special != 1 || s.Symlinks != 1 || s.Gone != 1 {
		t.Errorf("got %+v", s)
	}
	if len(s.ConfigFiles) != 1 || s.ConfigFiles[0].Path != "d/.s3syncignore" || len(s.ConfigFiles[0].SHA256) != 64 {
		t.Errorf("ignore files: got %+v", s.ConfigFiles)
	}
	for reason, want := range map[string]float64{"excluded": 3, "reserved": 1, "hardlink": 2, "special": 1, "symlink": 1, "unreadable": 0} {
		if got := r.metric("skipped_files", reason); got != want {
			t.Errorf("skipped_files{reason=%q}: got %v, want %v", reason, got, want)
		}
	}
}

func TestWhereInodesSayNothingAScanTakesNoLinkForTheArchivedFile(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give a file away")
	}
	r := newRig(t, func(o *Options) {
		o.Hardlinks, o.Root = safefs.LinksSameOwner, safefs.NewRoot(o.Root.Path(), safefs.RootOptions{SizeMtime: true})
	})
	r.write("d/f", "x")
	r.must(os.Lchown(r.path("d/f"), 4711, 4711))
	r.must(os.Chmod(r.path("d"), 0o777))
	st, err := safefs.NewRoot(r.dir, safefs.RootOptions{SizeMtime: true}).Lstat("d/f")
	r.must(err)
	r.sink.put(knownOf("d/f", st))
	r.must(os.Link(r.path("d/f"), filepath.Join(t.TempDir(), "elsewhere")))
	r.once()
	if got, want := r.offers(), "[refused d/f]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestScanReportsForeignHardLinksOnceTheyAreNotArchived(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give a file away")
	}
	r := newRig(t, func(o *Options) { o.Hardlinks = safefs.LinksSameOwner })
	for _, f := range []string{"d/foreign", "d/archived", "d/other"} {
		r.write(f, "x")
		r.must(os.Lchown(r.path(f), 4711, 4711))
	}
	r.must(os.Chmod(r.path("d"), 0o777))
	for _, f := range []string{"d/archived", "d/other"} {
		st, err := r.source.Root.Lstat(f)
		r.must(err)
		k := knownOf(f, st)
		if f == "d/other" {
			k.Ino++ // Another file was archived under this name.
		}
		r.sink.put(k)
	}
	for _, f := range []string{"d/foreign", "d/archived", "d/other"} {
		r.must(os.Link(r.path(f), filepath.Join(t.TempDir(), "elsewhere")))
	}
	s := r.once()
	if got, want := r.offers(), "[check d/archived refused d/foreign refused d/other]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if s.Hardlinks != 2 {
		t.Errorf("counted %d hard links, want 2", s.Hardlinks)
	}
	if !errors.Is(r.sink.refused[0].Err, safefs.ErrForeignLink) {
		t.Errorf("refused for %v", r.sink.refused[0].Err)
	}
}

func TestScanFollowsLinksInsideTheSource(t *testing.T) {
	r := newRig(t, func(o *Options) {
		o.Root = safefs.NewRoot(o.Root.Path(), safefs.RootOptions{Follow: true, CrossMounts: true})
	})
	r.write("d/f", "x")
	write(t, r.dir+"-outside/secret", "x")
	r.must(os.Symlink("d", r.path("ld")))
	r.must(os.Symlink("d/f", r.path("lf")))
	r.must(os.Symlink("..", r.path("d/up")))
	r.must(os.Symlink(r.dir+"-outside", r.path("out")))
	s := r.once()
	if got, want := r.offers(), "[check d/f check ld/f check lf]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if s.Symlinks != 3 {
		t.Errorf("links left out: got %d, want 2 loops and 1 that leads out", s.Symlinks)
	}
	r.sink.takeOffers()
	r.start()
	r.write("d/g", "seen through the link as well")
	r.eventually("both paths of the new file", func() bool { return fmt.Sprint(r.sink.list()) == "[d/f d/g ld/f ld/g lf]" })
	r.write("d/f", "longer")
	size := func(p string) int64 {
		r.sink.mu.Lock()
		defer r.sink.mu.Unlock()
		return r.sink.known[p].Size
	}
	r.eventually("all paths of the changed file", func() bool { return size("d/f") == 6 && size("ld/f") == 6 && size("lf") == 6 })
	if got := fmt.Sprint(r.sink.list()); got != "[d/f d/g ld/f ld/g lf]" {
		t.Errorf("got %s", got)
	}
}

// Random trees and random indexes are compared with the difference of two sets.
func TestScanAgreesWithSets(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for range 30 {
		r := newRig(t, nil)
		r.write("proof", "")
		st, err := r.source.Root.Lstat("proof")
		r.must(err)
		r.sink.put(knownOf("proof", st))
		disk, index := map[string]bool{"proof": true}, map[string]bool{"proof": true}
		for range 60 {
			parts := make([]string, 1+rng.IntN(3))
			for i := range parts {
				parts[i] = pick(rng, "a", "b", "a.", "a0", "a-", "ab", "\x01", "\xff", "aa", "0", "/")[0:1] + pick(rng, "", "a", ".", "0", "-", "\xff")
				parts[i] = strings.ReplaceAll(parts[i], "/", "x")
			}
			p := strings.Join(parts, "/")
			if rng.IntN(2) == 0 {
				if os.MkdirAll(r.path(relpath.Parent(p)), 0o755) == nil && os.WriteFile(r.path(p), nil, 0o644) == nil {
					disk[p] = true
				}
			} else {
				index[p] = true
				r.sink.put(scan.Known{Path: p, Size: 99, Stored: true})
			}
		}
		r.once()
		want := make(map[string]bool)
		for p := range disk {
			if p != "proof" {
				want["check "+p] = true
			}
		}
		for p := range index {
			if !disk[p] {
				want["gone "+p] = true
			}
		}
		for _, c := range r.sink.takeOffers() {
			if k := c.Kind.String() + " " + c.Path; !want[k] {
				t.Errorf("unexpected or twice: %q", k)
			} else {
				delete(want, k)
			}
		}
		if len(want) > 0 {
			t.Errorf("not offered: %v", want)
		}
	}
}

func TestRescanCountsWhatNoEventTold(t *testing.T) {
	r := newRig(t, nil)
	r.write("f", "x")
	r.start()
	r.agrees()
	wait(context.Background(), r.settle+eventMargin+100*time.Millisecond)
	r.sink.mu.Lock()
	r.sink.remove("f")
	r.sink.put(scan.Known{Path: "never", Stored: true})
	r.sink.mu.Unlock()
	if s := r.rescan(); s.Missed != 2 || s.New != 1 || s.Gone != 1 {
		t.Errorf("got missed %d, new %d, gone %d, want 2, 1, 1", s.Missed, s.New, s.Gone)
	}
	if got := r.metric("rescan_missed_files_total"); got != 2 {
		t.Errorf("rescan_missed_files_total: got %v, want 2", got)
	}
	r.agrees()
	if s := r.rescan(); s.Missed != 0 || s.Unchanged != 1 {
		t.Errorf("got %+v", s)
	}
}

func TestFullSinkHoldsNothingUp(t *testing.T) {
	r := newRig(t, nil)
	for i := range 20 {
		r.write(fmt.Sprintf("d/f%d", i), "x")
	}
	wait(context.Background(), 2*r.settle) // So that the scan offers them itself.
	r.sink.set(true)
	r.run()
	select {
	case <-r.Watching():
	case <-time.After(10 * time.Second):
		t.Fatal("Watching waits for the sink")
	}
	r.write("e/g", "new")
	r.eventually("the event is read", func() bool { return r.Dirty() > 0 && !r.OldestDirty().IsZero() })
	if len(r.scans) != 0 {
		t.Error("a scan ended although nothing could be offered")
	}
	r.sink.set(false)
	r.scanned()
	r.agrees()
}

func TestFileThatNeverRests(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Settle, o.MaxDelay = 100*time.Millisecond, 300*time.Millisecond })
	r.start()
	f, err := os.OpenFile(r.path("log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	r.must(err)
	defer f.Close()
	begin := time.Now()
	for time.Since(begin) < 1500*time.Millisecond {
		f.WriteString("line\n")
		wait(context.Background(), 5*time.Millisecond)
	}
	n := len(r.sink.takeOffers())
	if n < 3 || n > 6 {
		t.Errorf("offered %d times in 1.5 s with max_delay 300 ms", n)
	}
	r.agrees()
}

func TestIgnoreFileThatChanges(t *testing.T) {
	r := newRig(t, func(o *Options) { o.IgnoreFiles = true })
	r.write(".s3syncignore", "d/\n")
	r.write("d/f", "x")
	r.start()
	if got := fmt.Sprint(r.sink.list()); got != "[.s3syncignore]" {
		r.eventually("the ignore file settles", func() bool { return fmt.Sprint(r.sink.list()) == "[.s3syncignore]" })
	}
	r.must(os.Remove(r.path(".s3syncignore")))
	r.eventually("what was ignored is found", func() bool { return fmt.Sprint(r.sink.list()) == "[d/f]" })
	r.write("d/g", "watched now")
	r.eventually("and watched", func() bool { return fmt.Sprint(r.sink.list()) == "[d/f d/g]" })
}

// latencies changes that many files at 1,000 a second and returns, sorted, how
// long beyond settle each took to be offered.
func latencies(r *rig, files int) []time.Duration {
	r.tb.Helper()
	r.sink.mu.Lock()
	r.sink.offers, r.sink.at = nil, nil
	r.sink.mu.Unlock()
	written := make(map[string]time.Time)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for i := range files / 10 { // Ten files every 10 ms.
		<-tick.C
		for j := range 10 {
			p := fmt.Sprintf("d%d/f%d", j, i)
			r.write(p, "x")
			written[p] = time.Now()
		}
	}
	r.agrees()
	r.sink.mu.Lock()
	defer r.sink.mu.Unlock()
	var late []time.Duration
	for i, c := range r.sink.offers {
		if w, ok := written[c.Path]; ok {
			late = append(late, r.sink.at[i].Sub(w)-r.settle)
			delete(written, c.Path)
		}
	}
	slices.Sort(late)
	if len(written) > 0 {
		r.tb.Fatalf("%d files were not offered", len(written))
	}
	return late
}

func TestLatencyBeyondSettle(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Settle = 200 * time.Millisecond })
	r.start()
	late := latencies(r, 1000)
	t.Logf("beyond settle: median %v, 99%% %v, worst %v", late[len(late)/2], late[len(late)*99/100], late[len(late)-1])
	if late[0] < -r.settle/10 {
		t.Errorf("offered %v before it had settled", -late[0])
	}
	// A busy machine is slow; the benchmark says how fast it is on a quiet one.
	if p := late[len(late)/2]; p > r.settle {
		t.Errorf("half of the files were offered more than %v after they had settled", p)
	}
}

// How long beyond settle it takes from an event to the queue, at 1,000 changing
// files a second for 5 s.
func BenchmarkEventToQueue(b *testing.B) {
	r := newRig(b, func(o *Options) { o.Settle = 200 * time.Millisecond })
	r.start()
	var late []time.Duration
	for b.Loop() {
		late = latencies(r, 5000)
	}
	b.ReportMetric(0, "ns/op") // That is the time of the writing.
	b.ReportMetric(late[len(late)/2].Seconds()*1e3, "median-ms")
	b.ReportMetric(late[len(late)*99/100].Seconds()*1e3, "p99-ms")
}

// What events reported gets its turn while a scan fills the sink.
func TestScanDoesNotStarveEvents(t *testing.T) {
	r := newRig(t, nil)
	for i := range 300 {
		r.write(fmt.Sprintf("old/f%d", i), "x")
	}
	wait(context.Background(), 2*r.settle)
	slow := &slowSink{fakeArchive: r.sink}
	r.out.Sink = slow
	r.run()
	<-r.Watching()
	for i := range 10 {
		r.write(fmt.Sprintf("new%d", i), "x")
	}
	r.eventually("all new files", func() bool {
		n := 0
		for _, p := range r.sink.list() {
			if strings.HasPrefix(p, "new") {
				n++
			}
		}
		return n == 10
	})
	if n := len(r.sink.list()); n > 150 {
		t.Errorf("the new files came after %d of the 300 that the scan found", n-10)
	}
	slow.fast.Store(true)
	r.agrees()
}

// slowSink has room for one change every 10 ms, for whichever comes first.
type slowSink struct {
	*fakeArchive
	last atomic.Int64
	fast atomic.Bool
}

func (s *slowSink) TryOffer(c Change) bool {
	last, now := s.last.Load(), time.Now().UnixNano()
	if !s.fast.Load() && (now-last < int64(10*time.Millisecond) || !s.last.CompareAndSwap(last, now)) {
		return false
	}
	return s.fakeArchive.TryOffer(c)
}

func (s *slowSink) Offer(ctx context.Context, c Change) error {
	for !s.TryOffer(c) {
		if err := wait(ctx, 100*time.Microsecond); err != nil {
			return err
		}
	}
	return nil
}

func TestDeepTree(t *testing.T) {
	r := newRig(t, nil)
	name := strings.Repeat("n", 100)
	fd, err := unix.Open(r.dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	r.must(err)
	rel := ""
	for range 100 { // 10,000 bytes: beyond PATH_MAX, and deeper than a scan holds directories open.
		r.must(unix.Mkdirat(fd, name, 0o755))
		sub, err := unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY, 0)
		r.must(err)
		for _, f := range []string{"a", "z"} {
			n, err := unix.Openat(sub, f, unix.O_CREAT|unix.O_WRONLY, 0o644)
			r.must(err)
			unix.Close(n)
		}
		unix.Close(fd)
		fd = sub
		rel = relpath.Join(rel, name)
	}
	r.start()
	r.eventually("all 200 files", func() bool { return len(r.sink.list()) == 200 })
	n, err := unix.Openat(fd, "late", unix.O_CREAT|unix.O_WRONLY, 0o644)
	r.must(err)
	unix.Close(n)
	unix.Close(fd)
	r.eventually("the deepest new file", func() bool { return slices.Contains(r.sink.list(), rel+"/late") })
	if got := r.metric("polled_directories"); got == 0 {
		t.Error("nothing is polled")
	}
}

func TestEverySeriesExistsFromTheStart(t *testing.T) {
	r := newRig(t, nil)
	for name, n := range map[string]int{
		"events_total": 5, "event_overflows_total": 1, "watched_directories": 1, "polled_directories": 1, "rescans_total": 6,
		"rescan_duration_seconds": 1, "rescan_missed_files_total": 1, "last_successful_scan_timestamp_seconds": 1,
		"source_available": 1, "skipped_files": 9, "watcher_degraded": 1,
	} {
		families, err := r.reg.Gather()
		r.must(err)
		got := 0
		for _, f := range families {
			if f.GetName() == "s3syncd_"+name {
				got = len(f.GetMetric())
			}
		}
		if got != n {
			t.Errorf("%s: got %d series, want %d", name, got, n)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	good := Options{
		Root: safefs.NewRoot("/", safefs.RootOptions{}), Settle: 1, MaxDelay: 1, Hardlinks: safefs.LinksSkip,
		Log: zap.NewNop(), Metrics: NewMetrics(prometheus.NewRegistry()),
	}
	for name, change := range map[string]func(*Options){
		"settle":    func(o *Options) { o.Settle = 0 },
		"max_delay": func(o *Options) { o.MaxDelay = -1 },
		"intervals": func(o *Options) { o.PollInterval = -1 },
		"hardlinks": func(o *Options) { o.Hardlinks = "some" },
		"include":   func(o *Options) { o.Include = []string{"a\nb"} },
		"Root":      func(o *Options) { o.Root = nil },
	} {
		o := good
		change(&o)
		if _, err := New(nil, nil, o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestAFileSystemOfTheKernelIsNotScanned(t *testing.T) {
	r := rigAt(t, "/proc", nil)
	if _, err := r.ScanOnce(context.Background(), archive.TriggerSync); err == nil {
		t.Error("/proc was scanned")
	}
}

func bigTree(b *testing.B, dirs, files int) *rig {
	b.Helper()
	r := newRig(b, nil)
	for d := range dirs {
		for f := range files {
			r.write(fmt.Sprintf("d%03d/f%03d", d, f), "")
		}
	}
	r.once()
	return r
}

func BenchmarkRescan100k(b *testing.B) {
	r := bigTree(b, 500, 200)
	b.ReportAllocs()
	for b.Loop() {
		if s := r.once(); s.Unchanged != 100_000 {
			b.Fatalf("%+v", s)
		}
	}
}

func BenchmarkWalkDir100k(b *testing.B) {
	r := bigTree(b, 500, 200)
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		err := filepath.WalkDir(r.dir, func(_ string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				n++
				_, err = e.Info()
			}
			return err
		})
		if err != nil || n != 100_000 {
			b.Fatal(n, err)
		}
	}
}

// One directory of 500,000 entries. It is listed as a whole, so that the memory
// of a scan grows with the largest directory: heap-B/file says by how much.
func BenchmarkScanOneDirectory(b *testing.B) {
	const files = 500_000
	r := newRig(b, nil)
	for f := range files {
		h, err := os.Create(r.path(fmt.Sprintf("file-of-some-length-%06d", f)))
		r.must(err)
		r.must(h.Close())
	}
	for _, p := range namesOf(b, r.dir) {
		st, err := r.sink.root.Lstat(p)
		r.must(err)
		r.sink.paths = append(r.sink.paths, p)
		r.sink.known[p] = knownOf(p, st)
	}
	var before, after runtime.MemStats
	debug.FreeOSMemory()
	runtime.ReadMemStats(&before)
	b.ReportAllocs()
	for b.Loop() {
		if s := r.once(); s.Unchanged != files {
			b.Fatalf("%+v", s)
		}
	}
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/files, "ns/file")
	grown := int64(after.HeapSys-after.HeapReleased) - int64(before.HeapSys-before.HeapReleased)
	b.ReportMetric(float64(grown)/files, "heap-B/file")
}

// namesOf returns the names in a directory, sorted.
func namesOf(tb testing.TB, dir string) []string {
	tb.Helper()
	d, err := os.Open(dir)
	if err != nil {
		tb.Fatal(err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		tb.Fatal(err)
	}
	slices.Sort(names)
	return names
}

func TestTheLineOfAScanNamesIncludesWithoutFiles(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Include = []string{"./logs", "*.log"} })
	if err := os.WriteFile(filepath.Join(r.dir, "a.log"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s := r.once(); !slices.Equal(s.UnusedIncludes, []string{"./logs"}) {
		t.Errorf("UnusedIncludes = %q, want ./logs", s.UnusedIncludes)
	}
	lines := r.logs.FilterMessage("scanned").All()
	if len(lines) == 0 || lines[0].ContextMap()["include_without_files"] == nil {
		t.Errorf("the line says nothing of it: %v", lines)
	}
}

func pick(rng *rand.Rand, from ...string) string { return from[rng.IntN(len(from))] }
