package state

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	bolt "go.etcd.io/bbolt"

	"github.com/s3syncd/s3syncd/internal/codec"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// rangeChunk is the number of entries that one read transaction visits.
const rangeChunk = 4096

// SourceKey identifies a source by where it is archived to, whatever its name.
// RealPath is the directory that it was first archived from: it stays as it is
// when the directory moves (see Source.Move), and tells apart what releases kept
// apart that began a source of its own for each directory. Keys are compared byte
// by byte.
type SourceKey struct{ Bucket, Prefix, RealPath string }

// id is the name of the source's bucket. The lengths keep the parts apart.
func (k SourceKey) id() []byte {
	h := sha256.New()
	for _, part := range []string{k.Bucket, k.Prefix, k.RealPath} {
		_, _ = h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		_, _ = h.Write([]byte(part))
	}
	return h.Sum(nil)[:16]
}

// Source is the state of one source. All methods are safe for concurrent use.
// Methods that take a context return once the change is durable; a context that
// ends before the change's transaction has begun withdraws it.
type Source struct {
	*Ledger

	db   *DB
	key  SourceKey
	id   []byte
	head atomic.Pointer[head]  // as last committed; replaced, never changed
	at   atomic.Pointer[place] // likewise
}

// Source returns the source with key k and creates it if it is new. Two calls
// with equal keys return the same Source.
func (db *DB) Source(ctx context.Context, k SourceKey) (*Source, error) {
	db.create.Lock()
	defer db.create.Unlock()
	if db.closed.Load() {
		return nil, fmt.Errorf("state: source: %w", ErrClosed)
	}
	known := *db.sources.Load()
	id := string(k.id())
	if s := known[id]; s != nil {
		return s, nil
	}
	s := &Source{db: db, key: k, id: []byte(id)}
	s.Ledger = &Ledger{s}
	s.head.Store(newHead())
	s.at.Store(&place{path: k.RealPath})
	err := db.submit(ctx, "create source", func(t *txn) error { return createSource(t.bolt, s) })
	if err != nil {
		return nil, err
	}
	known = maps.Clone(known)
	known[id] = s
	db.sources.Store(&known)
	return s, nil
}

// Sources lists the keys of all sources that the state knows, those of earlier
// configurations included, in no particular order.
func (db *DB) Sources() ([]SourceKey, error) {
	if db.closed.Load() {
		return nil, fmt.Errorf("state: sources: %w", ErrClosed)
	}
	var keys []SourceKey
	for _, s := range *db.sources.Load() {
		keys = append(keys, s.key)
	}
	return keys, nil
}

func createSource(tx *bolt.Tx, s *Source) error {
	all := tx.Bucket([]byte(bucketSources))
	if all == nil {
		return codec.Damaged("bucket %s is missing", bucketSources)
	}
	root, err := all.CreateBucket(s.id)
	if err != nil {
		return fmt.Errorf("create source %x: %w", s.id, err)
	}
	for _, name := range []string{bucketFiles, bucketRecords, bucketIntents, bucketOutbox} {
		if _, err := root.CreateBucket([]byte(name)); err != nil {
			return fmt.Errorf("create bucket %s: %w", name, err)
		}
	}
	if err := putSource(root, s.key, *s.at.Load()); err != nil {
		return err
	}
	h := s.head.Load()
	return errors.Join(putJSON(root, []byte(keyHead), h.ledger), putJSON(root, []byte(keyNews), h.news))
}

// loadSources reads all sources at Open.
func (db *DB) loadSources(tx *bolt.Tx, hostChanged bool) error {
	known := map[string]*Source{}
	all := tx.Bucket([]byte(bucketSources))
	err := all.ForEachBucket(func(id []byte) error {
		root := all.Bucket(id)
		key, at, err := loadKey(root)
		if err != nil {
			return err
		}
		h, err := loadHead(root)
		if err != nil {
			return err
		}
		s := &Source{db: db, key: key, id: bytes.Clone(id)}
		s.Ledger = &Ledger{s}
		s.at.Store(&at)
		if hostChanged && h.ID != "" {
			h.HostChanged = true
		}
		s.head.Store(h)
		known[string(id)] = s
		return nil
	})
	if err != nil {
		return err
	}
	for _, s := range known {
		if h := s.head.Load(); hostChanged && h.HostChanged {
			if err := putJSON(all.Bucket(s.id), []byte(keyHead), h.ledger); err != nil {
				return err
			}
		}
	}
	db.sources.Store(&known)
	return nil
}

func loadHead(root *bolt.Bucket) (*head, error) {
	h := new(head)
	if err := codec.DecodeJSON([]byte(keyHead), root.Get([]byte(keyHead)), &h.ledger); err != nil {
		return nil, err
	}
	if err := codec.DecodeJSON([]byte(keyNews), root.Get([]byte(keyNews)), &h.news); err != nil {
		return nil, err
	}
	return h, nil
}

// HostChanged reports whether the source's chain was begun by another instance
// or on another machine. It stays true, over restarts too, until BeginChain.
func (s *Source) HostChanged() bool { return s.head.Load().HostChanged }

