package manifest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// Modes of what stands in the local directory: it shows file names.
const (
	fileMode os.FileMode = 0o600
	dirMode  os.FileMode = 0o700
)

// seal moves every record that was committed before the call, and every skip
// that was written before it, into sealed manifests. A crash at any point
// leaves the records unsealed or the manifest sealed; a file without a
// transaction is overwritten or removed later.
func (f *Flusher) seal(ctx context.Context) error {
	f.sealing.Lock()
	defer f.sealing.Unlock()
	return f.sealRecords(ctx)
}

// sealRecords is seal for a caller that holds f.sealing.
func (f *Flusher) sealRecords(ctx context.Context) error {
	var ch state.Chain
	err := f.skips.rotate(func() (err error) {
		ch, err = f.st.Chain()
		return err
	})
	if err != nil {
		return fmt.Errorf("read chain of %s: %w", f.o.Source, err)
	}
	if ch.ID == "" {
		return state.ErrNoChain
	}
	upTo, cur := ch.NextRecord-1, f.skips.cursor()
	for more := true; more; {
		if more, err = f.sealOne(ctx, &ch, upTo, cur); err != nil {
			return fmt.Errorf("seal manifest of %s: %w", f.o.Source, err)
		}
	}
	return nil
}

// sealOne seals at most MaxRecords records up to number upTo and brings ch up
// to date. It reports whether there are more.
func (f *Flusher) sealOne(ctx context.Context, ch *state.Chain, upTo uint64, cur *skipCursor) (more bool, err error) {
	named := trail.NotBefore(f.o.Now(), ch.LastNamed)
	name := trail.Name{
		Time: named, Instance: f.o.Instance, Chain: ch.ID, Sequence: ch.Sequence,
		N: len(ch.Manifests) + 1, Hive: f.o.Layout == trail.LayoutHive,
	}
	m := &manifestFile{path: f.local.path(name.Path()), layout: f.o.Layout, max: f.o.MaxRecords}
	defer m.discard()

	more, err = m.merge(f.st, ch.SealedTo, upTo, cur)
	if err != nil {
		return false, err
	}
	if m.enc == nil {
		return false, f.sealUnused(ctx, ch, upTo)
	}
	if !more {
		m.last = upTo // Numbers that were reserved and not used are done with, too.
	}
	if err := m.commit(); err != nil {
		return false, err
	}
	key := f.o.Mapper.TrailPrefix() + name.Path()
	doc := docOf(m.sums, state.KindManifest, key, m.path)
	doc.Records, doc.LastRecord, doc.Sequence = m.enc.Records, m.last, ch.Sequence
	ref := state.ManifestRef{S3Key: key, SHA256: doc.SHA256, SizeBytes: doc.Size, Records: doc.Records}
	if err := f.st.SealManifest(ctx, doc, ref, named); err != nil {
		return false, errors.Join(err, f.unseal(ch, m.path))
	}
	f.counted[key] = m.counts
	ch.SealedTo, ch.LastNamed = m.last, named
	ch.Manifests = append(ch.Manifests, ref)
	return more, f.skips.sealed(cur)
}

// sealUnused ends numbers that were reserved by a run that died: they count as
// unpublished, and no manifest would ever reach beyond them while that pauses the
// uploads.
func (f *Flusher) sealUnused(ctx context.Context, ch *state.Chain, upTo uint64) error {
	if upTo == ch.SealedTo {
		return nil
	}
	if err := f.st.SealUnused(ctx, upTo); err != nil {
		return err
	}
	ch.SealedTo = upTo
	return nil
}

