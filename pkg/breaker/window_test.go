package breaker

import "testing"

func TestThrottlingHalvesTheWindowAndAnswersWidenIt(t *testing.T) {
	w := newWindow(16)
	if !w.halved() || w.halved() {
		t.Error("two throttled answers to what was under way at once, want one cut")
	}
	if got := w.limit(); got != 8 {
		t.Errorf("limit = %d, want 8", got)
	}
	for range 16 {
		w.answered()
	}
	if !w.halved() || w.limit() != 4 {
		t.Errorf("limit = %d after another window's refusal, want 4", w.limit())
	}
	for range 100 {
		w.answered()
		w.halved()
	}
	if got := w.limit(); got != 1 {
		t.Errorf("limit = %d, want never below 1", got)
	}
	for range 1000 {
		w.grew()
	}
	if got := w.limit(); got != 16 {
		t.Errorf("limit = %d, want 16 again", got)
	}
}
