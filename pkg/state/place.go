package state

import (
	"context"

	bolt "go.etcd.io/bbolt"

	"github.com/s3syncd/s3syncd/internal/codec"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// place is where on this host a source is. It may change; the source stays the
// same one.
type place struct {
	path string // the directory that is archived
	home string // the directory that holds the copies of its documents, "": not known
}

// sourceWire is a SourceKey and a place in the file. Paths are raw bytes, which a
// JSON string cannot hold. Releases that know no place pass over it.
type sourceWire struct {
	Bucket   string `json:"bucket"`
	Prefix   string `json:"prefix"`
	RealPath []byte `json:"real_path"`

	Path []byte `json:"path,omitempty"` // where it is not RealPath
	Home []byte `json:"home,omitempty"`
}

func putSource(root *bolt.Bucket, k SourceKey, at place) error {
	w := sourceWire{Bucket: k.Bucket, Prefix: k.Prefix, RealPath: []byte(k.RealPath), Home: []byte(at.home)}
	if at.path != k.RealPath {
		w.Path = []byte(at.path)
	}
	return putJSON(root, []byte(keySource), w)
}

func loadKey(root *bolt.Bucket) (SourceKey, place, error) {
	var w sourceWire
	if err := codec.DecodeJSON([]byte(keySource), root.Get([]byte(keySource)), &w); err != nil {
		return SourceKey{}, place{}, err
	}
	k := SourceKey{Bucket: w.Bucket, Prefix: w.Prefix, RealPath: string(w.RealPath)}
	at := place{path: k.RealPath, home: string(w.Home)}
	if len(w.Path) > 0 {
		at.path = string(w.Path)
	}
	return k, at, nil
}

// Key returns the key that the source was created with.
func (s *Source) Key() SourceKey { return s.key }

// Path returns the directory that the source is archived from.
func (s *Source) Path() string { return s.at.Load().path }

// Home returns the directory that SetHome stored, "" for none.
func (s *Source) Home() string { return s.at.Load().home }

// Move notes that the source is archived from another directory from now on, and
// adds the event that tells of it, in one transaction.
func (s *Source) Move(ctx context.Context, path string, n archive.Note) error {
	return s.replace(ctx, "move source", &n, func(at *place) { at.path = path })
}

// SetHome stores the directory that holds the copies of the source's documents.
func (s *Source) SetHome(ctx context.Context, dir string) error {
	return s.replace(ctx, "set the home of a source", nil, func(at *place) { at.home = dir })
}

func (s *Source) replace(ctx context.Context, op string, n *archive.Note, change func(*place)) error {
	return s.db.submit(ctx, op, func(t *txn) error {
		st, err := t.source(s)
		if err != nil {
			return err
		}
		if n != nil {
			st.note(*n)
		}
		at := *s.at.Load()
		if st.at != nil {
			at = *st.at
		}
		change(&at)
		st.at = &at
		t.after = append(t.after, func() { s.at.Store(&at) })
		return putSource(st.root, s.key, at)
	})
}
