package uploader

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

func TestTheEndCutsWhatTakesTooLongAndLeavesBehindWhatCannotBeCut(t *testing.T) {
	const drain = 25 * time.Second
	hurried := make(chan struct{})
	close(hurried)
	for name, tt := range map[string]struct {
		work   time.Duration // how long the worker goes on by itself
		ends   bool          // it ends when it is cut
		hurry  chan struct{}
		within time.Duration
	}{
		"it is done in time":    {3 * time.Second, false, nil, 3 * time.Second},
		"it is cut":             {time.Hour, true, nil, drain},
		"it cannot be cut":      {time.Hour, false, nil, drain + strandedAfter},
		"there is no time":      {time.Hour, true, hurried, 0},
		"no time, and no end":   {time.Hour, false, hurried, strandedAfter},
		"no time is needed":     {0, false, hurried, 0},
		"it is done before cut": {drain - time.Second, true, make(chan struct{}), drain - time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &Pool{o: Options{Drain: drain, Log: zap.NewNop()}, flights: map[*flight]struct{}{}}
				if tt.hurry != nil {
					hurry := make(chan struct{}) // Of this bubble.
					if tt.hurry == hurried {
						close(hurry)
					}
					p.o.Hurry = hurry
				}
				cut, over := make(chan struct{}), make(chan struct{})
				var workers sync.WaitGroup
				workers.Go(func() {
					stop := cut
					if !tt.ends {
						stop = nil
					}
					select {
					case <-time.After(tt.work):
					case <-stop:
					case <-over:
					}
				})
				synctest.Wait()
				begin := time.Now()
				p.drain(&workers, sync.OnceFunc(func() { close(cut) }))
				if took := time.Since(begin); took != tt.within {
					t.Errorf("drain() took %v, want %v", took, tt.within)
				}
				close(over)
				workers.Wait()
			})
		})
	}
}
