package s3conn

import (
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

const (
	// The Date header has whole seconds, and an answer takes time: below this
	// the clocks are taken to agree.
	clockDeadband = 2 * time.Second
	// A known offset moves only by more than this, so that corrected times do
	// not jitter.
	clockStep = 1500 * time.Millisecond
	// clockAgree answers in a row have to say the same before it is believed.
	clockAgree = 5
	// ClockBound is the largest correction that dates alone, without a refusal,
	// can cause.
	clockBound = 24 * time.Hour
	// ClockProven is how far a date may lie from a time that the server has
	// accepted a signature of: S3 refuses from 15 minutes on.
	clockProven = 10 * time.Minute
	// ClockFailed is for how long a correction that did not help is not tried
	// again.
	clockFailed = 10 * time.Minute
	// clockSame is how far two readings of one signing time may differ.
	clockSame = 5 * time.Second
	// clockSaid is how often the log says that dates are not believed.
	clockSaid = time.Hour
)

// The results of clockCorrections.
const (
	clockAdopted = "adopted" // a correction that the server accepts is in use
	clockDropped = "dropped" // one that was in use or tried is not any more
	clockIgnored = "ignored" // answers agree on a time that is not believed
)

// Clock holds the difference between S3's clock and this host's. This host's
// clock is right until a server refuses its time, or clockAgree answers in a row
// agree on another: any proxy on the way can write a Date. A correction is first
// tried by signing with it, and only one that the server accepts counts.
type Clock struct {
	proven  atomic.Int64 // nanoseconds; dates the trail
	signing atomic.Int64 // nanoseconds; requests are signed with it
	metrics *Metrics
	log     *zap.Logger

	mu       sync.Mutex
	trial    bool          // signing was not accepted yet
	claim    time.Duration // what answers in a row say
	agree    int           // how many they are
	failed   time.Duration // the correction that failed last
	failedAt time.Time
	moved    time.Time // when signing was last changed
	said     time.Time // when the log last said that dates are not believed
}

// offset is the correction that the server has accepted.
func (c *Clock) offset() time.Duration { return time.Duration(c.proven.Load()) }

// Signs is the correction that the next request is signed with.
func (c *Clock) Signs() time.Duration { return time.Duration(c.signing.Load()) }

// verdict says what an answer tells about the time that its request was signed with.
type clockVerdict uint8

const (
	clockUnknown clockVerdict = iota
	clockTaken                // the server accepted the signature
	clockSkewed               // RequestTimeTooSkewed
)

// clockAnswer is what one answer says about time. Sent and received are this
// host's times.
type clockAnswer struct {
	sent, received time.Time
	date           time.Time     // the server's, in whole seconds; zero: not told
	signed         time.Duration // the correction that the request was signed with
	verdict        clockVerdict
}

// says returns the offset that the answer's date says, and how exact it is.
func (a *clockAnswer) says() (d, slack time.Duration) {
	const half = 500 * time.Millisecond // The middle of the second that the date names.
	// A slow answer says little about the moment it was dated at.
	slack = a.received.Sub(a.sent) / 2
	return a.date.Add(half).Sub(a.sent.Add(slack)), slack
}

// observe records one answer.
func (c *Clock) observe(a clockAnswer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.verdict == clockSkewed {
		c.refused(&a)
		return
	}
	if a.verdict == clockTaken && c.trial && (a.signed-c.Signs()).Abs() < clockSame {
		c.trial = false
		c.prove(c.Signs())
	}
	if !a.date.IsZero() {
		c.listen(&a)
	}
}

// listen records the date of an answer. The caller holds c.mu.
func (c *Clock) listen(a *clockAnswer) {
	d, slack := a.says()
	if d.Abs() <= clockDeadband+slack {
		d = 0
	}
	known := c.offset()
	if d == known || d != 0 && (d-known).Abs() <= clockStep+slack {
		c.agree = 0
		return
	}
	if c.agree == 0 || (d-c.claim).Abs() > 2*clockStep+slack {
		c.claim, c.agree = d, 0
	}
	if c.agree++; c.agree < clockAgree {
		return
	}
	c.agree = 0
	switch {
	case (d - c.Signs()).Abs() < clockProven:
		c.prove(d) // The server has accepted a time that is near.
	case d.Abs() > clockBound || c.hasFailed(d):
		c.ignore(d)
	default:
		c.try(d)
	}
}

// refused records that the server did not accept the time that a request was
// signed with. The caller holds c.mu.
func (c *Clock) refused(a *clockAnswer) {
	now := c.Signs()
	if (a.signed - now).Abs() >= clockSame {
		return // Another one is in use by now.
	}
	if now != 0 {
		c.failed, c.failedAt = now, time.Now()
	}
	d := time.Duration(0)
	if !a.date.IsZero() {
		d, _ = a.says()
	}
	if (d-now).Abs() <= skewLimit || c.hasFailed(d) {
		d = 0 // The date is of no help.
	}
	if d == now {
		return
	}
	if now != 0 {
		c.drop(now)
	}
	if d.Abs() <= clockDeadband {
		c.trial, c.moved = false, time.Now()
		c.signing.Store(0)
		return
	}
	c.try(d)
}

// hasFailed reports whether a correction like d was tried a moment ago, in vain.
func (c *Clock) hasFailed(d time.Duration) bool {
	return !c.failedAt.IsZero() && time.Since(c.failedAt) < clockFailed && (d-c.failed).Abs() < time.Minute
}

// try signs with d from now on. The caller holds c.mu.
func (c *Clock) try(d time.Duration) {
	c.signing.Store(int64(d))
	c.trial, c.moved = true, time.Now()
}

// prove makes d the difference that the trail's times are corrected by. The
// caller holds c.mu.
func (c *Clock) prove(d time.Duration) {
	before := c.offset()
	if d == before {
		return
	}
	c.proven.Store(int64(d))
	c.metrics.setOffset(c, d)
	switch {
	case d == 0:
		c.signing.Store(0)
		c.metrics.ClockCorrections.WithLabelValues(clockDropped).Inc()
		c.log.Info("this host's clock agrees with the server's again, it is not corrected any more", zap.Duration("was", before))
	case (d - before).Abs() > clockDeadband+clockStep:
		c.metrics.ClockCorrections.WithLabelValues(clockAdopted).Inc()
		c.log.Warn("this host's clock differs from the server's, signatures and the trail's times are corrected", zap.Duration("offset", d))
	}
}

// drop forgets the correction d, which the server refused. The caller holds c.mu.
func (c *Clock) drop(d time.Duration) {
	c.proven.Store(0)
	c.metrics.setOffset(c, 0)
	c.metrics.ClockCorrections.WithLabelValues(clockDropped).Inc()
	c.log.Warn("a correction of this host's clock does not help, it is forgotten", zap.Duration("offset", d))
}

// ignore notes that answers agree on a time that is not believed. The caller
// holds c.mu.
func (c *Clock) ignore(d time.Duration) {
	c.metrics.ClockCorrections.WithLabelValues(clockIgnored).Inc()
	if now := time.Now(); now.Sub(c.said) >= clockSaid {
		c.said = now
		c.log.Warn("the answers' Date header is wrong, or this host's clock is: it is not believed while requests are accepted",
			zap.Duration("offset", d))
	}
}

// movedSince reports whether the signing time was changed after t.
func (c *Clock) movedSince(t time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.moved.After(t)
}
