package copies

import (
	"bytes"
	"crypto/md5"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/skips"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// Modes of what is in the local directory: it shows file names.
const (
	FileMode os.FileMode = 0o600
	DirMode  os.FileMode = 0o700
)

// Manifest is one manifest that is being written. Its file exists from the
// first record on, under its name from commit on.
type Manifest struct {
	Path   string
	Layout trail.Layout
	Max    int

	out  *safefs.Pending
	Sums *Sums
	Enc  *trail.Encoder
	Last uint64 // the number of the last record

	Counts trail.Counts
}

// Merge writes the stored records after number after and the skips of cur, both
// up to number upTo, in the order of their numbers. It reports whether it ended
// for want of room.
func (m *Manifest) Merge(st *state.Source, after, upTo uint64, cur *skips.Cursor) (full bool, err error) {
	err = st.Records(after, upTo, func(number uint64, _ archive.Status, line []byte) error {
		if err := m.skipsBelow(number, cur); err != nil {
			return err
		}
		return m.add(number, line)
	})
	if err == nil {
		err = m.skipsBelow(upTo+1, cur)
	}
	if errors.Is(err, trail.ErrStop) {
		return true, nil
	}
	return false, err
}

// skipsBelow writes the skips of cur with numbers below number.
func (m *Manifest) skipsBelow(number uint64, cur *skips.Cursor) error {
	for {
		n, ok, err := cur.Peek()
		if err != nil || !ok || n >= number {
			return err
		}
		if err := m.add(n, cur.Line); err != nil {
			return err
		}
		cur.Take()
	}
}

// add writes one record, or returns errStop when the manifest is full.
func (m *Manifest) add(number uint64, line []byte) error {
	if m.Enc == nil {
		if err := m.create(); err != nil {
			return err
		}
	}
	if m.Enc.Records >= int64(m.Max) {
		return trail.ErrStop
	}
	m.Last = number
	m.Counts.Add(StatusOf(line))
	return m.Enc.Write(line)
}

func (m *Manifest) create() error {
	if err := safefs.MkdirAll(filepath.Dir(m.Path), DirMode); err != nil {
		return err
	}
	out, err := safefs.CreatePending(m.Path, FileMode)
	if err != nil {
		return err
	}
	m.out, m.Sums = out, NewSums()
	m.Enc = trail.NewEncoder(io.MultiWriter(out, m.Sums), m.Layout)
	return nil
}

// Commit ends the manifest and makes it durable under its name.
func (m *Manifest) Commit() error {
	if err := m.Enc.Close(); err != nil {
		return err
	}
	return m.out.Commit()
}

// Discard drops a file that was not committed.
func (m *Manifest) Discard() {
	if m.out != nil {
		m.out.Close()
	}
}

// Doc describes the bytes that were summed.
func (s *Sums) Doc(kind archive.DocKind, key, file string) archive.Doc {
	return archive.Doc{Kind: kind, Key: key, File: file, SHA256: s.Hex(), Size: s.Size(), MD5: s.MD5()}
}

// Sums are the size and both hashes of what is uploaded.
type Sums struct {
	*trail.Sum

	md5 hash.Hash
}

// NewSums returns the sums of no bytes.
func NewSums() *Sums { return &Sums{Sum: trail.NewSum(), md5: md5.New()} }

// Write counts and hashes p. It never fails.
func (s *Sums) Write(p []byte) (int, error) {
	s.md5.Write(p)
	return s.Sum.Write(p)
}

// MD5 returns the MD5.
func (s *Sums) MD5() (sum [md5.Size]byte) {
	s.md5.Sum(sum[:0])
	return sum
}

// Open returns the sealed bytes of d, whose hash it has checked. Where the
// local copy is lost it tries to make the same bytes again.
func (c Copies) Open(d archive.Doc) (*os.File, error) {
	body, err := c.openSealed(d)
	if _, lost := errors.AsType[*LostError](err); !lost || d.Kind != archive.KindManifest {
		return body, err
	}
	if again := c.rebuild(d); again != nil {
		return nil, &LostError{Doc: d, err: fmt.Errorf("%w; not made again: %w", err, again)}
	}
	c.Log.Warn("a lost manifest was made again from its records", zap.String("key", d.Key))
	return c.openSealed(d)
}

// rebuild writes d again from its records, which stay in the state until its
// digest is acknowledged. Streamed skips are in no state: with them it fails.
func (c Copies) rebuild(d archive.Doc) error {
	ch, err := c.St.Chain()
	if err != nil {
		return err
	}
	name, ok := trail.ParseName(d.Key)
	if !ok || name.Chain != ch.ID {
		return errors.New("its chain is given up")
	}
	stored := int64(0)
	count := func(uint64, archive.Status, []byte) error { stored++; return nil }
	if err := c.St.Records(0, d.LastRecord, count); err != nil {
		return err
	}
	before := stored - d.Records
	layout := trail.LayoutFlat
	if name.Hive {
		layout = trail.LayoutHive
	}
	m := &Manifest{Path: c.Of(d.Key), Layout: layout, Max: int(d.Records)}
	defer m.Discard()
	err = c.St.Records(0, d.LastRecord, func(number uint64, _ archive.Status, line []byte) error {
		if before--; before >= 0 {
			return nil
		}
		return m.add(number, line)
	})
	switch {
	case err != nil:
		return err
	case m.Enc == nil:
		return errors.New("its records are gone")
	}
	if err := m.Enc.Close(); err != nil {
		return err
	}
	if got := m.Sums.Hex(); got != d.SHA256 {
		return fmt.Errorf("the records make other bytes: sha256 %s", got)
	}
	return m.out.Commit()
}

// StatusOf returns the status that a line of our own says. The key cannot occur
// in a string before it, where its quotes would be escaped.
func StatusOf(line []byte) archive.Status {
	_, rest, _ := bytes.Cut(line, []byte(`"status":"`))
	status, _, _ := bytes.Cut(rest, []byte{'"'})
	return archive.Status(status)
}

// CountFile counts the records of a local manifest by status.
func CountFile(file string) (c trail.Counts, err error) {
	r, err := os.Open(file)
	if err != nil {
		return c, err
	}
	n, _ := trail.ParseName(file)
	err = trail.EachLine(r, n.Hive, func(line []byte) error {
		c.Add(StatusOf(line))
		return nil
	})
	return c, errors.Join(err, r.Close())
}
