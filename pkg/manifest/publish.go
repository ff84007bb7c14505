package manifest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/s3syncd/s3syncd/internal/backoff"
	"github.com/s3syncd/s3syncd/internal/copies"
	surveypkg "github.com/s3syncd/s3syncd/internal/survey"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// publishLoop publishes whenever something was sealed and retries what could
// not be published. It starts no try once ctx has ended.
func (f *Flusher) publishLoop(ctx, work context.Context) {
	f.Retry() // What the last process left.
	retry := time.NewTimer(0)
	defer retry.Stop()
	retry.Stop()
	for failures := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-f.woken:
		case <-retry.C:
		}
		retry.Stop()
		err := f.publisher.publish(work)
		if err == nil {
			failures = 0
			sealed, err := f.sealBegin(work)
			if sealed { // The chain was left.
				f.Retry()
			}
			wait := f.publisher.untilSigner(work)
			if err != nil {
				wait = sealRetry
			}
			if wait > 0 {
				retry.Reset(wait)
			}
			continue
		}
		if stopped(work, err) {
			return
		}
		retry.Reset(backoff.Jittered(failures, archive.ClassOf(err)))
		failures++
	}
}

// untilSigner returns when to try again what the signer gave no answer to, 0
// when nothing waits for it.
func (p *publisher) untilSigner(ctx context.Context) time.Duration {
	if p.take(ctx) != nil {
		return 0
	}
	defer p.release()
	if p.signing.again.IsZero() {
		return 0
	}
	return max(p.signing.wait(), time.Millisecond)
}

// publishUntil publishes everything that is sealed, for as long as ctx allows.
// Its error is the one that was in the way.
func (p *publisher) publishUntil(ctx context.Context) error {
	var last error
	for n := 0; ; n++ {
		err := p.publish(ctx)
		if err == nil {
			return nil
		}
		if last == nil || !stopped(ctx, err) {
			last = err
		}
		if !backoff.Pause(ctx, backoff.Jittered(n, archive.ClassOf(err))) {
			return errors.Join(last, ctx.Err())
		}
	}
}

// publisher sends sealed documents to the bucket, in order, each once.
type publisher struct {
	st      *state.Source
	o       *Options
	pub     Publisher
	m       sourceMetrics
	local   copies.Copies
	remote  surveypkg.Bucket
	claim   *claim
	chains  *succession
	signing *signing // guarded by lock
	notes   *progress

	lock chan struct{} // a lock that a context can give up on
}

// publish sends the documents of the outbox in order until none is left or one
// cannot be sent. A document leaves the outbox when it is acknowledged.
func (p *publisher) publish(ctx context.Context) error {
	if err := p.take(ctx); err != nil {
		return err
	}
	defer p.release()
	p.notes.moves(time.Now())
	defer p.notes.moves(time.Time{})
	if err := p.send(ctx); err != nil {
		return err
	}
	p.chains.watch(ctx)
	return p.signing.signAll(ctx)
}

// take waits for the lock, at most until ctx ends.
func (p *publisher) take(ctx context.Context) error {
	select {
	case p.lock <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *publisher) release() { <-p.lock }

// send does publish's work but for the signatures. The caller holds p.lock.
func (p *publisher) send(ctx context.Context) error {
	if err := p.chains.ask(ctx); err != nil {
		p.notes.failed(ctx, err)
		return err
	}
	sent := false
	for {
		box, err := p.st.Outbox()
		if err != nil {
			return fmt.Errorf("read outbox of %s: %w", p.o.Source, err)
		}
		p.notes.waits(len(box))
		if len(box) == 0 {
			p.notes.drained(sent)
			if ch, err := p.st.Chain(); err == nil {
				p.m.gauges(ch)
			}
			return nil
		}
		for _, d := range box {
			if err = p.publishDoc(ctx, d); err != nil {
				break
			}
			sent = true
			p.notes.moves(time.Now())
		}
		if err == nil {
			continue
		}
		if again := p.chains.mend(ctx, err); again != nil {
			p.notes.failed(ctx, again)
			return again
		}
	}
}

// publishDoc sends one document: always the bytes that were sealed.
func (p *publisher) publishDoc(ctx context.Context, d archive.Doc) (err error) {
	body, err := p.local.Open(d)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	raw, err := hex.DecodeString(d.SHA256)
	if err != nil || len(raw) != sha256.Size {
		return fmt.Errorf("publish %s: its hash is %q", d.Key, d.SHA256)
	}
	_, err = p.pub.CreateDoc(ctx, d.Key, body, d.Size, d.MD5, [sha256.Size]byte(raw), contentTypeOf(d.Key))
	if errors.Is(err, archive.ErrPrecondition) {
		err = p.compare(ctx, d)
	}
	if err != nil {
		return fmt.Errorf("publish %s: %w", d.Key, err)
	}
	// It is acknowledged: an end of ctx must not undo that.
	if err := p.st.Published(context.WithoutCancel(ctx), d.Number); err != nil {
		return fmt.Errorf("record %s as published: %w", d.Key, err)
	}
	if d.Kind != archive.KindConfig {
		if n, ok := trail.ParseName(d.Key); ok && n.Digest {
			p.claim.acknowledged(n)
		}
		p.notes.acknowledged(d)
	}
	return nil
}

// compare finds out whether the object under d's key is d.
func (p *publisher) compare(ctx context.Context, d archive.Doc) error {
	seen, o, err := p.remote.Sum(ctx, d.Key)
	if err != nil {
		return fmt.Errorf("compare: %w", err)
	}
	if seen != d.SHA256 {
		return &forkedError{doc: d, seen: seen}
	}
	if !strings.HasPrefix(o.SSE, "aws:kms") {
		// Nothing under the trail is overwritten, so these names are lost.
		return &forkedError{doc: d, seen: seen, plain: true}
	}
	return nil
}

// contentTypeOf returns what a document is stored as.
func contentTypeOf(key string) string {
	switch {
	case strings.HasSuffix(key, ".gz"):
		return "application/gzip"
	case strings.HasSuffix(key, ".pem"):
		return "application/x-pem-file"
	}
	return "application/json"
}
