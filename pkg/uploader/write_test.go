package uploader

import (
	"testing"
	"time"
)

func TestFormatMtime(t *testing.T) {
	for at, want := range map[time.Time]string{
		time.Unix(0, 0): "0.000000000", time.Unix(0, 1_700_000_000_123_456_789): "1700000000.123456789", time.Unix(0, -1_500_000_000): "-1.500000000",
		time.Unix(0, -1): "-0.000000001", time.Unix(-1, 0): "-1.000000000",
		time.Date(2300, 1, 1, 0, 0, 0, 5, time.UTC): "10413792000.000000005", time.Date(1500, 1, 1, 0, 0, 0, 5e8, time.UTC): "-14831769599.500000000",
	} {
		if got := formatMtime(at); got != want {
			t.Errorf("formatMtime(%v) = %q, want %q", at, got, want)
		}
	}
}
