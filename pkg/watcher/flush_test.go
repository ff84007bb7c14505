package watcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/s3syncd/s3syncd/internal/watches"
)

// deaf is a notifier that never reports anything.
type deaf struct {
	events chan fsnotify.Event
	errs   chan error
}

func (d deaf) Add(string) error    { return nil }
func (d deaf) Remove(string) error { return nil }
func (d deaf) Close() error {
	close(d.events)
	close(d.errs)
	return nil
}
func (d deaf) Channels() (<-chan fsnotify.Event, <-chan error) { return d.events, d.errs }

func TestFlushOffersWhatNoEventHasToldOf(t *testing.T) {
	r := newRig(t, func(o *Options) { o.PollInterval = 0 })
	r.notifier = func() (watches.Notifier, error) { return deaf{make(chan fsnotify.Event), make(chan error)}, nil }
	r.write("kept", "kept")
	r.write("removed", "removed")
	r.start()
	r.agrees()
	for round := range 20 {
		r.write(fmt.Sprintf("new/%d/f", round), "new")
		r.write("kept", fmt.Sprintf("changed %d", round))
		if round == 3 {
			r.must(os.Remove(r.path("removed")))
		}
		r.must(r.Flush(t.Context()))
		if d := r.sink.differences(t); len(d) > 0 {
			t.Fatalf("round %d: after Flush archive and tree differ: %q", round, d)
		}
	}
}

func TestFlushOffersWhatNeverSettles(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Settle, o.MaxDelay = 200*time.Millisecond, time.Hour })
	r.start()
	f, err := os.Create(r.path("log"))
	r.must(err)
	defer f.Close()
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				f.WriteString("line\n")
			}
		}
	}()
	r.must(r.Flush(t.Context()))
	close(stop)
	<-ended
	if got := r.sink.list(); len(got) != 1 {
		t.Errorf("archived = %q, want the file that is written to all the time", got)
	}
}

func TestFlushesMergeIntoOneScan(t *testing.T) {
	r := newRig(t, nil)
	done := make(chan error, 10) // Before Run: they wait for the first scan.
	for range cap(done) {
		go func() { done <- r.Flush(t.Context()) }()
	}
	r.eventually("ten calls", func() bool {
		r.flushes.mu.Lock()
		defer r.flushes.mu.Unlock()
		return len(r.flushes.waiting) == cap(done)
	})
	r.run()
	for range cap(done) {
		if err := <-done; err != nil {
			t.Errorf("Flush = %v, want nil", err)
		}
	}
	if n := r.metric("rescans_total", "rescan"); n != 1 {
		t.Errorf("%v scans for ten flushes, want 1", n)
	}
}

func TestFlushFailsWithTheReason(t *testing.T) {
	r := newRig(t, nil)
	r.write("f", "content")
	r.start()
	r.agrees()
	r.must(os.Rename(r.dir, r.dir+".away"))
	r.eventually("its absence to be seen", func() bool { return !r.Available() })
	if err := r.Flush(t.Context()); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("Flush without the source = %v, want the reason", err)
	}
	r.must(os.Mkdir(r.dir, 0o755)) // Another one.
	r.write("other", "content")
	r.eventually("it to be taken", r.Available)
	if err := r.Flush(t.Context()); err == nil || !strings.Contains(err.Error(), "1 missing files do not count") {
		t.Errorf("Flush of another directory = %v, want the missing file", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Flush(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Flush with an ended context = %v", err)
	}
	r.stop()
	if err := r.Flush(t.Context()); !errors.Is(err, ErrEnded) {
		t.Errorf("Flush after Run = %v, want ErrEnded", err)
	}
}

func TestFlushThatWaitsIsToldThatTheSourceIsGone(t *testing.T) {
	r := newRig(t, nil)
	r.start()
	r.sink.set(true) // The scan blocks.
	r.write("f", "content")
	done := make(chan error, 1)
	go func() { done <- r.Flush(t.Context()) }()
	r.eventually("the flush to scan", func() bool { return r.out.starved.Load() })
	r.must(os.RemoveAll(r.dir))
	select {
	case err := <-done:
		if err == nil {
			t.Error("Flush = nil, want the reason")
		}
	case <-time.After(10 * time.Second):
		t.Error("Flush did not end within 10 s")
	}
	r.sink.set(false)
}
