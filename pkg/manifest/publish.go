package manifest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/backoff"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

const (
	logEvery = time.Minute
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
		err := f.publish(work)
		if err == nil {
			failures = 0
			sealed, err := f.sealBegin(work)
			if sealed { // The chain was left.
				f.Retry()
			}
			wait := f.untilSigner(work)
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
		retry.Reset(backoff.Jittered(failures, state.ClassOf(err)))
		failures++
	}
}

// untilSigner returns when to try again what the signer gave no answer to, 0
// when nothing waits for it.
func (f *Flusher) untilSigner(ctx context.Context) time.Duration {
	select {
	case f.publishing <- struct{}{}:
		defer func() { <-f.publishing }()
		if f.signAgain.IsZero() {
			return 0
		}
		return max(f.signWait(), time.Millisecond)
	case <-ctx.Done():
		return 0
	}
}

// publishUntil publishes everything that is sealed, for as long as ctx allows.
// Its error is the one that was in the way.
func (f *Flusher) publishUntil(ctx context.Context) error {
	var last error
	for n := 0; ; n++ {
		err := f.publish(ctx)
		if err == nil {
			return nil
		}
		if last == nil || !stopped(ctx, err) {
			last = err
		}
		if !backoff.Pause(ctx, backoff.Jittered(n, state.ClassOf(err))) {
			return errors.Join(last, ctx.Err())
		}
	}
}

// publish sends the documents of the outbox in order until none is left or one
// cannot be sent. A document leaves the outbox when it is acknowledged.
func (f *Flusher) publish(ctx context.Context) error {
	select {
	case f.publishing <- struct{}{}:
		defer func() { <-f.publishing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	f.moves(time.Now())
	defer f.moves(time.Time{})
	if err := f.send(ctx); err != nil {
		return err
	}
	f.watch(ctx)
	return f.signAll(ctx)
}

// send does publish's work but for the signatures. The caller holds f.publishing.
func (f *Flusher) send(ctx context.Context) error {
	if err := f.ask(ctx); err != nil {
		f.failed(ctx, err)
		return err
	}
	sent := false
	for {
		box, err := f.st.Outbox()
		if err != nil {
			return fmt.Errorf("read outbox of %s: %w", f.o.Source, err)
		}
		f.waits(len(box))
		if len(box) == 0 {
			f.settled(sent)
			return nil
		}
		for _, d := range box {
			if err = f.publishDoc(ctx, d); err != nil {
				break
			}
			sent = true
			f.moves(time.Now())
		}
		if err == nil {
			continue
		}
		if again := f.mend(ctx, err); again != nil {
			f.failed(ctx, again)
			return again
		}
	}
}

// publishDoc sends one document: always the bytes that were sealed.
func (f *Flusher) publishDoc(ctx context.Context, d state.Doc) (err error) {
	body, err := f.open(d)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	raw, err := hex.DecodeString(d.SHA256)
	if err != nil || len(raw) != sha256.Size {
		return fmt.Errorf("publish %s: its hash is %q", d.Key, d.SHA256)
	}
	_, err = f.pub.CreateDoc(ctx, d.Key, body, d.Size, d.MD5, [sha256.Size]byte(raw), contentTypeOf(d.Key))
	if errors.Is(err, state.ErrPrecondition) {
		err = f.compare(ctx, d)
	}
	if err != nil {
		return fmt.Errorf("publish %s: %w", d.Key, err)
	}
	// It is acknowledged: an end of ctx must not undo that.
	if err := f.st.Published(context.WithoutCancel(ctx), d.Number); err != nil {
		return fmt.Errorf("record %s as published: %w", d.Key, err)
	}
	if d.Kind != state.KindConfig {
		f.acknowledged(d)
	}
	return nil
}

// compare finds out whether the object that stands under d's key is d.
func (f *Flusher) compare(ctx context.Context, d state.Doc) error {
	seen, o, err := f.remote.sum(ctx, d.Key)
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

// open returns the sealed bytes of d, whose hash it has checked. Where the
// local copy is lost it tries to make the same bytes again.
func (f *Flusher) open(d state.Doc) (*os.File, error) {
	body, err := f.local.openSealed(d)
	if _, lost := errors.AsType[*lostError](err); !lost || d.Kind != state.KindManifest {
		return body, err
	}
	if again := f.rebuild(d); again != nil {
		return nil, &lostError{doc: d, err: fmt.Errorf("%w; not made again: %w", err, again)}
	}
	f.log.Warn("a lost manifest was made again from its records", zap.String("key", d.Key))
	return f.local.openSealed(d)
}

// rebuild writes d again from its records, which stay in the state until its
// digest is acknowledged. Streamed skips are in no state: with them it fails.
func (f *Flusher) rebuild(d state.Doc) error {
	ch, err := f.st.Chain()
	if err != nil {
		return err
	}
	name, ok := trail.ParseName(d.Key)
	if !ok || name.Chain != ch.ID {
		return errors.New("its chain is given up")
	}
	stored := int64(0)
	count := func(uint64, state.Status, []byte) error { stored++; return nil }
	if err := f.st.Records(0, d.LastRecord, count); err != nil {
		return err
	}
	before := stored - d.Records
	layout := trail.LayoutFlat
	if name.Hive {
		layout = trail.LayoutHive
	}
	m := &manifestFile{path: f.local.of(d.Key), layout: layout, max: int(d.Records)}
	defer m.discard()
	err = f.st.Records(0, d.LastRecord, func(number uint64, _ state.Status, line []byte) error {
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

// acknowledged notes that d was acknowledged.
func (f *Flusher) acknowledged(d state.Doc) {
	now := f.o.Now()
	if n, ok := trail.ParseName(d.Key); ok && n.Digest {
		f.claim.acknowledged(n)
	}
	f.m.last.Set(seconds(now))
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.LastAck = now
	f.status.Outbox = max(0, f.status.Outbox-1)
	if d.Kind == state.KindManifest {
		f.status.Manifest, f.status.ManifestAt = d.Key, now
	}
}

// waits notes how many documents are in the outbox.
func (f *Flusher) waits(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.Outbox = n
}

// moves notes when publishing began or went on; zero: it ended.
func (f *Flusher) moves(at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.RequestSince = at
}

// settled notes that nothing waits.
func (f *Flusher) settled(sent bool) {
	if sent {
		f.m.published.Inc()
	}
	f.mu.Lock()
	was := f.status
	f.status.Err, f.status.Since, f.status.Tried, f.logged = nil, time.Time{}, time.Time{}, time.Time{}
	f.mu.Unlock()
	if was.Err != nil {
		f.log.Info("publishing goes on", zap.Duration("after", time.Since(was.Since)))
	}
	if ch, err := f.st.Chain(); err == nil {
		f.gauges(ch)
	}
}

// failed notes that a try failed. It logs once a minute, not at each try. That
// nothing may be sent yet is no failure.
func (f *Flusher) failed(ctx context.Context, err error) {
	if stopped(ctx, err) || errors.Is(err, ErrNotYet) {
		return
	}
	f.m.failed.Inc()
	now := time.Now()
	f.mu.Lock()
	if f.status.Err == nil || f.status.Since.IsZero() {
		f.status.Since = now
	}
	f.status.Err, f.status.Tried = err, now
	loud := now.Sub(f.logged) >= logEvery
	if loud {
		f.logged = now
	}
	f.mu.Unlock()
	if loud {
		f.log.Warn("publishing is tried again; documents wait on disk in order",
			zap.String("class", string(state.ClassOf(err))), zap.Error(err))
	}
}
