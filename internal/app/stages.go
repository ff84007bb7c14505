package app

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// errExited is reported for a stage that ended before it was told to.
var errExited = errors.New("ended without being asked to")

// stage is one part of the pipeline. Its run blocks until its context ends and
// everything it started has returned.
type stage struct {
	name string
	run  func(context.Context) error
}

// runStages starts the stages from the last to the first, so that nobody sends
// to a part that is not there yet, and when ctx ends stops them one at a time
// from the first to the last, the direction of the data. A stage that ends early
// stops the others and is an error even when it returned nil. A stage that is
// not stopped within grace is left behind and named.
func runStages(ctx context.Context, grace time.Duration, stages ...stage) error {
	handles := make([]handle, len(stages))
	exited := make(chan string, len(stages))
	for i := len(stages) - 1; i >= 0; i-- {
		sctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		handles[i] = handle{stage: stages[i], cancel: cancel, done: make(chan error, 1)}
		go func() {
			handles[i].done <- stages[i].run(sctx)
			exited <- stages[i].name
		}()
	}
	var early string
	select {
	case <-ctx.Done():
	case early = <-exited:
	}
	return stopStages(handles, early, grace)
}

type handle struct {
	stage  stage
	cancel context.CancelFunc
	done   chan error
}

func stopStages(handles []handle, early string, grace time.Duration) error {
	var errs []error
	expired := time.NewTimer(grace)
	defer expired.Stop()
	for i, h := range handles {
		h.cancel()
		select {
		case err := <-h.done:
			if err == nil && h.stage.name == early {
				err = errExited
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", h.stage.name, err))
			}
		case <-expired.C:
			for _, rest := range handles[i:] {
				rest.cancel()
			}
			return errors.Join(append(errs, fmt.Errorf("%s: not stopped after %v", h.stage.name, grace))...)
		}
	}
	return errors.Join(errs...)
}

// runJob runs the stages for as long as work does, then stops them in order. A
// stage that ends early stops the work too.
func runJob(ctx context.Context, grace time.Duration, work stage, stages ...stage) error {
	jctx, done := context.WithCancel(ctx)
	defer done()
	first := stage{work.name, func(ctx context.Context) error {
		err := work.run(ctx)
		done()
		<-ctx.Done()
		return err
	}}
	return runStages(jctx, grace, append([]stage{first}, stages...)...)
}
