package manifest

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/s3syncd/s3syncd/pkg/state"
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

// asker makes requests that only read again where they fail. All of one trail
// share what they learn of an outage: once one of them has given up, the others
// are made once each, until one succeeds. The zero value is ready to use.
type asker struct {
	mu    sync.Mutex
	since time.Time // when the first one gave up; zero: the server answers
	last  error
}

// again calls fn until it succeeds, or fails with what waiting does not mend,
// or has failed for a minute.
func (a *asker) again(ctx context.Context, fn func() error) error {
	var first time.Time
	for n := 0; ; n++ {
		down, err := a.outage()
		if err != nil {
			return err
		}
		if err = fn(); !passing(err) {
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
		if !pause(ctx, backoff(n, state.ClassOf(err))) {
			return errors.Join(err, ctx.Err())
		}
	}
}

// outage reports whether another reader has given up, and an error where the
// server is not to be asked any more.
func (a *asker) outage() (down bool, err error) {
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
func (a *asker) note(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case err == nil:
		a.since, a.last = time.Time{}, nil
	case a.since.IsZero():
		a.since, a.last = time.Now(), err
	}
}

// passing reports whether err is one of a server that may answer later.
func passing(err error) bool {
	e, ok := errors.AsType[*state.Error](err)
	if !ok || errors.Is(err, fs.ErrNotExist) || errors.Is(err, context.Canceled) {
		return false
	}
	return e.Class.Passes()
}

// callerError is an error of a callback, which no retry mends.
type callerError struct{ err error }

func (e *callerError) Error() string { return e.err.Error() }

// listAll lists like Library.List, and goes on behind the last key that it has
// seen when the server fails in between.
func (a *asker) listAll(ctx context.Context, lib Library, prefix, after string, fn func(state.Object) error) error {
	err := a.again(ctx, func() error {
		return lib.List(ctx, prefix, after, func(o state.Object) error {
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

// pause waits and reports whether ctx allowed it.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// backoff returns the wait before try n+1: full jitter up to a second, doubled
// each time up to a minute. What waiting alone does not mend is tried slowly.
func backoff(n int, c state.Class) time.Duration {
	most := backoffMost
	if n < 6 {
		most = backoffFirst << n
	}
	if c.OutOfService() {
		return backoffMost/2 + rand.N(backoffMost/2)
	}
	return rand.N(most) + 1
}

// refused reports whether a server did not want to answer. Other errors concern
// one document.
func refused(err error) bool { return state.ClassOf(err).Parks() }
