package breaker

import (
	"context"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/backoff"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

const (
	canaryEvery = 24 * time.Hour   // While the breaker is closed.
	canaryRetry = 10 * time.Minute // After a canary without an answer, while it is closed.
	canaryLimit = 2 * time.Minute
	pingLimit   = 20 * time.Second // A ping into a dead network must not outlast the outage.

	pingFirst = time.Second
	pingMax   = 15 * time.Second
	probeMax  = time.Minute
)

// probeWait returns how long to wait after the n-th probe in a row that failed:
// never more than 15 s for a server that does not answer, or 60 s otherwise.
func probeWait(at position, n int) time.Duration {
	top := backoff.Doubled(pingFirst, pingMax, n)
	switch at {
	case suspected, parked:
		top = backoff.Doubled(pingFirst, probeMax, 2*n)
	case stopped:
		top = probeMax
	case closed, unproven, open:
	}
	return top - time.Duration(rand.Int64N(int64(top)/4+1))
}

// Run probes the destination until ctx ends: while it is out of service, and
// once per day otherwise.
func (b *Breaker) Run(ctx context.Context) {
	told := 0
	tell := func() {
		b.mu.Lock()
		stops := b.stops
		b.mu.Unlock()
		if stops > told {
			told = stops
			b.effects.Stopped()
		}
	}
	defer tell()
	for {
		tell()
		select {
		case <-ctx.Done():
			return
		case <-b.wake:
		case <-time.After(b.untilDue()):
			if b.giveUp(time.Now()) {
				continue
			}
			b.probe(ctx)
		}
	}
}

// ProbeNow brings the next probe forward.
func (b *Breaker) ProbeNow() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status.NextProbe = time.Now()
	b.signal()
}

// untilDue returns how long to the next probe, or until the destination has to
// be given up.
func (b *Breaker) untilDue() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	due := b.status.NextProbe
	if b.at == closed {
		due = b.nextCanary
	}
	if b.mayGiveUp() {
		if end := b.status.Since.Add(b.o.GiveUp); end.Before(due) {
			due = end
		}
	}
	return max(0, time.Until(due))
}

// mayGiveUp reports whether the destination is given up when it does not answer
// for Options.GiveUp. The caller holds b.mu.
func (b *Breaker) mayGiveUp() bool {
	return b.o.GiveUp > 0 && !b.givenUp && b.status.State == HealthWaiting && b.status.Err != nil
}

// giveUp gives the destination up if it has not answered for too long.
func (b *Breaker) giveUp(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.mayGiveUp() || now.Sub(b.status.Since) < b.o.GiveUp {
		return false
	}
	b.givenUp = true
	b.publish()
	return true
}

// probe asks whether the destination works. Only Run calls it: one probe runs
// at a time.
func (b *Breaker) probe(parent context.Context) {
	b.mu.Lock()
	at, stops := b.at, b.stops
	b.mu.Unlock()
	limit := canaryLimit
	if at == open {
		limit = pingLimit
	}
	if b.o.GiveUp > 0 {
		limit = min(limit, b.o.GiveUp)
	}
	ctx, cancel := context.WithTimeout(parent, limit)
	defer cancel()

	begun := time.Now()
	var err error
	if at != open {
		err = b.checks.Probe(ctx)
	} else if err = b.checks.Ping(ctx); answerOf(err) == answerGood {
		err = nil
	}
	if parent.Err() != nil && answerOf(err) == answerNothing {
		return
	}
	if at == closed {
		b.dailyCanary(err, begun)
		return
	}
	works, released := b.probed(err, begun, at, stops)
	if !works {
		return
	}
	if at != open {
		b.effects.Proven()
	}
	b.effects.Works(released)
}

// dailyCanary handles the result of a canary that was sent at begun to a
// destination that worked. Only a refusal takes it out of service: that it does
// not answer is left to the requests for files.
func (b *Breaker) dailyCanary(err error, begun time.Time) {
	if err == nil {
		b.effects.Proven()
	}
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	switch c := archive.ClassOf(err); {
	case err == nil:
		b.canaryPassed(begun, now)
	case c.Stops():
		b.trip(stopped, err)
	case c.NeedsOperator():
		b.trip(parked, err)
	default:
		b.nextCanary = now.Add(canaryRetry)
	}
}

// canaryPassed notes a canary that was sent at begun. The caller holds b.mu.
func (b *Breaker) canaryPassed(begun, now time.Time) {
	b.trusted, b.doubt.passed, b.nextCanary = true, begun, now.Add(canaryEvery)
}

// probed handles the result of a probe that was sent at begun, in state was and
// after too many stops. It reports whether the destination works again, and
// whether the files that are held alone are released as well: not when the canary
// was never refused, for then it is not the destination that refuses them.
func (b *Breaker) probed(err error, begun time.Time, was position, stops int) (works, released bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.probeFailed(err)
		return false, false
	}
	canary := was.needsCanary()
	if b.at.needsCanary() && !canary || b.stops != stops {
		return false, false // It went further out of service while it was asked.
	}
	switch {
	case canary && b.at == suspected:
		b.doubt.acquitted()
	case canary:
		b.doubt.doubled, released = 0, true
	}
	now := time.Now()
	b.log.Info("destination works", zap.Duration("out_of_service", now.Sub(b.status.Since)))
	b.at = closed
	b.status = Status{State: HealthOK, Since: now, Answered: true}
	b.tries, b.unanswered, b.doubt.refusals, b.givenUp = 0, 0, 0, false
	if canary {
		b.canaryPassed(begun, now)
	}
	b.publish()
	return true, released
}

// probeFailed moves to the state that the result of a probe speaks for. The
// caller holds b.mu.
func (b *Breaker) probeFailed(err error) {
	to, c := b.at, archive.ClassOf(err)
	switch {
	case c.Stops():
		to = stopped
	case c.NeedsOperator() && to != stopped:
		to = parked
	case !c.NeedsOperator() && to.needsCanary() && to != unproven:
		err = b.status.Err // The cause that needs an operator stays the one shown.
	}
	if to == suspected && b.o.GiveUp > 0 {
		b.givenUp = true
	}
	b.trip(to, err)
}
