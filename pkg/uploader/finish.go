package uploader

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// movedMax bounds how many paths are remembered as moving.
const movedMax = 10_000

// finish ends a look: the item leaves the queue, or it is tried again.
func (l *look) finish(ctx context.Context, err error) {
	switch {
	case err == nil:
		l.finished()
	case errors.Is(err, errNoSlot):
		l.it.AwaitSlot()
	case errors.Is(err, errHeldBack), errors.Is(err, errEnding), state.Interrupted(ctx, err):
		l.it.PutBack()
	default:
		l.failed(ctx, err)
	}
}

// finished ends a look that succeeded. A file that moved since it was read is
// looked at again. Only a look at it after the commit, while the path is still
// in hand, leaves no gap: a write through another name of the file makes no
// event here, and those who learn of it leave a path in hand alone and do not
// find one in the index that is not there yet.
func (l *look) finished() {
	l.letGoOthers()
	l.failing.clear(l.job.Path)
	if l.hasMoved() && (l.p.o.GiveUp == 0 || l.countMoved() < changedTries) {
		l.outcome(nil, true)
		l.requeue()
		return
	}
	l.mu.Lock()
	delete(l.moved, l.job.Path)
	l.mu.Unlock()
	l.outcome(nil, false)
	l.it.Done()
}

// letGoOthers ends the wait of what was refused for the same cause as this file,
// which is taken now.
func (l *look) letGoOthers() {
	cause := l.it.Cause()
	if cause == "" {
		return
	}
	l.it.Streak().Cause = ""
	if l.end.status == state.StatusUploaded {
		l.q.Source(l.Name).ReleaseCause(cause)
	}
}

// failed decides what becomes of a path whose look failed.
func (l *look) failed(ctx context.Context, err error) {
	class, now := state.ClassOf(err), time.Now()
	if class.Stops() {
		l.metrics.mismatches.Inc()
	}
	tr := l.it.Streak()
	if tr.Since.IsZero() {
		tr.Since = now
	}
	tr.Tries++
	switch {
	case l.hopeless() != nil && !isLocal(err):
		l.giveUpOn(ctx, err)
	case class.Rereads():
		l.failedChanged(ctx, err)
	case class.Passes():
		l.failedForNow(ctx, err, now)
	default:
		l.failedForPerson(ctx, err, now)
	}
}

// failedForNow tries again later, or gives the path up when that is asked for.
func (l *look) failedForNow(ctx context.Context, err error, now time.Time) {
	f := l.failing.add(l.job.Path, state.ClassOf(err), now)
	wait := backoff(l.it.Tries())
	if limit := l.p.o.GiveUp; limit > 0 {
		left := limit - now.Sub(l.it.Streak().Since)
		if left <= 0 {
			l.giveUpOn(ctx, err)
			return
		}
		wait = min(wait, left)
	}
	if hostBusy(err) {
		wait = min(wait, hostBusyMax)
	}
	l.metrics.retry(state.ClassOf(err))
	l.sayPostponed(err, now, wait)
	err = l.recordLasting(ctx, err, f, now)
	l.it.Stuck = isUnreadable(err) || f.stuck(now) && !f.class.Throttles() // Requests that are too many pass.
	l.outcome(err, true)
	l.it.Delay(now.Add(wait), false)
}

// sayPostponed logs that the path is tried again after wait. An outage postpones
// many: it is a warning once a minute, and the rest is for those who search.
func (l *look) sayPostponed(err error, now time.Time, wait time.Duration) {
	class, level := state.ClassOf(err), zap.DebugLevel
	if l.name(noticeKind{class: class, again: true, local: isLocal(err)}, now) {
		level = zap.WarnLevel
	}
	l.log.Log(level, "look postponed, it is tried again", zap.String("path", l.job.Path), zap.String("class", string(class)),
		zap.Duration("retry_in", wait), zap.Error(err))
}

