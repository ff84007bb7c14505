package pipeline

import (
	"context"
	"sync"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/uploader"
)

// feedback is everything that flows against the direction of the data, watch →
// queue → upload → state → manifest. A source implements it: it is allocated
// first, its parts are built with its methods, and none of them calls one before
// the pipeline is built.
type feedback interface {
	toWatcher
	toUploads
	toTrail
}

// toWatcher is what the uploads tell and ask the watcher.
type toWatcher interface {
	requeue(path string)                         // it changed while it was read
	intact(id safefs.Identity, path string) bool // is this the directory that is watched?
	leftOut(path string) bool                    // is it not to be archived any more?
}

// toUploads is what the store, the trail and the state tell the uploads.
type toUploads interface {
	throttled()         // the server asked for fewer requests
	distrust(err error) // an answer to a document did not confirm the key
	Release()           // what waits for an operator is tried again
	full() bool         // uploads pause: too much is unpublished, or the state cannot be written
}

// toTrail is what the uploads tell and ask the trail.
type toTrail interface {
	claim(ctx context.Context) error // may this run write?
	proven()                         // the canary passed
	stopped()                        // an answer did not confirm the key
	ended(o uploader.Outcome)        // an attempt ended
}

var _ feedback = (*Source)(nil)

func (s *Source) requeue(path string) {
	if s.Watch != nil {
		s.Watch.Requeue(path)
	}
}

func (s *Source) intact(id safefs.Identity, path string) bool {
	return s.Watch != nil && s.Watch.Intact(id, path)
}

func (s *Source) leftOut(path string) bool { return s.Watch != nil && s.Watch.LeavesOut(path) }

func (s *Source) throttled() {
	if s.Pool != nil {
		s.Pool.Throttled(s.Config.Name)
	}
}

func (s *Source) distrust(err error) { s.Pool.Distrust(s.Config.Name, err) }

// Release tries everything again that waits for a retry or an operator, uploads
// and documents of the trail.
func (s *Source) Release() {
	s.Flusher.Retry()
	s.Pool.Release(s.Config.Name)
}

// full reports whether nothing more is uploaded, because too many records wait to
// be published or the state cannot be written: there is no upload without a trail.
func (s *Source) full() bool {
	return s.Backlog.Records() >= s.Session.Config.Manifest.MaxUnpublished || s.Disk.check() != nil
}

// claim returns nil once this run may write. What it publishes for that is the
// first write of a run that ends by itself.
func (s *Source) claim(ctx context.Context) error {
	if err := s.prove(ctx); err != nil {
		return err
	}
	return s.Flusher.Claim(ctx)
}

func (s *Source) proven() {
	s.proof.passed()
	s.known.Remember()
	s.Flusher.Retry()
}

func (s *Source) stopped() { s.known.forget() }

func (s *Source) ended(o uploader.Outcome) {
	s.Counters.Ended.Add(1)
	if o.Status != "" {
		s.Flusher.Nudge()
	}
}

// keyMoved keeps what the store has learned of the key behind an alias.
func (s *Source) keyMoved() {
	s.known.Remember()
	select {
	case s.Session.KeysMoved <- struct{}{}:
	default:
	}
}

// proof is whether this run has seen that a source's destination encrypts. The
// canary of an earlier run counts for a day, but a document of the trail must not
// be what finds out that it no longer does: no later write replaces it.
type proof struct {
	mu   sync.Mutex
	done bool
}

// passed notes that a canary has passed.
func (p *proof) passed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = true
}

// prove sends the canary unless one has passed in this run.
func (s *Source) prove(ctx context.Context) error {
	s.proof.mu.Lock()
	defer s.proof.mu.Unlock()
	if s.proof.done {
		return nil
	}
	err := s.Store.Probe(ctx)
	if err == nil {
		s.proof.done = true
		return nil
	}
	if archive.ClassOf(err).Stops() {
		s.distrust(err)
	}
	return err
}
