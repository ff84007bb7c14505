package manifest

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// How often the log says that something still fails.
const (
	logEvery     = time.Minute // publishing
	signLogEvery = time.Hour   // signing
)

// Status is what a Flusher is doing, for people.
type Status struct {
	Chain       string
	Sequence    uint64    // of the last sealed digest, 0: none
	Unpublished int64     // records
	Outbox      int       // sealed documents that wait
	LastAck     time.Time // of a manifest or digest, by this process; zero: none yet
	Manifest    string    // key of the last manifest that this process published, "": none yet
	ManifestAt  time.Time // when it was acknowledged
	Digest      string    // key of the last sealed digest, "": none in this chain
	DigestAt    time.Time // end of what it covers
	DigestHash  string    // SHA-256 of the last sealed digest's stored bytes, hex, "": none in this chain
	Twin        string    // another chain of the instance that has left this one, "": none
	TwinSince   time.Time // when that was seen
	Signing     bool      // digests are signed
	Unsigned    int       // published digests that had no signature yet when it was last tried
	// UnsignedSince is when the oldest of them was sealed, and SignErr why it is not
	// signed; zero and nil: none waits.
	UnsignedSince time.Time
	SignErr       error
	RequestSince  time.Time // when publishing began, or last went on; zero: nothing is being published
	Err           error     // why publishing does not go on; nil: it does
	Since         time.Time // when Err was first seen
	Tried         time.Time // when it was last seen
}

// progress is what a Flusher's parts report of their work: for Status, for the
// metrics and for the log.
type progress struct {
	m   sourceMetrics
	log *zap.Logger
	now func() time.Time

	mu         sync.Mutex
	status     Status
	logged     time.Time // when the last failure was logged
	signLogged time.Time // when it was last logged that digests are not signed
}

// current returns what is known without reading anything.
func (p *progress) current() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// acknowledged notes that a manifest or digest was acknowledged.
func (p *progress) acknowledged(d archive.Doc) {
	now := p.now()
	p.m.last.Set(seconds(now))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status.LastAck = now
	p.status.Outbox = max(0, p.status.Outbox-1)
	if d.Kind == archive.KindManifest {
		p.status.Manifest, p.status.ManifestAt = d.Key, now
	}
}

// waits notes how many documents are in the outbox.
func (p *progress) waits(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status.Outbox = n
}

// moves notes when publishing began or advanced; zero: it ended.
func (p *progress) moves(at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status.RequestSince = at
}

// drained notes that nothing is left to publish.
func (p *progress) drained(sent bool) {
	if sent {
		p.m.published.Inc()
	}
	p.mu.Lock()
	was := p.status
	p.status.Err, p.status.Since, p.status.Tried, p.logged = nil, time.Time{}, time.Time{}, time.Time{}
	p.mu.Unlock()
	if was.Err != nil {
		p.log.Info("publishing works again", zap.Duration("after", time.Since(was.Since)))
	}
}

// failed notes that a try failed. It logs once per minute, not at each try. That
// nothing may be sent yet is no failure.
func (p *progress) failed(ctx context.Context, err error) {
	if stopped(ctx, err) || errors.Is(err, ErrNotYet) {
		return
	}
	p.m.failed.Inc()
	now := time.Now()
	p.mu.Lock()
	if p.status.Err == nil || p.status.Since.IsZero() {
		p.status.Since = now
	}
	p.status.Err, p.status.Tried = err, now
	loud := now.Sub(p.logged) >= logEvery
	if loud {
		p.logged = now
	}
	p.mu.Unlock()
	if loud {
		p.log.Warn("publishing is tried again; documents wait on disk in order",
			zap.String("class", string(archive.ClassOf(err))), zap.Error(err))
	}
}

// unsigned notes which published digests have no signature, the oldest first,
// and why.
func (p *progress) unsigned(files []string, why error) {
	var since time.Time
	if len(files) > 0 {
		since = sealedAt(files[0])
	}
	p.m.unsigned.Set(float64(len(files)))
	p.m.oldest.Set(seconds(since))
	p.mu.Lock()
	was, now := p.status, time.Now()
	p.status.Unsigned, p.status.UnsignedSince, p.status.SignErr = len(files), since, why
	loud := why != nil && now.Sub(p.signLogged) >= signLogEvery
	switch {
	case loud:
		p.signLogged = now
	case why == nil:
		p.signLogged = time.Time{}
	}
	p.mu.Unlock()
	switch {
	case loud:
		p.log.Error("digests are published unsigned; each is signed when the signer answers",
			zap.Int("digests", len(files)), zap.Time("since", since), zap.String("class", string(archive.ClassOf(why))), zap.Error(why))
	case why == nil && was.SignErr != nil:
		p.log.Info("digests are signed again", zap.Int("signed_late", was.Unsigned), zap.Time("unsigned_since", was.UnsignedSince))
	}
}

// twin notes that another chain of the instance has left this one.
func (p *progress) twin(by trail.Name) {
	p.m.abandoned.Set(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status.Twin == "" {
		p.status.TwinSince = p.now()
	}
	p.status.Twin = by.Chain
}
