package manifest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/copies"
	"github.com/s3syncd/s3syncd/internal/skips"
	surveypkg "github.com/s3syncd/s3syncd/internal/survey"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// sealer makes sealed documents of records: files in the local directory whose
// hashes are in the state's outbox. It makes no request.
type sealer struct {
	st      *state.Source
	o       *Options
	log     *zap.Logger
	m       sourceMetrics
	local   copies.Copies
	remote  surveypkg.Bucket
	skips   *skips.Writer
	claim   *claim
	started time.Time

	mu       sync.Mutex              // held while documents are sealed or the chain changes
	digestAt time.Time               // when this process last sealed a digest; guarded by mu
	counted  map[string]trail.Counts // of the manifests sealed since the last digest, by key; guarded by mu
}

// seal moves every record that was committed before the call, and every skip
// that was written before it, into sealed manifests. A crash at any point
// leaves the records unsealed or the manifest sealed; a file without a
// transaction is overwritten or removed later.
func (s *sealer) seal(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sealRecords(ctx)
}

// sealRecords is seal for a caller that holds s.mu.
func (s *sealer) sealRecords(ctx context.Context) error {
	var ch archive.Chain
	err := s.skips.Rotate(func() (err error) {
		ch, err = s.st.Chain()
		return err
	})
	if err != nil {
		return fmt.Errorf("read chain of %s: %w", s.o.Source, err)
	}
	if ch.ID == "" {
		return state.ErrNoChain
	}
	upTo, cur := ch.NextRecord-1, s.skips.Cursor()
	for more := true; more; {
		if more, err = s.sealOne(ctx, &ch, upTo, cur); err != nil {
			return fmt.Errorf("seal manifest of %s: %w", s.o.Source, err)
		}
	}
	return nil
}

// sealOne seals at most MaxRecords records up to number upTo and brings ch up
// to date. It reports whether there are more.
func (s *sealer) sealOne(ctx context.Context, ch *archive.Chain, upTo uint64, cur *skips.Cursor) (more bool, err error) {
	named := trail.NotBefore(s.o.Now(), ch.LastNamed)
	name := trail.Name{
		Time: named, Instance: s.o.Instance, Chain: ch.ID, Sequence: ch.Sequence,
		N: len(ch.Manifests) + 1, Hive: s.o.Layout == trail.LayoutHive,
	}
	m := &copies.Manifest{Path: s.local.Path(name.Path()), Layout: s.o.Layout, Max: s.o.MaxRecords}
	defer m.Discard()

	more, err = m.Merge(s.st, ch.SealedTo, upTo, cur)
	if err != nil {
		return false, err
	}
	if m.Enc == nil {
		return false, s.sealUnused(ctx, ch, upTo)
	}
	if !more {
		m.Last = upTo // Numbers that were reserved and not used are done with, too.
	}
	if err := m.Commit(); err != nil {
		return false, err
	}
	key := s.o.Mapper.TrailPrefix() + name.Path()
	doc := m.Sums.Doc(archive.KindManifest, key, m.Path)
	doc.Records, doc.LastRecord, doc.Sequence = m.Enc.Records, m.Last, ch.Sequence
	ref := archive.ManifestRef{S3Key: key, SHA256: doc.SHA256, SizeBytes: doc.Size, Records: doc.Records}
	if err := s.st.SealManifest(ctx, doc, ref, named); err != nil {
		return false, errors.Join(err, s.unseal(ch, m.Path))
	}
	s.counted[key] = m.Counts
	ch.SealedTo, ch.LastNamed = m.Last, named
	ch.Manifests = append(ch.Manifests, ref)
	return more, s.skips.Sealed(cur)
}

// sealUnused ends numbers that were reserved by a run that died: they count as
// unpublished, and no manifest would ever reach beyond them while that pauses the
// uploads.
func (s *sealer) sealUnused(ctx context.Context, ch *archive.Chain, upTo uint64) error {
	if upTo == ch.SealedTo {
		return nil
	}
	if err := s.st.SealUnused(ctx, upTo); err != nil {
		return err
	}
	ch.SealedTo = upTo
	return nil
}

// unseal removes a manifest whose transaction failed, unless it is sealed all
// the same: its records will be sealed again, perhaps under another name.
func (s *sealer) unseal(before *archive.Chain, path string) error {
	ch, err := s.st.Chain()
	if err != nil || len(ch.Manifests) != len(before.Manifests) || ch.ID != before.ID {
		return err
	}
	return os.Remove(path)
}

