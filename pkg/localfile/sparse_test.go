package localfile

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/s3syncd/s3syncd/internal/safefs"
)

// Holes read as zeros, wherever they are, without being read.
func TestHolesAreHashedAsZeros(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 30 {
		path := filepath.Join(t.TempDir(), "f")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		size := 1 + r.Int64N(3<<20)
		want := make([]byte, size)
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		for range r.IntN(5) { // Islands of data, also at the very ends.
			at, n := r.Int64N(size), 1+r.Int64N(100_000)
			if r.IntN(3) == 0 {
				at = 0
			}
			n = min(n, size-at)
			data := make([]byte, n)
			for k := range data {
				data[k] = byte(r.Uint32())
			}
			copy(want[at:], data)
			if _, err := f.WriteAt(data, at); err != nil {
				t.Fatal(err)
			}
		}
		st, err := safefs.Fstat(f)
		if err != nil {
			t.Fatal(err)
		}
		hashed := int64(0)
		h := Watch{Cut: t.Context().Err, Hashed: func(n int64) { hashed += n }}
		got, err := ReadLarge(h, f, FenceOf(st), 1<<20, make([]byte, 100_001))
		if err != nil {
			t.Fatal(err)
		}
		if got.MD5 != md5.Sum(want) || got.SHA256 != sha256.Sum256(want) || got.CRC32 != crc32.ChecksumIEEE(want) || hashed != size {
			t.Errorf("file %d of %d bytes: hashes differ, or progress %d", i, size, hashed)
		}
		s := &sparse{file: f, size: size}
		all := make([]byte, size)
		if _, err := s.ReadAt(all, 0); err != nil || !bytes.Equal(all, want) {
			t.Errorf("ReadAt = %v, or other bytes", err)
		}
		if _, err := s.ReadAt(make([]byte, 10), size-5); size > 5 && !errors.Is(err, io.EOF) && err == nil {
			t.Error("a reading beyond the end has no error")
		}
		_ = f.Close()
	}
}

// Every size that an object can have is sent in parts that S3 takes.
func TestPartsOfEverySizeAreAllowed(t *testing.T) {
	const most = mostParts * maxPart
	for _, configured := range []int64{5 << 20, 16 << 20, 5 << 30} {
		for _, size := range []int64{1, 5 << 20, 100 << 30, 6 << 40, 45 << 40, 9000 * maxPart, 9000*maxPart + 1, most - 1, most} {
			part := PartSize(size, configured)
			if n := (size + part - 1) / part; n > mostParts || part > maxPart || part < configured {
				t.Errorf("%d bytes, configured %d: %d parts of %d", size, configured, n, part)
			}
			if err := CheckSize(size); err != nil {
				t.Errorf("CheckSize(%d) = %v", size, err)
			}
		}
	}
	if CheckSize(most+1) == nil {
		t.Error("a file beyond every object is taken")
	}
}

// A hole of terabytes is skipped, not read.
func TestHugeHolesAreNotRead(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "huge"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := f.Truncate(6 << 40); err != nil {
		t.Skipf("no file of 6 TiB on this file system: %v", err)
	}
	s := &sparse{file: f, size: 6 << 40}
	buf := []byte{1}
	if _, err := s.ReadAt(buf, 3<<40); err != nil || buf[0] != 0 {
		t.Errorf("ReadAt in a hole = %v, %v", buf, err)
	}
	if !s.blind && s.holes < 3<<40 {
		t.Errorf("%d bytes of holes were found, want the rest of the file", s.holes)
	}
}
