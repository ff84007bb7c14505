package uploader

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/queue"
)

func BenchmarkUploadSmallFiles(b *testing.B) {
	r := newBenchRig(b)
	paths := make([]string, 0, b.N)
	for i := range b.N {
		p := fmt.Sprintf("f%07d", i)
		if err := os.WriteFile(filepath.Join(r.dir, p), []byte(p), 0o600); err != nil {
			b.Fatal(err)
		}
		paths = append(paths, p)
	}
	r.start()
	defer r.halt()
	b.ResetTimer()
	for _, p := range paths {
		if err := r.q.Offer(b.Context(), queue.Job{Source: "data", Path: p, Trigger: archive.TriggerStartup}); err != nil {
			b.Fatal(err)
		}
	}
	if err := r.q.Source("data").Wait(b.Context()); err != nil {
		b.Fatal(err)
	}
}
