package s3store

import (
	"sync/atomic"
	"time"
)

const (
	// The Date header has whole seconds, and an answer takes time: below this
	// the clocks are taken to agree.
	clockDeadband = 2 * time.Second
	// A known offset moves only by more than this, so that corrected times do
	// not jitter.
	clockStep = 1500 * time.Millisecond
)

// clock remembers the difference between S3's clock and this host's.
type clock struct {
	ns      atomic.Int64
	metrics *Metrics
}

func (c *clock) offset() time.Duration { return time.Duration(c.ns.Load()) }

// observe takes in one answer: sent and received are this host's times, date is
// the server's, in whole seconds.
func (c *clock) observe(sent, received, date time.Time) {
	const half = 500 * time.Millisecond // The middle of the second that date names.
	d := date.Add(half).Sub(sent.Add(received.Sub(sent) / 2))
	// A slow answer says little about the moment it was dated at.
	slack := received.Sub(sent) / 2
	old := c.offset()
	switch {
	case d.Abs() <= clockDeadband+slack:
		d = 0
	case (d - old).Abs() <= clockStep+slack:
		return
	}
	if d != old {
		c.ns.Store(int64(d))
		c.metrics.setOffset(c, d)
	}
}
