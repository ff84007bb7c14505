package manifest

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/backoff"
	"github.com/s3syncd/s3syncd/internal/copies"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/skips"
	surveypkg "github.com/s3syncd/s3syncd/internal/survey"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// nudgeDelay bounds how often nudges read the state.
const nudgeDelay = time.Second

// sealRetry is the longest wait after a seal that failed.
const sealRetry = time.Minute

// Flusher publishes the audit trail of one source. Its methods are safe for
// concurrent use. Begin must have returned nil before records are sealed.
//
// It drives the parts that do the work: records become documents in sealer,
// documents become objects in publisher, signing signs them, succession decides
// which chain they belong to, sweeper removes old copies. Each calls only those
// before it in New.
type Flusher struct {
	st  *state.Source
	o   *Options
	log *zap.Logger
	m   sourceMetrics

	run       runStart
	skips     *skips.Writer
	local     copies.Copies
	claim     *claim
	notes     *progress
	sealer    *sealer
	chains    *succession
	beginning *beginning
	publisher *publisher
	sweeper   *sweeper

	abandon   sync.Once
	abandoned chan struct{} // closed: nothing more is waited for
	nudged    chan struct{} // records were added
	woken     chan struct{} // documents were sealed, or a retry is worthwhile
}

// New returns a Flusher over the records of st. It makes the local directory
// and removes what interrupted writes have left there; it makes no request.
func New(st *state.Source, pub Publisher, o Options) (*Flusher, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("manifests of %q: %w", o.Source, err)
	}
	if err := safefs.MkdirAll(o.LocalDir, copies.DirMode); err != nil {
		return nil, fmt.Errorf("manifests of %s: %w", o.Source, err)
	}
	f := &Flusher{
		st: st, o: &o, log: o.Log.With(zap.String("source", o.Source)), m: o.Metrics.source(o.Source), claim: &claim{},
		abandoned: make(chan struct{}), nudged: make(chan struct{}, 1), woken: make(chan struct{}, 1),
	}
	root := o.Mapper.TrailPrefix()
	f.local = copies.Copies{St: st, Dir: o.LocalDir, Trail: root, Source: o.Source, Instance: o.Instance, Log: f.log}
	bucket := surveypkg.Bucket{Pub: pub, Trail: root, Instance: o.Instance}
	host := known{local: f.local, remote: bucket, log: f.log}
	for _, s := range []Signer{o.Sign, o.SignBefore} {
		if s != nil {
			host.keys = append(host.keys, s)
		}
	}
	f.skips = skips.New(st, o.LocalDir, o.MaxRecords, f.Nudge)
	f.notes = &progress{m: f.m, log: f.log, now: o.Now}
	f.sealer = &sealer{
		st: st, o: f.o, log: f.log, m: f.m, local: f.local, remote: bucket, skips: f.skips, claim: f.claim,
		started: o.Now(), counted: map[string]trail.Counts{},
	}
	f.chains = &succession{
		st: st, o: f.o, log: f.log, m: f.m, local: f.local, remote: bucket, known: host, skips: f.skips, claim: f.claim,
		sealer: f.sealer, notes: f.notes,
	}
	f.beginning = &beginning{st: st, o: f.o, log: f.log, local: f.local, remote: bucket, known: host, claim: f.claim, chains: f.chains}
	f.publisher = &publisher{
		st: st, o: f.o, pub: pub, m: f.m, local: f.local, remote: bucket, claim: f.claim, chains: f.chains, notes: f.notes, lock: make(chan struct{}, 1),
		signing: &signing{
			st: st, o: f.o, pub: pub, log: f.log, local: f.local, remote: bucket, notes: f.notes,
			unsignable: map[string]bool{}, occupied: map[string]bool{},
		},
	}
	f.sweeper = &sweeper{st: st, o: f.o, log: f.log, local: f.local, sealer: f.sealer}
	if err := f.local.RemoveTemporary(); err != nil {
		return nil, fmt.Errorf("manifests of %s: %w", o.Source, err)
	}
	ch, err := st.Chain()
	if err != nil {
		return nil, fmt.Errorf("manifests of %s: read chain: %w", o.Source, err)
	}
	f.run = runStart{chain: ch.ID, sequence: ch.Sequence, manifests: len(ch.Manifests)}
	f.m.last.Set(seconds(ch.LastDigest))
	f.m.gauges(ch)
	return f, nil
}

// Skips returns the writer of streamed skips, the same one each time.
func (f *Flusher) Skips() *skips.Writer { return f.skips }

// Nudge says that records were added. It never blocks.
func (f *Flusher) Nudge() { signal(f.nudged) }

// Retry asks for a try to publish now, whatever the backoff. It never blocks.
func (f *Flusher) Retry() { signal(f.woken) }