// Totals returns the number and the bytes of all files that are stored, as last
// committed.
func (s *Source) Totals() (files, bytes int64) {
	h := s.head.Load()
	return h.Files, h.Bytes
}

// view runs fn in a short read transaction on the source's buckets. It must not
// keep what it is given.
func (s *Source) view(op string, fn func(*sourceTxn) error) error {
	return s.db.view(op, func(tx *bolt.Tx) error {
		st, err := openSource(tx, s.id)
		if err != nil {
			return err
		}
		return fn(st)
	})
}

// viewFiles runs fn in a short read transaction on the source's index.
func (s *Source) viewFiles(op string, fn func(files *bolt.Bucket) error) error {
	return s.db.view(op, func(tx *bolt.Tx) error {
		root, err := child(tx.Bucket([]byte(bucketSources)), s.id)
		if err != nil {
			return err
		}
		files, err := child(root, []byte(bucketFiles))
		if err != nil {
			return err
		}
		return fn(files)
	})
}

// openEntry decodes the value of the files bucket under path.
func openEntry(path, sealed []byte) (archive.Entry, error) {
	value, err := codec.Unseal(path, sealed)
	if err != nil {
		return archive.Entry{}, err
	}
	return codec.DecodeEntry(value)
}

// Get returns the index entry of path, and false if there is none.
func (s *Source) Get(path string) (e archive.Entry, ok bool, err error) {
	err = s.viewFiles("get", func(files *bolt.Bucket) error {
		value := files.Get([]byte(path))
		if value == nil {
			return nil
		}
		var err error
		e, err = openEntry([]byte(path), value)
		ok = err == nil
		return err
	})
	return e, ok, err
}

// Range returns up to n entries with a path greater than after, in the byte
// order of their paths, in buf's memory. Fewer than n mean that there are no
// more. One read transaction is held during it: pages that a writer frees in
// that time are not used again, so n should be some thousands at most.
func (s *Source) Range(after string, n int, buf []archive.Item) ([]archive.Item, error) {
	buf = buf[:0]
	err := s.viewFiles("range", func(files *bolt.Bucket) error {
		c := files.Cursor()
		key, value := c.First()
		if after != "" {
			key, value = c.Seek([]byte(after))
			if string(key) == after {
				key, value = c.Next()
			}
		}
		for ; key != nil && len(buf) < n; key, value = c.Next() {
			e, err := openEntry(key, value)
			if err != nil {
				return err
			}
			buf = append(buf, archive.Item{Path: string(key), Entry: e})
		}
		return nil
	})
	return buf, err
}

// WrongKey counts the stored files whose encryption, as SSE and KMSKeyID of the
// object say, match does not accept. It reads the whole index, in chunks.
func (s *Source) WrongKey(match func(o archive.Object) bool) (int64, error) {
	var wrong int64
	buf := make([]archive.Item, 0, rangeChunk)
	for after := ""; ; after = buf[len(buf)-1].Path {
		var err error
		if buf, err = s.Range(after, rangeChunk, buf); err != nil {
			return 0, err
		}
		for i := range buf {
			if e := &buf[i].Entry; e.Stored && !match(archive.Object{SSE: e.SSE, KMSKeyID: e.KMSKeyID}) {
				wrong++
			}
		}
		if len(buf) < rangeChunk {
			return wrong, nil
		}
	}
}

// Intents returns all open intents, oldest first.
func (s *Source) Intents() ([]archive.Intent, error) { return s.intents(nil) }

// Intent returns the open intents on one object key, oldest first.
func (s *Source) Intent(key string) ([]archive.Intent, error) { return s.intents(intentPrefix(key)) }

func (s *Source) intents(prefix []byte) (found []archive.Intent, err error) {
	err = s.view("intents", func(st *sourceTxn) error {
		found, err = readIntents(st, prefix)
		return err
	})
	slices.SortFunc(found, func(a, b archive.Intent) int { return int(int64(a.Attempt - b.Attempt)) })
	return found, err
}

// readIntents decodes the intents whose storage keys begin with prefix.
func readIntents(st *sourceTxn, prefix []byte) ([]archive.Intent, error) {
	var found []archive.Intent
	c := st.intents.Cursor()
	for key, value := c.Seek(prefix); key != nil && bytes.HasPrefix(key, prefix); key, value = c.Next() {
		in, err := decodeIntent(key, value)
		if err != nil {
			return nil, err
		}
		found = append(found, in)
	}
	return found, nil
}

// decodeIntent reads an intent. Its object key comes from its storage key,
// because JSON would change one that is not UTF-8.
func decodeIntent(key, value []byte) (archive.Intent, error) {
	var w intentWire
	if err := codec.DecodeJSON(key, value, &w); err != nil {
		return archive.Intent{}, err
	}
	if len(key) < 12 {
		return archive.Intent{}, codec.Damaged("intent %x: the key is too short", key)
	}
	in := w.intent()
	in.Key = string(key[4 : len(key)-8])
	return in, nil
}
