package breaker

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// Checks are the two requests that probe a destination.
type Checks interface {
	// Ping is one cheap request. Any answer means that the server is there.
	Ping(ctx context.Context) error
	// Probe is the canary. Nil means that the destination works and encrypts.
	Probe(ctx context.Context) error
}

// Effects are what a Breaker does to its surroundings. Changed and Limit are
// called with its lock held: they must not call the Breaker.
type Effects interface {
	// Changed is called with every new status. While hold is true no file of the
	// destination may be started.
	Changed(s Status, hold bool)
	// Limit sets how many attempts at files may be under way at once.
	Limit(n int)
	// Proven is called after each canary that passed.
	Proven()
	// Works is called when a probe has closed the breaker. With released, files
	// that were refused one by one are tried again, too.
	Works(released bool)
	// Stopped is called after an answer that did not confirm the KMS key.
	Stopped()
}

// Options tune a Breaker.
type Options struct {
	// Proven: the canary passed at ProvenAt, so that none is needed at the start.
	Proven   bool
	ProvenAt time.Time
	// GiveUp is how long a destination may stay away until its files fail; 0: for
	// ever. With it, a refused canary and an unconfirmed key give it up at once.
	GiveUp time.Duration
	// Attempts is the most attempts that may be under way at once.
	Attempts int
}

// ErrHeld says that a request was not sent because its destination is out of service.
// The file waits and is no failure.
var ErrHeld = errors.New("destination is stopped")

// fails is how many requests in a row without an answer open the breaker.
const fails = 5

// Breaker is the circuit breaker of one destination. Its methods may be called
// concurrently, Begin and Run once.
type Breaker struct {
	o       Options
	checks  Checks
	effects Effects
	log     *zap.Logger
	wake    chan struct{} // Capacity 1: the time of the next probe has changed.
	decided chan struct{} // Closed when the canary has passed or the destination was given up.

	mu         sync.Mutex
	at         position
	status     Status
	givenUp    bool
	trusted    bool // The canary has passed, and no answer without the key came since.
	doubt      doubt
	window     window
	nextCanary time.Time // While closed.
	unanswered int       // Requests in a row without an answer.
	tries      int       // Failed probes in a row.
	trips      int       // Times the breaker opened since a write was acknowledged.
	stops      int       // Answers that did not confirm the key.
	logged     struct {
		health Health
		class  archive.Class
		at     time.Time
	}
}

// New returns a Breaker that is closed if o.Proven, else unproven.
func New(o Options, c Checks, e Effects, log *zap.Logger) *Breaker {
	b := &Breaker{
		o: o, checks: c, effects: e, log: log,
		wake:    make(chan struct{}, 1),
		decided: make(chan struct{}),
		window:  newWindow(o.Attempts),
		at:      unproven,
	}
	if o.Proven {
		b.at, b.trusted = closed, true
		b.nextCanary = o.ProvenAt.Add(canaryEvery)
		if o.ProvenAt.IsZero() {
			b.nextCanary = time.Now().Add(canaryEvery)
		}
	}
	b.status.State = b.at.health()
	return b
}

// Begin sets the effects of the first state. It comes before Run and before any
// request.
func (b *Breaker) Begin(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status.Since, b.status.NextProbe = now, now
	b.effects.Limit(b.window.limit())
	b.publish()
}

// Status returns a copy of what is known.
func (b *Breaker) Status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.status
	s.Proven = b.trusted
	return s
}

// Allow returns ErrHeld while nothing at all may be sent. Requests of attempts
// that are under way go on in any state but stopped.
func (b *Breaker) Allow() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.at == stopped {
		return ErrHeld
	}
	return nil
}

// AllowLate is Allow for a request that had to wait for its turn: it does not
// begin at a destination that went out of service in the meantime.
func (b *Breaker) AllowLate() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.at == stopped || b.at != closed && !b.givenUp {
		return ErrHeld
	}
	return nil
}

// GivenUp returns why the destination has been given up, nil if it has not.
func (b *Breaker) GivenUp() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.givenUp {
		return nil
	}
	return b.status.Err
}

// Await blocks until the canary has passed or the destination was given up. It
// returns ctx's error when that ends first.
func (b *Breaker) Await(ctx context.Context) error {
	select {
	case <-b.decided:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Observe takes the result of one request into account.
func (b *Breaker) Observe(err error) {
	a := answerOf(err)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch a {
	case answerGood:
		b.unanswered, b.status.Answered = 0, true
		if b.window.grew() {
			b.effects.Limit(b.window.limit())
		}
	case answerThrottled:
		b.narrow()
		b.window.answered()
		if b.window.limit() == 1 {
			b.unanswered++
		}
	case answerNone:
		b.unanswered++
	case answerUnsafe:
		b.trip(stopped, err)
	case answerNothing:
	}
	if b.unanswered >= fails && b.at == closed {
		b.trip(open, err)
	}
}

// Wrote notes that a write was acknowledged.
func (b *Breaker) Wrote() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.doubt.refusals, b.trips = 0, 0
}

// Throttled notes that the server asked for fewer requests, whether or not the
// request was answered at a later try.
func (b *Breaker) Throttled() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.narrow()
}

// Refused notes that a file was refused with err. It returns true when the
// error concerns the file alone, and suspects the destination otherwise. R is
// what Refused knows of the file from one call to the next.
func (b *Breaker) Refused(r *Refusal, err error, now time.Time) (alone bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.doubt.alone(r, now) {
		return true
	}
	if b.at == closed || b.at == unproven || b.at == open {
		b.trip(suspected, err)
	}
	return false
}

// narrow halves the window. The caller holds b.mu.
func (b *Breaker) narrow() {
	if b.window.halved() {
		b.effects.Limit(b.window.limit())
	}
}

// trip takes the destination out of service, or keeps it there after a probe
// that failed. The caller holds b.mu.
func (b *Breaker) trip(to position, err error) {
	if b.at == stopped && to != stopped {
		return
	}
	now, h := time.Now(), to.health()
	if b.status.State != h {
		b.status.Since, b.tries = now, 0
		if to == open {
			b.tries = b.trips // It answers pings, but no write gets through: ask less often.
			b.trips++
		}
	}
	if to == stopped {
		b.stops++
		b.trusted, b.doubt.passed = false, time.Time{}
		b.givenUp = b.givenUp || b.o.GiveUp > 0
	}
	if to == parked && b.o.GiveUp > 0 {
		b.givenUp = true // The canary is refused, too: a run that ends has no time to have that mended.
	}
	b.at = to
	b.tries++
	b.status.State, b.status.Class, b.status.Err = h, archive.ClassOf(err), err
	b.status.NextProbe = now.Add(probeWait(to, b.tries))
	b.publish()
	b.signal()

	l := &b.logged
	if l.health == h && l.class == b.status.Class && now.Sub(l.at) < time.Minute {
		return
	}
	l.health, l.class, l.at = h, b.status.Class, now
	b.log.Warn("destination out of service, its files wait",
		zap.String("state", string(h)), zap.String("class", string(b.status.Class)),
		zap.Time("next_probe", b.status.NextProbe), zap.Error(err))
}

// publish brings the effects in line with the state. The caller holds b.mu.
func (b *Breaker) publish() {
	b.effects.Changed(b.status, b.at != closed && !b.givenUp)
	if !b.givenUp && !b.trusted {
		return
	}
	select {
	case <-b.decided:
	default:
		close(b.decided)
	}
}

// signal makes Run compute the next probe again.
func (b *Breaker) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}
