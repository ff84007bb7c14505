package manifest

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestForgetLeavesNoSeriesOfASource(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	m := NewMetrics(reg)
	count := func() int {
		n, err := testutil.GatherAndCount(reg)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	m.source("stays")
	left := count()
	m.source("goes")
	if got := count(); got != 2*left {
		t.Fatalf("%d series of two sources, want %d", got, 2*left)
	}
	m.Forget("goes")
	if got := count(); got != left {
		t.Errorf("%d series after Forget, want %d", got, left)
	}
}
