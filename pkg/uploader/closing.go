package uploader

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/backoff"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/breaker"
	"github.com/s3syncd/s3syncd/pkg/localfile"
)

const (
	retryFirst = 5 * time.Second
	retryMax   = 15 * time.Minute
	// hostBusyMax is the longest wait for something that this host lacks.
	hostBusyMax = 20 * time.Second
	// heldSpread is what each held file adds to the time after which all of
	// them come back by themselves, so that many cost few requests.
	heldSpread = 10 * time.Second
	// changedTries attempts at which a file changed each time make it a failure.
	changedTries = 5
)

// retryWait returns how long a file waits after its n-th failure in a row: full
// jitter below a ceiling that doubles from 5 s to 15 min.
func retryWait(n int) time.Duration {
	return time.Duration(rand.Int64N(int64(backoff.Doubled(retryFirst, retryMax, n)))) + time.Millisecond
}

// heldWait returns how long a file that needs an operator waits when n others
// do: 15 min, spread, and longer where that would be more than a request in 10 s.
func heldWait(n int) time.Duration {
	limit := max(retryMax, time.Duration(n)*heldSpread)
	return limit - time.Duration(rand.Int64N(int64(limit/10)))
}

// closing decides what becomes of a task after an attempt at it: it leaves the
// queue, or is tried again.
type closing struct {
	a       *attempt
	bounded bool // The run ends by itself: what does not pass is given up.
	now     time.Time
}

// close ends the attempt.
func (a *attempt) close(ctx context.Context, err error) {
	c := closing{a: a, bounded: a.p.o.GiveUp > 0, now: time.Now()}
	switch {
	case err == nil:
		c.succeeded()
	case errors.Is(err, errNoSlot):
		a.task.AwaitSlot()
	case errors.Is(err, breaker.ErrHeld), errors.Is(err, localfile.ErrEnding), archive.Interrupted(ctx, err):
		a.task.PutBack()
	default:
		c.failed(ctx, err)
	}
}

// succeeded ends an attempt without an error. A file that changed since it was
// read is tried again. Only a check after the commit, while the path is still in
// flight, leaves no gap: a write through another name of the file makes no event
// here, and those who learn of it leave a path in flight alone and do not find one
// in the index that is not there yet.
func (c closing) succeeded() {
	a := c.a
	if cause := a.task.Cause(); cause != "" {
		a.task.Streak().Cause = ""
		if a.journal.End.Status == archive.StatusUploaded {
			a.d.queue.ReleaseCause(cause) // What was refused for the same cause.
		}
	}
	a.d.failing.clear(a.job.Path)
	if a.hasMoved() && (!c.bounded || a.d.moving.count(a.job.Path) < changedTries) {
		a.report(nil, true)
		c.requeue()
		return
	}
	a.d.moving.clear(a.job.Path)
	c.done(nil)
}

// done reports the end of the task and takes it off the queue.
func (c closing) done(err error) {
	c.a.report(err, false)
	c.a.task.Done()
}

// failed handles an attempt that failed.
func (c closing) failed(ctx context.Context, err error) {
	a, class := c.a, archive.ClassOf(err)
	if class.Stops() {
		a.d.metrics.mismatch()
	}
	streak := a.task.Streak()
	if streak.Since.IsZero() {
		streak.Since = c.now
	}
	streak.Tries++
	switch {
	case a.d.breaker.GivenUp() != nil && !localfile.IsLocal(err):
		c.giveUp(ctx, err)
	case class.Rereads():
		c.changed(ctx, err)
	case class.Passes():
		c.postpone(ctx, err)
	default:
		c.needsOperator(ctx, err)
	}
}

// postpone tries again later, or gives the path up in a run that ends.
func (c closing) postpone(ctx context.Context, err error) {
	a, class := c.a, archive.ClassOf(err)
	f := a.d.failing.add(a.job.Path, class, c.now)
	wait := retryWait(a.task.Tries())
	if c.bounded {
		left := a.p.o.GiveUp - c.now.Sub(a.task.Streak().Since)
		if left <= 0 {
			c.giveUp(ctx, err)
			return
		}
		wait = min(wait, left)
	}
	if localfile.HostBusy(err) {
		wait = min(wait, hostBusyMax)
	}
	a.d.metrics.retry(class)
	level := zap.DebugLevel // An outage postpones many: it is a warning once per minute.
	if a.d.logLimit.Name(breaker.LogKind{Class: class, Again: true, Local: localfile.IsLocal(err)}, c.now) {
		level = zap.WarnLevel
	}
	a.d.log.Log(level, "attempt postponed, it is tried again", zap.String("path", a.job.Path), zap.String("class", string(class)),
		zap.Duration("retry_in", wait), zap.Error(err))

	err = c.recordLasting(ctx, err, f)
	a.task.Stuck = localfile.IsUnreadable(err) || f.stuck(c.now) && !f.class.Throttles() // Requests that are too many pass.
	a.report(err, true)
	a.task.Delay(c.now.Add(wait), false)
}

// recordLasting records the failure of a file that fails for too long, and
// returns the error with its class: a disk or a key that is broken for good looks
// like one that recovers.
func (c closing) recordLasting(ctx context.Context, err error, f failure) error {
	unreadable, lasts := localfile.IsUnreadable(err), c.now.Sub(f.since)
	switch {
	case unreadable && lasts >= stuckAfter:
		err = localfile.Broken(err)
	case unreadable, f.class.Throttles(), f.tries < lostTries, lasts < lostAfter:
		return err
	}
	recorded, rerr := c.a.journal.Failed(ctx, err, false)
	if rerr != nil || !recorded {
		return err // The next attempt tries again to record it.
	}
	c.recorded("file keeps failing, it is tried again", err)
	return err
}

