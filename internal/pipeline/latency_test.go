package pipeline

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/internal/s3store"
	"github.com/s3syncd/s3syncd/internal/s3test"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/uploader"
)

// BenchmarkUploadOverLatency uploads 10,000 files of 4 KiB to a server that is
// 50 ms away, and reports how close that comes to workers/latency, the most that
// one request after the other in each worker can reach. On a machine that does
// other things as well, of-time-in-requests says how much of the workers' time
// went into waiting for the server.
func BenchmarkUploadOverLatency(b *testing.B) {
	const files, workers, latency = 10_000, 16, 50 * time.Millisecond
	fake := s3test.NewFake(b, "bucket")
	proxy := s3test.NewProxy(b, fake.URL)
	proxy.Delay(s3test.Match{Times: -1}, latency)
	for name, value := range map[string]string{"AWS_ACCESS_KEY_ID": "fake", "AWS_SECRET_ACCESS_KEY": "fake"} {
		b.Setenv(name, value)
	}
	total, busy := time.Duration(0), 0.0
	for n := 0; b.Loop(); n++ {
		b.StopTimer()
		dir := b.TempDir()
		for i := range files {
			file := filepath.Join(dir, fmt.Sprintf("f%05d", i))
			if err := os.WriteFile(file, fmt.Appendf(nil, "%04096d", i), 0o600); err != nil {
				b.Fatal(err)
			}
		}
		reg := prometheus.NewRegistry()
		prefix := fmt.Sprintf("run%d", n)
		store, err := s3store.Open(b.Context(), s3store.Options{
			Region: s3test.Region, EndpointURL: proxy.URL, PathStyle: true, Bucket: "bucket", Prefix: prefix, Instance: "i",
			KMSKeyID: s3test.FakeKeyARN, SSE: "aws:kms", BucketKey: true, Workers: workers, Log: zap.NewNop(), Metrics: s3conn.NewMetrics(reg),
		})
		if err != nil {
			b.Fatal(err)
		}
		db, err := state.Open(b.TempDir(), state.Options{Instance: "i", MachineID: "m", Log: zap.NewNop()})
		if err != nil {
			b.Fatal(err)
		}
		st, err := db.Source(b.Context(), state.SourceKey{Bucket: "bucket", Prefix: prefix, RealPath: dir})
		if err != nil {
			b.Fatal(err)
		}
		if err := st.BeginChain(b.Context(), "0a1b2c3d", archive.BeginsNew, "", ""); err != nil {
			b.Fatal(err)
		}
		q := queue.New(files)
		pool, err := uploader.New(q, []uploader.Source{{
			Name: "s", Instance: "i", Bucket: "bucket", RealPath: dir, Mapper: archive.NewMapper(prefix),
			Root: safefs.NewRoot(dir, safefs.RootOptions{}), Objects: store, Multipart: store, State: st,
			Accept: store.KeyVerdict,
			Proven: true, ProvenAt: time.Now(), Hardlinks: safefs.LinksAllow, Deletes: archive.DeletesKeep,
		}}, uploader.Options{
			Workers: workers, PartSize: 16 << 20, SinglePutMax: 64 << 20, MemoryLimit: 128 << 20, Drain: time.Second,
			Log: zap.NewNop(), Metrics: uploader.NewMetrics(reg),
		})
		if err != nil {
			b.Fatal(err)
		}
		for i := range files {
			job := queue.Job{Source: "s", Path: fmt.Sprintf("f%05d", i), Trigger: archive.TriggerStartup, Detected: time.Now()}
			if !q.TryOffer(job) {
				b.Fatal("the queue is full")
			}
		}
		ctx, stop := context.WithCancel(b.Context())
		done := make(chan error, 1)
		begin := time.Now()
		b.StartTimer()
		go func() { done <- pool.Run(ctx) }()
		if err := q.Source("s").Wait(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		total += time.Since(begin)
		busy += requestSeconds(b, reg)
		stop()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		if err := db.Close(); err != nil {
			b.Fatal(err)
		}
		if got := len(fake.Keys("bucket", prefix+"/f")); got != files {
			b.Fatalf("%d objects, want %d", got, files)
		}
		b.StartTimer()
	}
	rate := float64(files*b.N) / total.Seconds()
	b.ReportMetric(rate, "files/s")
	b.ReportMetric(rate/(workers/latency.Seconds()), "of-workers/latency")
	b.ReportMetric(busy/total.Seconds()/workers, "of-time-in-requests")
}

// requestSeconds is the time that all requests of a registry took.
func requestSeconds(b *testing.B, reg *prometheus.Registry) float64 {
	b.Helper()
	families, err := reg.Gather()
	if err != nil {
		b.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() == "s3syncd_s3_request_duration_seconds" {
			for _, m := range f.GetMetric() {
				sum += m.GetHistogram().GetSampleSum()
			}
		}
	}
	return sum
}
