package queue

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

func newTestQueue(perSource int, sources ...string) *Queue {
	q := New(perSource)
	q.Serve(NewShares(1<<30, 0), NewShares(1, 0), sources...)
	return q
}

func mustTry(t *testing.T, q *Queue, source string, paths ...string) {
	t.Helper()
	for _, p := range paths {
		if !q.TryOffer(Job{Source: source, Path: p}) {
			t.Fatalf("TryOffer(%q) = false, want true", p)
		}
	}
}

// idle reports whether no path of source is left in q.
func idle(q *Queue, source string) bool {
	queued, inFlight, delayed := q.Source(source).Depth()
	return queued+inFlight+delayed == 0
}

func TestSourcesTakeTurns(t *testing.T) {
	q := newTestQueue(10, "a", "b")
	mustTry(t, q, "a", "1", "2", "3", "4")
	mustTry(t, q, "b", "5", "6")
	var got []string
	for range 6 {
		it := q.Pop(t.Context())
		got = append(got, it.path)
		it.Done()
	}
	if want := []string{"1", "5", "2", "6", "3", "4"}; !slices.Equal(got, want) {
		t.Errorf("order = %v, want %v", got, want)
	}
}

func TestPathOfferedInFlightIsLookedAtAgain(t *testing.T) {
	q := newTestQueue(10, "a")
	mustTry(t, q, "a", "1", "1", "2")
	it := q.Pop(t.Context())
	mustTry(t, q, "a", "1", "1")
	if got := q.Pop(t.Context()).path; got != "2" {
		t.Fatalf("second pop = %q, want 2: one worker has a path at a time", got)
	}
	it.Done()
	again := q.Pop(t.Context())
	if again.path != "1" {
		t.Fatalf("third pop = %q, want 1 again", again.path)
	}
	again.Done()
	if queued, inFlight, _ := q.Source("a").Depth(); queued != 0 || inFlight != 1 {
		t.Errorf("Depth = %d queued, %d in flight, want 0, 1", queued, inFlight)
	}
}

func TestMergedOfferKeepsEarliestTimeAndEvent(t *testing.T) {
	q := newTestQueue(10, "a")
	early, late := time.Unix(1, 0), time.Unix(2, 0)
	q.TryOffer(Job{Source: "a", Path: "1", Trigger: archive.TriggerRescan, Detected: late})
	q.TryOffer(Job{Source: "a", Path: "1", Trigger: archive.TriggerEvent, Detected: early})
	q.TryOffer(Job{Source: "a", Path: "1", Trigger: archive.TriggerPoll, Detected: late})
	got := q.Pop(t.Context()).Job()
	if !got.Detected.Equal(early) || got.Trigger != archive.TriggerEvent {
		t.Errorf("merged job = %v %v, want %v event", got.Detected, got.Trigger, early)
	}
}

func TestOfferBlocksAtBoundAndRetriesDoNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newTestQueue(2, "a")
		defer q.Stop()
		mustTry(t, q, "a", "1", "2")
		if q.TryOffer(Job{Source: "a", Path: "3"}) {
			t.Fatal("TryOffer over the bound = true, want false")
		}
		if !q.TryOffer(Job{Source: "a", Path: "2"}) {
			t.Fatal("TryOffer of a queued path = false, want true")
		}
		offered := make(chan error, 1)
		go func() { offered <- q.Offer(t.Context(), Job{Source: "a", Path: "3"}) }()
		synctest.Wait()
		if len(offered) != 0 {
			t.Fatal("Offer over the bound returned at once")
		}
		first := q.Pop(t.Context())
		if err := <-offered; err != nil {
			t.Fatalf("Offer = %v, want nil once there is room", err)
		}
		first.Delay(time.Now().Add(time.Minute), false) // Over the bound now.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := q.Offer(ctx, Job{Source: "a", Path: "4"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Offer with an ended context = %v, want DeadlineExceeded", err)
		}
	})
}

func TestDelayedItemComesBackWhenDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newTestQueue(10, "a")
		mustTry(t, q, "a", "1", "2")
		start := time.Now()
		one, two := q.Pop(t.Context()), q.Pop(t.Context())
		one.Delay(start.Add(3*time.Second), false)
		two.Delay(start.Add(time.Second), false)
		for _, want := range []struct {
			path  string
			after time.Duration
		}{{"2", time.Second}, {"1", 3 * time.Second}} {
			it := q.Pop(t.Context())
			if got := time.Since(start); it.path != want.path || got != want.after {
				t.Errorf("pop = %q after %v, want %q after %v", it.path, got, want.path, want.after)
			}
			it.Done()
		}
		if !idle(q, "a") {
			t.Error("a path is left, want none")
		}
	})
}

func TestBlockedSourceLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newTestQueue(10, "a", "b")
		mustTry(t, q, "a", "1")
		mustTry(t, q, "b", "2")
		q.Source("a").SetBlocked(true)
		if got := q.Pop(t.Context()).path; got != "2" {
			t.Fatalf("pop = %q, want 2", got)
		}
		got := make(chan *Task, 1)
		go func() { got <- q.Pop(t.Context()) }()
		synctest.Wait()
		if len(got) != 0 {
			t.Fatal("pop took a path of a blocked source")
		}
		q.Source("a").SetBlocked(false)
		if it := <-got; it.path != "1" {
			t.Errorf("pop = %q, want 1", it.path)
		}
	})
}

func TestHeldItemsDoNotFillTheQueue(t *testing.T) {
	q := newTestQueue(2, "a")
	defer q.Stop()
	for i := range 3 {
		mustTry(t, q, "a", strconv.Itoa(i))
		q.Pop(t.Context()).Delay(time.Now().Add(time.Hour), true)
	}
	if _, _, delayed := q.Source("a").Depth(); delayed != 0 || q.Source("a").Held() != 2 {
		t.Errorf("%d delayed, %d held, want 0 and the bound 2", delayed, q.Source("a").Held())
	}
	if !q.Source("a").Oldest().IsZero() {
		t.Errorf("Oldest = %v, want none: what is held waits for an operator", q.Source("a").Oldest())
	}
	mustTry(t, q, "a", "x", "y")
	q.Source("a").Release(true)
	if queued, _, delayed := q.Source("a").Depth(); queued != 4 || delayed != 0 {
		t.Errorf("after release %d queued, %d delayed, want 4, 0", queued, delayed)
	}
}

func TestLargeFilesLeaveWorkersForSmallOnes(t *testing.T) {
	q := New(10)
	q.Serve(NewShares(100, 1, "a"), NewShares(1, 1, "a"), "a")
	mustTry(t, q, "a", "big1", "big2", "small")
	one, two := q.Pop(t.Context()), q.Pop(t.Context())
	if !one.TakeSlot(LaneLarge) || two.TakeSlot(LaneLarge) {
		t.Fatal("two large files have a slot, want one")
	}
	two.AwaitSlot()
	small := q.Pop(t.Context())
	if small.path != "small" {
		t.Fatalf("pop = %q, want small", small.path)
	}
	one.Done()
	if it := q.Pop(t.Context()); it.path != "big2" || !it.TakeSlot(LaneLarge) {
		t.Errorf("pop = %q, want big2 with a slot", it.path)
	}
}

func TestBarrierPassesWhileNewPathsCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newTestQueue(10, "a")
		mustTry(t, q, "a", "1", "2")
		inHand := q.Pop(t.Context())
		mustTry(t, q, "a", "1") // Changed again before the barrier.
		passed := make(chan error, 1)
		go func() { passed <- q.Source("a").Barrier(t.Context()) }()
		synctest.Wait()
		mustTry(t, q, "a", "3") // Behind the barrier.
		inHand.Done()
		q.Pop(t.Context()).Done() // 2.
		synctest.Wait()
		if len(passed) != 0 {
			t.Fatal("the barrier passed before the second look at 1")
		}
		for range 2 {
			it := q.Pop(t.Context())
			if it.path == "1" {
				it.Done()
			}
		}
		if err := <-passed; err != nil {
			t.Errorf("Barrier = %v, want nil", err)
		}
		if idle(q, "a") {
			t.Error("no path is left, want the later one")
		}
	})
}

func TestBarrierDoesNotWaitForWhatIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newTestQueue(10, "a")
		defer q.Stop()
		due := time.Now().Add(time.Hour)
		mustTry(t, q, "a", "held before", "held afterwards", "retried")
		q.Pop(t.Context()).Delay(due, true)
		passed := make(chan error, 1)
		go func() { passed <- q.Source("a").Barrier(t.Context()) }()
		synctest.Wait()
		q.Pop(t.Context()).Delay(due, true)
		retried := q.Pop(t.Context())
		retried.Delay(due, false)
		q.Source("a").Release(true) // What is held is tried again, and ends: it must not count.
		for range 2 {
			it := q.Pop(t.Context())
			if it.path == "retried" {
				t.Fatalf("pop = %q, want what is held first", it.path)
			}
			it.Done()
		}
		synctest.Wait()
		if len(passed) != 0 {
			t.Fatal("the barrier passed before the retry")
		}
		q.Pop(t.Context()).Done()
		if err := <-passed; err != nil {
			t.Errorf("Barrier = %v, want nil", err)
		}
	})
}

func TestWaitEndsWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newTestQueue(10, "a")
		mustTry(t, q, "a", "1")
		waited := make(chan error, 1)
		go func() { waited <- q.Source("a").Wait(t.Context()) }()
		it := q.Pop(t.Context())
		it.Delay(time.Now().Add(time.Minute), false)
		synctest.Wait()
		if len(waited) != 0 {
			t.Fatal("Wait returned with a delayed path")
		}
		q.Pop(t.Context()).Done()
		if err := <-waited; err != nil {
			t.Errorf("Wait = %v, want nil", err)
		}
	})
}

func TestOldestIsTheFirstOffer(t *testing.T) {
	q := newTestQueue(10, "a")
	q.TryOffer(Job{Source: "a", Path: "1", Detected: time.Unix(5, 0)})
	q.TryOffer(Job{Source: "a", Path: "2", Detected: time.Unix(6, 0)})
	if got := q.Source("a").Oldest(); got.Unix() != 5 {
		t.Errorf("Oldest = %v, want 5", got.Unix())
	}
	q.Pop(t.Context()).Done()
	if got := q.Source("a").Oldest(); got.Unix() != 6 {
		t.Errorf("Oldest = %v, want 6", got.Unix())
	}
	q.Pop(t.Context()).Done()
	if got := q.Source("a").Oldest(); !got.IsZero() {
		t.Errorf("Oldest = %v, want zero", got)
	}
}

func TestHundredThousandPathsAreSmall(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	q := newTestQueue(100_000, "a")
	for i := range 100_000 {
		q.TryOffer(Job{Source: "a", Path: fmt.Sprintf("some/directory/of/usual/length/file-%08d.dat", i), Detected: time.Now()})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if got := int64(after.HeapAlloc) - int64(before.HeapAlloc); got > 60<<20 {
		t.Errorf("100,000 waiting paths hold %d MiB, want at most 60", got>>20)
	}
	runtime.KeepAlive(q)
}

func BenchmarkQueue(b *testing.B) {
	q := newTestQueue(1000, "a", "b")
	paths := make([]string, 512)
	for i := range paths {
		paths[i] = strconv.Itoa(i)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		q.TryOffer(Job{Source: "a", Path: paths[i%len(paths)]})
		q.Pop(b.Context()).Done()
	}
}

func TestBegunIsWhatNobodyHasPutOff(t *testing.T) {
	q := newTestQueue(10, "data")
	if err := q.Offer(t.Context(), Job{Source: "data", Path: "f"}); err != nil {
		t.Fatal(err)
	}
	if !q.Source("data").Begun("f") || q.Source("data").Begun("other") || q.Source("other").Begun("f") {
		t.Error("what is queued, and nothing else, is begun")
	}
	it := q.Pop(t.Context())
	if !q.Source("data").Begun("f") {
		t.Error("what a worker has is begun")
	}
	it.Delay(time.Now().Add(time.Hour), false)
	if q.Source("data").Begun("f") || !q.Source("data").Pending("f") {
		t.Error("what waits for a retry is pending, and not begun")
	}
}

// A file that came back takes the confirmation back.
func TestMirrorBelievesNoConfirmationFromBefore(t *testing.T) {
	early := Job{Kind: archive.Gone, Confirmed: true}
	early.merge(Job{Kind: archive.Check})
	if early.Confirmed {
		t.Error("a later look leaves the deletion confirmed")
	}
	again := Job{Kind: archive.Gone, Confirmed: true}
	again.merge(Job{Kind: archive.Gone})
	if !again.Confirmed {
		t.Error("another sight of the same absence takes the confirmation back")
	}
}

func TestAnUnknownSourceIsEmptyAndRefusesOffers(t *testing.T) {
	q := newTestQueue(10, "a")
	if err := q.Offer(t.Context(), Job{Source: "b", Path: "1"}); !errors.Is(err, ErrUnknownSource) {
		t.Errorf("Offer = %v, want ErrUnknownSource", err)
	}
	if q.TryOffer(Job{Source: "b", Path: "1"}) {
		t.Error("TryOffer = true, want false")
	}
	b := q.Source("b")
	b.Release(true)
	if queued, inFlight, delayed := b.Depth(); queued+inFlight+delayed != 0 || b.Pending("1") {
		t.Errorf("%d queued, %d in flight, %d delayed, want none", queued, inFlight, delayed)
	}
	for name, wait := range map[string]func(context.Context) error{"Wait": b.Wait, "Barrier": b.Barrier} {
		if err := wait(t.Context()); !errors.Is(err, ErrUnknownSource) {
			t.Errorf("%s = %v, want ErrUnknownSource", name, err)
		}
	}
}