// unseal removes a manifest whose transaction failed, unless it is sealed all
// the same: its records will be sealed again, perhaps under another name.
func (f *Flusher) unseal(before *state.Chain, path string) error {
	ch, err := f.st.Chain()
	if err != nil || len(ch.Manifests) != len(before.Manifests) || ch.ID != before.ID {
		return err
	}
	return os.Remove(path)
}

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
func (m *manifestFile) merge(st *state.Source, after, upTo uint64, cur *skipCursor) (full bool, err error) {
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
func (m *manifestFile) skipsBelow(number uint64, cur *skipCursor) error {
	for {
		n, ok, err := cur.peek()
		if err != nil || !ok || n >= number {
			return err
		}
		if err := m.add(n, cur.line); err != nil {
			return err
		}
		cur.take()
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

// sealDigest seals a digest over the manifests sealed since the last one, with
// extra events that are not in the state. The caller holds f.sealing.
func (f *Flusher) sealDigest(ctx context.Context, reason string, extra ...state.Note) error {
	ch, err := f.st.Chain()
	if err != nil {
		return fmt.Errorf("read chain of %s: %w", f.o.Source, err)
	}
	if ch.ID == "" {
		return state.ErrNoChain
	}
	counts, err := f.counts(ctx, ch)
	if lost, ok := errors.AsType[*lostError](err); ok {
		return f.loseChain(ctx, ch, lost)
	}
	if err != nil {
		return fmt.Errorf("count records of %s: %w", f.o.Source, err)
	}
	now := f.o.Now()
	end, named := later(now, ch.LastDigest), f.claim.name(ch, now)
	if last := later(ch.LastDigest, ch.LastNamed); state.GoesBack(last, now) {
		f.log.Warn("the trail's time was wrong and goes back", zap.Time("from", last), zap.Time("to", now))
		end = now
		if !slices.ContainsFunc(ch.Notes, func(n state.Note) bool { return n.Kind == state.NoteClockBack }) {
			extra = append(extra, state.ClockNote(last, now))
		}
	}
	d := f.newDigest(ch, counts, reason, extra, end)
	data, err := d.Encode()
	if err != nil {
		return err
	}
	name := trail.Name{
		Digest: true, Time: named, Instance: f.o.Instance, Chain: ch.ID, Sequence: ch.Sequence,
		Hive: f.o.Layout == trail.LayoutHive,
	}
	doc, err := f.local.write(state.KindDigest, name.Path(), data)
	if err != nil {
		return fmt.Errorf("write digest of %s: %w", f.o.Source, err)
	}
	doc.LastRecord, doc.Sequence, doc.Final = ch.SealedTo, ch.Sequence, reason == trail.ReasonFinal
	if err := f.st.SealDigest(ctx, doc, ch, end, named); err != nil {
		return fmt.Errorf("seal digest of %s: %w", f.o.Source, err)
	}
	f.claim.sealed(name)
	f.m.sequence.Set(float64(ch.Sequence))
	f.digestAt = time.Now()
	clear(f.counted)
	return nil
}

// counts counts the records of ch's manifests by status. Those that this
// process did not seal are read again.
func (f *Flusher) counts(ctx context.Context, ch state.Chain) (trail.Counts, error) {
	var sum trail.Counts
	for _, ref := range ch.Manifests {
		c, ok := f.counted[ref.S3Key]
		if !ok {
			err := f.present(ctx, ref)
			if err != nil {
				return trail.Counts{}, err
			}
			if c, err = countFile(f.local.of(ref.S3Key)); err != nil {
				return trail.Counts{}, err
			}
		}
		sum.Plus(c)
	}
	return sum, nil
}

// digestWanted reports whether a digest would say something.
func digestWanted(ch state.Chain, reason string) bool {
	return reason == trail.ReasonStop || reason == trail.ReasonFinal || ch.PrevKey == "" ||
		len(ch.Manifests) > 0 || len(ch.Scans) > 0 || len(ch.Notes) > 0 || ch.IndexSkips > 0
}

// PublishConfig seals canonical, the effective configuration without secrets,
// as the configuration object of its SHA-256 in hex, unless it is the one that
// was sealed last. It makes no request: the object is published in order with
// the rest of the trail.
func (f *Flusher) PublishConfig(ctx context.Context, canonical []byte, sha string) error {
	f.sealing.Lock()
	defer f.sealing.Unlock()
	ch, err := f.st.Chain()
	if err != nil {
		return fmt.Errorf("read chain of %s: %w", f.o.Source, err)
	}
	if ch.ConfigSHA == sha {
		return nil
	}
	if sum := sha256.Sum256(canonical); hex.EncodeToString(sum[:]) != sha {
		return fmt.Errorf("configuration of %s has the SHA-256 %x, not %s", f.o.Source, sum, sha)
	}
	doc, err := f.local.write(state.KindConfig, trail.ConfigName(sha), canonical)
	if err != nil {
		return fmt.Errorf("write configuration of %s: %w", f.o.Source, err)
	}
	if err := f.st.SealConfig(ctx, doc, sha); err != nil {
		return fmt.Errorf("seal configuration of %s: %w", f.o.Source, err)
	}
	f.Retry()
	return nil
}

// later returns the later time.
func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}
