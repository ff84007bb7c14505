package manifest

import (
	"bufio"
	"compress/gzip"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
)

// sums are the size and hashes of the bytes that were written.
type sums struct {
	size   int64
	sha256 hash.Hash
	md5    hash.Hash
}

func newSums() *sums { return &sums{sha256: sha256.New(), md5: md5.New()} }

// Write counts and hashes p. It never fails.
func (s *sums) Write(p []byte) (int, error) {
	s.size += int64(len(p))
	s.sha256.Write(p)
	s.md5.Write(p)
	return len(p), nil
}

// shaSum is sums for a caller that wants no MD5.
type shaSum struct {
	size int64
	hash hash.Hash
}

func newSHA() *shaSum { return &shaSum{hash: sha256.New()} }

// Write counts and hashes p. It never fails.
func (s *shaSum) Write(p []byte) (int, error) {
	s.size += int64(len(p))
	return s.hash.Write(p)
}

func (s *shaSum) sha() string { return hex.EncodeToString(s.hash.Sum(nil)) }

func (s *sums) sha() string { return hex.EncodeToString(s.sha256.Sum(nil)) }

func (s *sums) md5sum() (sum [16]byte) {
	copy(sum[:], s.md5.Sum(nil))
	return sum
}

// encoder writes the lines of one manifest in a layout. It keeps no line.
type encoder struct {
	b  *bufio.Writer
	w  io.Writer
	gz *gzip.Writer // layout hive
	n  int64
}

// newEncoder returns an encoder for a layout. The gzip header has neither name
// nor time, so that equal records make equal bytes.
func newEncoder(w io.Writer, l Layout) *encoder {
	b := bufio.NewWriterSize(w, 1<<16)
	if l != LayoutHive {
		return &encoder{b: b, w: b}
	}
	gz := gzip.NewWriter(b)
	return &encoder{b: b, w: gz, gz: gz}
}

// line adds one record, JSON without a newline.
func (e *encoder) line(line []byte) error {
	var sep string
	switch {
	case e.gz != nil:
	case e.n == 0:
		sep = "[\n"
	default:
		sep = ",\n"
	}
	e.n++
	if _, err := io.WriteString(e.w, sep); err != nil {
		return err
	}
	if _, err := e.w.Write(line); err != nil {
		return err
	}
	if e.gz == nil {
		return nil
	}
	_, err := e.w.Write([]byte{'\n'})
	return err
}

// close writes the end and what is buffered. It does not close the writer below.
func (e *encoder) close() error {
	end := "\n]\n"
	switch {
	case e.gz != nil:
		if err := e.gz.Close(); err != nil {
			return err
		}
		return e.b.Flush()
	case e.n == 0:
		end = "[\n]\n"
	}
	if _, err := e.b.WriteString(end); err != nil {
		return err
	}
	return e.b.Flush()
}

// errStop ends an iteration early; it never leaves the package.
var errStop = errors.New("stop")

func hashOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
