package watcher

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/debounce"
	"github.com/s3syncd/s3syncd/internal/ignore"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/internal/watches"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

const (
	// pollCost is how much longer than a poll, or a scan because of removals, the
	// pause after it is; pollMax is the longest such pause.
	pollCost = 20
	pollMax  = 5 * time.Minute
	// restPause is how long a scan waits for events to be handled, at each directory.
	restPause = time.Millisecond
)

// ScanResult is what a scan found.
type ScanResult struct {
	scan.Result

	Trigger  archive.Trigger
	Complete bool // The scan reached its end and the source was the same all the time.
	Err      error
	// Replaced: another directory is in the place of the source. Withheld files
	// count as neither gone nor there until ConfirmDeletes is called.
	Replaced bool
	Withheld int64
	// Held is how many files of a mirrored source are gone if none of them was
	// offered because they are too many, see Options.Mirror.
	Held int64
	// Waiting files of a mirrored source are most of those of a directory, and
	// gone at once: they are offered when a second scan finds them gone.
	Waiting int64

	New, Changed, Gone int64
	Missed             int64    // New, Changed and Gone that no event reported.
	UnusedIncludes     []string // Patterns of Include that no file has matched so far.
}

// scanner scans and polls, one scan at a time.
type scanner struct {
	source   *scan.Source
	presence *presence
	mirror   *mirror
	requests *requests
	flushes  *flushes
	watches  *watches.Watches
	dirty    *debounce.Debouncer
	out      *outlet
	scans    debounced // What the scans that run while the source is watched have in common.

	settle, pollInterval time.Duration
	second               time.Duration // Between the two scans of a mirror that a flush or once waits for.
	removal              time.Duration // Shortest time between a scan and one because of removals.
	onScan               func(ScanResult)
	onSame               func(scan.Known, safefs.Stat, archive.Trigger)
	met                  *sourceMetrics
	log                  *zap.Logger
}

// run runs the scans that are asked for, until ctx ends. The first one begins when
// watches are everywhere.
func (s *scanner) run(ctx context.Context, id safefs.Identity, placed <-chan struct{}) {
	select {
	case <-placed:
	case <-ctx.Done():
		return
	}
	var nextPoll, nextRemoval time.Time
	for ctx.Err() == nil {
		trigger, poll := s.requests.take(!time.Now().Before(nextRemoval))
		if trigger != "" {
			begin := time.Now()
			s.scan(ctx, id, trigger)
			nextRemoval = time.Now().Add(max(s.removal, min(pollCost*time.Since(begin), pollMax)))
		}
		if poll && time.Now().After(nextPoll) {
			begin := time.Now()
			s.poll(ctx, id)
			nextPoll = time.Now().Add(min(pollCost*time.Since(begin), pollMax) - s.pollInterval/2)
		}
		s.flush(ctx, id)
		if trigger == "" && !poll {
			s.awaitRequest(ctx, nextRemoval)
		}
	}
}

// awaitRequest returns when there may be something to do; scans because of
// removals wait until nextRemoval.
func (s *scanner) awaitRequest(ctx context.Context, nextRemoval time.Time) {
	var due <-chan time.Time
	if s.requests.wantsRemovals() {
		t := time.NewTimer(time.Until(nextRemoval))
		defer t.Stop()
		due = t.C
	}
	select {
	case <-ctx.Done():
	case <-s.requests.wake:
	case <-due:
	}
}

// scan scans the whole source and reports what it found.
func (s *scanner) scan(ctx context.Context, id safefs.Identity, trigger archive.Trigger) {
	d := s.debounced(trigger)
	d.missed = trigger == archive.TriggerRescan || trigger == archive.TriggerHangup
	d.onSame = s.onSame
	res := s.whole(ctx, id, trigger, &d.offerer, scan.Options{Found: d.found, Rest: s.rest})
	if ctx.Err() != nil && !res.Complete {
		return // The source went, or the daemon stops: the next start scans again.
	}
	s.report(&res)
	if !res.Complete && s.mirror.on {
		s.requests.removals() // Those that it was to decide on still wait.
	}
	if errors.Is(res.Err, safefs.ErrRootChanged) {
		s.presence.suspect()
	}
}

