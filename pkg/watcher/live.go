package watcher

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/ignore"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// triggerOverflow is that of a scan after events were lost.
const triggerOverflow archive.Trigger = "overflow"

// pollCost is how much longer than a poll itself the pause after it is.
const pollCost = 20

// pollMax is the longest pause that the cost of a poll makes.
const pollMax = 5 * time.Minute

// live runs everything that a source needs while it is there. It returns why
// the source is not in use any more, after all its goroutines have.
func (w *Watcher) live(ctx context.Context, id safefs.Identity) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w.mounts.check(id.RealPath) // Against those of the time before it was away: they may come back later.
	select {
	case <-w.renewal: // All watches are new anyway.
	default:
	}
	w.dirty.reset()
	w.links.reset()
	w.told.reset()
	w.events.take(nil)
	if w.started.Swap(true) {
		w.requests.scan(archive.TriggerRescan)
	} else {
		w.requests.scan(archive.TriggerStartup)
	}
	placed := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { (&settling{w: w, events: w.events}).run(ctx) })
	wg.Go(func() { w.watchTree(ctx, id, placed) })
	wg.Go(func() { w.scanner(ctx, id, placed) })
	wg.Go(func() { w.clock(ctx) })
	wg.Go(func() { w.linkFinder(ctx) })
	wg.Go(func() { cancel(w.guard(ctx, id)) })
	wg.Wait()
	w.polls.reset()
	w.gauges(0)
	return context.Cause(ctx)
}

// clock asks for the periodic scans and polls until ctx ends.
func (w *Watcher) clock(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() {
		every(ctx, w.o.RescanInterval, func() { w.requests.scan(archive.TriggerRescan) })
	})
	wg.Go(func() {
		every(ctx, w.o.PollInterval, func() {
			w.shape.add(reshaped{retry: true})
			w.requests.polls()
		})
	})
	wg.Wait()
}

// every calls f after each interval, give or take 10%, until ctx ends. An
// interval of 0 is never.
func every(ctx context.Context, interval time.Duration, f func()) {
	if interval <= 0 {
		return
	}
	for wait(ctx, jitter(interval)) == nil {
		f()
	}
}

// jitter spreads d by 10% to both sides.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration((rand.Float64()-0.5)*0.2*float64(d))
}

// scanner runs the scans that are asked for, one at a time, until ctx ends. The
// first one begins when watches are everywhere.
func (w *Watcher) scanner(ctx context.Context, id safefs.Identity, placed <-chan struct{}) {
	select {
	case <-placed:
	case <-ctx.Done():
		return
	}
	var nextPoll, nextRemoval time.Time
	for ctx.Err() == nil {
		trigger, poll := w.requests.take(!time.Now().Before(nextRemoval))
		if trigger != "" {
			begin := time.Now()
			w.scanSource(ctx, id, trigger)
			nextRemoval = time.Now().Add(max(w.t.removal, min(pollCost*time.Since(begin), pollMax)))
		}
		if poll && time.Now().After(nextPoll) {
			begin := time.Now()
			w.poll(ctx, id)
			nextPoll = time.Now().Add(min(pollCost*time.Since(begin), pollMax) - w.o.PollInterval/2)
		}
		w.serveFlushes(ctx, id)
		if trigger != "" || poll {
			continue
		}
		w.awaitRequest(ctx, nextRemoval)
	}
}

// awaitRequest returns when the scanner may have something to do; scans because
// of removals wait until nextRemoval.
func (w *Watcher) awaitRequest(ctx context.Context, nextRemoval time.Time) {
	var due <-chan time.Time
	if w.requests.wantsRemovals() {
		t := time.NewTimer(time.Until(nextRemoval))
		defer t.Stop()
		due = t.C
	}
	select {
	case <-ctx.Done():
	case <-w.requests.wake:
	case <-due:
	}
}

// scanSource scans the whole source and reports what it found.
func (w *Watcher) scanSource(ctx context.Context, id safefs.Identity, trigger archive.Trigger) {
	p := w.scanPolicy(trigger)
	p.missed = trigger == archive.TriggerRescan || trigger == archive.TriggerHangup
	p.onSame = w.o.OnSame
	res := w.whole(ctx, id, trigger, p, p)
	if ctx.Err() != nil && !res.Complete {
		return // The source went, or the daemon stops: the next start scans again.
	}
	w.report(&res)
	if !res.Complete && w.o.Mirror {
		w.requests.removals() // Those that it was to decide on still wait.
	}
	if errors.Is(res.Err, safefs.ErrRootChanged) {
		w.suspect()
	}
}

