package uploader

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/breaker"
	"github.com/s3syncd/s3syncd/pkg/gate"
	"github.com/s3syncd/s3syncd/pkg/journal"
	"github.com/s3syncd/s3syncd/pkg/localfile"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/remote"
)

const (
	// headStreak new files in a row that S3 did not hold end asking for each.
	headStreak = 16
	// heldEvery is how often one file of each cause that holds files is tried.
	heldEvery = 50 * time.Second
)

// destination is one source with what all attempts at its files share.
type destination struct {
	src      *Source
	q        *queue.Queue
	queue    *queue.Source
	log      *zap.Logger
	metrics  sourceMetrics
	store    *gate.Store
	breaker  *breaker.Breaker
	gate     *gate.Gate
	journal  *journal.Journal
	logLimit *breaker.LogLimiter

	open     openKeys
	failing  failing
	moving   moving
	absent   atomic.Int64 // New files in a row that S3 did not hold.
	resolves atomic.Bool  // The interrupted writes of earlier runs are queued.
	identity atomic.Pointer[safefs.Identity]
}

// newDestination returns the destination of s, which q serves.
func newDestination(s *Source, q *queue.Queue, o Options, c capacity) *destination {
	d := &destination{
		src: s, q: q, queue: q.Source(s.Name),
		log:      o.Log.With(zap.String("source", s.Name)),
		metrics:  o.Metrics.source(s.Name),
		store:    &gate.Store{Objects: s.Objects, Multipart: s.Multipart, Copy: s.Copy, Fetch: s.Fetch},
		logLimit: breaker.NewLogLimiter(o.GiveUp > 0),
		open:     openKeys{unresolved: map[string]int{}},
		failing:  failing{paths: map[string]*failure{}},
		moving:   moving{paths: map[string]int{}},
	}
	d.journal = journal.New(journal.Options{
		Source: s.Name, Instance: s.Instance, Bucket: s.Bucket, RealPath: s.RealPath, Root: s.Root, State: s.State,
		ListSkips: o.ListSkips, ShortLife: s.ShortLife,
	}, d.metrics)
	d.breaker = breaker.New(breaker.Options{
		Proven: s.Proven, ProvenAt: s.ProvenAt, GiveUp: o.GiveUp, Attempts: int(c.attempts.Most()),
	}, checks{d.store, d.metrics}, d, d.log)
	d.gate = gate.New(s.Name, d.store, d.breaker, c.requests, d.log)
	return d
}

// load reads what earlier runs left: the open intents, and how many paths have
// a failure that needs an operator.
func (d *destination) load() error {
	intents, err := d.src.State.Intents()
	if err != nil {
		return fmt.Errorf("read intents of %s: %w", d.src.Name, err)
	}
	for i := range intents {
		d.open.add(intents[i].Key, intents[i].Unresolved)
	}
	return d.journal.Load()
}

// run probes the destination when it is out of service, and does each second
// what has to be done from time to time, until ctx ends.
func (d *destination) run(ctx context.Context, p *Pool) {
	var probing sync.WaitGroup
	defer probing.Wait()
	probing.Go(func() { d.breaker.Run(ctx) })
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var heldAsked, recordedSince time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if p.o.Paused != nil {
				d.queue.SetPaused(p.o.Paused(d.src.Name))
			}
			s := d.breaker.Status()
			if !recordedSince.Equal(s.Since) && p.recordParked(ctx, d, s) {
				recordedSince = s.Since
			}
			if s.State == breaker.HealthOK && now.Sub(heldAsked) >= heldEvery {
				heldAsked = now
				d.probeHeld()
			}
			d.logLimit.Flush(now, d.log)
			d.metrics.set(d.metrics.m.stalled, float64(d.gate.Monitor.Report(now, d.log)))
			d.metrics.set(d.metrics.m.failing, float64(d.failing.list(now).Files))
			d.flushSkips(ctx)
			d.gauges()
		}
	}
}

// probeHeld tries one of the files that each cause holds, at least once a
// minute, while the destination itself works. The rest follows when it is taken.
func (d *destination) probeHeld() {
	held := d.queue.ProbeHeld()
	for _, cause := range slices.Sorted(maps.Keys(held)) {
		d.log.Warn("files wait for an operator, one is tried again each minute",
			zap.String("cause", cause), zap.Int("files", held[cause]))
	}
}

