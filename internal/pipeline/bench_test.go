package pipeline

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/watcher"
)

const (
	benchFiles  = 100_000
	benchPerDir = 50
)

// benchTree is a tree and an index that says that all of it is archived.
func benchTree(b *testing.B) (dir string, src *state.Source) {
	b.Helper()
	base := b.TempDir()
	dir = filepath.Join(base, "data")
	db, err := state.Open(filepath.Join(base, "state"), state.Options{Instance: "bench", Log: zap.NewNop()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = db.Close() })
	if src, err = db.Source(b.Context(), state.SourceKey{Bucket: "b", Prefix: "p", RealPath: dir}); err != nil {
		b.Fatal(err)
	}
	const workers = 200 // They share the transactions.
	var wg sync.WaitGroup
	errs := make([]error, workers)
	for w := range workers {
		wg.Go(func() {
			for i := w; i < benchFiles/benchPerDir; i += workers {
				errs[w] = errors.Join(errs[w], benchDir(b, src, dir, fmt.Sprintf("department-%02d/project-%05d", i%20, i)))
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		b.Fatal(err)
	}
	return dir, src
}

func benchDir(b *testing.B, src *state.Source, root, rel string) error {
	b.Helper()
	if err := os.MkdirAll(filepath.Join(root, rel), 0o755); err != nil {
		return err
	}
	r := safefs.NewRoot(root, safefs.RootOptions{CrossMounts: true})
	for i := range benchPerDir {
		path := fmt.Sprintf("%s/report-%04d-final.pdf", rel, i)
		if err := os.WriteFile(filepath.Join(root, path), nil, 0o644); err != nil {
			return err
		}
		st, err := r.Lstat(path)
		if err != nil {
			return err
		}
		e := archive.Entry{
			Fence:      archive.Fence{Dev: st.Dev, Ino: st.Ino, Size: st.Size, MtimeNs: st.MtimeNs, CtimeNs: st.CtimeNs},
			Attributes: archive.Attributes{Mode: st.Mode, UID: st.UID, GID: st.GID},
			Stored:     true, ETag: "0123456789abcdef0123456789abcdef", SSE: "aws:kms", KMSKeyID: "key", Attempt: 1,
		}
		if _, err := src.Commit(b.Context(), archive.Outcome{Path: path, Entry: &e}); err != nil {
			return err
		}
	}
	return nil
}

// benchWatcher scans dir, all of which src knows.
func benchWatcher(b *testing.B, dir string, src *state.Source) *watcher.Watcher {
	b.Helper()
	w, err := watcher.New(Sink{Source: "bench", Queue: queue.New(1)}, &Index{State: src}, watcher.Options{
		Source: "bench", Root: safefs.NewRoot(dir, safefs.RootOptions{CrossMounts: true}),
		Settle: time.Second, MaxDelay: time.Second, Hardlinks: safefs.LinksSameOwner, Reserved: archive.ReservedDir,
		Log: zap.NewNop(), Metrics: watcher.NewMetrics(prometheus.NewRegistry()),
	})
	if err != nil {
		b.Fatal(err)
	}
	return w
}

// benchRescan times one rescan, which must find every file unchanged.
func benchRescan(b *testing.B, w *watcher.Watcher) time.Duration {
	b.Helper()
	begin := time.Now()
	res, err := w.ScanOnce(b.Context(), archive.TriggerRescan)
	if err != nil || res.Unchanged != benchFiles {
		b.Fatalf("%+v, %v", res, err)
	}
	return time.Since(begin)
}

// benchFind times find(1), which prints of each file what the scan compares.
func benchFind(b *testing.B, dir string) time.Duration {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), "find", dir, "-printf", `%s %T@ %C@ %i %p\n`)
	cmd.Stdout = io.Discard
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		b.Skipf("find: %v", err)
	}
	return time.Since(begin)
}

// A rescan of indexed files beside find(1).
func BenchmarkRescan100kBesideFind(b *testing.B) {
	dir, src := benchTree(b)
	w := benchWatcher(b, dir, src)
	benchFind(b, dir) // Both find a warm cache.
	var scans, finds []time.Duration
	b.ReportAllocs()
	for b.Loop() {
		scans = append(scans, benchRescan(b, w))
		b.StopTimer()
		finds = append(finds, benchFind(b, dir))
		b.StartTimer()
	}
	scan, beside := median(scans), median(finds)
	b.ReportMetric(scan.Seconds()*1e3, "rescan-ms")
	b.ReportMetric(beside.Seconds()*1e3, "find-ms")
	b.ReportMetric(scan.Seconds()/beside.Seconds(), "ratio")
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
