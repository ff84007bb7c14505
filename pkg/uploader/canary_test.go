package uploader

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/queue"
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
				q := queue.New(1)
				q.Serve(queue.NewShares(1, 0), queue.NewShares(1, 0), s.Name)
				d := newDestination(s, q, Options{Workers: 1, Log: zap.NewNop(), Metrics: NewMetrics(prometheus.NewRegistry())}, newCapacity(Options{Workers: 1, MemoryLimit: 1 << 20, SinglePutMax: 1}, []string{s.Name}))
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

// waiting is a server whose canary waits for its answer.
type waiting struct {
	Objects
	answer chan error
}

func (w *waiting) Probe(ctx context.Context) error {
	select {
	case err := <-w.answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestAwaitReturnsOnceTheCanaryIsDecided(t *testing.T) {
	cases := []struct {
		name   string
		answer error
		proven bool
	}{
		{"it passes", nil, true},
		{"it is refused", state.Classified(state.ClassConfiguration, "PutObject", errors.New("AccessDenied")), false},
		{"the key is not confirmed", state.Classified(state.ClassEncryption, "PutObject", errors.New("plaintext")), false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			server := &waiting{answer: make(chan error)}
			r := newRig(t, func(s *Source, o *Options) {
				server.Objects = s.Objects
				s.Objects, o.GiveUp = server, time.Hour
			})
			r.start()
			done := make(chan error, 1)
			go func() { done <- r.p.Await(t.Context(), "data") }()
			select {
			case server.answer <- c.answer:
			case err := <-done:
				t.Fatalf("Await = %v before the canary has an answer", err)
			case <-time.After(time.Minute):
				t.Fatal("no canary within a minute")
			}
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("Await = %v, want nil", err)
				}
			case <-time.After(time.Minute):
				t.Fatal("Await does not return after the answer")
			}
			if got := r.p.Destination("data").Proven; got != c.proven {
				t.Errorf("Proven = %t, want %t", got, c.proven)
			}
		})
	}
}
