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
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// nudgeDelay bounds how often nudges look at the state.
const nudgeDelay = time.Second

// sealRetry is the longest wait after a seal that failed.
const sealRetry = time.Minute

// Flusher publishes the audit trail of one source. Its methods are safe for
// concurrent use. Begin must have returned nil before records are sealed.
type Flusher struct {
	st  *state.Source
	pub Publisher
	o   Options
	log *zap.Logger
	m   sourceMetrics

	started time.Time
	skips   *SkipWriter
	run     runStart
	claim   claim
	local   localCopies
	remote  remote
	known   known

	sealing  sync.Mutex              // held while documents are sealed or the chain changes
	digestAt time.Time               // when this process last sealed a digest; guarded by sealing
	counted  map[string]trail.Counts // of the manifests sealed since the last digest, by key; guarded by sealing

	publishing chan struct{}   // a lock that a context can give up on
	signAgain  time.Time       // when the signer is asked again; guarded by publishing
	signerDown bool            // it gave no answer; guarded by publishing
	keyTaken   bool            // something else stands under the public key's name; guarded by publishing
	occupied   map[string]bool // local digests of whose signature this is true; guarded by publishing
	unsignable map[string]bool // local digests that the bucket has otherwise; guarded by publishing
	announced  bool            // the signing key is; guarded by publishing
	abandoned  chan struct{}   // closed: nothing more is waited for
	nudged     chan struct{}   // records grew
	woken      chan struct{}   // documents were sealed, or a retry is worthwhile

	mu         sync.Mutex
	status     Status
	logged     time.Time // when the last failure was logged
	swept      time.Time
	signLogged time.Time // when it was last logged that digests are not signed
	watched    time.Time // when the bucket was last searched for other runs
}

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

// New returns a Flusher over the records of st. It makes the local directory
// and removes what interrupted writes have left there; it makes no request.
func New(st *state.Source, pub Publisher, o Options) (*Flusher, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("manifests of %q: %w", o.Source, err)
	}
	if err := safefs.MkdirAll(o.LocalDir, dirMode); err != nil {
		return nil, fmt.Errorf("manifests of %s: %w", o.Source, err)
	}
	f := &Flusher{
		st: st, pub: pub, o: o, log: o.Log.With(zap.String("source", o.Source)),
		m: o.Metrics.source(o.Source), started: o.Now(),
		counted: map[string]trail.Counts{}, unsignable: map[string]bool{}, occupied: map[string]bool{}, publishing: make(chan struct{}, 1), abandoned: make(chan struct{}), nudged: make(chan struct{}, 1), woken: make(chan struct{}, 1),
	}
	trail := o.Mapper.TrailPrefix()
	f.local = localCopies{st: st, dir: o.LocalDir, trail: trail, source: o.Source, instance: o.Instance, log: f.log}
	f.remote = remote{pub: pub, trail: trail, instance: o.Instance}
	f.known = known{local: f.local, remote: f.remote, log: f.log}
	for _, s := range []Signer{o.Sign, o.SignBefore} {
		if s != nil {
			f.known.keys = append(f.known.keys, s)
		}
	}
	f.skips = newSkipWriter(st, o.LocalDir, o.MaxRecords, f.Nudge)
	if err := f.local.removeTemporary(); err != nil {
		return nil, fmt.Errorf("manifests of %s: %w", o.Source, err)
	}
	ch, err := st.Chain()
	if err != nil {
		return nil, fmt.Errorf("manifests of %s: read chain: %w", o.Source, err)
	}
	f.run = runStart{chain: ch.ID, sequence: ch.Sequence, manifests: len(ch.Manifests)}
	f.m.last.Set(seconds(ch.LastDigest))
	f.gauges(ch)
	return f, nil
}

// Skips returns the writer of streamed skips, the same one each time.
func (f *Flusher) Skips() *SkipWriter { return f.skips }

// Nudge says that records were added. It never blocks.
func (f *Flusher) Nudge() { signal(f.nudged) }

// Retry asks for a try to publish now, whatever the backoff. It never blocks.
func (f *Flusher) Retry() { signal(f.woken) }

// Abandon cuts what Run still waits for, once its ctx has ended, as StopTimeout
// does: documents that are not acknowledged stay in the outbox. It never blocks
// and may be called more than once.
func (f *Flusher) Abandon() {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.abandoned:
	default:
		close(f.abandoned)
	}
}

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
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.status
	s.Chain, s.Unpublished, s.Sequence = ch.ID, ch.Unpublished, max(ch.Sequence, 1)-1
	s.Digest, s.DigestAt, s.DigestHash = ch.PrevKey, ch.LastDigest, ch.PrevSHA256
	s.Signing = f.o.Sign != nil
	return s, nil
}

// Close drops skips that were not sealed. The Flusher must not be used after it.
func (f *Flusher) Close() error {
	_, err := f.skips.discard()
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
		if err = f.publish(ctx); err == nil {
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
		if errors.Is(err, ErrNotYet) { // Nobody asks any more.
			return err
		}
		c := state.ClassOf(err)
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
		if err := f.publishUntil(ctx); err != nil {
			return fmt.Errorf("flush %s: %w", f.o.Source, err)
		}
		f.sweep()
		ch, err := f.st.Chain()
		if err != nil {
			return fmt.Errorf("read chain of %s: %w", f.o.Source, err)
		}
		f.gauges(ch)
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
	f.sealing.Lock()
	defer f.sealing.Unlock()
	if err := f.sealRecords(ctx); err != nil {
		return "", err
	}
	ch, err := f.st.Chain()
	if err != nil {
		return "", fmt.Errorf("read chain of %s: %w", f.o.Source, err)
	}
	if !digestWanted(ch, reason) {
		return ch.ID, nil
	}
	var extra []state.Note
	if reason == trail.ReasonStop {
		extra = append(extra, state.Note{Kind: state.NoteCleanStop, Time: f.o.Now()})
	}
	return ch.ID, f.sealDigest(ctx, reason, extra...)
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
	defer f.sweep()
	if err := f.seal(ctx); err != nil {
		return due, err
	}
	f.sealing.Lock()
	defer f.sealing.Unlock()
	due = later(due, f.digestAt.Add(f.o.DigestInterval))
	if !time.Now().Before(due) {
		if err := f.sealDigest(ctx, trail.ReasonInterval); err != nil {
			return due, err
		}
		due = f.digestAt.Add(f.o.DigestInterval)
	}
	ch, err := f.st.Chain()
	if err != nil {
		return due, err
	}
	f.gauges(ch)
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
	f.gauges(ch)
	stored := int64(ch.NextRecord) - 1 - int64(ch.SealedTo) - f.skips.unused()
	if max(stored, f.skips.lines()) < int64(f.o.MaxRecords) {
		return nil
	}
	if err := f.seal(ctx); err != nil {
		return err
	}
	f.Retry()
	return nil
}

func (f *Flusher) gauges(ch state.Chain) {
	f.m.unpublished.Set(float64(ch.Unpublished))
	f.m.sequence.Set(float64(max(ch.Sequence, 1) - 1))
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
func digestWait(ch state.Chain, interval time.Duration, now time.Time) time.Duration {
	if ch.PrevKey == "" {
		return 0
	}
	return min(max(ch.LastDigest.Add(interval).Sub(now), 0), interval)
}

// stopped reports whether err only says that ctx ended.
func stopped(ctx context.Context, err error) bool {
	return ctx.Err() != nil && errors.Is(err, ctx.Err())
}
