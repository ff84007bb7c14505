package manifest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/copies"
	"github.com/s3syncd/s3syncd/internal/skips"
	surveypkg "github.com/s3syncd/s3syncd/internal/survey"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// A run continues a chain only if no other run did since its state was written: the
// state may be an old copy. Two things show it. A listing shows digests that the
// state does not know. Without the right to list, the first digest of a run does:
// it has the time of the last name in the state, so that another run that
// continued the same state has published a document under the same key. Nothing
// else is written before that digest is acknowledged.

// claim is how far a run has come with that. Its methods may be called
// concurrently.
type claim struct {
	mu     sync.Mutex
	named  time.Time // the last name in the state when the run began
	asked  bool      // the bucket was searched, or must not be
	denied bool      // it must not be
	chain  string    // that the run seals digests in, "": none is sealed
	first  uint64    // the sequence number of the run's first digest in it
	names  map[uint64]string
	done   bool // the first one is acknowledged
}

// claimNames is how many digests of its own a run remembers.
const claimNames = 4096

// begin begins with another chain. One that the run itself has begun has a new
// id: it need not be searched for.
func (c *claim) begin(named time.Time, own bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.named, c.asked, c.chain, c.first, c.names, c.done = named, own, "", 0, nil, false
}

// deny notes that there is no right to search the bucket.
func (c *claim) deny() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked, c.denied = true, true
}

// watches reports whether the run may write and search the bucket.
func (c *claim) watches() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done && !c.denied
}

// name returns the time in the name of the next digest of ch. Any copy of the
// state gives a run's first digest the same one.
func (c *claim) name(ch archive.Chain, now time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.chain != ch.ID && ch.PrevKey != "" && ch.LastNamed.Equal(c.named) {
		return ch.LastNamed
	}
	return trail.NotBefore(now, ch.LastNamed)
}

// sealed notes that the run has sealed a digest.
func (c *claim) sealed(n trail.Name) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.chain != n.Chain {
		c.chain, c.first, c.names, c.done = n.Chain, n.Sequence, map[uint64]string{}, false
	}
	c.names[n.Sequence] = n.String()
	if n.Sequence >= claimNames {
		delete(c.names, n.Sequence-claimNames)
	}
}

// acknowledged notes that a digest was acknowledged.
func (c *claim) acknowledged(n trail.Name) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = c.done || n.Chain == c.chain && n.Sequence >= c.first
}

// open reports whether no digest of the chain is sealed by this run.
func (c *claim) open(chain string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.chain != chain
}

// from returns the lowest number from which on the digests of ch are not the
// state's, given one that is not. As long as the bucket does not take it, the run's
// own first digest has the name of another's.
func (c *claim) from(ch archive.Chain, foreign uint64) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.chain == ch.ID && !c.done {
		foreign = min(foreign, c.first)
	}
	return min(foreign, ch.Sequence)
}

// current reports whether a listing has shown that the state is no old copy.
func (c *claim) current() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked && !c.denied
}

// settled reports whether the run may write.
func (c *claim) settled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done
}

func (c *claim) wasAsked() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked
}

func (c *claim) setAsked() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = true
}

// foreign reports whether the state does not know a digest of the chain ch.
func (c *claim) foreign(n trail.Name, ch archive.Chain, waiting map[string]bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := n.String()
	if own, ok := c.names[n.Sequence]; ok && c.chain == ch.ID {
		return own != name
	}
	return n.Sequence >= ch.Sequence || waiting[surveypkg.SeqKey(n.Sequence)] && !waiting[name]
}

// Claim returns once this run may write: its first digest is acknowledged, and no
// other run has continued the chain since the state was written. It makes one try;
// the error says what is in the way. Call it before anything but a document is
// written, or an attempt number drawn.
func (f *Flusher) Claim(ctx context.Context) error {
	if f.claim.settled() {
		return nil
	}
	if err := f.publisher.take(ctx); err != nil {
		return err
	}
	defer f.publisher.release()
	for range claimTries {
		if f.claim.settled() {
			return nil
		}
		if _, err := f.chains.sealStart(ctx); err != nil {
			return err
		}
		if err := f.publisher.send(ctx); err != nil {
			return fmt.Errorf("the first digest of this run is not published: %w", err)
		}
	}
	return archive.Classified(archive.ClassTransient, "publish", errNoClaim)
}

// claimTries is how many chains one call of Claim may have to leave.
const claimTries = 4

var errNoClaim = errors.New("the chain was left again and again")

// sealBegin is sealStart for a run that has not written yet.
func (f *Flusher) sealBegin(ctx context.Context) (sealed bool, err error) {
	if f.o.LateStart && f.claim.current() {
		return false, nil
	}
	return f.chains.sealStart(ctx)
}

// sealStart seals the digest that a run begins or continues a chain with, if it has
// sealed none in it yet: it says when the next one is due, so that an end without
// a word is seen.
func (c *succession) sealStart(ctx context.Context) (sealed bool, err error) {
	c.sealer.mu.Lock()
	defer c.sealer.mu.Unlock()
	ch, err := c.st.Chain()
	if err != nil {
		return false, fmt.Errorf("read chain of %s: %w", c.o.Source, err)
	}
	if !c.claim.open(ch.ID) {
		return false, nil
	}
	return true, c.sealDigest(ctx, trail.ReasonStart)
}

