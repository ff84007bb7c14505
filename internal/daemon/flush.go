package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/s3syncd/s3syncd/internal/admin"
	"github.com/s3syncd/s3syncd/internal/fscheck"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/breaker"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// blockCheck is how often a flush checks whether something is in its way.
const blockCheck = 100 * time.Millisecond

// errLeaving ends a flush when its pipeline does.
var errLeaving = errors.New("the daemon stops or takes over a new configuration: ask again")

// blockedError is why a flush need not wait.
type blockedError struct{ reason string }

func (e *blockedError) Error() string { return e.reason }

// flush is one answer to a request for everything of a source to be in S3 and in a
// published manifest.
type flush struct {
	s       *liveSource
	record  *flushRecord
	leaving <-chan struct{} // closed when the pipeline stops
}

// run returns when all that had changed in the source before the call is in S3
// and in a published manifest, or with the reasons why not. A file that fails
// alone does not keep the others from being published.
func (f *flush) run(ctx context.Context) admin.FlushedSource {
	s := f.s
	answer := admin.FlushedSource{Source: s.Config.Name, Reasons: []string{}}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-f.leaving:
			cancel(errLeaving)
		case <-ctx.Done():
		}
	}()
	var forget func()
	f.record, forget = s.ledger.follow()
	defer forget()
	s.Release()
	err := unless(ctx, f.blocked, f.drain)
	if err == nil {
		err = fscheck.Within(ctx, fscheck.HungAfter, f.sameDirectory) // What was gone was checked after the scan.
	}
	if err == nil {
		begin := time.Now()
		err = unless(ctx, func() error { return f.unpublishable(begin) },
			func(ctx context.Context) error { return s.Flusher.Flush(ctx, trail.ReasonFlush) })
	}
	if err != nil {
		answer.Reasons = append(answer.Reasons, f.whyNot(err))
	}
	if n, first := f.record.failures(); n > 0 {
		answer.Reasons = append(answer.Reasons, fmt.Sprintf("failed files: %s; the first is %s: %s",
			admin.Count(n), admin.NewName(first.Path).Short(), admin.Plain(first.Err.Error(), errorText)))
	}
	answer.Done = len(answer.Reasons) == 0
	if st, err := s.Flusher.Glance(); err == nil {
		answer.Chain, answer.Sequence = st.Chain, st.Sequence
	}
	return answer
}

// sameDirectory returns an error unless the directory is the one that is watched:
// elsewhere nothing counts as deleted.
func (f *flush) sameDirectory() error {
	id, err := f.s.Root.Identify()
	if err == nil && !f.s.Watch.Intact(id, "") {
		err = errors.New("the directory was replaced meanwhile")
	}
	return err
}

// drain returns when every change that was made before the call has an outcome
// in the state. A file that moves while it is read goes back to the watcher
// without one: it is offered again until it has.
func (f *flush) drain(ctx context.Context) error {
	if err := f.s.Watch.Flush(ctx); err != nil {
		return err
	}
	var before []string // nil: any path counts
	for {
		if err := f.s.Session.Queue.Source(f.s.Config.Name).Barrier(ctx); err != nil {
			return err
		}
		moved, all := f.record.takeMoved()
		if before != nil { // What moved for the first time changed after the call.
			moved = slices.DeleteFunc(moved, func(p string) bool { _, was := slices.BinarySearch(before, p); return !was })
		}
		var err error
		switch {
		case all:
			before, err = nil, f.s.Watch.Flush(ctx)
		case len(moved) == 0:
			return nil
		default:
			before, err = moved, f.offerAgain(ctx, moved)
		}
		if err != nil {
			return err
		}
	}
}

// offerAgain offers the paths after they had time to settle.
func (f *flush) offerAgain(ctx context.Context, paths []string) error {
	if !wait(ctx, f.s.Config.Settle) {
		return ctx.Err()
	}
	for _, p := range paths {
		job := queue.Job{Source: f.s.Config.Name, Path: p, Kind: archive.Look, Trigger: archive.TriggerRescan, Detected: time.Now()}
		if err := f.s.Session.Queue.Offer(ctx, job); err != nil {
			return err
		}
	}
	return nil
}

// unless runs do until it ends or check returns an error, which is returned
// then.
func unless(ctx context.Context, check func() error, do func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan error, 1)
	go func() { ended <- do(ctx) }()
	tick := time.NewTicker(blockCheck)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			if err != nil && ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return err
		case <-tick.C:
			if err := check(); err != nil {
				cancel(err)
			}
		}
	}
}

// blocked returns why the uploads wait for an operator. Right after a release that
// is not known: the destination is asked first.
func (f *flush) blocked() error {
	s := f.s
	if since := s.hungSince(); !since.IsZero() {
		return &blockedError{"hung since " + clockTime(since, time.Now()) + ": " + fscheck.SilentReason}
	}
	d := s.Pool.Destination(s.Config.Name)
	if d.Err == nil || d.State != breaker.HealthParked && d.State != breaker.HealthStopped || !time.Now().Before(d.NextProbe) {
		return nil
	}
	return &blockedError{string(d.State) + ": " + reasonOf(d.Err)}
}

// unpublishable returns why the trail waits for an operator, as found out after
// begin.
func (f *flush) unpublishable(begin time.Time) error {
	st, err := f.s.Flusher.Glance()
	if err != nil || st.Err == nil || !st.Tried.After(begin) {
		return nil //nolint:nilerr // Without a chain Flush itself says so.
	}
	if archive.ClassOf(st.Err).OutOfService() {
		return &blockedError{"the manifest is not published: " + reasonOf(st.Err)}
	}
	return nil
}

// whyNot words the error of a flush for the operator.
func (f *flush) whyNot(err error) string {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		st := f.s.status(nil, time.Now())
		_, sentence, _ := strings.Cut(st.Sentence, ": ")
		return "not done in time: " + sentence
	case errors.Is(err, context.Canceled):
		return "given up by who asked"
	}
	return admin.Plain(err.Error(), errorText)
}