// scanPolicy is that of the scans that block while the sink is full.
func (w *Watcher) scanPolicy(trigger archive.Trigger) *offerer {
	switch trigger {
	case archive.TriggerStartup, archive.TriggerHangup, archive.TriggerSync, archive.TriggerPoll:
	default:
		trigger = archive.TriggerRescan
	}
	return &offerer{
		w: w, trigger: trigger, offer: w.offerLast, settles: true,
		busy: func() bool { return w.events.n.Load() > settleBatch || w.shape.n.Load() > 0 },
	}
}

// whole scans the whole source with the policy as, which is p or stands before
// it; the identity must hold before and after.
func (w *Watcher) whole(ctx context.Context, id safefs.Identity, trigger archive.Trigger, p *offerer, as policy) ScanResult {
	w.mounts.check(id.RealPath)
	s := w.newScan("", scanTrigger(trigger), as)
	if w.o.Mirror {
		p.doomed, p.consented = w.newDoomed(), w.consent.take()
	}
	w.mounts.begin()
	w.overLinked.begin()
	err := w.verify(id)
	if err == nil {
		err = s.run(ctx)
	}
	if err == nil {
		err = w.verify(id)
	}
	if err == nil && w.o.Mirror {
		err = w.decide(ctx, p, &s.res)
	}
	if err != nil && p.consented {
		w.consent.give()
	}
	if s.res.Start.IsZero() {
		s.res.Start, s.res.End = time.Now(), time.Now()
	}
	w.mounts.check(id.RealPath)
	if err == nil && !w.replaced.Load() {
		w.mounts.settle()
	}
	w.overLinked.end()
	s.res.Err, s.res.Complete = err, err == nil
	s.res.Replaced = w.replaced.Load()
	return s.res
}

// scanTrigger returns trigger if scans are counted by it, else archive.TriggerRescan.
func scanTrigger(trigger archive.Trigger) archive.Trigger {
	for _, t := range triggers() {
		if t == trigger {
			return t
		}
	}
	return archive.TriggerRescan
}

func (w *Watcher) report(res *ScanResult) {
	w.met.scanned(res.Trigger, res)
	fields := []zap.Field{
		zap.String("trigger", string(res.Trigger)), zap.Duration("took", res.End.Sub(res.Start)), zap.Int64("files", res.Files),
		zap.Int64("new", res.New), zap.Int64("changed", res.Changed), zap.Int64("unchanged", res.Unchanged),
		zap.Int64("gone", res.Gone), zap.Int64("missed", res.Missed), zap.Int64("withheld", res.Withheld), zap.Int64("held", res.Held),
		zap.Int64("excluded", res.Excluded), zap.Int64("unreadable", res.Unreadable), zap.Int64("special", res.Special),
	}
	if res.Complete {
		res.UnusedIncludes = w.ign.Unused()
	}
	if len(res.UnusedIncludes) > 0 {
		fields = append(fields, zap.Strings("include_without_files", res.UnusedIncludes))
	}
	if res.Complete {
		w.log.Info("scanned", fields...)
	} else {
		w.log.Warn("scan ended early, the next one does it again", append(fields, zap.Error(res.Err))...)
	}
	if n := w.ign.TakeCostly(); n > 0 {
		w.log.Warn("the patterns of the ignore files take too long, the paths are archived without asking the rest of them",
			zap.Int64("paths", n), zap.Int("steps", ignore.Budget))
	}
	if w.o.OnScan != nil {
		w.o.OnScan(*res)
	}
}

// ScanOnce scans the source once without watching and offers what differs from
// the index; it blocks while the sink is full. It must not be called while Run
// is under way. The error is that of the result.
func (w *Watcher) ScanOnce(ctx context.Context, trigger archive.Trigger) (ScanResult, error) {
	var a assessor
	id, reason := w.assess(&a)
	if reason != "" && a.proposed == id { // Readable and not empty: looked at twice.
		id, reason = w.assess(&a)
	}
	if reason != "" {
		res := ScanResult{Trigger: scanTrigger(trigger), Start: time.Now(), End: time.Now(), Err: errors.New(reason)}
		w.met.available.Set(0)
		return res, res.Err
	}
	w.back(&a, id)
	p := w.scanPolicy(trigger)
	p.settles, p.busy, p.onSame = false, nil, w.o.OnSame
	res := w.whole(ctx, id, trigger, p, p)
	p.scanAgain(ctx, id, &res)
	w.report(&res)
	return res, res.Err
}
