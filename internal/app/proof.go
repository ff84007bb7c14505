package app

import (
	"context"
	"sync"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// proof is whether this run has seen that a source's destination encrypts. The
// canary of an earlier run counts for a day, but a document of the trail must not
// be what finds out that it does no more: nothing ever replaces it.
type proof struct {
	mu   sync.Mutex
	done bool
}

// prove sends the canary unless one has passed in this run.
func (s *source) prove(ctx context.Context) error {
	s.proof.mu.Lock()
	defer s.proof.mu.Unlock()
	if s.proof.done {
		return nil
	}
	err := s.store.Probe(ctx)
	if err == nil {
		s.proof.done = true
		return nil
	}
	if pool := s.pool.Load(); pool != nil && state.ClassOf(err).Stops() {
		pool.Distrust(s.cfg.Name, err)
	}
	return err
}

// proven notes that a canary has passed.
func (p *proof) proven() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = true
}

// claim returns nil once this run may write. What it publishes for that is the
// first write of a run that ends by itself.
func (s *source) claim(ctx context.Context) error {
	if err := s.prove(ctx); err != nil {
		return err
	}
	return s.flusher.Claim(ctx)
}
