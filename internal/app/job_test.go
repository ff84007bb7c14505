package app

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAJobEndsWithItsWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		err := runJob(t.Context(), time.Minute, stage{"sync", func(context.Context) error { return broken }}, stage{"uploader", waitDone})
		if !errors.Is(err, broken) {
			t.Errorf("runJob() = %v, want %v", err, broken)
		}
	})
}

func TestAStageThatEndsEarlyEndsTheJobAndIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		err := runJob(t.Context(), time.Minute, stage{"sync", waitDone},
			stage{"uploader", func(context.Context) error { return errors.New("boom") }})
		if err == nil || !strings.Contains(err.Error(), "uploader: boom") {
			t.Errorf("runJob() = %v, want uploader: boom", err)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("runJob() waited %v", took)
		}
	})
}
