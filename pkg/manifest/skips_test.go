package manifest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/copies"
	"github.com/s3syncd/s3syncd/internal/skips"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

func skip(i int) archive.Record {
	size := int64(i)
	return archive.Record{
		LocalPath: fmt.Sprintf("/data/skipped/%d", i), S3Key: fmt.Sprintf("p/skipped/%d", i), S3URI: fmt.Sprintf("s3://b/p/skipped/%d", i),
		SizeBytes: &size, Status: archive.StatusSkipped, Timestamp: "2026-01-20T10:30:00Z", Basis: archive.BasisIndex,
		Trigger: archive.TriggerSync, Source: "data", Instance: "app-01",
	}
}

func (r *rig) skip(from, to int) {
	r.Helper()
	w := r.f.Skips()
	for i := from; i < to; i++ {
		r.must(w.Write(r.Context(), skip(i)))
	}
}

// skipped returns the sizes of the skips that the trail lists, in order.
func (r *rig) skipped() (sizes []int) {
	r.Helper()
	digests, _ := r.trail()
	for _, d := range digests {
		for _, m := range d.Manifests {
			for _, rec := range readAll(r, r.bucket.objects[m.S3Key]) {
				if rec.Status == archive.StatusSkipped {
					sizes = append(sizes, int(*rec.SizeBytes))
				}
			}
		}
	}
	return sizes
}

func (r *rig) wantSkips(n int) {
	r.Helper()
	got := r.skipped()
	if len(got) != n {
		r.Fatalf("the trail lists %d skips, want %d", len(got), n)
	}
	for i, size := range got {
		if size != i {
			r.Fatalf("skip %d is the one written as number %d", i, size)
		}
	}
}

func TestSkipsAreMergedByNumber(t *testing.T) {
	r := newRig(t, func(o *Options) { o.MaxRecords = 700 })
	r.begin(state.Report{New: true})
	r.commit("a", 3)
	r.skip(0, 1500)
	r.commit("b", 2)
	r.skip(1500, 2100)
	r.flush(trail.ReasonFlush)
	r.skip(2100, 2200)
	r.commit("c", 1)
	r.flush(trail.ReasonStop)
	_, paths := r.trail()
	r.wantOnce(paths, map[string]int{"a": 3, "b": 2, "c": 1}, "a", "b", "c")
	r.wantSkips(2200)
	if ch := r.chain(); ch.Unpublished != 0 {
		t.Errorf("Unpublished = %d, want 0", ch.Unpublished)
	}
	if n := r.f.skips.Lines(); n != 0 {
		t.Errorf("%d skips wait, want none", n)
	}
}

func TestReservedNumbersAreNotUnpublished(t *testing.T) {
	r := newRig(t, nil)
	r.begin(state.Report{New: true})
	r.skip(0, 10) // Of a thousand numbers.
	r.flush(trail.ReasonFlush)
	if ch := r.chain(); ch.Unpublished != 0 {
		t.Errorf("Unpublished = %d, want 0", ch.Unpublished)
	}
}

func TestSkipsSurviveASealThatFails(t *testing.T) {
	r := newRig(t, func(o *Options) { o.MaxRecords = 100 })
	r.begin(state.Report{New: true})
	r.skip(0, 150)
	r.must(r.f.sealer.seal(t.Context()))
	r.skip(150, 250)
	hidden := r.local() + ".away"
	r.must(os.Rename(r.local(), hidden))
	r.must(os.WriteFile(r.local(), nil, 0o600)) // The directory cannot be written to.
	if err := r.f.sealer.seal(t.Context()); err == nil {
		t.Fatal("a seal into no directory worked")
	}
	r.must(os.Remove(r.local()))
	r.must(os.Rename(hidden, r.local()))
	r.skip(250, 300)
	r.flush(trail.ReasonFlush)
	r.wantSkips(300)
}

func TestSkipsLeaveNothingBehind(t *testing.T) {
	r := newRig(t, nil)
	r.begin(state.Report{New: true})
	r.must(os.WriteFile(filepath.Join(r.local(), skips.SpoolPrefix+"1"), nil, 0o600))
	r.must(os.WriteFile(filepath.Join(r.local(), ".x.json.s3syncd-tmp-1"), nil, 0o600))
	r.must(os.WriteFile(filepath.Join(r.local(), "notes.txt"), nil, 0o600))
	r.skip(0, 10)
	r.reopen() // The run dies.
	r.begin(state.Report{Unclean: true})
	if got := r.files(); len(got) != 1 || got[0] != "notes.txt" {
		t.Errorf("files = %v, want what is not ours alone", got)
	}
	if got := r.chain().Unpublished; got == 0 {
		t.Error("no number was reserved by the run that died")
	}
	r.flush(trail.ReasonFlush)
	r.wantSkips(0)
	if got := r.chain().Unpublished; got != 0 {
		t.Errorf("%d numbers without a line count as unpublished for ever", got)
	}
	r.commit("a", 3)
	r.flush(trail.ReasonFlush)
	if c := r.chain(); c.Unpublished != 0 || c.SealedTo != c.NextRecord-1 {
		t.Errorf("%d unpublished, sealed to %d of %d", c.Unpublished, c.SealedTo, c.NextRecord-1)
	}
	_, paths := r.trail()
	r.wantOnce(paths, map[string]int{"a": 3}, "a")
}

