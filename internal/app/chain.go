package app

import (
	"context"
	"fmt"
	"strings"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// beginChain makes sure that s has a chain and notes in it how this run began.
func (s *source) beginChain(ctx context.Context, kind state.NoteKind, detail string) error {
	db, cfg := s.run.db, s.run.cfg
	if err := s.flusher.Begin(ctx, db.Report()); err != nil {
		return err
	}
	key := closedKey(s.state.Key())
	closed, err := db.Meta(key)
	if err == nil && strings.HasPrefix(string(closed), givenUp) {
		err = db.SetMeta(ctx, key, nil) // It is configured again.
	}
	if err != nil {
		return err
	}
	if err := s.noteMove(ctx); err != nil {
		return err
	}
	if db.Report().Unclean && kind == state.NoteStart {
		if err := s.state.AddNote(ctx, state.Note{Kind: state.NoteUncleanEnd, Time: s.store.Now()}); err != nil {
			return err
		}
	}
	if err := s.state.AddNote(ctx, state.Note{Kind: kind, Time: s.store.Now(), Detail: detail}); err != nil {
		return err
	}
	return s.flusher.PublishConfig(ctx, cfg.SourceCanonical(s.number), cfg.SourceSHA256(s.number))
}

// closeChain ends the chain of s with a final digest.
func (s *source) closeChain(ctx context.Context) error {
	if err := s.flusher.CloseChain(ctx); err != nil {
		return fmt.Errorf("source %s: the final digest: %w", s.cfg.Name, err)
	}
	return s.closed(ctx)
}

// closed remembers that the chain of s is closed.
func (s *source) closed(ctx context.Context) error {
	ch, err := s.state.Chain()
	if err == nil {
		err = s.run.db.SetMeta(context.WithoutCancel(ctx), closedKey(s.state.Key()), []byte(ch.ID))
	}
	if err != nil {
		return fmt.Errorf("source %s: %w", s.cfg.Name, err)
	}
	s.log.Info("the chain is closed by a final digest", zap.String("chain", ch.ID), zap.Uint64("sequence", max(ch.Sequence, 1)-1))
	return nil
}

// closedKey is where the state remembers which chain of a source was closed.
func closedKey(k state.SourceKey) string {
	return fmt.Sprintf("closed/%s/%s/%s", k.Bucket, k.Prefix, k.RealPath)
}

// givenUp precedes the chain's name in the state where nothing is left to close it
// in.
const givenUp = "given-up:"