// needsOperator records the failure. The path waits with its destination, or
// alone when the destination is not at fault.
func (c closing) needsOperator(ctx context.Context, err error) {
	a, class := c.a, archive.ClassOf(err)
	a.d.failing.clear(a.job.Path) // It has a record of its own now.
	alone := c.alone(err)
	if c.bounded && !alone {
		a.report(err, true)
		a.task.PutBack() // The canary decides whether it is the file or the destination.
		return
	}
	// A failure that only another name ends is recorded once for ever.
	permanent := errors.Is(err, archive.ErrKeyTooLong) || a.job.Kind == archive.Refused
	recorded, rerr := a.journal.Failed(ctx, err, c.bounded && !permanent)
	if rerr != nil {
		c.postpone(ctx, errors.Join(rerr, err))
		return
	}
	if recorded {
		message := "file failed, it is tried again later"
		if c.bounded {
			message = "file failed"
		}
		c.recorded(message, err)
		if class == archive.ClassConflict {
			a.d.metrics.m.conflicts.WithLabelValues(a.d.src.Name).Inc()
		}
	}
	if c.bounded {
		a.journal.End.Status = archive.StatusFailed
		c.done(err)
		return
	}
	a.d.metrics.retry(class)
	a.report(err, true)
	if alone {
		a.task.Streak().Cause = causeOf(err)
		a.task.Delay(c.now.Add(heldWait(a.d.queue.Held())), true)
		return
	}
	a.task.PutBack()
}

// alone reports whether a failure concerns this path only. If it does not, the
// destination is out of service.
func (c closing) alone(err error) bool {
	if class := archive.ClassOf(err); !class.Parks() {
		return !class.Stops()
	}
	streak := c.a.task.Streak()
	if streak.Cause != "" && streak.Cause != causeOf(err) {
		streak.Alone, streak.ParkedAt = false, time.Time{} // What the canary showed was of another refusal.
	}
	r := breaker.Refusal{Asked: streak.ParkedAt, Alone: streak.Alone}
	streak.Alone = c.a.d.breaker.Refused(&r, err, c.now)
	streak.ParkedAt = r.Asked
	return streak.Alone
}

// causeOf names what refused a file, "" for an error that holds no others.
func causeOf(err error) string {
	class := archive.ClassOf(err)
	if !class.Parks() {
		return ""
	}
	e, _ := errors.AsType[*archive.Error](err)
	if e == nil || e.Code == "" {
		return string(class)
	}
	return string(class) + " " + e.Code
}

// giveUp records the failure and ends the task.
func (c closing) giveUp(ctx context.Context, err error) {
	if _, rerr := c.a.journal.Failed(ctx, err, true); rerr != nil {
		c.a.warn("file given up, its record is missing", errors.Join(err, rerr))
	}
	c.a.journal.End.Status = archive.StatusFailed
	c.done(err)
}

// changed hands a file that changed while it was read back to where changes come
// from; one that never stops changing is recorded and tried less often.
func (c closing) changed(ctx context.Context, err error) {
	a := c.a
	a.d.metrics.retry(archive.ClassChanged)
	tries := a.d.moving.count(a.job.Path)
	switch {
	case tries < changedTries:
		a.report(err, true)
		c.requeue()
		return
	case c.bounded:
		c.giveUp(ctx, err)
		return
	}
	recorded, rerr := a.journal.Failed(ctx, err, false)
	if rerr != nil {
		c.postpone(ctx, errors.Join(rerr, err))
		return
	}
	if recorded {
		c.recorded("file never stops changing, it is tried less often", err)
	}
	a.task.Stuck = true
	a.report(err, true)
	a.task.Delay(time.Now().Add(retryWait(tries-changedTries+1)), false)
}

// recorded notes that there is a new record of err, and logs message.
func (c closing) recorded(message string, err error) {
	c.a.journal.End.Status = archive.StatusFailed
	if c.a.d.logLimit.Name(breaker.LogKind{Class: archive.ClassOf(err)}, c.now) {
		c.a.warn(message, err)
	}
}

// requeue has a file that changed tried again when it is quiet.
func (c closing) requeue() {
	a := c.a
	if a.d.src.Requeue == nil || c.bounded {
		a.task.Delay(time.Now().Add(time.Second), false)
		return
	}
	a.d.src.Requeue(a.job.Path) // First, so that the path always has an owner.
	a.task.Done()
}

// report calls Options.OnOutcome with how the attempt ended.
func (a *attempt) report(err error, retry bool) {
	if a.p.o.OnOutcome == nil {
		return
	}
	end := &a.journal.End
	o := Outcome{
		Source: a.d.src.Name, Path: a.job.Path, Status: end.Status, Basis: end.Basis, Trigger: a.job.Trigger,
		Bytes: end.Sent, Size: a.file.Fence.Size, Took: time.Since(a.flight.started), Detected: a.job.Detected,
		Recovered: end.Recovered, Retry: retry, Err: err, Stuck: a.task != nil && a.task.Stuck,
	}
	if err != nil {
		o.Class = archive.ClassOf(err)
	}
	a.p.o.OnOutcome(o)
}

// warn logs a failure that the trail has as well, and what happens next.
func (a *attempt) warn(message string, err error) {
	a.d.log.Warn(message, zap.String("path", a.job.Path), zap.String("class", string(archive.ClassOf(err))), zap.Error(err))
}