// debounced returns what a scan beside the events does with its findings.
func (s *scanner) debounced(trigger archive.Trigger) *debounced {
	d := s.scans
	d.trigger, d.offer, d.restless = changeTrigger(trigger), s.out.offerLast, d.touch
	return &d
}

// direct returns what a scan that leaves nothing to the debouncer does with its
// findings.
func (s *scanner) direct(trigger archive.Trigger, fresh bool) *direct {
	d := &direct{offerer: s.scans.offerer, fresh: fresh}
	d.trigger, d.offer, d.onSame = changeTrigger(trigger), s.out.offerLast, s.onSame
	return d
}

// changeTrigger returns the trigger of the changes that a scan finds.
func changeTrigger(trigger archive.Trigger) archive.Trigger {
	if trigger = scanTrigger(trigger); trigger == triggerOverflow {
		return archive.TriggerRescan
	}
	return trigger
}

// rest lets events go first.
func (s *scanner) rest(ctx context.Context) error {
	if events, changes := s.watches.Backlog(); events > batch || changes > 0 {
		return wait(ctx, restPause)
	}
	return ctx.Err()
}

// whole scans the whole source; its identity must be the same before and after.
// What o finds gone of a mirrored source is decided at the end.
func (s *scanner) whole(ctx context.Context, id safefs.Identity, trigger archive.Trigger, o *offerer, how scan.Options) ScanResult {
	res := ScanResult{Trigger: scanTrigger(trigger)}
	s.presence.mounts.Check(id.RealPath)
	o.res, o.deletions = &res, s.mirror.begin()
	s.presence.mounts.BeginScan()
	s.source.OverLinked.Begin()
	if o.onSame != nil {
		how.Same = o.same
	}
	err := s.presence.verify(id)
	if err == nil {
		err = s.source.Run(ctx, how, &res.Result)
	}
	if err == nil {
		err = s.presence.verify(id)
	}
	if o.deletions != nil {
		if err == nil {
			err = s.mirror.decide(ctx, o.deletions, o.offer, &res)
		}
		if err != nil && o.deletions.consented {
			s.mirror.consent.give()
		}
	}
	if res.Start.IsZero() {
		res.Start, res.End = time.Now(), time.Now()
	}
	s.presence.mounts.Check(id.RealPath)
	if err == nil && !s.presence.replaced.Load() {
		s.presence.mounts.EndScan()
	}
	s.source.OverLinked.End()
	res.Err, res.Complete = err, err == nil
	res.Replaced = s.presence.replaced.Load()
	return res
}

// scanTrigger returns trigger if scans are counted by it, else archive.TriggerRescan.
func scanTrigger(trigger archive.Trigger) archive.Trigger {
	if slices.Contains(triggers(), trigger) {
		return trigger
	}
	return archive.TriggerRescan
}

// poll scans what is not watched, or not by events alone.
func (s *scanner) poll(ctx context.Context, id safefs.Identity) {
	roots, lists := s.watches.Polled()
	for _, dir := range roots {
		if ctx.Err() != nil {
			return
		}
		d := s.debounced(archive.TriggerPoll)
		how := scan.Options{Dir: dir, Found: d.found, Rest: s.rest}
		if dir == "" {
			res := s.whole(ctx, id, archive.TriggerPoll, &d.offerer, how)
			s.polled(ctx, dir, res.Directories, res.Err)
			s.met.scanned(archive.TriggerPoll, &res)
			return // Everything else is part of it.
		}
		d.res = &ScanResult{}
		err := s.source.Run(ctx, how, &d.res.Result)
		s.polled(ctx, dir, d.res.Directories, err)
	}
	now := time.Now().Add(-s.settle) // They are due at once.
	for _, dir := range lists {
		s.dirty.List(dir, now, archive.TriggerPoll)
	}
}

// polled notes how a scan of the polled directory dir ended.
func (s *scanner) polled(ctx context.Context, dir string, directories int64, err error) {
	switch {
	case err == nil:
		s.watches.Counted(dir, directories)
	case errors.Is(err, safefs.ErrRootChanged):
		s.presence.suspect()
	case ctx.Err() == nil:
		s.log.Warn("directory not polled, it is tried again", zap.String("path", dir), zap.Error(err))
	}
}

