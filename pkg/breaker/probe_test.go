package breaker

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// server answers every probe with err.
type server struct {
	canaries, pings int
	err             error
}

func (s *server) Probe(context.Context) error {
	s.canaries++
	return s.err
}

func (s *server) Ping(context.Context) error {
	s.pings++
	return s.err
}

// effects remembers what a Breaker did last.
type effects struct {
	status                   Status
	hold                     bool
	limit                    int
	proven, stopped          int
	works, releasedHeldFiles int
}

func (e *effects) Changed(s Status, hold bool) { e.status, e.hold = s, hold }
func (e *effects) Limit(n int)                 { e.limit = n }
func (e *effects) Proven()                     { e.proven++ }
func (e *effects) Stopped()                    { e.stopped++ }
func (e *effects) Works(released bool) {
	e.works++
	if released {
		e.releasedHeldFiles++
	}
}

func failure(c archive.Class) error { return archive.Classified(c, "PutObject", errors.New(string(c))) }

func newBreaker(o Options) (*Breaker, *server, *effects) {
	s, e := &server{}, &effects{}
	o.Attempts = 8
	b := New(o, s, e, zap.NewNop())
	b.Begin(time.Now())
	return b, s, e
}

func TestTheCanaryOfADestinationThatWorksRunsDaily(t *testing.T) {
	cases := []struct {
		name  string
		err   error
		state Health
		next  time.Duration // until the next canary while it works
	}{
		{"it passes", nil, HealthOK, canaryEvery},
		{"no answer", failure(archive.ClassTransient), HealthOK, canaryRetry},
		{"the key is not confirmed", failure(archive.ClassEncryption), HealthStopped, 0},
		{"the key is denied", failure(archive.ClassConfiguration), HealthParked, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, s, _ := newBreaker(Options{Proven: true, ProvenAt: time.Now().Add(-23 * time.Hour)})
				s.err = c.err
				if got := b.untilDue(); got != time.Hour {
					t.Errorf("untilDue() = %v a day after the last canary less an hour, want 1h", got)
				}
				b.probe(t.Context())
				if s.canaries != 1 || b.Status().State != c.state {
					t.Errorf("after %d canaries the state is %s, want %s", s.canaries, b.Status().State, c.state)
				}
				if got := b.untilDue(); c.state == HealthOK && got != c.next {
					t.Errorf("untilDue() = %v after the canary, want %v", got, c.next)
				}
			})
		})
	}
}

// Each edge of the diagram in the package comment.
func TestTheStatesFollowTheDiagram(t *testing.T) {
	noAnswer := func(b *Breaker) {
		for range fails {
			b.Observe(failure(archive.ClassTransient))
		}
	}
	refuse := func(b *Breaker) { b.Refused(new(Refusal), failure(archive.ClassConfiguration), time.Now()) }
	unsafe := func(b *Breaker) { b.Observe(failure(archive.ClassEncryption)) }
	cases := []struct {
		name   string
		at     position
		do     func(*Breaker)
		answer error // Of the probe, without do.
		want   position
		canary bool // The probe is one.
		frees  bool // Held files are released.
	}{
		{name: "no answers", at: closed, do: noAnswer, want: open},
		{name: "a file is refused", at: closed, do: refuse, want: suspected},
		{name: "a file is refused while it does not answer", at: open, do: refuse, want: suspected},
		{name: "no answers while it is suspected", at: suspected, do: noAnswer, want: suspected},
		{name: "the key is not confirmed", at: closed, do: unsafe, want: stopped},
		{name: "the key is not confirmed while it is parked", at: parked, do: unsafe, want: stopped},
		{name: "a file is refused while it is stopped", at: stopped, do: refuse, want: stopped},
		{name: "the first canary passes", at: unproven, want: closed, canary: true, frees: true},
		{name: "the first canary is refused", at: unproven, answer: failure(archive.ClassCredentials), want: parked, canary: true},
		{name: "the first canary has no answer", at: unproven, answer: failure(archive.ClassTransient), want: unproven, canary: true},
		{name: "a ping is answered", at: open, want: closed},
		{name: "a ping is denied", at: open, answer: failure(archive.ClassConfiguration), want: closed},
		{name: "a ping has no answer", at: open, answer: failure(archive.ClassTransient), want: open},
		{name: "the suspicion was wrong", at: suspected, want: closed, canary: true},
		{name: "the suspicion was right", at: suspected, answer: failure(archive.ClassConfiguration), want: parked, canary: true},
		{name: "the suspicion stays", at: suspected, answer: failure(archive.ClassTransient), want: suspected, canary: true},
		{name: "it was mended", at: parked, want: closed, canary: true, frees: true},
		{name: "it was not mended", at: parked, answer: failure(archive.ClassTransient), want: parked, canary: true},
		{name: "the canary does not confirm the key", at: parked, answer: failure(archive.ClassEncryption), want: stopped, canary: true},
		{name: "the key is confirmed again", at: stopped, want: closed, canary: true, frees: true},
		{name: "the daily canary is refused", at: closed, answer: failure(archive.ClassConfiguration), want: parked, canary: true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, s, e := newBreaker(Options{})
				cause := failure(archive.ClassConfiguration)
				b.at, b.status = c.at, Status{State: c.at.health(), Err: cause, Since: time.Now()}
				if c.do != nil {
					c.do(b)
				} else {
					s.err = c.answer
					b.probe(t.Context())
					if c.canary != (s.canaries == 1) || c.canary == (s.pings == 1) {
						t.Errorf("%d canaries and %d pings, want one probe, the canary: %v", s.canaries, s.pings, c.canary)
					}
				}
				if b.at != c.want || b.Status().State != c.want.health() {
					t.Errorf("state %d (%s), want %d", b.at, b.Status().State, c.want)
				}
				if b.at != c.at && e.hold != (c.want != closed) {
					t.Errorf("files are held back: %v, want %v", e.hold, c.want != closed)
				}
				if c.frees != (e.releasedHeldFiles == 1) {
					t.Errorf("held files were released %d times, want %v", e.releasedHeldFiles, c.frees)
				}
				if b.at == parked && c.at == parked && !errors.Is(b.Status().Err, cause) {
					t.Errorf("the cause is %v, want the one that needs an operator", b.Status().Err)
				}
			})
		})
	}
}

func TestARunThatEndsGivesADestinationUp(t *testing.T) {
	for name, c := range map[string]struct {
		class archive.Class
		after time.Duration
	}{
		"it does not answer":       {archive.ClassTransient, time.Hour},
		"the canary is refused":    {archive.ClassConfiguration, 0},
		"the key is not confirmed": {archive.ClassEncryption, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, s, e := newBreaker(Options{GiveUp: time.Hour})
				s.err = failure(c.class)
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan struct{})
				go func() { b.Run(ctx); close(ended) }()
				begun := time.Now()
				if err := b.Await(t.Context()); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(begun); took != c.after {
					t.Errorf("given up after %v, want %v", took, c.after)
				}
				if err := b.GivenUp(); archive.ClassOf(err) != c.class || e.hold {
					t.Errorf("GivenUp() = %v with files held: %v", err, e.hold)
				}
				s.err = nil
				b.ProbeNow()
				synctest.Wait()
				if b.GivenUp() != nil || e.proven != 1 {
					t.Errorf("GivenUp() = %v after %d canaries that passed", b.GivenUp(), e.proven)
				}
				cancel()
				<-ended
			})
		})
	}
}
