package trail

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"time"

	"github.com/s3syncd/s3syncd/internal/backoff"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

const (
	// A reader asks for one thing for so long after its first failure, and at
	// least so often, before it gives up.
	readPatience = time.Minute
	readTries    = 4
	// A server that has answered nothing for so long since a reader gave up is
	// not asked any more.
	readOutage = 5 * time.Minute
)

// retrier makes requests that only read again where they fail. All of one trail
// share what they learn of an outage: once one of them has given up, the others
// are made once each, until one succeeds. The zero value is ready to use.
type retrier struct {
	mu    sync.Mutex
	since time.Time // when the first one gave up; zero: the server answers
	last  error
}

// Do calls fn until it succeeds, or fails with what waiting does not mend,
// or has failed for a minute.
func (a *retrier) Do(ctx context.Context, fn func() error) error {
	var first time.Time
	for n := 0; ; n++ {
		down, err := a.outage()
		if err != nil {
			return err
		}
		if err = fn(); !Temporary(err) {
			if err == nil {
				a.note(nil)
			}
			return err
		}
		if first.IsZero() {
			first = time.Now()
		}
		if down || n+1 >= readTries && time.Since(first) >= readPatience {
			a.note(err)
			return err
		}
		if !backoff.Pause(ctx, backoff.Jittered(n, archive.ClassOf(err))) {
			return errors.Join(err, ctx.Err())
		}
	}
}

// outage reports whether another reader has given up, and an error where the
// server is not to be asked any more.
func (a *retrier) outage() (down bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.since.IsZero() {
		return false, nil
	}
	if time.Since(a.since) >= readOutage {
		return true, a.last
	}
	return true, nil
}

// note notes that a reader has given up with err, or got its answer.
func (a *retrier) note(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case err == nil:
		a.since, a.last = time.Time{}, nil
	case a.since.IsZero():
		a.since, a.last = time.Now(), err
	}
}

// Temporary reports whether err is one of a server that may answer later.
func Temporary(err error) bool {
	e, ok := errors.AsType[*archive.Error](err)
	if !ok || errors.Is(err, fs.ErrNotExist) || errors.Is(err, context.Canceled) {
		return false
	}
	return e.Class.Passes()
}

// callerError is an error of a callback, which no retry mends.
type callerError struct{ err error }

func (e *callerError) Error() string { return e.err.Error() }

// List lists like Library.List, and resumes after the last key that it has
// seen when the server fails in between.
func (a *retrier) List(ctx context.Context, lib Library, prefix, after string, fn func(archive.Object) error) error {
	err := a.Do(ctx, func() error {
		return lib.List(ctx, prefix, after, func(o archive.Object) error {
			if err := fn(o); err != nil {
				return &callerError{err}
			}
			after = o.Key
			return nil
		})
	})
	if own, ok := errors.AsType[*callerError](err); ok {
		return own.err
	}
	return err
}

// Refused reports whether a server did not want to answer. Other errors concern
// one document.
func Refused(err error) bool { return archive.ClassOf(err).Parks() }
