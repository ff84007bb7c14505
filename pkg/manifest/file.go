package manifest

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
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// Modes of what stands in the local directory: it shows file names.
const (
	fileMode os.FileMode = 0o600
	dirMode  os.FileMode = 0o700
)

// manifestFile is one manifest that is being written. Its file exists from the
// first record on, under its name from commit on.
type manifestFile struct {
	path   string
	layout trail.Layout
	max    int

	out  *safefs.Pending
	sums *sums
	enc  *trail.Encoder
	last uint64 // the number of the last record

	counts trail.Counts
}

// merge writes the stored records after number after and the skips of cur, both
// up to number upTo, in the order of their numbers. It reports whether it ended
// for want of room.
func (m *manifestFile) merge(st *state.Source, after, upTo uint64, cur *skips.Cursor) (full bool, err error) {
	err = st.Records(after, upTo, func(number uint64, _ state.Status, line []byte) error {
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
func (m *manifestFile) skipsBelow(number uint64, cur *skips.Cursor) error {
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
func (m *manifestFile) add(number uint64, line []byte) error {
	if m.enc == nil {
		if err := m.create(); err != nil {
			return err
		}
	}
	if m.enc.Records >= int64(m.max) {
		return trail.ErrStop
	}
	m.last = number
	m.counts.Add(statusOf(line))
	return m.enc.Write(line)
}

func (m *manifestFile) create() error {
	if err := safefs.MkdirAll(filepath.Dir(m.path), dirMode); err != nil {
		return err
	}
	out, err := safefs.CreatePending(m.path, fileMode)
	if err != nil {
		return err
	}
	m.out, m.sums = out, newSums()
	m.enc = trail.NewEncoder(io.MultiWriter(out, m.sums), m.layout)
	return nil
}

// commit ends the manifest and makes it durable under its name.
func (m *manifestFile) commit() error {
	if err := m.enc.Close(); err != nil {
		return err
	}
	return m.out.Commit()
}

// discard drops a file that was not committed.
func (m *manifestFile) discard() {
	if m.out != nil {
		m.out.Close()
	}
}

// doc describes the bytes that were summed.
func docOf(s *sums, kind state.Kind, key, file string) state.Doc {
	return state.Doc{Kind: kind, Key: key, File: file, SHA256: s.Hex(), Size: s.Size(), MD5: s.md5sum()}
}

// sums are the size and both hashes of what is uploaded.
type sums struct {
	*trail.Sum

	md5 hash.Hash
}

func newSums() *sums { return &sums{Sum: trail.NewSum(), md5: md5.New()} }

// Write counts and hashes p. It never fails.
func (s *sums) Write(p []byte) (int, error) {
	s.md5.Write(p)
	return s.Sum.Write(p)
}

func (s *sums) md5sum() (sum [md5.Size]byte) {
	s.md5.Sum(sum[:0])
	return sum
}

// open returns the sealed bytes of d, whose hash it has checked. Where the
// local copy is lost it tries to make the same bytes again.
func (c localCopies) open(d state.Doc) (*os.File, error) {
	body, err := c.openSealed(d)
	if _, lost := errors.AsType[*lostError](err); !lost || d.Kind != state.KindManifest {
		return body, err
	}
	if again := c.rebuild(d); again != nil {
		return nil, &lostError{doc: d, err: fmt.Errorf("%w; not made again: %w", err, again)}
	}
	c.log.Warn("a lost manifest was made again from its records", zap.String("key", d.Key))
	return c.openSealed(d)
}

// rebuild writes d again from its records, which stay in the state until its
// digest is acknowledged. Streamed skips are in no state: with them it fails.
func (c localCopies) rebuild(d state.Doc) error {
	ch, err := c.st.Chain()
	if err != nil {
		return err
	}
	name, ok := trail.ParseName(d.Key)
	if !ok || name.Chain != ch.ID {
		return errors.New("its chain is given up")
	}
	stored := int64(0)
	count := func(uint64, state.Status, []byte) error { stored++; return nil }
	if err := c.st.Records(0, d.LastRecord, count); err != nil {
		return err
	}
	before := stored - d.Records
	layout := trail.LayoutFlat
	if name.Hive {
		layout = trail.LayoutHive
	}
	m := &manifestFile{path: c.of(d.Key), layout: layout, max: int(d.Records)}
	defer m.discard()
	err = c.st.Records(0, d.LastRecord, func(number uint64, _ state.Status, line []byte) error {
		if before--; before >= 0 {
			return nil
		}
		return m.add(number, line)
	})
	switch {
	case err != nil:
		return err
	case m.enc == nil:
		return errors.New("its records are gone")
	}
	if err := m.enc.Close(); err != nil {
		return err
	}
	if got := m.sums.Hex(); got != d.SHA256 {
		return fmt.Errorf("the records make other bytes: sha256 %s", got)
	}
	return m.out.Commit()
}

// statusOf returns the status that a line of our own says. The key cannot occur
// in a string before it, where its quotes would be escaped.
func statusOf(line []byte) state.Status {
	_, rest, _ := bytes.Cut(line, []byte(`"status":"`))
	status, _, _ := bytes.Cut(rest, []byte{'"'})
	return state.Status(status)
}

// countFile counts the records of a local manifest by status.
func countFile(file string) (c trail.Counts, err error) {
	r, err := os.Open(file)
	if err != nil {
		return c, err
	}
	n, _ := trail.ParseName(file)
	err = trail.EachLine(r, n.Hive, func(line []byte) error {
		c.Add(statusOf(line))
		return nil
	})
	return c, errors.Join(err, r.Close())
}
