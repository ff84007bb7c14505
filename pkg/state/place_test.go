package state

import (
	"path/filepath"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/s3syncd/s3syncd/internal/codec"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// rawSource returns what the file holds of its only source.
func rawSource(t *testing.T, dir string) string {
	t.Helper()
	b := must(bolt.Open(filepath.Join(dir, fileName), 0o600, &bolt.Options{ReadOnly: true}))(t)
	defer func() { check(t, b.Close()) }()
	var text string
	check(t, b.View(func(tx *bolt.Tx) error {
		all := tx.Bucket([]byte(bucketSources))
		return all.ForEachBucket(func(id []byte) error {
			value, err := codec.Unseal([]byte(keySource), all.Bucket(id).Get([]byte(keySource)))
			text = string(value)
			return err
		})
	}))
	return text
}

// A source stays the same one when its directory and the place of its copies
// change, and a release that knows neither still finds it under its first key.
func TestASourceKeepsItsKeyWhenItMoves(t *testing.T) {
	dir := t.TempDir()
	db, s := openTestSource(t, dir)
	before := s.Key()
	if s.Path() != before.RealPath || s.Home() != "" {
		t.Errorf("a new source is at %q with the home %q, want %q and none", s.Path(), s.Home(), before.RealPath)
	}
	closeDB(t, db)
	if raw := rawSource(t, dir); strings.Contains(raw, `"path"`) || strings.Contains(raw, `"home"`) {
		t.Errorf("a source that did not move is stored as %s", raw)
	}
	first := rawSource(t, dir)

	db, s = openTestSource(t, dir)
	done := make(chan error)
	go func() { done <- s.SetHome(t.Context(), "/copies") }()
	check(t, s.Move(t.Context(), "/moved\xff", archive.Note{Kind: archive.NotePathChanged, Detail: "here"}))
	check(t, <-done)
	closeDB(t, db)
	raw := rawSource(t, dir)
	if key, _, _ := strings.Cut(first, "}"); !strings.HasPrefix(raw, key) {
		t.Errorf("stored as %s, want it to begin with %s", raw, key)
	}

	db, s = openTestSource(t, dir)
	defer closeDB(t, db)
	if s.Key() != before || s.Path() != "/moved\xff" || s.Home() != "/copies" {
		t.Errorf("Key %v, Path %q, Home %q after a start", s.Key(), s.Path(), s.Home())
	}
	if ch := must(s.Chain())(t); len(ch.Notes) != 1 || ch.Notes[0].Kind != archive.NotePathChanged || ch.Notes[0].Time.IsZero() {
		t.Errorf("Notes = %v, want the one of the move", ch.Notes)
	}
}
