package queue

import (
	"context"
	"errors"
	"sync"
	"testing"
)

// Shares keep what each source has for itself, whoever asks, and in whatever order.
func TestSharesKeepTheirPromise(t *testing.T) {
	s := NewShares(10, 2, "a", "b", "c")
	if got := s.Most(); got != 6 {
		t.Errorf("most = %d, want 6", got)
	}
	for i := range 6 {
		if !s.Take("a", 1) {
			t.Fatalf("a got %d, want 6", i)
		}
	}
	if s.Take("a", 1) {
		t.Error("a got what the others have for themselves")
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() {
		if err := s.Acquire(ctx, "a", 1); !errors.Is(err, context.Canceled) {
			t.Errorf("acquire = %v, want it to wait until its context ends", err)
		}
	})
	for range 2 {
		if err := s.Acquire(t.Context(), "b", 1); err != nil {
			t.Fatal(err)
		}
	}
	if s.Take("b", 1) {
		t.Error("b got what c has for itself")
	}
	if !s.Take("c", 2) {
		t.Error("c did not get its own")
	}
	cancel()
	wg.Wait()
	s.Release("a", 6)
	s.Release("b", 2)
	s.Release("c", 2)
	if s.sum != 0 || len(s.queue) != 0 {
		t.Errorf("%d are in use and %d wait at the end", s.sum, len(s.queue))
	}
}
