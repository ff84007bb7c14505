package uploader

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/state"
)

func BenchmarkHashSmall(b *testing.B) {
	benchmarkHash(b, func(f *os.File, fence state.Fence, buf []byte) error {
		_, err := readSmall(f, fence, buf)
		return err
	}, 1<<20, 1<<20)
}

func BenchmarkHashLarge(b *testing.B) {
	benchmarkHash(b, func(f *os.File, fence state.Fence, buf []byte) error {
		_, err := readLarge(hashing{cut: b.Context().Err}, f, fence, 16<<20, buf)
		return err
	}, 64<<20, hashChunk)
}

func benchmarkHash(b *testing.B, read func(*os.File, state.Fence, []byte) error, size, buf int) {
	b.Helper()
	path := filepath.Join(b.TempDir(), "f")
	if err := os.WriteFile(path, pattern(size, 1), 0o600); err != nil {
		b.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	st, err := safefs.Fstat(f)
	if err != nil {
		b.Fatal(err)
	}
	space := make([]byte, buf)
	b.SetBytes(int64(size))
	for b.Loop() {
		if err := read(f, fenceOf(st), space); err != nil {
			b.Fatal(err)
		}
	}
}

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
		if err := r.q.Offer(b.Context(), Job{Source: "data", Path: p, Trigger: state.TriggerStartup}); err != nil {
			b.Fatal(err)
		}
	}
	if err := r.q.Wait(b.Context(), "data"); err != nil {
		b.Fatal(err)
	}
}
