package uploader

import (
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/breaker"
)

func TestBlockedSinceNamesTheClassAndTheTimeInEachState(t *testing.T) {
	m := NewMetrics(prometheus.NewPedanticRegistry())
	s := m.source("data")
	since := time.Unix(1_700_000_000, 0)
	for _, c := range []struct {
		st      breaker.Status
		blocked archive.Class // "": none
	}{
		{breaker.Status{State: breaker.HealthWaiting, Since: since}, ""}, // The first canary is under way.
		{breaker.Status{State: breaker.HealthWaiting, Class: archive.ClassTransient, Err: errors.New("x"), Since: since}, archive.ClassTransient},
		{breaker.Status{State: breaker.HealthParked, Class: archive.ClassConfiguration, Err: errors.New("x"), Since: since}, archive.ClassConfiguration},
		{breaker.Status{State: breaker.HealthParked, Class: archive.ClassCredentials, Err: errors.New("x"), Since: since}, archive.ClassCredentials},
		{breaker.Status{State: breaker.HealthStopped, Class: archive.ClassEncryption, Err: errors.New("x"), Since: since}, archive.ClassEncryption},
		{breaker.Status{State: breaker.HealthOK, Since: since}, ""},
	} {
		s.health(c.st)
		for _, class := range archive.Classes() {
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
