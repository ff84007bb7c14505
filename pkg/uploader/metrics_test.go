package uploader

import (
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/s3syncd/s3syncd/pkg/breaker"
	"github.com/s3syncd/s3syncd/pkg/state"
)

func TestBlockedSinceNamesTheClassAndTheTimeInEachState(t *testing.T) {
	m := NewMetrics(prometheus.NewPedanticRegistry())
	s := m.source("data")
	since := time.Unix(1_700_000_000, 0)
	for _, c := range []struct {
		st      breaker.Status
		blocked state.Class // "": none
	}{
		{breaker.Status{State: breaker.HealthWaiting, Since: since}, ""}, // The first canary is under way.
		{breaker.Status{State: breaker.HealthWaiting, Class: state.ClassTransient, Err: errors.New("x"), Since: since}, state.ClassTransient},
		{breaker.Status{State: breaker.HealthParked, Class: state.ClassConfiguration, Err: errors.New("x"), Since: since}, state.ClassConfiguration},
		{breaker.Status{State: breaker.HealthParked, Class: state.ClassCredentials, Err: errors.New("x"), Since: since}, state.ClassCredentials},
		{breaker.Status{State: breaker.HealthStopped, Class: state.ClassEncryption, Err: errors.New("x"), Since: since}, state.ClassEncryption},
		{breaker.Status{State: breaker.HealthOK, Since: since}, ""},
	} {
		s.health(c.st)
		for _, class := range state.Classes() {
			want := 0.0
			if class == c.blocked {
				want = float64(since.Unix())
			}
			if got := testutil.ToFloat64(m.blocked.WithLabelValues("data", string(class))); got != want {
				t.Errorf("%s for %q: blocked since %v by %s, want %v", c.st.State, c.st.Class, got, class, want)
			}
		}
		for _, h := range breaker.Healths() {
			want := 0.0
			if h == c.st.State {
				want = 1
			}
			if got := testutil.ToFloat64(m.health.WithLabelValues("data", string(h))); got != want {
				t.Errorf("state %s is %v while it is %s, want %v", h, got, c.st.State, want)
			}
		}
	}
}