// Abandon cuts what Run still waits for, once its ctx has ended, as StopTimeout
// does: documents that are not acknowledged stay in the outbox. It never blocks
// and may be called more than once.
func (f *Flusher) Abandon() { f.abandon.Do(func() { close(f.abandoned) }) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // One is waiting already.
	}
}

// Glance returns what the Flusher is doing. It does not read the disk, for callers
// that must not wait for it: the documents in the outbox are those of the last
// try to publish.
func (f *Flusher) Glance() (Status, error) {
	ch, err := f.st.Chain()
	if err != nil {
		return Status{}, fmt.Errorf("read chain of %s: %w", f.o.Source, err)
	}
	s := f.notes.current()
	s.Chain, s.Unpublished, s.Sequence = ch.ID, ch.Unpublished, max(ch.Sequence, 1)-1
	s.Digest, s.DigestAt, s.DigestHash = ch.PrevKey, ch.LastDigest, ch.PrevSHA256
	s.Signing = f.o.Sign != nil
	return s, nil
}

// Close drops skips that were not sealed. The Flusher must not be used after it.
func (f *Flusher) Close() error {
	_, err := f.skips.Discard()
	return err
}

// PublishConfig seals canonical, the effective configuration without secrets,
// as the configuration object of its SHA-256 in hex, unless it is the one that
// was sealed last. It makes no request: the object is published in order with
// the rest of the trail.
func (f *Flusher) PublishConfig(ctx context.Context, canonical []byte, sha string) error {
	sealed, err := f.sealer.sealConfig(ctx, canonical, sha)
	if sealed {
		f.Retry()
	}
	return err
}

// Run seals on the interval, at MaxRecords and when a digest is due, and
// publishes what is sealed, until ctx ends. Then it seals the rest and a digest
// with a clean stop, and publishes for at most StopTimeout. What cannot be
// published by then stays in the outbox for the next start, which is no error.
func (f *Flusher) Run(ctx context.Context) error {
	ch, err := f.st.Chain()
	if err != nil {
		return fmt.Errorf("read chain of %s: %w", f.o.Source, err)
	}
	if ch.ID == "" {
		return fmt.Errorf("manifests of %s: %w", f.o.Source, state.ErrNoChain)
	}
	if _, err := f.sealBegin(context.WithoutCancel(ctx)); err != nil {
		f.log.Error("the digest that a run begins with is not sealed; it is tried again", zap.Error(err))
	}
	if ch, err = f.st.Chain(); err != nil {
		return fmt.Errorf("read chain of %s: %w", f.o.Source, err)
	}
	// A request under way when ctx ends is finished, not cut: its answer would
	// have to be asked for again.
	work, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var wg sync.WaitGroup
	wg.Go(func() { f.publishLoop(ctx, work) })
	f.sealLoop(ctx, work, digestWait(ch, f.o.DigestInterval, f.o.Now()))

	deadline := time.AfterFunc(f.o.StopTimeout, cut)
	defer deadline.Stop()
	var hurry sync.WaitGroup
	hurry.Go(func() {
		select {
		case <-f.abandoned:
			cut()
		case <-work.Done():
		}
	})
	defer func() { cut(); hurry.Wait() }()
	_, err = f.sealAll(context.WithoutCancel(ctx), trail.ReasonStop)
	wg.Wait()
	if err != nil {
		return err
	}
	if err := f.publishEnd(work); err != nil {
		f.log.Warn("documents stay in the outbox until the next start", zap.Error(err))
	}
	return f.Close()
}

// publishEnd publishes what the last seal left, while waiting is of use.
func (f *Flusher) publishEnd(ctx context.Context) error {
	for n := 0; ; n++ {
		before, err := f.st.Chain()
		if err != nil {
			return err
		}
		if err = f.publisher.publish(ctx); err == nil {
			after, err := f.st.Chain()
			if err != nil || after.ID == before.ID {
				return err
			}
			// The chain was given up on the way: its records are in the next one.
			if _, err := f.sealAll(ctx, trail.ReasonStop); err != nil {
				return err
			}
			continue
		}
		if errors.Is(err, ErrNotYet) { // No caller waits any more.
			return err
		}
		c := archive.ClassOf(err)
		if !c.Passes() || !backoff.Pause(ctx, backoff.Jittered(n, c)) {
			return err
		}
	}
}

// Flush seals every record committed before the call, and a digest, and returns
// nil once all of it is acknowledged. It returns when ctx ends with the error
// that was in the way. Where nothing has happened since the last digest and
// everything is published it makes no request. ReasonStop and ReasonFinal
// always make a digest.
func (f *Flusher) Flush(ctx context.Context, reason string) error {
	for {
		chain, err := f.sealAll(ctx, reason)
		if err != nil {
			return err
		}
		if err := f.publisher.publishUntil(ctx); err != nil {
			return fmt.Errorf("flush %s: %w", f.o.Source, err)
		}
		f.sweeper.sweep()
		ch, err := f.st.Chain()
		if err != nil {
			return fmt.Errorf("read chain of %s: %w", f.o.Source, err)
		}
		f.m.gauges(ch)
		if ch.ID == chain {
			return nil
		}
	}
}

