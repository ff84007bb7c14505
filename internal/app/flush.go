package app

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
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// blockCheck is how often a flush looks whether something is in its way.
const blockCheck = 100 * time.Millisecond

// errLeaving ends a flush when its pipeline does.
var errLeaving = errors.New("the daemon stops or takes over a new configuration: ask again")

// blockedError is why waiting is of no use.
type blockedError struct{ reason string }

func (e *blockedError) Error() string { return e.reason }

// flush returns when all that had changed in s before the call is in S3 and in
// a published manifest, or with the reasons why not. A file that fails alone
// does not keep the others from being published.
func (g *generation) flush(ctx context.Context, s *liveSource) admin.FlushedSource {
	answer := admin.FlushedSource{Source: s.Config.Name, Reasons: []string{}}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-g.leaving:
			cancel(errLeaving)
		case <-ctx.Done():
		}
	}()
	record, forget := s.ledger.follow()
	defer forget()
	g.Pool.Release(s.Config.Name)
	s.Flusher.Retry()
	err := unless(ctx, func() error { return g.blocked(s) }, func(ctx context.Context) error { return g.drain(ctx, s, record) })
	if err == nil {
		err = fscheck.Within(ctx, fscheck.HungAfter, s.stillThere) // What was gone was looked at after the scan.
	}
	if err == nil {
		begin := time.Now()
		err = unless(ctx, func() error { return s.unpublishable(begin) },
			func(ctx context.Context) error { return s.Flusher.Flush(ctx, trail.ReasonFlush) })
	}
	if err != nil {
		answer.Reasons = append(answer.Reasons, g.whyNot(s, err))
	}
	if n, first := record.failures(); n > 0 {
		answer.Reasons = append(answer.Reasons, fmt.Sprintf("failed files: %s; the first is %s: %s",
			admin.Count(n), admin.NewName(first.Path).Short(), admin.Plain(first.Err.Error(), errorText)))
	}
	answer.Done = len(answer.Reasons) == 0
	if st, err := s.Flusher.Glance(); err == nil {
		answer.Chain, answer.Sequence = st.Chain, st.Sequence
	}
	return answer
}

// stillThere returns an error unless the directory is the one that is watched:
// elsewhere nothing counts as deleted.
func (s *liveSource) stillThere() error {
	id, err := s.Root.Identify()
	if err == nil && !s.Watch.Intact(id, "") {
		err = errors.New("the directory was replaced meanwhile")
	}
	return err
}

// drain returns when every change that was made before the call has an outcome
// in the state. A file that moves while it is read goes back to the settler
// without one: it is offered again until it has.
func (g *generation) drain(ctx context.Context, s *liveSource, record *flushRecord) error {
	if err := s.Watch.Flush(ctx); err != nil {
		return err
	}
	var before []string // nil: any path counts
	for {
		if err := g.Queue.Source(s.Config.Name).Barrier(ctx); err != nil {
			return err
		}
		moved, all := record.takeMoved()
		if before != nil { // What moved for the first time changed after the call.
			moved = slices.DeleteFunc(moved, func(p string) bool { _, was := slices.BinarySearch(before, p); return !was })
		}
		var err error
		switch {
		case all:
			before, err = nil, s.Watch.Flush(ctx)
		case len(moved) == 0:
			return nil
		default:
			before, err = moved, g.offerAgain(ctx, s, moved)
		}
		if err != nil {
			return err
		}
	}
}

// offerAgain offers the paths once they had time to settle.
func (g *generation) offerAgain(ctx context.Context, s *liveSource, paths []string) error {
	settled := time.NewTimer(s.Config.Settle)
	defer settled.Stop()
	select {
	case <-settled.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	for _, p := range paths {
		job := queue.Job{Source: s.Config.Name, Path: p, Kind: archive.Look, Trigger: archive.TriggerRescan, Detected: time.Now()}
		if err := g.Queue.Offer(ctx, job); err != nil {
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

// blocked returns why the uploads of s wait for a person. Right after a release
// that is not known: the destination is asked first.
func (g *generation) blocked(s *liveSource) error {
	if since := s.hungSince(); !since.IsZero() {
		return &blockedError{"hung since " + clockTime(since, time.Now()) + ": " + fscheck.SilentReason}
	}
	d := g.Pool.Destination(s.Config.Name)
	if d.Err == nil || d.State != breaker.HealthParked && d.State != breaker.HealthStopped || !time.Now().Before(d.NextProbe) {
		return nil
	}
	return &blockedError{string(d.State) + ": " + reasonOf(d.Err)}
}

// unpublishable returns why the trail of s waits for a person, as found out
// after begin.
func (s *liveSource) unpublishable(begin time.Time) error {
	st, err := s.Flusher.Glance()
	if err != nil || st.Err == nil || !st.Tried.After(begin) {
		return nil //nolint:nilerr // Without a chain Flush itself says so.
	}
	if state.ClassOf(st.Err).OutOfService() {
		return &blockedError{"the manifest is not published: " + reasonOf(st.Err)}
	}
	return nil
}

// whyNot words the error of a flush for a person.
func (g *generation) whyNot(s *liveSource, err error) string {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		st := g.sourceStatus(s, nil, time.Now())
		_, sentence, _ := strings.Cut(st.Sentence, ": ")
		return "not done in time: " + sentence
	case errors.Is(err, context.Canceled):
		return "given up by who asked"
	}
	return admin.Plain(err.Error(), errorText)
}