// flush runs one scan for all flushes that wait. What is not quiet it offers as it
// is, so that nothing is left to the debouncer.
func (s *scanner) flush(ctx context.Context, id safefs.Identity) {
	waiting := s.flushes.take()
	if len(waiting) == 0 {
		return
	}
	res := s.twice(ctx, id, archive.TriggerRescan, s.direct(archive.TriggerRescan, true), s.rest)
	err := flushError(&res)
	if ctx.Err() != nil && !res.Complete {
		err = fmt.Errorf("scan: %w", context.Cause(ctx))
	} else {
		s.report(&res)
		if errors.Is(res.Err, safefs.ErrRootChanged) {
			s.presence.suspect()
		}
	}
	for _, done := range waiting {
		done <- err
	}
}

// once scans the source if it may be used.
func (s *scanner) once(ctx context.Context, trigger archive.Trigger) (ScanResult, error) {
	var c candidate
	id, reason := s.presence.assess(&c)
	if reason != "" && c.proposed == id { // Readable and not empty: it is checked twice.
		id, reason = s.presence.assess(&c)
	}
	if reason != "" {
		now := time.Now()
		res := ScanResult{Trigger: scanTrigger(trigger), Result: scan.Result{Start: now, End: now}, Err: errors.New(reason)}
		s.met.available.Set(0)
		return res, res.Err
	}
	s.presence.use(&c, id)
	res := s.twice(ctx, id, trigger, s.direct(trigger, false), context.Context.Err)
	s.report(&res)
	return res, res.Err
}

// twice scans the whole source, and a second time if that leaves deletions of a
// mirror waiting. The second scan decides on them alone; its result is added.
func (s *scanner) twice(ctx context.Context, id safefs.Identity, trigger archive.Trigger, d *direct, rest func(context.Context) error) ScanResult {
	res := s.whole(ctx, id, trigger, &d.offerer, scan.Options{Found: d.found, Rest: rest})
	if !res.Complete || res.Waiting == 0 || wait(ctx, s.second) != nil {
		return res
	}
	d.onSame = nil
	again := s.whole(ctx, id, trigger, &d.offerer, scan.Options{Found: d.missing, Rest: rest})
	res.End, res.Complete, res.Err = again.End, again.Complete, again.Err
	res.Gone += again.Gone - res.Waiting
	res.Waiting, res.Held, res.Withheld = again.Waiting, again.Held, again.Withheld
	return res
}

// report logs a scan of the whole source, and passes its result on.
func (s *scanner) report(res *ScanResult) {
	s.met.scanned(res.Trigger, res)
	fields := []zap.Field{
		zap.String("trigger", string(res.Trigger)), zap.Duration("took", res.End.Sub(res.Start)), zap.Int64("files", res.Files),
		zap.Int64("new", res.New), zap.Int64("changed", res.Changed), zap.Int64("unchanged", res.Unchanged),
		zap.Int64("gone", res.Gone), zap.Int64("missed", res.Missed), zap.Int64("withheld", res.Withheld), zap.Int64("held", res.Held),
		zap.Int64("excluded", res.Excluded), zap.Int64("unreadable", res.Unreadable), zap.Int64("special", res.Special),
	}
	if res.Complete {
		res.UnusedIncludes = s.source.Rules.Unused()
	}
	if len(res.UnusedIncludes) > 0 {
		fields = append(fields, zap.Strings("include_without_files", res.UnusedIncludes))
	}
	if res.Complete {
		s.log.Info("scanned", fields...)
	} else {
		s.log.Warn("scan ended early, the next one does it again", append(fields, zap.Error(res.Err))...)
	}
	if n := s.source.Rules.TakeCostly(); n > 0 {
		s.log.Warn("the patterns of the ignore files take too long, the paths are archived without asking the rest of them",
			zap.Int64("paths", n), zap.Int("steps", ignore.Budget))
	}
	if s.onScan != nil {
		s.onScan(*res)
	}
}
