package uploader

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/gate"
)

// waiting is a server whose canary waits for its answer.
type waiting struct {
	gate.Objects
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
		{"it is refused", archive.Classified(archive.ClassConfiguration, "PutObject", errors.New("AccessDenied")), false},
		{"the key is not confirmed", archive.Classified(archive.ClassEncryption, "PutObject", errors.New("plaintext")), false},
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
