package trail

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash"
	"io"

	"github.com/s3syncd/s3syncd/internal/strictjson"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// Sum is the size and the SHA-256 of the bytes written to it. Writing never
// fails.
type Sum struct {
	size int64
	hash hash.Hash
}

// NewSum returns the sum of no bytes.
func NewSum() *Sum { return &Sum{hash: sha256.New()} }

// Write counts and hashes p.
func (s *Sum) Write(p []byte) (int, error) {
	s.size += int64(len(p))
	return s.hash.Write(p)
}

// Size returns the number of bytes.
func (s *Sum) Size() int64 { return s.size }

// SHA256 returns the SHA-256.
func (s *Sum) SHA256() (sum [sha256.Size]byte) {
	s.hash.Sum(sum[:0])
	return sum
}

// Hex returns the SHA-256 in hex.
func (s *Sum) Hex() string { return hex.EncodeToString(s.hash.Sum(nil)) }

// SumOf returns the SHA-256 of data in hex.
func SumOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// Encoder writes the lines of one manifest in a layout. It keeps no line.
type Encoder struct {
	b       *bufio.Writer
	w       io.Writer
	gz      *gzip.Writer // layout hive
	Records int64
}

// NewEncoder returns an encoder for a layout. The gzip header has neither name
// nor time, so that equal records make equal bytes.
func NewEncoder(w io.Writer, l Layout) *Encoder {
	b := bufio.NewWriterSize(w, 1<<16)
	if l != LayoutHive {
		return &Encoder{b: b, w: b}
	}
	gz := gzip.NewWriter(b)
	return &Encoder{b: b, w: gz, gz: gz}
}

// Write adds one record, JSON without a newline.
func (e *Encoder) Write(line []byte) error {
	var sep string
	switch {
	case e.gz != nil:
	case e.Records == 0:
		sep = "[\n"
	default:
		sep = ",\n"
	}
	e.Records++
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

// Close writes the end and what is buffered. It does not close the writer below.
func (e *Encoder) Close() error {
	end := "\n]\n"
	switch {
	case e.gz != nil:
		if err := e.gz.Close(); err != nil {
			return err
		}
		return e.b.Flush()
	case e.Records == 0:
		end = "[\n]\n"
	}
	if _, err := e.b.WriteString(end); err != nil {
		return err
	}
	return e.b.Flush()
}

// ErrStop ends an iteration early; it never leaves the package.
var ErrStop = errors.New("stop")

// documents is the format of the documents of a trail.
var documents = strictjson.Of(archive.MaxNumber, archive.Record{}, Digest{}, Signature{}) //nolint:gochecknoglobals // It is computed once.

// Unambiguous returns an error for a document that other programs may read as
// something else than this one does.
func Unambiguous(data []byte) error { return documents.Check(data) }

// UnambiguousConfig is unambiguous for a configuration object. The hash in its
// name is all that one in another form than JSON claims.
func UnambiguousConfig(data []byte) error {
	switch {
	case !bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n\ufeff"), []byte{'{'}):
		return nil
	case !json.Valid(data):
		return errors.New("it is not one JSON object")
	}
	return Unambiguous(data)
}
