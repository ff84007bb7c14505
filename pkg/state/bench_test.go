package state

import (
	"bytes"
	"fmt"
	"os"
	"sync/atomic"
	"testing"

	"github.com/s3syncd/s3syncd/internal/boltfile"
	"github.com/s3syncd/s3syncd/internal/codec"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

const benchPaths = 100_000

func benchPath(i int) string {
	return fmt.Sprintf("department-%02d/project-%03d/2026/report-%07d-final.pdf", i%20, i%400, i)
}

// filledSource returns a source with benchPaths entries.
func filledSource(b *testing.B) (*DB, *Source) {
	b.Helper()
	db, s := openTestSource(b, b.TempDir())
	for from := 0; from < benchPaths; from += 2000 {
		check(b, s.update(b.Context(), "fill", func(st *sourceTxn) error {
			for i := from; i < from+2000; i++ {
				e := testEntry(i)
				o := archive.Outcome{Path: benchPath(i), Entry: &e}
				if err := st.index(&o, codec.Seal([]byte(o.Path), codec.EncodeEntry(&e))); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	return db, s
}

func BenchmarkCommitParallel(b *testing.B) {
	db, s := openTestSource(b, b.TempDir())
	before := txID(b, db)
	var n atomic.Int64
	b.SetParallelism(100)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			i := int(n.Add(1))
			if _, err := s.Commit(b.Context(), uploaded(benchPath(i), i)); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/float64(txID(b, db)-before), "commits/tx")
}

func BenchmarkGet(b *testing.B) {
	_, s := filledSource(b)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, ok, err := s.Get(benchPath(i % benchPaths)); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}

func BenchmarkRange100k(b *testing.B) {
	_, s := filledSource(b)
	b.ReportAllocs()
	buf := make([]archive.Item, 0, rangeChunk)
	for b.Loop() {
		n := 0
		for after := ""; ; after = buf[len(buf)-1].Path {
			buf = must(s.Range(after, rangeChunk, buf))(b)
			n += len(buf)
			if len(buf) < rangeChunk {
				break
			}
		}
		if n != benchPaths {
			b.Fatal(n)
		}
	}
}

func BenchmarkOpen100k(b *testing.B) {
	db, _ := filledSource(b)
	size := db.Size()
	closeDB(b, db)
	for b.Loop() {
		closeDB(b, must(Open(db.dir, testOptions()))(b))
	}
	b.SetBytes(size)
}

func BenchmarkCheckPages100k(b *testing.B) {
	db, _ := filledSource(b)
	closeDB(b, db)
	file := must(os.ReadFile(db.path))(b)
	b.SetBytes(int64(len(file)))
	for b.Loop() {
		if _, _, err := boltfile.Check(bytes.NewReader(file), int64(len(file))); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeEntry(b *testing.B) {
	e := testEntry(1)
	value := codec.EncodeEntry(&e)
	b.ReportAllocs()
	b.SetBytes(int64(len(value)))
	for b.Loop() {
		if _, err := codec.DecodeEntry(value); err != nil {
			b.Fatal(err)
		}
	}
}
