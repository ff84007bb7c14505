package backoff

import (
	"testing"
	"time"
)

func TestTheWaitDoublesUpToItsLimit(t *testing.T) {
	for n, want := range map[int]time.Duration{0: 5, 1: 5, 2: 10, 3: 20, 4: 30, 1_000_000: 30} {
		if got := Doubled(5, 30, n); got != want {
			t.Errorf("Doubled(5, 30, %d) = %d, want %d", n, got, want)
		}
	}
}
