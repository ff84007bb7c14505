package trail

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// MaxRecordBytes bounds what one record may take, so that a hostile manifest
// cannot fill the memory.
const MaxRecordBytes = 1 << 20

// MaxDigestBytes bounds a digest.
const MaxDigestBytes = 64 << 20

// Faults of documents. They are matched with errors.Is.
var (
	// ErrFormat: the bytes are not a document of this format.
	ErrFormat = errors.New("not in the format of the audit trail")
	// ErrNewerFormat: the document was written by a newer release.
	ErrNewerFormat = errors.New("written in a newer format")
)

// ReadManifest calls fn for each record of a manifest, in order, and stops at
// the first error. It reads both layouts, with or without compression, and the
// indented arrays of the script that came before s3syncd, whose records lack
// most fields. Memory does not grow with the manifest. Errors of fn are
// returned as they are; what is wrong with the bytes is ErrFormat.
func ReadManifest(r io.Reader, fn func(archive.Record) error) error {
	return ReadRecords(r, func(rec *archive.Record, _ []byte) error { return fn(*rec) })
}

// ReadRecords is ReadManifest for a caller that wants the bytes too. Both
// arguments of fn are valid during the call only.
func ReadRecords(r io.Reader, fn func(rec *archive.Record, raw []byte) error) error {
	br := bufio.NewReader(r)
	if magic, err := br.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		one, err := NewMember(br)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrFormat, err)
		}
		br = bufio.NewReader(one)
	}
	first, err := firstByte(br)
	if errors.Is(err, io.EOF) {
		return nil // No line at all: the hive layout of no records.
	}
	if err != nil {
		return fmt.Errorf("read manifest: %w", err)
	}
	if first != '[' {
		return readEachLine(br, fn)
	}
	lim := &budgetReader{r: br, left: 2 * MaxRecordBytes}
	d := recordReader{lim: lim, dec: json.NewDecoder(lim), fn: fn}
	return d.array()
}

// Member is the one gzip member that a manifest is. Whether another one counts
// differs from reader to reader.
type Member struct {
	gz   *gzip.Reader
	rest *bufio.Reader
}

// NewMember reads the header of the member that br is at.
func NewMember(br *bufio.Reader) (*Member, error) {
	gz, err := gzip.NewReader(br)
	if err != nil {
		return nil, err
	}
	gz.Multistream(false)
	return &Member{gz: gz, rest: br}, nil
}

func (m *Member) Read(p []byte) (int, error) {
	n, err := m.gz.Read(p)
	if errors.Is(err, io.EOF) {
		if _, more := m.rest.Peek(1); more == nil {
			return n, errors.New("bytes behind the gzip member")
		}
	}
	return n, err
}

// readEachLine calls fn for each record of a manifest of lines.
func readEachLine(r io.Reader, fn func(rec *archive.Record, raw []byte) error) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 1<<16), MaxRecordBytes+1)
	for s.Scan() {
		line := bytes.TrimSpace(s.Bytes())
		if len(line) == 0 {
			continue
		}
		rec, err := readRecord(line)
		if err != nil {
			return err
		}
		if err := fn(rec, line); err != nil {
			return err
		}
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return nil
}

// readRecord reads the bytes of one record.
func readRecord(raw []byte) (*archive.Record, error) {
	switch {
	case raw[0] != '{':
		return nil, fmt.Errorf("%w: a record is not an object", ErrFormat)
	case len(raw) > MaxRecordBytes:
		return nil, fmt.Errorf("%w: a record is larger than %d bytes", ErrFormat, MaxRecordBytes)
	}
	r := new(archive.Record)
	if err := errors.Join(json.Unmarshal(raw, r), Unambiguous(raw)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return r, nil
}

// firstByte passes white space and returns the byte behind it without passing
// that.
func firstByte(br *bufio.Reader) (byte, error) {
	for range MaxRecordBytes {
		b, err := br.ReadByte()
		if err != nil {
			return 0, err
		}
		if b != ' ' && b != '\t' && b != '\r' && b != '\n' {
			return b, br.UnreadByte()
		}
	}
	return 0, fmt.Errorf("%w: white space alone", ErrFormat)
}

// recordReader decodes records one at a time.
type recordReader struct {
	lim *budgetReader
	dec *json.Decoder
	fn  func(rec *archive.Record, raw []byte) error
	raw json.RawMessage // its memory is used again
}

func (d *recordReader) array() error {
	if _, err := d.dec.Token(); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	for d.dec.More() {
		switch err := d.record(); {
		case errors.Is(err, io.EOF):
			return fmt.Errorf("%w: the array does not end: %w", ErrFormat, noEOF(err))
		case err != nil:
			return err
		}
	}
	if _, err := d.dec.Token(); err != nil {
		return fmt.Errorf("%w: the array does not end: %w", ErrFormat, noEOF(err))
	}
	if _, err := d.dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: bytes behind the array", ErrFormat)
	}
	return nil
}

// record decodes one record; io.EOF says that there is none.
func (d *recordReader) record() error {
	d.lim.left = 2 * MaxRecordBytes
	d.raw = d.raw[:0]
	err := d.dec.Decode(&d.raw)
	if errors.Is(err, io.EOF) {
		return io.EOF
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	r, err := readRecord(d.raw)
	if err != nil {
		return err
	}
	return d.fn(r, d.raw)
}

// noEOF keeps io.EOF inside, where it would read as the end of a good file.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// budgetReader fails once more than left bytes were read since left was set.
type budgetReader struct {
	r    io.Reader
	left int
}

func (b *budgetReader) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("a record is larger than %d bytes", MaxRecordBytes)
	}
	n, err := b.r.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// EachLine calls fn for each record of a manifest that this package wrote, as
// the bytes stand there. The line is only valid during the call.
func EachLine(r io.Reader, hive bool, fn func(line []byte) error) error {
	if hive {
		gz, err := gzip.NewReader(r)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrFormat, err)
		}
		r = gz
	}
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 1<<16), MaxRecordBytes)
	for s.Scan() {
		line := bytes.TrimSuffix(s.Bytes(), []byte{','})
		if len(line) == 0 || line[0] != '{' {
			continue // The brackets of the array.
		}
		if err := fn(line); err != nil {
			return err
		}
	}
	return s.Err()
}

// Small reads a document that is never large.
func (t *Trail) Small(ctx context.Context, key string) ([]byte, error) {
	return t.Read(ctx, key, MaxSignatureBytes)
}

// Read returns the first bytes of a document, at most one more than limit.
func (t *Trail) Read(ctx context.Context, key string, limit int64) (data []byte, err error) {
	err = t.Get(ctx, key, func(body io.Reader, o archive.Object) (err error) {
		data, err = readUpTo(body, o.Size, limit)
		return err
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}

// readUpTo reads at most one byte more than limit. Where size is right it takes
// no more memory than that.
func readUpTo(r io.Reader, size, limit int64) ([]byte, error) {
	b := bytes.NewBuffer(make([]byte, 0, max(0, min(size, limit))+bytes.MinRead))
	_, err := b.ReadFrom(io.LimitReader(r, limit+1))
	return b.Bytes(), err
}
