package state

import (
	"errors"
	"path/filepath"
	"testing"
)

func TestPingWritesNothingAndEndsWithTheState(t *testing.T) {
	db := openDB(t, t.TempDir(), testOptions())
	before := txID(t, db)
	check(t, db.Ping(t.Context()))
	if got := txID(t, db); got != before {
		t.Errorf("Ping took %d transactions, want none", got-before)
	}
	closeDB(t, db)
	if err := db.Ping(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Ping after Close = %v, want ErrClosed", err)
	}
	for dir, want := range map[string]bool{db.dir: true, filepath.Join(db.dir, "none"): false, t.TempDir(): false} {
		if got := must(Exists(dir))(t); got != want {
			t.Errorf("Exists(%s) = %v, want %v", dir, got, want)
		}
	}
}
