package stages

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func waitDone(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func TestStagesStopOneAtATimeInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var order []string
		note := func(s string) {
			mu.Lock()
			defer mu.Unlock()
			order = append(order, s)
		}
		mk := func(name string) Stage {
			return Stage{name, func(ctx context.Context) error {
				<-ctx.Done()
				note(name + " asked")
				time.Sleep(time.Second)
				note(name + " ended")
				return nil
			}}
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- Run(ctx, time.Minute, mk("watch"), mk("upload"), mk("publish")) }()
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Fatalf("runStages() = %v, want nil", err)
		}
		want := []string{"watch asked", "watch ended", "upload asked", "upload ended", "publish asked", "publish ended"}
		if !slices.Equal(order, want) {
			t.Errorf("order = %v, want %v", order, want)
		}
	})
}

func TestStageThatEndsEarlyStopsTheOthersAndIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		err := Run(t.Context(), time.Minute,
			Stage{"watch", waitDone},
			Stage{"upload", func(context.Context) error { return nil }})
		if !errors.Is(err, errExited) || !strings.Contains(err.Error(), "upload") {
			t.Errorf("runStages() = %v, want upload: %v", err, errExited)
		}
	})
}

func TestStageThatFailsIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		err := Run(t.Context(), time.Minute,
			Stage{"watch", func(context.Context) error { return broken }},
			Stage{"upload", waitDone})
		if !errors.Is(err, broken) || !strings.Contains(err.Error(), "watch") {
			t.Errorf("runStages() = %v, want watch: broken", err)
		}
	})
}

func TestStageThatDoesNotStopIsLeftBehindAfterTheGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		start := time.Now()
		err := Run(ctx, 5*time.Second,
			Stage{"upload", func(context.Context) error { <-release; return nil }},
			Stage{"publish", waitDone})
		if err == nil || !strings.Contains(err.Error(), "upload: not stopped after 5s") {
			t.Errorf("runStages() = %v, want upload: not stopped after 5s", err)
		}
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("runStages() took %v, want 5s", took)
		}
		close(release)
	})
}

func TestAJobEndsWithItsWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		err := RunJob(t.Context(), time.Minute, Stage{"sync", func(context.Context) error { return broken }}, Stage{"uploader", waitDone})
		if !errors.Is(err, broken) {
			t.Errorf("runJob() = %v, want %v", err, broken)
		}
	})
}

func TestAStageThatEndsEarlyEndsTheJobAndIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		err := RunJob(t.Context(), time.Minute, Stage{"sync", waitDone},
			Stage{"uploader", func(context.Context) error { return errors.New("boom") }})
		if err == nil || !strings.Contains(err.Error(), "uploader: boom") {
			t.Errorf("runJob() = %v, want uploader: boom", err)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("runJob() waited %v", took)
		}
	})
}
