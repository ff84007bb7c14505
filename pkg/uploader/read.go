package uploader

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/state"
)

const (
	// BufferMax is the size up to which a file is read once, into memory.
	bufferMax = 8 << 20
	// HashChunk is how much of a larger file is hashed at a time.
	hashChunk = 256 << 10

	maxParts = 9000 // Of S3's 10,000.
	mebibyte = 1 << 20
	// MostParts of maxPart bytes are what S3 makes an object of.
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

// errMoved: the file is not what it was when it was opened.
var errMoved = errors.New("the file changed while it was read")

// errIdentity: size and mtime are the same, the rest of what identifies a file is not.
var errIdentity = errors.New("the file's inode or ctime changed while it was read")

// changed is errMoved with its class.
func changed(op string) error { return state.Classified(state.ClassChanged, op, errMoved) }

// reading is one consistent reading of a file.
type reading struct {
	content
	buf      []byte // The content itself of a small file, else nil.
	partSize int64  // Of a multipart upload, else 0.
	crc      uint32 // Of the whole, multipart only.
	parts    []partSum
}

// partSum is what the first reading found in one part. The server compares the
// CRC-32, which can be matched on purpose; the second reading compares the SHA-256.
type partSum struct {
	crc    uint32
	sha256 [32]byte
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

// fenceOf is the fence of a file's stat.
func fenceOf(st safefs.Stat) state.Fence {
	return state.Fence{Dev: st.Dev, Ino: st.Ino, Size: st.Size, MtimeNs: st.MtimeNs, CtimeNs: st.CtimeNs, MtimeSec: st.MtimeSec}
}

// attributesOf are the attributes of a file's stat.
func attributesOf(st safefs.Stat) state.Attributes {
	return state.Attributes{Mode: st.Mode & 0o7777, UID: st.UID, GID: st.GID}
}

// sameFence fails unless the open file still has fence f.
func sameFence(file *os.File, f state.Fence) error {
	st, err := safefs.Fstat(file)
	if err != nil {
		return unreadable("fstat", err)
	}
	if f.Ino == 0 {
		st = st.SizeMtime() // As the source's identity has it.
	}
	switch now := fenceOf(st); {
	case now == f:
		return nil
	case now.Size == f.Size && now.MtimeNs == f.MtimeNs:
		return state.Classified(state.ClassChanged, "fstat", errIdentity)
	}
	return changed("fstat")
}

// readSmall reads the whole file into buf, which has its size, and hashes that.
func readSmall(file *os.File, f state.Fence, buf []byte) (reading, error) {
	if _, err := io.ReadFull(io.NewSectionReader(file, 0, f.Size), buf); err != nil {
		return reading{}, readError(err)
	}
	if err := atEnd(file, f); err != nil {
		return reading{}, err
	}
	return reading{
		content: content{size: f.Size, md5: md5.Sum(buf), sha256: sha256.Sum256(buf)},
		buf:     buf,
	}, nil
}

// readLarge hashes the file in one pass, with the CRC-32 of the whole and the
// sums of each part when partSize is not 0. Its working space is buf.
func readLarge(h hashing, file *os.File, f state.Fence, partSize int64, buf []byte) (reading, error) {
	r := reading{content: content{size: f.Size}, partSize: partSize}
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
			return reading{}, readError(err)
		}
		m.Write(chunk)
		s.Write(chunk)
		off += n
		if err := h.step(n, f.Size-off, from.holes); err != nil {
			return reading{}, err
		}
		if partSize > 0 {
			r.crc = crc32.Update(r.crc, crc32.IEEETable, chunk)
			crc = crc32.Update(crc, crc32.IEEETable, chunk)
			part.Write(chunk)
			if off%partSize == 0 || off == f.Size {
				r.parts = append(r.parts, partSum{crc: crc, sha256: [32]byte(part.Sum(nil))})
				crc = 0
				part.Reset()
			}
		}
	}
	if err := atEnd(file, f); err != nil {
		return reading{}, err
	}
	m.Sum(r.md5[:0])
	s.Sum(r.sha256[:0])
	return r, nil
}

// atEnd fails unless the file ends where its fence says and has not moved.
func atEnd(file *os.File, f state.Fence) error {
	var one [1]byte
	switch n, err := file.ReadAt(one[:], f.Size); {
	case n > 0:
		return changed("read")
	case err != nil && !errors.Is(err, io.EOF):
		return readError(err)
	}
	return sameFence(file, f)
}

// readError classifies a failed read: an early end means that the file changed.
func readError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return changed("read")
	}
	return unreadable("read", err)
}

// section returns n bytes of the reading from off on, as a source for a body.
func (r *reading) section(file *os.File, off, n int64) io.ReadSeeker {
	if r.buf != nil {
		return bytes.NewReader(r.buf[off : off+n])
	}
	return io.NewSectionReader(file, off, n)
}