// CloseChain ends the chain with a final digest and returns once it is
// acknowledged: its source has left the configuration or the host. A later
// Begin begins another chain.
func (f *Flusher) CloseChain(ctx context.Context) error { return f.Flush(ctx, trail.ReasonFinal) }

// sealAll seals all records and a digest, where one would say something, and
// returns the chain that they are in.
func (f *Flusher) sealAll(ctx context.Context, reason string) (chain string, err error) {
	f.sealer.mu.Lock()
	defer f.sealer.mu.Unlock()
	if err := f.sealer.sealRecords(ctx); err != nil {
		return "", err
	}
	ch, err := f.st.Chain()
	if err != nil {
		return "", fmt.Errorf("read chain of %s: %w", f.o.Source, err)
	}
	if !digestWanted(ch, reason) {
		return ch.ID, nil
	}
	var extra []archive.Note
	if reason == trail.ReasonStop {
		extra = append(extra, archive.Note{Kind: archive.NoteCleanStop, Time: f.o.Now()})
	}
	return ch.ID, f.chains.sealDigest(ctx, reason, extra...)
}

// sealLoop seals until ctx ends. The first digest may wait for first.
func (f *Flusher) sealLoop(ctx, work context.Context, first time.Duration) {
	due := time.Now().Add(first)
	tick := time.NewTimer(f.untilTick(due))
	defer tick.Stop()
	var check <-chan time.Time
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-f.nudged:
			if check == nil {
				check = time.After(nudgeDelay)
			}
			continue
		case <-check:
			check = nil
			if err = f.sealFull(work); err == nil {
				continue
			}
		case <-tick.C:
			due, err = f.tick(work, due)
		}
		wait := f.untilTick(due)
		if err != nil {
			wait = min(wait, sealRetry)
			f.log.Error("sealing is tried again", zap.Duration("retry_in", wait), zap.Error(err))
		}
		tick.Reset(wait)
	}
}

// tick seals what there is, and a digest that is due, and returns when the next
// one is.
func (f *Flusher) tick(ctx context.Context, due time.Time) (time.Time, error) {
	defer f.sweeper.sweep()
	if err := f.sealer.seal(ctx); err != nil {
		return due, err
	}
	f.sealer.mu.Lock()
	defer f.sealer.mu.Unlock()
	due = later(due, f.sealer.digestAt.Add(f.o.DigestInterval))
	if !time.Now().Before(due) {
		if err := f.chains.sealDigest(ctx, trail.ReasonInterval); err != nil {
			return due, err
		}
		due = f.sealer.digestAt.Add(f.o.DigestInterval)
	}
	ch, err := f.st.Chain()
	if err != nil {
		return due, err
	}
	f.m.gauges(ch)
	box, err := f.st.Outbox()
	if len(box) > 0 {
		f.Retry()
	}
	return due, err
}

// sealFull seals when there are enough records for a manifest.
func (f *Flusher) sealFull(ctx context.Context) error {
	ch, err := f.st.Chain()
	if err != nil {
		return err
	}
	f.m.gauges(ch)
	stored := int64(ch.NextRecord) - 1 - int64(ch.SealedTo) - f.skips.Unused()
	if max(stored, f.skips.Lines()) < int64(f.o.MaxRecords) {
		return nil
	}
	if err := f.sealer.seal(ctx); err != nil {
		return err
	}
	f.Retry()
	return nil
}

// untilTick returns how long the seal loop sleeps: until the interval's next
// tick or the digest's time.
func (f *Flusher) untilTick(due time.Time) time.Duration {
	wait := nextTick(f.o.Now(), f.o.FlushInterval, f.o.Instance)
	if digest := time.Until(due); digest > 0 {
		wait = min(wait, digest)
	}
	return wait
}

// nextTick returns the time until the next flush. Hosts that share an interval
// flush at different times in it, each always at the same one.
func nextTick(now time.Time, interval time.Duration, instance string) time.Duration {
	sum := sha256.Sum256([]byte(instance))
	phase := time.Duration(binary.BigEndian.Uint64(sum[:]) % uint64(interval))
	into := (time.Duration(now.UnixNano()) - phase) % interval
	if into < 0 {
		into += interval
	}
	return interval - into
}

// digestWait returns how long the next digest may wait at a start. A clock that
// has stepped makes it neither negative nor longer than the interval.
func digestWait(ch archive.Chain, interval time.Duration, now time.Time) time.Duration {
	if ch.PrevKey == "" {
		return 0
	}
	return min(max(ch.LastDigest.Add(interval).Sub(now), 0), interval)
}

// stopped reports whether err only says that ctx ended.
func stopped(ctx context.Context, err error) bool {
	return ctx.Err() != nil && errors.Is(err, ctx.Err())
}
