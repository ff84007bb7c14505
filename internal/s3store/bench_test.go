package s3store

import (
	"bytes"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/internal/s3test"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

func benchStore(b *testing.B) *Store {
	b.Helper()
	f := s3test.NewFake(b, "bucket")
	b.Setenv("AWS_ACCESS_KEY_ID", "a")
	b.Setenv("AWS_SECRET_ACCESS_KEY", "b")
	o := options(f.URL, "bucket", s3test.FakeKeyARN)
	o.Log, o.Metrics = zap.NewNop(), s3conn.NewMetrics(prometheus.NewRegistry())
	s, err := Open(b.Context(), o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(s.CloseIdle)
	return s
}

// BenchmarkPut includes the server.
func BenchmarkPut(b *testing.B) {
	s, p := benchStore(b), put("data/a", bytes.Repeat([]byte("x"), 16<<10), archive.Condition{})
	b.SetBytes(p.Size)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Put(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHead includes the server.
func BenchmarkHead(b *testing.B) {
	s, p := benchStore(b), put("data/a", []byte("x"), archive.Condition{})
	if _, err := s.Put(b.Context(), p); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Head(b.Context(), "data/a"); err != nil {
			b.Fatal(err)
		}
	}
}
