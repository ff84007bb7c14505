package uploader

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// destination is a source together with what the pool knows of where it goes.
type destination struct {
	Source
	q       *queue.Queue
	log     *zap.Logger
	metrics *sourceMetrics
	giveUp  time.Duration
	wake    chan struct{} // Capacity 1: the next probe's time has moved.
	judged  chan struct{} // Closed once the canary has passed or the destination was given up.

	requests *queue.Shares                    // Requests at once, of all destinations.
	lanes    [queue.Lanes]*semaphore.Weighted // And of this one from a lane on; nil: laneTiny has all.
	traffic  traffic
	failing  failing

	mu         sync.Mutex
	st         DestinationState
	canary     bool      // The next probe is the canary, not a ping.
	tries      int       // Probes in a row that failed.
	streak     int       // Requests in a row without an answer.
	trips      int       // Times the breaker opened since a write was acknowledged.
	stops      int       // Times the destination did not confirm the key.
	stopped    bool      // OnStopped is to be called.
	told       time.Time // The st.Since that a record was written of.
	refusals   int       // Files in a row that were refused.
	suspicion  int       // Times the canary passed although files in a row were refused.
	blamed     bool      // The canary was refused since the destination was parked.
	heldAsked  time.Time // When held files were last tried.
	notices    notices
	proven     time.Time // When the canary that last passed was sent; zero: none has.
	gaveUp     bool
	nextCanary time.Time // While the destination works.
	settled    bool      // Interrupted writes were queued.
	window     window
	absent     int // New files in a row that S3 did not hold.
	open       map[string]int
	moved      map[string]int // Looks in a row at which a path moved.
	parked     map[state.Class]int64
	identity   *safefs.Identity
	skips      int64 // Decided by the index alone, not yet counted in the state.
	logged     struct {
		key string
		at  time.Time
	}
}

// How often the canary runs at a destination that works, how long after one that
// had no answer, and how long a probe may take.
const (
	canaryEvery = 24 * time.Hour
	canaryRetry = 10 * time.Minute
	probeLimit  = 2 * time.Minute
	pingLimit   = 20 * time.Second // A ping into a dead network must not outlast the outage.
)

func newDestination(s Source, q *queue.Queue, o Options, c capacity) *destination {
	d := &destination{
		Source: s, q: q, giveUp: o.GiveUp,
		log:     o.Log.With(zap.String("source", s.Name)),
		metrics: o.Metrics.source(s.Name),
		wake:    make(chan struct{}, 1),
		judged:  make(chan struct{}),
		window:  newWindow(int(c.looks.Most())),
		open:    map[string]int{},
		moved:   map[string]int{},
		parked:  map[state.Class]int64{},
		st:      DestinationState{State: HealthOK},
	}
	d.requests = c.requests
	for l := queue.LaneSmall; l < queue.Lanes; l++ {
		d.lanes[l] = semaphore.NewWeighted(max(1, c.requests.Most()-int64(min(l, queue.LaneWhole))))
	}
	if !s.Proven {
		d.st.State, d.canary = HealthWaiting, true
	} else {
		d.nextCanary = s.ProvenAt.Add(canaryEvery)
		if s.ProvenAt.IsZero() {
			d.nextCanary = time.Now().Add(canaryEvery)
		}
	}
	return d
}

// begin sets the state at the start of a run.
func (d *destination) begin(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.st.Since, d.st.NextProbe = now, now
	d.q.Source(d.Name).SetLimit(d.window.limit())
	d.publish()
}

// state returns a copy of what is known.
func (d *destination) state() DestinationState {
	d.mu.Lock()
	defer d.mu.Unlock()
	st := d.st
	st.Proven = d.trusted()
	st.Stalled, st.StalledSince = d.traffic.stalled(time.Now())
	return st
}

// trusted reports whether the canary has passed, and no answer without the key
// came since. The caller holds d.mu.
func (d *destination) trusted() bool {
	return d.st.State != HealthStopped && (d.Proven && d.stops == 0 || !d.proven.IsZero())
}

// gate says whether a request may be sent now.
func (d *destination) gate() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.st.State == HealthStopped {
		return errHeldBack
	}
	return nil
}

// hopeless returns the error with which every file ends while the destination
// has been given up, nil otherwise.
func (d *destination) hopeless() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.gaveUp {
		return nil
	}
	return d.st.Err
}

