package localfile

import (
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

func BenchmarkHashSmall(b *testing.B) {
	benchmarkHash(b, func(f *os.File, fence archive.Fence, buf []byte) error {
		_, err := ReadSmall(f, fence, buf)
		return err
	}, 1<<20, 1<<20)
}

func BenchmarkHashLarge(b *testing.B) {
	benchmarkHash(b, func(f *os.File, fence archive.Fence, buf []byte) error {
		_, err := ReadLarge(Watch{Cut: b.Context().Err}, f, fence, 16<<20, buf)
		return err
	}, 64<<20, ChunkSize)
}

func benchmarkHash(b *testing.B, read func(*os.File, archive.Fence, []byte) error, size, buf int) {
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
		if err := read(f, FenceOf(st), space); err != nil {
			b.Fatal(err)
		}
	}
}

// The two readings of a large file: the first one hashes the whole, with and
// without a SHA-256 of each part, the second one is what a request sends, with and
// without a comparison with the first. The processor's time does not depend on what else
// runs.
func BenchmarkReadingsOfALargeFile(b *testing.B) {
	const size, part = 256 << 20, 16 << 20
	path := filepath.Join(b.TempDir(), "large")
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
	buf := make([]byte, ChunkSize)
	var r Reading
	for name, partSize := range map[string]int64{"first whole": 0, "first with parts": part} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			defer reportProcessor(b, size, processor())
			for b.Loop() {
				if r, err = ReadLarge(Watch{Cut: b.Context().Err}, f, FenceOf(st), partSize, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	if r, err = ReadLarge(Watch{Cut: b.Context().Err}, f, FenceOf(st), part, buf); err != nil {
		b.Fatal(err)
	}
	for name, compared := range map[string]bool{"second": false, "second compared": true} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			defer reportProcessor(b, size, processor())
			var sent atomic.Int64
			for b.Loop() {
				for i, sum := range r.Parts {
					body := NewBody(b.Context(), r.Section(f, int64(i)*part, part), part, nil, &sent)
					if compared {
						body.Comparing(sum.SHA256)
					}
					if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{body}, buf); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// processor is the processor time that this process has used.
func processor() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// reportProcessor reports the processor time since then for each GiB.
func reportProcessor(b *testing.B, size int, since time.Duration) {
	b.Helper()
	b.ReportMetric((processor()-since).Seconds()/float64(b.N)/float64(size)*(1<<30), "cpu-s/GiB")
}
