package localfile

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// Whatever happens to a file between its fence and the end of its reading makes
// the reading void.
func TestReadingOfAFileThatChangedIsVoid(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, path string){
		"rewritten in place": func(t *testing.T, path string) {
			t.Helper()
			rewrite(t, path, pattern(5000, 9))
		},
		"grown": func(t *testing.T, path string) {
			t.Helper()
			rewrite(t, path, pattern(5001, 1))
		},
		"shrunk": func(t *testing.T, path string) {
			t.Helper()
			if err := os.Truncate(path, 4999); err != nil {
				t.Fatal(err)
			}
		},
		"touched back": func(t *testing.T, path string) {
			t.Helper()
			rewrite(t, path, pattern(5000, 9))
			at := time.Unix(1_600_000_000, 0)
			if err := os.Chtimes(path, at, at); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f")
			rewrite(t, path, pattern(5000, 1))
			at := time.Unix(1_600_000_000, 0)
			if err := os.Chtimes(path, at, at); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			st, err := safefs.Fstat(f)
			if err != nil {
				t.Fatal(err)
			}
			for moved := st; moved.CtimeNs == st.CtimeNs; { // The clock of the file system is coarse.
				change(t, path)
				if moved, err = safefs.Fstat(f); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := ReadSmall(f, FenceOf(st), make([]byte, 5000)); archive.ClassOf(err) != archive.ClassChanged {
				t.Errorf("ReadSmall = %v, want class changed", err)
			}
			if _, err := ReadLarge(Watch{Cut: t.Context().Err}, f, FenceOf(st), 1000, make([]byte, 777)); archive.ClassOf(err) != archive.ClassChanged {
				t.Errorf("ReadLarge = %v, want class changed", err)
			}
		})
	}
}

func rewrite(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// pattern is n bytes that differ from place to place.
func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7) ^ byte(i>>8) ^ seed
	}
	return b
}

func TestPartSizeKeepsBelowTheLimitOfParts(t *testing.T) {
	for _, tt := range []struct{ size, configured, want int64 }{
		{100 << 20, 16 << 20, 16 << 20},
		{9000 * (16 << 20), 16 << 20, 16 << 20},
		{9000*(16<<20) + 1, 16 << 20, 17 << 20},
		{5 << 40, 16 << 20, 583 << 20},
	} {
		if got := PartSize(tt.size, tt.configured); got != tt.want {
			t.Errorf("PartSize(%d, %d) = %d, want %d", tt.size, tt.configured, got, tt.want)
		}
	}
}