// succession decides which chain this run's records are sealed in: it leaves a
// chain that another run has continued, or that cannot be continued, and moves
// what the chain could not publish to the next one.
type succession struct {
	st     *state.Source
	o      *Options
	log    *zap.Logger
	m      sourceMetrics
	local  copies.Copies
	remote surveypkg.Bucket
	known  known
	skips  *skips.Writer
	claim  *claim
	sealer *sealer
	notes  *progress

	watched time.Time // when the bucket was last searched for other runs; guarded by the publisher's lock
}

// sealDigest seals a digest as sealer does. Where a manifest is lost that no
// digest names yet, it leaves the chain instead. The caller holds c.sealer.mu.
func (c *succession) sealDigest(ctx context.Context, reason string, extra ...archive.Note) error {
	err := c.sealer.sealDigest(ctx, reason, extra...)
	if lost, ok := errors.AsType[*copies.LostError](err); ok {
		return c.loseChain(ctx, lost)
	}
	return err
}

// ask searches the bucket, once per run, for what shows that the state is an old
// copy, and leaves the chain if it is. That there is no right to list is no error.
// The caller holds the publisher's lock, or nothing is published yet.
func (c *succession) ask(ctx context.Context) error {
	if c.claim.wasAsked() {
		return nil
	}
	ch, err := c.st.Chain()
	if err != nil {
		return fmt.Errorf("read chain of %s: %w", c.o.Source, err)
	}
	err = c.search(ctx, ch)
	if err != nil && !surveypkg.Outage(ctx, err) {
		c.log.Info("the bucket cannot be searched for other digests: the first one of this run shows whether another run continued the chain", zap.Error(err))
		c.claim.deny()
		err = nil
	}
	if err == nil {
		err = c.leaveLocal(ctx)
	}
	if err != nil {
		return fmt.Errorf("look for other digests of %s: %w", c.o.Source, err)
	}
	c.claim.setAsked()
	c.watched = time.Now()
	c.sealer.mu.Lock()
	defer c.sealer.mu.Unlock()
	return c.local.RemoveOrphans()
}

// search looks for other digests of the instance once, and judges ch by them.
func (c *succession) search(ctx context.Context, ch archive.Chain) error {
	begun := c.o.Now()
	waiting, err := c.local.Waiting(ch)
	if err != nil {
		return err
	}
	s, err := c.remote.Survey(ctx, ch, func(n trail.Name) bool { return c.claim.foreign(n, ch, waiting) })
	if err == nil {
		err = c.judge(ctx, ch, s)
	}
	if err != nil {
		return err
	}
	return c.st.Looked(ctx, begun.Add(-lookMargin))
}

// lookMargin is how much earlier than a look another host's document may be named
// that appears after it.
const lookMargin = time.Hour

// judge leaves ch if s shows that another run continued it or left it.
func (c *succession) judge(ctx context.Context, ch archive.Chain, s *surveypkg.Survey) error {
	if len(s.Ahead) > 0 {
		l := leave{begins: archive.BeginsForked, old: ch, from: c.claim.from(ch, s.From)}
		if err := c.leftAt(ctx, ch, s.Ahead, &l); err != nil {
			return err
		}
		c.log.Error("the trail is ahead of the state, which is a copy or an old one; another chain begins",
			zap.String("chain", ch.ID), zap.Uint64("sequence", s.Ahead[0].Name.Sequence))
		return c.leaveBehind(ctx, ch, l)
	}
	left, err := c.remote.LeftBy(ctx, ch, s)
	if err != nil || len(left) == 0 {
		return err
	}
	c.notes.twin(left[0][0].Name)
	for _, t := range left[:min(len(left), followTries)] {
		by := t[0].Name.Chain
		sha, own, err := c.known.head(ctx, t)
		switch {
		case err != nil:
			return err
		case own && !c.claim.wasAsked():
			c.log.Error("another state of this instance has left the chain; another chain begins", zap.String("chain", ch.ID), zap.String("left_by", by))
			return c.leaveBehind(ctx, ch, leave{begins: archive.BeginsForked, old: ch, from: ch.Sequence, abandons: by, head: sha})
		}
		// The trail continues until an operator decides which host it is of.
		c.log.Error("another chain of this instance says that it has left the chain of this host: two hosts, or two states, write as one instance, or it is forged",
			zap.String("chain", ch.ID), zap.String("left_by", by), zap.Bool("own", own))
	}
	return nil
}

// leaveBehind leaves ch, unless that has happened, and marks the index as suspect: it is as
// old as the state.
func (c *succession) leaveBehind(ctx context.Context, ch archive.Chain, l leave) error {
	c.sealer.mu.Lock()
	defer c.sealer.mu.Unlock()
	now, err := c.st.Chain()
	if err != nil || now.ID != ch.ID {
		return err
	}
	c.m.forked.Inc()
	if err := c.st.SuspectAll(ctx); err != nil {
		return err
	}
	l.old, l.known = now, true
	return c.leaveChain(ctx, l)
}

// watch searches the bucket again, at most once per digest interval, for another run
// that continues the chain or has left it.
func (c *succession) watch(ctx context.Context) {
	due := time.Since(c.watched) >= min(c.o.DigestInterval, lookMargin)
	if due {
		c.watched = time.Now()
	}
	if !due || !c.claim.watches() {
		return
	}
	ch, err := c.st.Chain()
	if err != nil {
		return
	}
	if err := c.search(ctx, ch); err != nil && !stopped(ctx, err) {
		c.log.Debug("the bucket was not searched for other digests", zap.Error(err))
	}
}
