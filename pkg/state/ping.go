package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Ping proves that the committer takes changes: it returns once an empty one
// has passed through it, with the error that keeps the file from being written,
// if there is one. It writes nothing.
func (db *DB) Ping(ctx context.Context) error {
	err := db.submit(ctx, "ping", func(*txn) error { return refuse(errPing) })
	if errors.Is(err, errPing) {
		return nil
	}
	return err
}

// errPing keeps a ping from being committed.
var errPing = errors.New("ping")

// Exists reports whether dir holds a state.
func Exists(dir string) (bool, error) {
	_, err := os.Stat(filepath.Join(dir, fileName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("state directory: %w", err)
	}
	return true, nil
}