// observe takes in how one request ended.
func (d *destination) observe(err error) {
	a := answerOf(err)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch a {
	case answerGood:
		d.streak, d.st.Answered = 0, true
		if d.window.grew() {
			d.q.Source(d.Name).SetLimit(d.window.limit())
		}
	case answerThrottled:
		d.narrow()
		d.window.answered()
		if d.window.limit() == 1 {
			d.streak++
		}
	case answerNone:
		d.streak++
	case answerUnsafe:
		d.leave(HealthStopped, err)
	case answerNothing:
	}
	if d.streak >= breakerStreak && d.st.State == HealthOK {
		d.leave(HealthWaiting, err)
	}
}

// narrow halves the window. The caller holds d.mu.
func (d *destination) narrow() {
	if d.window.halved() {
		d.q.Source(d.Name).SetLimit(d.window.limit())
	}
}

// wrote takes in that a write was acknowledged.
func (d *destination) wrote() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refusals, d.trips = 0, 0
}

// refused takes in an error that needs a person, of a file with the trouble tr. It parks the destination, or
// reports true when the error concerns the file alone: the canary has passed
// since the file was first refused. One that passed a moment before is believed
// for as long only: after it the next refusal asks the canary.
func (d *destination) refused(tr *queue.Streak, err error, now time.Time) (alone bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !tr.ParkedAt.IsZero() && d.proven.After(tr.ParkedAt) {
		return true
	}
	if !tr.Alone {
		d.refusals++
	}
	if tr.ParkedAt.IsZero() {
		tr.ParkedAt = now
	}
	if !d.proven.IsZero() && now.Sub(d.proven) < provenFor && d.refusals <= refusalStreak<<d.suspicion {
		return true
	}
	tr.ParkedAt = now
	if d.st.State == HealthOK || d.st.State == HealthWaiting {
		d.leave(HealthParked, err)
	}
	return false
}

// leave takes the destination out of service. The caller holds d.mu.
func (d *destination) leave(h Health, err error) {
	if d.st.State == HealthStopped && h != HealthStopped {
		return
	}
	now := time.Now()
	if d.st.State != h {
		d.st.Since, d.tries = now, 0
		if h == HealthWaiting {
			d.tries = d.trips // It answers pings, but no write gets through: ask less often.
			d.trips++
		}
	}
	if h == HealthStopped {
		d.stops++
		d.stopped, d.proven = true, time.Time{}
	}
	d.st.State, d.st.Class, d.st.Err = h, state.ClassOf(err), err
	d.canary = d.canary || h != HealthWaiting
	d.gaveUp = d.gaveUp || d.giveUp > 0 && h == HealthStopped
	d.tries++
	d.st.NextProbe = now.Add(probeWait(h, d.tries))
	d.publish()
	d.nudge()
	if d.logged.key == string(h)+string(d.st.Class) && now.Sub(d.logged.at) < time.Minute {
		return
	}
	d.logged.key, d.logged.at = string(h)+string(d.st.Class), now
	d.log.Warn("destination out of service, its files wait",
		zap.String("state", string(h)), zap.String("class", string(d.st.Class)),
		zap.Time("next_probe", d.st.NextProbe), zap.Error(err))
}

// publish brings queue and metrics in line with the state. The caller holds d.mu.
func (d *destination) publish() {
	d.q.Source(d.Name).SetBlocked(d.st.State != HealthOK && !d.gaveUp)
	d.metrics.health(d.st)
	if d.gaveUp || d.trusted() {
		d.judge()
	}
}

// judge lets Await return. The caller holds d.mu.
func (d *destination) judge() {
	select {
	case <-d.judged:
	default:
		close(d.judged)
	}
}

// nudge makes tend look at the state again.
func (d *destination) nudge() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// untilProbe returns how long to the next probe.
func (d *destination) untilProbe() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.st.State == HealthOK {
		return max(0, time.Until(d.nextCanary))
	}
	return max(0, time.Until(d.st.NextProbe))
}

// probeNow brings the next probe forward, and makes it the canary where a
// person was needed.
func (d *destination) probeNow() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.st.NextProbe = time.Now()
	d.nudge()
}

// probe asks whether the destination works, and puts it back into service when
// it does. Only one probe runs at a time.
func (d *destination) probe(parent context.Context) {
	d.mu.Lock()
	routine := d.st.State == HealthOK
	canary := d.canary || routine
	stops := d.stops
	d.mu.Unlock()
	limit := probeLimit
	if !canary {
		limit = pingLimit
	}
	if d.giveUp > 0 {
		limit = min(limit, d.giveUp)
	}
	ctx, cancel := context.WithTimeout(parent, limit)
	defer cancel()
	begun := time.Now()
	var err error
	if canary {
		err = d.Objects.Probe(ctx)
	} else if err = d.Objects.Ping(ctx); answerOf(err) == answerGood {
		err = nil
	}
	if parent.Err() != nil && answerOf(err) == answerNothing {
		return
	}
	if routine {
		d.proved(err, begun)
		return
	}
	if works, held := d.probed(err, begun, canary, stops); works {
		d.restart(canary, held)
	}
}

