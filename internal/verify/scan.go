package verify

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// maxRecordFaults is how many faulty records of one manifest are named.
const maxRecordFaults = 5

// ManifestCheck is what one manifest holds.
type ManifestCheck struct {
	gone        bool
	unread      error // it could not be read to its end
	sha         string
	size        int64
	Format      error // its bytes are no manifest
	Records     int64
	counts      trail.Counts
	first, last uint64 // record numbers
	newest      string // the latest time that a record gives for what s3syncd did
	Faults      []string
	more        int // faults that are not named
}

// sound reports whether the manifest's counts can be compared.
func (m *ManifestCheck) sound(ref archive.ManifestRef) bool {
	return !m.gone && m.unread == nil && m.sha == ref.SHA256 && m.Format == nil
}

// sourceReader remembers the error of the reader below, which is not one of the bytes.
type sourceReader struct {
	r   io.Reader
	err error
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// ScanManifest reads one manifest of d as a stream. An error says that it could not be
// read to its end.
func ScanManifest(ctx context.Context, t *trail.Trail, d *trail.Digest, ref archive.ManifestRef) (ManifestCheck, error) {
	m, err := scanWith(ctx, t, d, ref, readLines)
	if errors.Is(m.Format, errOtherForm) {
		// Not as this release writes it: it may still be a manifest.
		return scanWith(ctx, t, d, ref, func(r io.Reader, fn func(*archive.Record) error) error {
			return trail.ReadRecords(r, func(rec *archive.Record, _ []byte) error { return fn(rec) })
		})
	}
	return m, err
}

// scanWith is scanManifest with a reader of records.
func scanWith(ctx context.Context, t *trail.Trail, d *trail.Digest, ref archive.ManifestRef, read func(io.Reader, func(*archive.Record) error) error) (m ManifestCheck, err error) {
	err = t.Get(ctx, ref.S3Key, func(body io.Reader, _ archive.Object) error {
		m = ManifestCheck{}
		src := &sourceReader{r: body}
		sum := trail.NewSum()
		r := io.TeeReader(src, sum)
		rc := recordCheck{m: &m, d: d, prefix: "s3://" + d.Bucket + "/"}
		m.Format = read(r, func(rec *archive.Record) error {
			rc.record(rec)
			return ctx.Err()
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		_, _ = io.Copy(io.Discard, r) // Its error is in src.
		m.sha, m.size = sum.Hex(), sum.Size()
		return src.err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return ManifestCheck{gone: true}, nil
	}
	if m.more > 0 {
		m.Faults = append(m.Faults, fmt.Sprintf("%d more records like these", m.more))
	}
	return m, err
}

// errOtherForm says that a manifest is not written as this package writes them.
var errOtherForm = errors.New("not the form of this release")

// checkedRecord is the part of a record that is checked.
type checkedRecord struct {
	S3Key     string         `json:"s3_key"`
	S3URI     string         `json:"s3_uri"`
	Status    archive.Status `json:"status"`
	Timestamp string         `json:"timestamp"`
	Instance  string         `json:"instance"`
	Chain     string         `json:"chain"`
	ID        string         `json:"id"`

	S3Time     string `json:"s3_time"`
	DetectedAt string `json:"detected_at"`
}

// readLines calls fn for each record of a manifest that is written as this
// package writes them, with the fields of checkedRecord alone. Anything else is
// errOtherForm.
func readLines(r io.Reader, fn func(*archive.Record) error) error {
	l, err := newLines(r)
	if err != nil {
		return err
	}
	for {
		line, err := l.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var c checkedRecord
		if json.Unmarshal(line, &c) != nil || trail.Unambiguous(line) != nil {
			return errOtherForm
		}
		rec := archive.Record{S3Key: c.S3Key, S3URI: c.S3URI, Status: c.Status, Timestamp: c.Timestamp, Instance: c.Instance, Chain: c.Chain, ID: c.ID, S3Time: c.S3Time, DetectedAt: c.DetectedAt}
		if err := fn(&rec); err != nil {
			return err
		}
	}
}

// lines are the records of a manifest as this package writes it.
type lines struct {
	s    *bufio.Scanner
	hive bool
	more bool // another record must follow
	any  bool
}

func newLines(r io.Reader) (*lines, error) {
	br := bufio.NewReaderSize(r, 1<<16)
	l := &lines{more: true}
	if magic, err := br.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		one, err := trail.NewMember(br)
		if err != nil {
			return nil, errOtherForm
		}
		br, l.hive = bufio.NewReaderSize(one, 1<<16), true
	}
	l.s = bufio.NewScanner(br)
	l.s.Buffer(make([]byte, 0, 1<<16), trail.MaxRecordBytes+2)
	if !l.hive && (!l.s.Scan() || l.s.Text() != "[") {
		return nil, errOtherForm
	}
	return l, nil
}

// next returns the next record, valid until the next call, and io.EOF behind
// the last one.
func (l *lines) next() ([]byte, error) {
	if !l.more {
		return nil, l.end()
	}
	if !l.s.Scan() {
		if l.hive && l.any && l.s.Err() == nil {
			return nil, io.EOF
		}
		return nil, errOtherForm
	}
	line, comma := bytes.CutSuffix(l.s.Bytes(), []byte{','})
	if len(line) == 0 || line[0] != '{' || comma && l.hive {
		return nil, errOtherForm
	}
	l.more, l.any = comma || l.hive, true
	return line, nil
}

// end reads the end of an array.
func (l *lines) end() error {
	if !l.s.Scan() || l.s.Text() != "]" || l.s.Scan() || l.s.Err() != nil {
		return errOtherForm
	}
	return io.EOF
}

// recordCheck checks the records of one manifest.
type recordCheck struct {
	m      *ManifestCheck
	d      *trail.Digest
	prefix string // of s3_uri
}

func (c *recordCheck) record(r *archive.Record) {
	c.m.Records++
	c.m.counts.Add(r.Status)
	c.m.newest = max(c.m.newest, r.Timestamp, r.S3Time, r.DetectedAt) // Times of one form have the order of their bytes.
	number, ok := recordNumber(r)
	if text := c.judge(r, number, ok); text != "" {
		c.fault(r, text)
	}
	if ok {
		if c.m.first == 0 {
			c.m.first = number
		}
		c.m.last = max(c.m.last, number)
	}
}

// judge says why r cannot stand where it does; "" is a good record.
func (c *recordCheck) judge(r *archive.Record, number uint64, ok bool) string {
	switch {
	case !ok || r.Chain != c.d.Chain:
		return "its id is not one of chain " + c.d.Chain
	case number <= c.m.last:
		return fmt.Sprintf("its number does not come after %d", c.m.last)
	case r.Instance != c.d.Instance:
		return fmt.Sprintf("it is of instance %q", r.Instance)
	case !strings.HasPrefix(r.S3Key, c.d.Prefix) || !strings.HasPrefix(r.S3URI, c.prefix) || r.S3URI[len(c.prefix):] != r.S3Key:
		return "its key is not below the digest's bucket and prefix"
	case strings.HasPrefix(r.S3Key, c.d.Prefix+archive.ReservedDir+"/"):
		return "its key is one of the trail itself"
	}
	if _, err := time.Parse(time.RFC3339Nano, r.Timestamp); err != nil || !strings.HasSuffix(r.Timestamp, "Z") {
		return "its timestamp is not a time in UTC"
	}
	return ""
}

// fault keeps the first faulty records.
func (c *recordCheck) fault(r *archive.Record, text string) {
	if len(c.m.Faults) >= maxRecordFaults {
		c.m.more++
		return
	}
	c.m.Faults = append(c.m.Faults, fmt.Sprintf("record %q of %q: %s", r.ID, r.S3Key, text))
}

// recordNumber reads the number in a record's id.
func recordNumber(r *archive.Record) (uint64, bool) {
	chain, digits, ok := strings.Cut(r.ID, "-")
	if !ok || chain != r.Chain {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, err == nil && n > 0 && digits[0] != '0'
}

// trimRoot returns the path of key below a trail, "" for one that is not.
func trimRoot(key, root string) string {
	rel, ok := strings.CutPrefix(key, root)
	if !ok {
		return ""
	}
	return rel
}
