package pipeline

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/internal/s3store"
	"github.com/s3syncd/s3syncd/internal/s3test"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/uploader"
)

// BenchmarkBesideASlowDestination uploads a file of 10 bytes and one of 17 MiB
// at default settings, while another source has much on its way to a destination
// that takes 64 KiB a second, or nothing. It reports how long
// the two take.
func BenchmarkBesideASlowDestination(b *testing.B) {
	for _, c := range []struct {
		name  string
		files int
		size  int64
		dead  bool
	}{
		{"nothing", 0, 0, false},
		{"8 of 100 MiB", 8, 100 << 20, false},
		{"40 of 8 MiB", 40, 8 << 20, false},
		{"500 of 100 KiB", 500, 100 << 10, false},
		{"500 of 300 B", 500, 300, false},
		{"40 of 8 MiB into a black hole", 40, 8 << 20, true},
		{"500 of 300 B into a black hole", 500, 300, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				small, large := besideSlow(b, c.files, c.size, c.dead)
				b.ReportMetric(float64(small.Milliseconds()), "ms/10B")
				b.ReportMetric(float64(large.Milliseconds()), "ms/17MiB")
			}
		})
	}
}

// besideSlow returns how long a small and a large file take.
func besideSlow(b *testing.B, files int, size int64, dead bool) (small, large time.Duration) {
	b.Helper()
	fake := s3test.NewFake(b, "bucket")
	pace := rate.NewLimiter(64<<10, 4<<10)
	end := make(chan struct{})
	network := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for buf := make([]byte, 4<<10); ; {
			if dead {
				<-end
				return
			}
			n, err := r.Body.Read(buf)
			if err != nil {
				fake.ServeHTTP(w, r) // Of a body that was read: it answers with an error.
				return
			}
			if pace.WaitN(r.Context(), n) != nil {
				return
			}
		}
	}))
	defer func() { close(end); network.CloseClientConnections(); network.Close() }()
	for name, value := range map[string]string{"AWS_ACCESS_KEY_ID": "fake", "AWS_SECRET_ACCESS_KEY": "fake"} {
		b.Setenv(name, value)
	}
	db, err := state.Open(b.TempDir(), state.Options{Instance: "i", MachineID: "m", Log: zap.NewNop()})
	if err != nil {
		b.Fatal(err)
	}
	slow := benchSource(b, db, "slow", "0a1b2c3d", network.URL)
	fast := benchSource(b, db, "fast", "0a1b2c3e", fake.URL)
	for i := range files {
		file := filepath.Join(slow.RealPath, fmt.Sprintf("f%05d", i))
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			b.Fatal(err)
		}
		if err := os.Truncate(file, size+int64(i)); err != nil {
			b.Fatal(err)
		}
	}
	q := queue.New(QueueLimit)
	pool, err := uploader.New(q, []uploader.Source{slow, fast}, uploader.Options{
		Workers: 16, PartSize: 16 << 20, SinglePutMax: 64 << 20, MemoryLimit: 128 << 20, Drain: time.Millisecond,
		Log: zap.NewNop(), Metrics: uploader.NewMetrics(prometheus.NewRegistry()),
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- pool.Run(ctx) }()
	for i := range files {
		q.TryOffer(queue.Job{Source: "slow", Path: fmt.Sprintf("f%05d", i), Trigger: archive.TriggerStartup, Detected: time.Now()})
	}
	for files > 0 && len(pool.InFlight()) < min(files, 6) {
		time.Sleep(10 * time.Millisecond) // A benchmark may: it waits for what it measures beside.
	}
	take := func(name string, n int) time.Duration {
		body := make([]byte, n)
		_, _ = rand.Read(body) // It never fails.
		if err := os.WriteFile(filepath.Join(fast.RealPath, name), body, 0o600); err != nil {
			b.Fatal(err)
		}
		begin := time.Now()
		q.TryOffer(queue.Job{Source: "fast", Path: name, Trigger: archive.TriggerEvent, Detected: begin})
		if err := q.Source("fast").Wait(ctx); err != nil {
			b.Fatal(err)
		}
		return time.Since(begin)
	}
	small, large = take("small", 10), take("large", 17<<20)
	stop()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
	return small, large
}

// benchSource is a source with a directory and a store of its own.
func benchSource(b *testing.B, db *state.DB, name, chain, endpoint string) uploader.Source {
	b.Helper()
	dir := b.TempDir()
	store, err := s3store.Open(b.Context(), s3store.Options{
		Region: s3test.Region, EndpointURL: endpoint, PathStyle: true, Bucket: "bucket", Prefix: name, Instance: "i",
		KMSKeyID: s3test.FakeKeyARN, SSE: "aws:kms", BucketKey: true, Workers: 16, Log: zap.NewNop(),
		Metrics: s3conn.NewMetrics(prometheus.NewRegistry()),
	})
	if err != nil {
		b.Fatal(err)
	}
	st, err := db.Source(b.Context(), state.SourceKey{Bucket: "bucket", Prefix: name, RealPath: dir})
	if err != nil {
		b.Fatal(err)
	}
	if err := st.BeginChain(b.Context(), chain, archive.BeginsNew, "", ""); err != nil {
		b.Fatal(err)
	}
	return uploader.Source{
		Name: name, Instance: "i", Bucket: "bucket", RealPath: dir, Mapper: archive.NewMapper(name),
		Root: safefs.NewRoot(dir, safefs.RootOptions{}), Objects: store, Multipart: store, State: st,
		Accept: store.KeyVerdict,
		Proven: true, ProvenAt: time.Now(), Hardlinks: safefs.LinksAllow, Deletes: archive.DeletesKeep,
	}
}
