package uploader

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/state"
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
			if _, err := readSmall(f, fenceOf(st), make([]byte, 5000)); state.ClassOf(err) != state.ClassChanged {
				t.Errorf("readSmall = %v, want class changed", err)
			}
			if _, err := readLarge(hashing{cut: t.Context().Err}, f, fenceOf(st), 1000, make([]byte, 777)); state.ClassOf(err) != state.ClassChanged {
				t.Errorf("readLarge = %v, want class changed", err)
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
