package pipeline

import (
	"context"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// BeginChain makes sure that s has a chain and notes in it how this run began.
func (s *Source) BeginChain(ctx context.Context, kind archive.NoteKind, detail string) error {
	db, cfg := s.Session.DB, s.Session.Config
	if err := s.Flusher.Begin(ctx, db.Report()); err != nil {
		return err
	}
	key := ClosedKey(s.State.Key())
	closed, err := db.Meta(key)
	if err == nil && strings.HasPrefix(string(closed), GivenUp) {
		err = db.SetMeta(ctx, key, nil) // It is configured again.
	}
	if err != nil {
		return err
	}
	if err := s.noteMove(ctx); err != nil {
		return err
	}
	if db.Report().Unclean && kind == archive.NoteStart {
		if err := s.State.AddNote(ctx, archive.Note{Kind: archive.NoteUncleanEnd, Time: s.Store.Now()}); err != nil {
			return err
		}
	}
	if err := s.State.AddNote(ctx, archive.Note{Kind: kind, Time: s.Store.Now(), Detail: detail}); err != nil {
		return err
	}
	return s.Flusher.PublishConfig(ctx, cfg.SourceCanonical(s.number), cfg.SourceSHA256(s.number))
}

// CloseChain ends the chain of s with a final digest.
func (s *Source) CloseChain(ctx context.Context) error {
	if err := s.Flusher.CloseChain(ctx); err != nil {
		return fmt.Errorf("source %s: the final digest: %w", s.Config.Name, err)
	}
	return s.Closed(ctx)
}

// Closed remembers that the chain of s is closed.
func (s *Source) Closed(ctx context.Context) error {
	ch, err := s.State.Chain()
	if err == nil {
		err = s.Session.DB.SetMeta(context.WithoutCancel(ctx), ClosedKey(s.State.Key()), []byte(ch.ID))
	}
	if err != nil {
		return fmt.Errorf("source %s: %w", s.Config.Name, err)
	}
	s.Log.Info("the chain is closed by a final digest", zap.String("chain", ch.ID), zap.Uint64("sequence", max(ch.Sequence, 1)-1))
	return nil
}

// ClosedKey is where the state remembers which chain of a source was closed.
func ClosedKey(k state.SourceKey) string {
	return fmt.Sprintf("closed/%s/%s/%s", k.Bucket, k.Prefix, k.RealPath)
}

// GivenUp precedes the name of a chain whose bucket is gone: it stays open.
const GivenUp = "given-up:"

// A source is where its objects are: bucket and prefix. Its directory may change,
// because a link points elsewhere or an operator moved it; the index and the chain
// continue, and the trail has an event of it.

// continued returns the state of the source that is archived to the bucket and
// prefix of k, whatever directory it had. Releases that began another source for
// another directory have left several: then the one whose chain is open, of these
// the one with this directory, and of these the one that was in use last.
func continued(ctx context.Context, db *state.DB, k state.SourceKey) (*state.Source, error) {
	known, err := db.Sources()
	if err != nil {
		return nil, err
	}
	var best *state.Source
	var rank sourceRank
	for _, other := range known {
		if other.Bucket != k.Bucket || other.Prefix != k.Prefix {
			continue
		}
		s, err := db.Source(ctx, other)
		if err != nil {
			return nil, err
		}
		r, err := rankOf(db, s, k.RealPath)
		if err != nil {
			return nil, err
		}
		if best == nil || rank.before(r) {
			best, rank = s, r
		}
	}
	if best != nil {
		return best, nil
	}
	return db.Source(ctx, k)
}

// sourceRank is what decides which of several states of one destination is continued.
type sourceRank struct {
	open, here bool
	used       time.Time
}

func (r sourceRank) before(o sourceRank) bool {
	switch {
	case r.open != o.open:
		return o.open
	case r.here != o.here:
		return o.here
	}
	return r.used.Before(o.used)
}

func rankOf(db *state.DB, s *state.Source, path string) (sourceRank, error) {
	ch, err := s.Chain()
	if err != nil {
		return sourceRank{}, err
	}
	closed, err := db.Meta(ClosedKey(s.Key()))
	return sourceRank{open: ch.ID != "" && string(closed) != ch.ID, here: s.Path() == path, used: ch.LastDigest}, err
}

// archivedBefore says where the directory at path was archived to before k, "": to
// no other place.
func archivedBefore(ctx context.Context, db *state.DB, k state.SourceKey, path string) (string, error) {
	known, err := db.Sources()
	if err != nil {
		return "", err
	}
	text, used := "", time.Time{}
	for _, other := range known {
		if other.Bucket == k.Bucket && other.Prefix == k.Prefix {
			continue
		}
		s, err := db.Source(ctx, other)
		if err != nil {
			return "", err
		}
		ch, err := s.Chain()
		if err != nil {
			return "", err
		}
		if s.Path() == path && (text == "" || used.Before(ch.LastDigest)) {
			text, used = "before: "+PlaceOf(other)+", chain "+ch.ID, ch.LastDigest
		}
	}
	return text, nil
}

// PlaceOf is the URL of what k is archived to.
func PlaceOf(k state.SourceKey) string { return "s3://" + k.Bucket + "/" + k.Prefix }

// noteMove records that the source is archived from another directory than it was.
// A directory that was not there, or did not answer, when the run began says
// nothing: the targets of its links are unknown.
func (s *Source) noteMove(ctx context.Context) error {
	before := s.State.Path()
	if before == s.Real || !s.there {
		return nil
	}
	return s.State.Move(ctx, s.Real, archive.Note{
		Kind: archive.NotePathChanged, Time: s.Store.Now(), Detail: fmt.Sprintf("from %q to %q", before, s.Real),
	})
}

// FirstPath is the directory that facts about s are kept under: the one that it was
// first archived from.
func (s *Source) FirstPath() string {
	if s.State == nil {
		return s.Real
	}
	return s.State.Key().RealPath
}
