package page

import (
	"testing"
	"time"
)

// filled is a history that took the samples, one a slot.
func filled(samples ...Meter) *history {
	h := &history{}
	begin := time.Unix(1_000_000, 0)
	for i, m := range samples {
		h.add(m, int64(i), begin.Add(time.Duration(i)*slotTime))
	}
	return h
}

func TestThroughputCountsWhatIsUnderWayOnce(t *testing.T) {
	h := filled(
		Meter{},
		Meter{UnderWay: 100_000},
		Meter{UnderWay: 200_000},
		Meter{UnderWay: 0},           // It left the workers' hands a moment before its outcome came.
		Meter{Acknowledged: 300_000}, // The rest of it, and nothing twice.
		Meter{Acknowledged: 300_000, UnderWay: 500_000},
		Meter{Acknowledged: 300_000}, // Given up for good.
		Meter{Acknowledged: 300_000},
		Meter{Acknowledged: 350_000},
	)
	vs, newest, highest := h.values(rate)
	want := []float64{10_000, 10_000, 0, 10_000, 50_000, 0, 0, 5_000}
	for i, w := range want {
		if got := vs[slots-len(want)+i]; got != w {
			t.Errorf("slot %d: %v bytes a second, want %v", i+1, got, w)
		}
	}
	if newest != 5_000 || highest != 50_000 {
		t.Errorf("newest %v, highest %v, want 5000 and 50000", newest, highest)
	}
}

func TestLatencyIsTheSlowestOfASlotAndAbsentWithoutUploads(t *testing.T) {
	h := filled(Meter{}, Meter{Uploads: 2, Slowest: 3 * time.Second}, Meter{})
	vs, newest, highest := h.values(latency)
	if vs[slots-2] != 3 || newest != -1 || highest != 3 {
		t.Errorf("latency %v, newest %v, highest %v, want 3, none and 3", vs[slots-2], newest, highest)
	}
	c := latencyChart(&history{})
	if c.Now != "–" || c.Highest != "–" || c.Path != "" {
		t.Errorf("the chart of nothing is %+v", c)
	}
}

func TestTheLastHourAndNoMoreIsKept(t *testing.T) {
	h := &history{}
	begin := time.Unix(1_000_000, 0)
	for i := range int64(3 * slots) {
		h.add(Meter{Acknowledged: i * i * 1000}, i, begin.Add(time.Duration(i)*slotTime))
	}
	vs, newest, highest := h.values(rate)
	if newest != highest || vs[0] <= 0 || vs[0] >= vs[1] {
		t.Errorf("oldest %v, %v, newest %v, highest %v, want a rise over the whole hour", vs[0], vs[1], newest, highest)
	}
	last := int64(3*slots - 1)
	gap := last + 100
	h.add(Meter{Acknowledged: last * last * 1000}, gap, begin.Add(time.Duration(gap)*slotTime)) // Nobody looked for 99 slots.
	vs, newest, _ = h.values(rate)
	if newest != 0 || vs[slots-2] != -1 || vs[slots-100] != -1 || vs[slots-101] <= 0 {
		t.Errorf("after a gap: newest %v, before it %v, its begin %v, before that %v", newest, vs[slots-2], vs[slots-100], vs[slots-101])
	}
	far := gap + 10*slots
	h.add(Meter{}, far, begin.Add(time.Duration(far)*slotTime))
	vs, _, _ = h.values(rate)
	for i, v := range vs[:slots-1] {
		if v != -1 {
			t.Fatalf("slot %d of an hour that nobody saw is %v", i, v)
		}
	}
}

func TestDrawingsAreBounded(t *testing.T) {
	var vs [slots]float64
	for i := range vs {
		vs[i] = float64(i%2*7 + 1)
	}
	if got := len(draw(vs, 8)); got > 20*slots {
		t.Errorf("the longest drawing has %d bytes", got)
	}
	for i := range vs {
		vs[i] = 5
	}
	if got, want := draw(vs, 5), "M0 60v-60h360v60z"; got != want {
		t.Errorf("draw(flat) = %q, want %q", got, want)
	}
	if got := draw(vs, 0); got != "" {
		t.Errorf("draw(nothing) = %q", got)
	}
}
