package boltfile

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// A sound file must never be taken for a damaged one: whatever the library
// writes passes, after each of many random transactions.
func TestWhatTheLibraryWritesIsSound(t *testing.T) {
	rounds, txs := 1, 80
	if os.Getenv("S3SYNCD_E2E") != "" {
		rounds, txs = 40, 1000
	}
	for range rounds {
		seed := uint64(time.Now().UnixNano())
		rnd := rand.New(rand.NewPCG(seed, 3))
		path := filepath.Join(t.TempDir(), "state.db")
		open := func() *bolt.DB {
			return must(bolt.Open(path, 0o600, &bolt.Options{FreelistType: bolt.FreelistMapType, NoSync: true, NoGrowSync: true}))(t)
		}
		b := open()
		for n := range txs {
			if rnd.IntN(40) == 0 {
				check(t, b.Close())
				b = open()
			}
			check(t, b.Update(func(tx *bolt.Tx) error { return scribble(tx, rnd) }))
			if _, _, err := checkFile(t, path); err != nil {
				t.Fatalf("seed %d: Check after transaction %d = %v, want nil", seed, n, err)
			}
		}
		check(t, b.Update(deleteAll))
		m, free, err := checkFile(t, path)
		if err != nil || free < 520 { // More than one page can list.
			t.Errorf("seed %d: Check of an empty file = %d free pages of %d, %v, want nearly all", seed, free, m.Pages, err)
		}
		check(t, b.Close())
	}
}

func checkFile(t *testing.T, path string) (Meta, int, error) {
	t.Helper()
	f := must(os.Open(path))(t)
	defer f.Close()
	return Check(f, must(f.Stat())(t).Size())
}

func deleteAll(tx *bolt.Tx) error {
	for i := range 8 {
		if name := fmt.Appendf(nil, "bucket %d", i); tx.Bucket(name) != nil {
			if err := tx.DeleteBucket(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// scribble changes a few of 8 buckets, each with one inside.
func scribble(tx *bolt.Tx, rnd *rand.Rand) error {
	for range 1 + rnd.IntN(3) {
		name := fmt.Appendf(nil, "bucket %d", rnd.IntN(8))
		if rnd.IntN(60) == 0 && tx.Bucket(name) != nil {
			if err := tx.DeleteBucket(name); err != nil {
				return err
			}
			continue
		}
		outer, err := tx.CreateBucketIfNotExists(name)
		if err != nil {
			return err
		}
		inner, err := outer.CreateBucketIfNotExists([]byte("inside"))
		if err != nil {
			return err
		}
		outer.FillPercent = 0.1 + 0.9*rnd.Float64()
		for _, b := range []*bolt.Bucket{outer, inner} {
			if err := scrawl(b, rnd); err != nil {
				return err
			}
		}
	}
	return nil
}

// scrawl stores some values, or deletes a range of them.
func scrawl(b *bolt.Bucket, rnd *rand.Rand) error {
	from, n := rnd.IntN(3000), rnd.IntN(1+rnd.IntN(200))
	remove := rnd.IntN(3) == 0
	for i := from; i < from+n; i++ {
		key := fmt.Appendf(nil, "k%05d", i)
		if i%5 == 0 {
			key = append(key, make([]byte, i%300)...)
		}
		var err error
		switch {
		case remove:
			err = b.Delete(key)
		case i%97 == 0:
			err = b.Put(key, make([]byte, rnd.IntN(20_000)))
		default:
			err = b.Put(key, make([]byte, rnd.IntN(400)))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// must returns v unless err says otherwise.
func must[T any](v T, err error) func(testing.TB) T {
	return func(tb testing.TB) T {
		tb.Helper()
		check(tb, err)
		return v
	}
}

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatalf("unexpected error: %v", err)
	}
}
