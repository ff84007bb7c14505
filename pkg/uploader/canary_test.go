package uploader

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// canaries counts the canaries that reach a server that answers err.
type canaries struct {
	Objects
	n   int
	err error
}

func (c *canaries) Probe(context.Context) error {
	c.n++
	return c.err
}

func TestTheCanaryOfADestinationThatWorksRunsDaily(t *testing.T) {
	cases := []struct {
		name  string
		err   error
		state Health
		next  time.Duration // until the next canary while it works
	}{
		{"it passes", nil, HealthOK, canaryEvery},
		{"no answer", state.Classified(state.ClassTransient, "PutObject", errors.New("reset")), HealthOK, canaryRetry},
		{"the key is not confirmed", state.Classified(state.ClassEncryption, "PutObject", errors.New("plaintext")), HealthStopped, 0},
		{"the key is denied", state.Classified(state.ClassConfiguration, "PutObject", errors.New("AccessDenied")), HealthParked, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := &canaries{err: c.err}
				s := Source{Name: "app", Objects: server, Proven: true, ProvenAt: time.Now().Add(-23 * time.Hour)}
				q := NewQueue(1)
				q.Add(s.Name)
				d := newDestination(s, q, Options{Workers: 1, Log: zap.NewNop(), Metrics: NewMetrics(prometheus.NewRegistry())}, 1)
				if got := d.untilProbe(); got != time.Hour {
					t.Errorf("untilProbe() = %v a day after the last canary less an hour, want 1h", got)
				}
				d.probe(t.Context())
				if server.n != 1 || d.state().State != c.state {
					t.Errorf("after %d canaries the state is %s, want %s", server.n, d.state().State, c.state)
				}
				if got := d.untilProbe(); c.state == HealthOK && got != c.next {
					t.Errorf("untilProbe() = %v after the canary, want %v", got, c.next)
				}
			})
		})
	}
}
