// Package stages runs the parts of a process and stops them in order.
package stages

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// errExited is reported for a stage that ended before its context did.
var errExited = errors.New("ended without being asked to")

// Stage is one part of the pipeline. Its Run blocks until its context ends and
// everything it started has returned.
type Stage struct {
	Name string
	Run  func(context.Context) error
}

// Run starts the stages from the last to the first, so that none sends
// to a part that is not there yet, and when ctx ends stops them one at a time
// from the first to the last, the direction of the data. A stage that ends early
// stops the others and is an error even when it returned nil. A stage that is
// not stopped within grace is left behind and named.
func Run(ctx context.Context, grace time.Duration, stages ...Stage) error {
	handles := make([]handle, len(stages))
	exited := make(chan string, len(stages))
	for i := len(stages) - 1; i >= 0; i-- {
		sctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		handles[i] = handle{stage: stages[i], cancel: cancel, done: make(chan error, 1)}
		go func() {
			handles[i].done <- stages[i].Run(sctx)
			exited <- stages[i].Name
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
	stage  Stage
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
			if err == nil && h.stage.Name == early {
				err = errExited
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", h.stage.Name, err))
			}
		case <-expired.C:
			for _, rest := range handles[i:] {
				rest.cancel()
			}
			return errors.Join(append(errs, fmt.Errorf("%s: not stopped after %v", h.stage.Name, grace))...)
		}
	}
	return errors.Join(errs...)
}

// RunJob runs the stages for as long as work does, then stops them in order. A
// stage that ends early stops the work too.
func RunJob(ctx context.Context, grace time.Duration, work Stage, stages ...Stage) error {
	jctx, done := context.WithCancel(ctx)
	defer done()
	first := Stage{work.Name, func(ctx context.Context) error {
		err := work.Run(ctx)
		done()
		<-ctx.Done()
		return err
	}}
	return Run(jctx, grace, append([]Stage{first}, stages...)...)
}