// recordParked gives the cause for which a destination waits for an operator its
// record: that of the file that has waited longest. The others wait with it. It
// reports whether there is nothing left to do until the state changes.
func (p *Pool) recordParked(ctx context.Context, d *destination, s breaker.Status) bool {
	if s.State != breaker.HealthParked && s.State != breaker.HealthStopped || p.o.GiveUp > 0 {
		return false
	}
	job, ok := d.queue.Waiting()
	if !ok {
		return false
	}
	a := newAttempt(p, d, nil, job)
	recorded, err := a.journal.Failed(ctx, s.Err, false)
	if err != nil {
		return false // The state cannot be written now: the next second tries again.
	}
	if recorded {
		a.journal.End.Status = archive.StatusFailed
		a.report(s.Err, true)
	}
	return true
}

// flushSkips adds the skips that the index alone decided to the next digest.
func (d *destination) flushSkips(ctx context.Context) {
	if err := d.journal.FlushSkips(ctx); err != nil {
		d.log.Warn("skips are not counted yet, the next attempt adds them", zap.Error(err))
	}
}

// gauges sets the gauges that no event updates. While an operator is
// needed for the destination, everything that waits for it is parked.
func (d *destination) gauges() {
	queued, _, delayed := d.queue.Depth()
	s := d.breaker.Status()
	parked := d.journal.Parked()
	for _, c := range archive.Classes() {
		n := parked[c]
		if c == s.Class && (s.State == breaker.HealthParked || s.State == breaker.HealthStopped) {
			n = max(n, int64(queued+delayed)) // Those with a record wait among them.
		}
		d.metrics.set(d.metrics.m.parked, float64(n), string(c))
	}
	d.metrics.set(d.metrics.m.unresolved, float64(d.open.sum()))
}

// status is what is known of the destination.
func (d *destination) status(now time.Time) breaker.Status {
	s := d.breaker.Status()
	s.Stalled, s.StalledSince = d.gate.Monitor.Stalled(now)
	return s
}

// judge returns a judge of objects in the place of entry.
func (d *destination) judge(entry archive.Entry) (remote.Judge, error) {
	c, err := d.src.State.Chain()
	if err != nil {
		return remote.Judge{}, localfile.Local(archive.ClassTransient, "read the chain", err)
	}
	j := remote.NewJudge(d.src.Instance, d.src.Host, c, entry)
	j.Read, j.Ended = d.gate.Compare, d.src.Ended
	return j, nil
}

// headFirst decides whether S3 is asked for a new file of size bytes before it is
// sent. It is, until a row of new files were absent: a destination that was
// filled before, by an older tool or by a state that was lost, costs a HEAD a
// file instead of a body in vain, and an empty one no HEADs.
func (d *destination) headFirst(size int64) bool {
	return size > queue.SmallMax || d.absent.Load() < headStreak
}

// noteFound notes whether S3 held what it was asked for.
func (d *destination) noteFound(present bool) {
	if present {
		d.absent.Store(0)
		return
	}
	d.absent.Add(1)
}

// Changed is part of breaker.Effects.
func (d *destination) Changed(s breaker.Status, hold bool) {
	d.queue.SetBlocked(hold)
	d.metrics.health(s)
}

// Limit is part of breaker.Effects.
func (d *destination) Limit(n int) { d.queue.SetLimit(n) }

// Proven is part of breaker.Effects.
func (d *destination) Proven() {
	if d.src.OnProven != nil {
		d.src.OnProven()
	}
}

// Stopped is part of breaker.Effects.
func (d *destination) Stopped() {
	if d.src.OnStopped != nil {
		d.src.OnStopped()
	}
}

// Works is part of breaker.Effects: it releases what waited for the destination.
func (d *destination) Works(released bool) {
	d.queue.Release(released)
	d.resolveInterrupted()
}

// resolveInterrupted queues the paths of interrupted writes when the destination
// has answered for the first time.
func (d *destination) resolveInterrupted() {
	if d.resolves.Swap(true) {
		return
	}
	intents, err := d.src.State.Intents()
	if err != nil {
		d.log.Error("interrupted writes are not known, each is resolved by the next attempt at its file", zap.Error(err))
		return
	}
	for i := range intents {
		in := &intents[i]
		d.q.OfferIfAbsent(queue.Job{Source: d.src.Name, Path: in.Path, Kind: archive.Settle, Trigger: in.Trigger, Detected: in.DetectedAt})
	}
	if len(intents) > 0 {
		d.log.Info("resolving interrupted writes", zap.Int("writes", len(intents)))
	}
}
