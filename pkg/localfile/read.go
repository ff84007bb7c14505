// Package localfile reads the files that are archived: one consistent reading
// with its hashes, the proof that a file has not changed since, and the body of
// a request that sends it.
package localfile

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

const (
	// ChunkSize is how much of a file ReadLarge hashes at a time when it is given
	// a buffer of that size.
	ChunkSize = 256 << 10

	maxParts = 9000 // Of S3's 10,000.
	mebibyte = 1 << 20
	// An S3 object has at most mostParts parts of maxPart bytes.
	mostParts = 10_000
	maxPart   = 5 << 30
)

// errTooLarge: S3 has no object of this size.
var errTooLarge = fmt.Errorf("the file is larger than an object of %d parts of 5 GiB can be", mostParts)

// CheckSize returns an error for a file that no object can hold.
func CheckSize(size int64) error {
	if size > mostParts*maxPart {
		return errTooLarge
	}
	return nil
}

// PartSize is the part size of a multipart upload of size bytes: the configured
// one, or more where that would need too many parts.
func PartSize(size, configured int64) int64 {
	if (size+configured-1)/configured <= maxParts {
		return configured
	}
	least := (size + maxParts - 1) / maxParts
	least = (least + mebibyte - 1) / mebibyte * mebibyte
	return min(least, maxPart)
}

// Content is what a file or an object holds. A hash that is zero is not known.
type Content struct {
	Size   int64
	MD5    [16]byte
	SHA256 [32]byte
}

// Agrees reports whether d is what c knows of a content.
func (c Content) Agrees(d Content) bool {
	md5, sha := c.MD5 == [16]byte{} || c.MD5 == d.MD5, c.SHA256 == [32]byte{} || c.SHA256 == d.SHA256
	return c.Size == d.Size && md5 && sha
}

// Reading is one consistent reading of a file.
type Reading struct {
	Content

	PartSize int64  // Of a multipart upload, else 0.
	CRC32    uint32 // Of the whole, multipart only.
	Parts    []Part

	small []byte // The content itself, of ReadSmall.
}

// Part is what a reading found in one part. The server compares the CRC-32,
// which can be matched on purpose; the second reading compares the SHA-256.
type Part struct {
	CRC32  uint32
	SHA256 [32]byte
}

// PartLen is the size of the i-th part.
func (r *Reading) PartLen(i int) int64 {
	return min(r.PartSize, r.Size-int64(i)*r.PartSize)
}

// Section returns n bytes of the reading from off on, as a source for a Body.
func (r *Reading) Section(file *os.File, off, n int64) io.ReadSeeker {
	if r.small != nil {
		return bytes.NewReader(r.small[off : off+n])
	}
	return io.NewSectionReader(file, off, n)
}

// ReadSmall reads the whole file into buf, which has its size, and hashes that.
// The reading refers to buf.
func ReadSmall(file *os.File, f archive.Fence, buf []byte) (Reading, error) {
	if _, err := io.ReadFull(io.NewSectionReader(file, 0, f.Size), buf); err != nil {
		return Reading{}, readError(err)
	}
	if err := atEnd(file, f); err != nil {
		return Reading{}, err
	}
	return Reading{
		Content: Content{Size: f.Size, MD5: md5.Sum(buf), SHA256: sha256.Sum256(buf)},
		small:   buf,
	}, nil
}

// ReadLarge hashes the file in one pass, with the CRC-32 of the whole and the
// sums of each part when partSize is not 0. Its working space is buf.
func ReadLarge(w Watch, file *os.File, f archive.Fence, partSize int64, buf []byte) (Reading, error) {
	r := Reading{Content: Content{Size: f.Size}, PartSize: partSize}
	from := &sparse{file: file, size: f.Size}
	m, s, part := md5.New(), sha256.New(), sha256.New()
	var crc uint32
	for off := int64(0); off < f.Size; {
		n := min(int64(len(buf)), f.Size-off)
		if partSize > 0 {
			n = min(n, partSize-off%partSize)
		}
		chunk := buf[:n]
		if _, err := from.ReadAt(chunk, off); err != nil {
			return Reading{}, readError(err)
		}
		m.Write(chunk)
		s.Write(chunk)
		off += n
		if err := w.step(n, f.Size-off, from.holes); err != nil {
			return Reading{}, err
		}

		if partSize == 0 {
			continue
		}
		r.CRC32 = crc32.Update(r.CRC32, crc32.IEEETable, chunk)
		crc = crc32.Update(crc, crc32.IEEETable, chunk)
		part.Write(chunk)
		if off%partSize == 0 || off == f.Size {
			r.Parts = append(r.Parts, Part{CRC32: crc, SHA256: [32]byte(part.Sum(nil))})
			crc = 0
			part.Reset()
		}
	}
	if err := atEnd(file, f); err != nil {
		return Reading{}, err
	}
	m.Sum(r.MD5[:0])
	s.Sum(r.SHA256[:0])
	return r, nil
}

// atEnd fails unless the file ends where its fence says and is unchanged.
func atEnd(file *os.File, f archive.Fence) error {
	var one [1]byte
	switch n, err := file.ReadAt(one[:], f.Size); {
	case n > 0:
		return Changed("read")
	case err != nil && !errors.Is(err, io.EOF):
		return readError(err)
	}
	return SameFence(file, f)
}

// readError classifies a failed read: an early end means that the file changed.
func readError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return Changed("read")
	}
	return Unreadable("read", err)
}