// proved takes in the answer of a canary, sent at begun, at a destination that
// worked. Only a refusal takes it out of service: an answer that does not come
// is noticed by the requests for files.
func (d *destination) proved(err error, begun time.Time) {
	if err == nil && d.OnProven != nil {
		d.OnProven()
	}
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	switch c := state.ClassOf(err); {
	case err == nil:
		d.proven, d.nextCanary = begun, now.Add(canaryEvery)
	case c.Stops():
		d.metrics.mismatches.Inc()
		d.leave(HealthStopped, err)
	case c.NeedsOperator():
		d.leave(HealthParked, err)
	default:
		d.nextCanary = now.Add(canaryRetry)
	}
}

// probed takes in the answer of a probe, sent at begun, when the destination had
// been stopped so many times. It reports whether the destination works again, and
// whether the files that are held alone may go as well: not when the canary was
// never refused, for then it is not the destination that refuses them.
func (d *destination) probed(err error, begun time.Time, canary bool, stops int) (works, held bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.failedProbe(err)
		return false, false
	}
	if d.canary && !canary || d.stops != stops {
		return false, false // It went further out of service while it was asked.
	}
	held = canary && (d.blamed || d.st.State != HealthParked)
	if held {
		d.suspicion = 0
	} else if canary {
		d.suspicion = min(d.suspicion+1, suspicionMax)
	}
	now := time.Now()
	d.log.Info("destination works", zap.Duration("out_of_service", now.Sub(d.st.Since)))
	d.st = DestinationState{State: HealthOK, Since: now, Answered: true}
	d.tries, d.streak, d.refusals, d.gaveUp = 0, 0, 0, false
	if canary {
		d.canary, d.proven, d.nextCanary = false, begun, now.Add(canaryEvery)
		d.blamed = false
	}
	d.publish()
	return true, held
}

// failedProbe moves the state where the answer says more than was known. The
// caller holds d.mu.
func (d *destination) failedProbe(err error) {
	h := d.st.State
	switch c := state.ClassOf(err); {
	case c.Stops():
		h = HealthStopped
		d.metrics.mismatches.Inc()
	case c.NeedsOperator() && h == HealthWaiting:
		h = HealthParked
	}
	d.blamed = d.blamed || state.ClassOf(err).NeedsOperator()
	if h == d.st.State && h != HealthWaiting && !state.ClassOf(err).NeedsOperator() {
		err = d.st.Err // The cause that needs a person stays the one shown.
	}
	d.leave(h, err)
	if d.giveUp > 0 && h == HealthParked {
		d.gaveUp = true // The canary is refused too: nobody will be there to mend it.
		d.publish()
	}
}

// restart releases what waited for the destination, with held also what waits
// for a person alone.
func (d *destination) restart(canary, held bool) {
	d.q.Source(d.Name).Release(held)
	if canary && d.OnProven != nil {
		d.OnProven()
	}
	d.settleOpen()
}

// tellStopped passes on that the destination did not confirm the key.
func (d *destination) tellStopped() {
	d.mu.Lock()
	tell := d.stopped
	d.stopped = false
	d.mu.Unlock()
	if tell && d.OnStopped != nil {
		d.OnStopped()
	}
}

// checkGiveUp gives the destination up when it has not answered for too long.
func (d *destination) checkGiveUp(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.giveUp == 0 || d.gaveUp || d.st.State != HealthWaiting || d.st.Err == nil || now.Sub(d.st.Since) < d.giveUp {
		return
	}
	d.gaveUp = true
	d.publish()
}

// tend probes the destination whenever it is out of service, and keeps its
// gauges, until ctx ends.
func (d *destination) tend(ctx context.Context, p *Pool) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	defer d.tellStopped()
	for {
		d.tellStopped()
		probe := time.After(d.untilProbe())
		select {
		case <-ctx.Done():
			return
		case <-d.wake:
		case <-probe:
			d.probe(ctx)
		case now := <-tick.C:
			if p.o.Paused != nil {
				d.q.Source(d.Name).SetPaused(p.o.Paused(d.Name))
			}
			d.checkGiveUp(now)
			p.recordParked(ctx, d)
			d.probeHeld(now)
			d.flushNotices(now)
			d.watchTraffic(now)
			d.flushSkips(ctx)
			d.gauges()
		}
	}
}
