package manifest

import (
	"context"
	"errors"
	"io/fs"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// readTries is how often a reader asks for one thing before it gives up: about
// a minute of an outage.
const readTries = 8

// again calls fn until it succeeds, fails with what waiting does not mend, or
// has been tried readTries times.
func again(ctx context.Context, fn func() error) error {
	for n := 0; ; n++ {
		err := fn()
		if err == nil || !passing(err) || n+1 == readTries {
			return err
		}
		if !pause(ctx, backoff(n, state.ClassOf(err))) {
			return errors.Join(err, ctx.Err())
		}
	}
}

// passing reports whether err is one of a server that may answer later.
func passing(err error) bool {
	e, ok := errors.AsType[*state.Error](err)
	if !ok || errors.Is(err, fs.ErrNotExist) || errors.Is(err, context.Canceled) {
		return false
	}
	return e.Class == state.ClassTransient || e.Class == state.ClassThrottled
}

// callerError is an error of a callback, which no retry mends.
type callerError struct{ err error }

func (e *callerError) Error() string { return e.err.Error() }

// listAll lists like Library.List, and goes on behind the last key that it has
// seen when the server fails in between.
func listAll(ctx context.Context, lib Library, prefix, after string, fn func(state.Object) error) error {
	err := again(ctx, func() error {
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
