package s3conn

import (
	"errors"
	"io"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

var (
	errShortBody = errors.New("the body ended before its announced size")
	errWhence    = errors.New("seek: invalid whence or offset")
)

// bodyError marks an error of the body, as opposed to one of the network that
// took it.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return "read body: " + e.err.Error() }
func (e *bodyError) Unwrap() error { return e.err }

// class says whose fault it was: the file became shorter, or cannot be read.
func (e *bodyError) class() archive.Class {
	if c, ok := errors.AsType[*archive.Error](e.err); ok {
		return c.Class
	}
	if errors.Is(e.err, errShortBody) {
		return archive.ClassChanged
	}
	return archive.ClassFile
}

// Body is exactly size bytes of r from its start. A body that ends early
// is an error of its own, so that it is not taken for a broken connection.
type Body struct {
	r    io.ReadSeeker
	size int64
	off  int64
}

// NewBody rewinds r.
func NewBody(r io.ReadSeeker, size int64) (*Body, error) {
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return nil, &bodyError{err}
	}
	return &Body{r: r, size: size}, nil
}

func (b *Body) Read(p []byte) (int, error) {
	left := b.size - b.off
	if left <= 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > left {
		p = p[:left]
	}
	n, err := b.r.Read(p)
	b.off += int64(n)
	switch {
	case errors.Is(err, io.EOF) && b.off < b.size:
		return n, &bodyError{errShortBody}
	case err != nil && !errors.Is(err, io.EOF):
		return n, &bodyError{err}
	case b.off == b.size:
		return n, io.EOF
	}
	return n, nil
}

// Seek moves within the announced size; the end is where that ends.
func (b *Body) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += b.off
	case io.SeekEnd:
		offset += b.size
	default:
		return 0, errWhence
	}
	if offset < 0 || offset > b.size {
		return 0, errWhence
	}
	if _, err := b.r.Seek(offset, io.SeekStart); err != nil {
		return 0, &bodyError{err}
	}
	b.off = offset
	return offset, nil
}
