package state

import (
	"path/filepath"
	"testing"
)

func TestExists(t *testing.T) {
	db := openDB(t, t.TempDir(), testOptions())
	defer closeDB(t, db)
	for dir, want := range map[string]bool{db.dir: true, filepath.Join(db.dir, "none"): false, t.TempDir(): false} {
		if got := must(Exists(dir))(t); got != want {
			t.Errorf("Exists(%s) = %v, want %v", dir, got, want)
		}
	}
}
