package pipeline

import (
	"context"
	"fmt"
	"strings"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// BeginChain makes sure that s has a chain and notes in it how this run began.
func (s *Source) BeginChain(ctx context.Context, kind state.NoteKind, detail string) error {
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
	if db.Report().Unclean && kind == state.NoteStart {
		if err := s.State.AddNote(ctx, state.Note{Kind: state.NoteUncleanEnd, Time: s.Store.Now()}); err != nil {
			return err
		}
	}
	if err := s.State.AddNote(ctx, state.Note{Kind: kind, Time: s.Store.Now(), Detail: detail}); err != nil {
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

// GivenUp precedes the chain's name in the state where nothing is left to close it
// in.
const GivenUp = "given-up:"