// A line that is written while another chain begins gets into that one, with its
// id and its numbers.
func TestNoSkipGetsBetweenTwoChains(t *testing.T) {
	r := newRig(t, nil)
	r.begin(state.Report{New: true})
	r.skip(0, 5)
	w := r.f.Skips()
	written := make(chan error, 1)
	dropped, err := w.Restart(func() error {
		go func() { written <- w.Write(t.Context(), skip(7)) }()
		select {
		case err := <-written:
			t.Errorf("a line was written into the chain that ends: %v", err)
			written <- err
		case <-time.After(50 * time.Millisecond): // It waits, as it should.
		}
		return r.st.BeginChain(t.Context(), "0badcafe", archive.BeginsNew, "", "")
	})
	if err != nil || dropped != 5 {
		t.Errorf("restart dropped %d lines, %v, want 5", dropped, err)
	}
	r.must(<-written)
	if w.Chain != "0badcafe" {
		t.Errorf("the line is one of chain %s", w.Chain)
	}
}

// Numbers are reserved in blocks that grow with what is used, and begin small
// again after a seal.
func TestBlocksGrowWithWhatIsUsed(t *testing.T) {
	r := newRig(t, nil)
	r.begin(state.Report{New: true})
	for range 2 {
		before := r.chain().NextRecord
		for n := range 20_000 {
			r.must(r.f.skips.Write(t.Context(), skip(0)))
			lines, drawn := uint64(n+1), r.chain().NextRecord-before
			if spare := drawn - lines; spare > max(lines, skips.BlockFirst) || spare > skips.BlockMost {
				t.Fatalf("%d numbers are drawn for %d lines", drawn, lines)
			}
		}
		r.flush(trail.ReasonFlush)
	}
}

func TestSkipsFromManyGoroutines(t *testing.T) {
	r := newRig(t, nil)
	r.begin(state.Report{New: true})
	w := r.f.Skips()
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 1000 {
				if err := w.Write(t.Context(), skip(g*1000+i)); err != nil {
					t.Error(err)
				}
				if i%300 == 0 {
					if err := r.f.sealer.seal(t.Context()); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Go(func() { r.commit("a", 50) })
	wg.Wait()
	r.flush(trail.ReasonFlush)
	_, paths := r.trail()
	r.wantOnce(paths, map[string]int{"a": 50}, "a")
	if got := len(r.skipped()); got != 4000 {
		t.Errorf("the trail lists %d skips, want 4000", got)
	}
}

func TestAHundredThousandSkipsTakeLittleMemory(t *testing.T) {
	r := newRig(t, func(o *Options) { o.MaxRecords = 50_000 })
	r.begin(state.Report{New: true})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	r.skip(0, 100_000)
	r.must(r.f.sealer.seal(t.Context()))
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("the heap grew by %d bytes, want less than 8 MiB", grown)
	}
	if got := len(r.chain().Manifests); got != 2 {
		t.Errorf("%d manifests, want 2", got)
	}
}

func BenchmarkSkips(b *testing.B) {
	db, err := state.Open(b.TempDir(), state.Options{Instance: "i", MachineID: "m", Log: zap.NewNop()})
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	st, err := db.Source(b.Context(), state.SourceKey{Bucket: "b", Prefix: "p", RealPath: "/data"})
	if err != nil {
		b.Fatal(err)
	}
	if err := st.BeginChain(b.Context(), "0a1b2c3d", archive.BeginsNew, "", ""); err != nil {
		b.Fatal(err)
	}
	f, err := New(st, newBucket(), Options{
		Source: "data", Instance: "i", Bucket: "b", FlushInterval: time.Minute, DigestInterval: time.Hour, StopTimeout: time.Second,
		MaxRecords: 50_000, Layout: trail.LayoutFlat, LocalDir: b.TempDir(), Now: time.Now,
		Pending: func() (int64, time.Time) { return 0, time.Time{} }, Log: zap.NewNop(), Metrics: NewMetrics(prometheus.NewRegistry()),
	})
	if err != nil {
		b.Fatal(err)
	}
	rec := skip(1)
	b.ReportAllocs()
	for b.Loop() {
		if err := f.skips.Write(b.Context(), rec); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.sealer.seal(b.Context()); err != nil { // What the lines cost until they are sealed.
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lines/s")
}

func BenchmarkReadManifest(b *testing.B) {
	records := make([]archive.Record, 1000)
	for i := range records {
		records[i] = skip(i)
		records[i].Chain, records[i].ID = "0a1b2c3d", archive.RecordID("0a1b2c3d", uint64(i))
	}
	data := encode(b, trail.LayoutFlat, records)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if err := trail.ReadManifest(bytes.NewReader(data), func(archive.Record) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

func TestStatusOfIsNotFooled(t *testing.T) {
	r := skip(1)
	r.LocalPath = `/data/"status":"uploaded"` + strings.Repeat(`\`, 3) + `"status":"failed"`
	r.S3Key = r.LocalPath
	if got := copies.StatusOf(line(t, r)); got != archive.StatusSkipped {
		t.Errorf("statusOf = %q, want skipped", got)
	}
}