// sealDigest seals a digest over the manifests sealed since the last one, with
// extra events that are not in the state. A *lostError says that one of the
// manifests is lost. The caller holds s.mu.
func (s *sealer) sealDigest(ctx context.Context, reason string, extra ...archive.Note) error {
	ch, err := s.st.Chain()
	if err != nil {
		return fmt.Errorf("read chain of %s: %w", s.o.Source, err)
	}
	if ch.ID == "" {
		return state.ErrNoChain
	}
	counts, err := s.counts(ctx, ch)
	if err != nil {
		return fmt.Errorf("count records of %s: %w", s.o.Source, err)
	}
	now := s.o.Now()
	end, named := later(now, ch.LastDigest), s.claim.name(ch, now)
	if last := later(ch.LastDigest, ch.LastNamed); archive.GoesBack(last, now) {
		s.log.Warn("the trail's time was wrong and goes back", zap.Time("from", last), zap.Time("to", now))
		end = now
		if !slices.ContainsFunc(ch.Notes, func(n archive.Note) bool { return n.Kind == archive.NoteClockBack }) {
			extra = append(extra, archive.ClockNote(last, now))
		}
	}
	d := s.newDigest(ch, counts, reason, extra, end)
	data, err := d.Encode()
	if err != nil {
		return err
	}
	name := trail.Name{
		Digest: true, Time: named, Instance: s.o.Instance, Chain: ch.ID, Sequence: ch.Sequence,
		Hive: s.o.Layout == trail.LayoutHive,
	}
	doc, err := s.local.Write(archive.KindDigest, name.Path(), data)
	if err != nil {
		return fmt.Errorf("write digest of %s: %w", s.o.Source, err)
	}
	doc.LastRecord, doc.Sequence, doc.Final = ch.SealedTo, ch.Sequence, reason == trail.ReasonFinal
	if err := s.st.SealDigest(ctx, doc, ch, end, named); err != nil {
		return fmt.Errorf("seal digest of %s: %w", s.o.Source, err)
	}
	s.claim.sealed(name)
	s.m.sequence.Set(float64(ch.Sequence))
	s.digestAt = time.Now()
	clear(s.counted)
	return nil
}

// counts counts the records of ch's manifests by status. Those that this
// process did not seal are read again.
func (s *sealer) counts(ctx context.Context, ch archive.Chain) (trail.Counts, error) {
	var sum trail.Counts
	for _, ref := range ch.Manifests {
		c, ok := s.counted[ref.S3Key]
		if !ok {
			err := s.local.Present(ctx, s.remote, ref)
			if err != nil {
				return trail.Counts{}, err
			}
			if c, err = copies.CountFile(s.local.Of(ref.S3Key)); err != nil {
				return trail.Counts{}, err
			}
		}
		sum.Plus(c)
	}
	return sum, nil
}

// digestWanted reports whether a digest would say something.
func digestWanted(ch archive.Chain, reason string) bool {
	return reason == trail.ReasonStop || reason == trail.ReasonFinal || ch.PrevKey == "" ||
		len(ch.Manifests) > 0 || len(ch.Scans) > 0 || len(ch.Notes) > 0 || ch.IndexSkips > 0
}

// sealConfig seals the configuration, unless it was sealed last, and reports
// whether it did.
func (s *sealer) sealConfig(ctx context.Context, canonical []byte, sha string) (sealed bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ch, err := s.st.Chain()
	if err != nil {
		return false, fmt.Errorf("read chain of %s: %w", s.o.Source, err)
	}
	if ch.ConfigSHA == sha {
		return false, nil
	}
	if sum := sha256.Sum256(canonical); hex.EncodeToString(sum[:]) != sha {
		return false, fmt.Errorf("configuration of %s has the SHA-256 %x, not %s", s.o.Source, sum, sha)
	}
	doc, err := s.local.Write(archive.KindConfig, trail.ConfigName(sha), canonical)
	if err != nil {
		return false, fmt.Errorf("write configuration of %s: %w", s.o.Source, err)
	}
	if err := s.st.SealConfig(ctx, doc, sha); err != nil {
		return false, fmt.Errorf("seal configuration of %s: %w", s.o.Source, err)
	}
	return true, nil
}

// later returns the later time.
func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}