// failedForPerson records the failure. The path waits with its destination, or
// alone when the destination is not at fault.
func (l *look) failedForPerson(ctx context.Context, err error, now time.Time) {
	class := state.ClassOf(err)
	l.failing.clear(l.job.Path) // It has a record of its own now.
	alone := l.standsAlone(err, now)
	if l.p.o.GiveUp > 0 && !alone {
		l.outcome(err, true)
		l.it.PutBack() // The canary decides whether it is the file or the destination.
		return
	}
	recorded, rerr := l.recordFailure(ctx, err, l.p.o.GiveUp > 0 && !l.forGood(err))
	if rerr != nil {
		l.failedForNow(ctx, errors.Join(rerr, err), now)
		return
	}
	if recorded {
		l.end.status = state.StatusFailed
		if l.name(noticeKind{class: class}, now) {
			l.warn(l.whatNext(), err)
		}
	}
	if recorded && class == state.ClassConflict {
		l.metrics.conflicts.Inc()
	}
	if l.p.o.GiveUp > 0 {
		l.end.status = state.StatusFailed
		l.outcome(err, false)
		l.it.Done()
		return
	}
	l.metrics.retry(class)
	l.outcome(err, true)
	if alone {
		l.it.Streak().Cause = causeOf(err)
		l.it.Delay(now.Add(slow(l.q.Source(l.Name).Held())), true)
		return
	}
	l.it.PutBack()
}

// whatNext says what becomes of a path that failed.
func (l *look) whatNext() string {
	if l.p.o.GiveUp > 0 {
		return "file failed"
	}
	return "file failed, it is tried again later"
}

// forGood reports whether a failure can only end with another name, so that one
// record of it is enough for ever.
func (l *look) forGood(err error) bool {
	return errors.Is(err, state.ErrKeyTooLong) || l.job.Kind == archive.Refused
}

// standsAlone reports whether a failure concerns this path only. If it does not
// the destination is parked or stopped.
func (l *look) standsAlone(err error, now time.Time) bool {
	if c := state.ClassOf(err); !c.Parks() {
		return !c.Stops()
	}
	tr := l.it.Streak()
	if tr.Cause != "" && tr.Cause != causeOf(err) {
		tr.Alone, tr.ParkedAt = false, time.Time{} // What the canary showed was of another refusal.
	}
	tr.Alone = l.refused(tr, err, now)
	return tr.Alone
}

// giveUpOn records the failure and ends the path.
func (l *look) giveUpOn(ctx context.Context, err error) {
	if _, rerr := l.recordFailure(ctx, err, true); rerr != nil {
		l.warn("file given up, its record is missing", errors.Join(err, rerr))
	}
	l.end.status = state.StatusFailed
	l.outcome(err, false)
	l.it.Done()
}

// failedChanged hands a file that moved while it was read back to where
// changes come from; one that never holds still is recorded and slowed down.
func (l *look) failedChanged(ctx context.Context, err error) {
	l.metrics.retry(state.ClassChanged)
	tries := l.countMoved()
	if tries < changedTries {
		l.outcome(err, true)
		l.requeue()
		return
	}
	if l.p.o.GiveUp > 0 {
		l.giveUpOn(ctx, err)
		return
	}
	recorded, rerr := l.recordFailure(ctx, err, false)
	if rerr != nil {
		l.failedForNow(ctx, errors.Join(rerr, err), time.Now())
		return
	}
	if recorded {
		l.end.status = state.StatusFailed
		if l.name(noticeKind{class: state.ClassChanged}, time.Now()) {
			l.warn("file never holds still, it is tried less often", err)
		}
	}
	l.it.Stuck = true
	l.outcome(err, true)
	l.it.Delay(time.Now().Add(backoff(tries-changedTries+1)), false)
}

// countMoved counts the looks in a row at which the path moved.
func (l *look) countMoved() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.moved[l.job.Path]; !ok && len(l.moved) >= movedMax {
		clear(l.moved) // They only have to be counted again.
	}
	l.moved[l.job.Path]++
	return l.moved[l.job.Path]
}

// requeue has a file that moved looked at again once it is quiet.
func (l *look) requeue() {
	if l.Requeue == nil || l.p.o.GiveUp > 0 {
		l.it.Delay(time.Now().Add(time.Second), false)
		return
	}
	l.Requeue(l.job.Path) // First, so that the path is never in nobody's hands.
	l.it.Done()
}
