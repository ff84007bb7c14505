package debounce

import (
	"fmt"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/safefs"
)

func TestQuiet(t *testing.T) {
	const settle, maxDelay = 2 * time.Second, time.Minute
	d := delays{settle: settle, max: maxDelay}
	t0 := time.Unix(1_000_000, 0)
	sec := func(n float64) time.Time { return t0.Add(time.Duration(n * float64(time.Second))) }
	stat := func(ctime float64, size int64) safefs.Stat {
		return safefs.Stat{Size: size, CtimeNs: sec(ctime).UnixNano(), Ino: 1}
	}
	same := stat(0, 1)
	other := stat(0, 2)
	cases := []struct {
		name          string
		v             view
		offer, forced bool
		next          time.Time
	}{
		{"exactly settled after one event", view{now: sec(2), first: sec(0), last: sec(0), st: stat(0, 1), localClock: true}, true, false, time.Time{}},
		{"an event since", view{now: sec(2), first: sec(0), last: sec(1), st: stat(1, 1), localClock: true}, false, false, sec(3)},
		{"it grows without events", view{now: sec(2), first: sec(0), last: sec(0), st: stat(1.5, 1), localClock: true}, false, false, sec(3.5)},
		{"a ctime of the future, first check", view{now: sec(2), first: sec(0), last: sec(0), st: stat(100, 1), localClock: true}, false, false, sec(4)},
		{"another clock, first check", view{now: sec(2), first: sec(0), last: sec(0), st: same}, false, false, sec(4)},
		{"another clock, equal checks too close", view{now: sec(3), first: sec(0), last: sec(0), st: same, seen: &same, seenAt: sec(2)}, false, false, sec(4)},
		{"another clock, equal checks", view{now: sec(4), first: sec(0), last: sec(0), st: same, seen: &same, seenAt: sec(2)}, true, false, time.Time{}},
		{"another clock, different checks", view{now: sec(4), first: sec(0), last: sec(0), st: same, seen: &other, seenAt: sec(2)}, false, false, sec(6)},
		{"max_delay", view{now: sec(60), first: sec(0), last: sec(59.9), st: stat(59.9, 1), localClock: true}, true, true, time.Time{}},
		{"max_delay of an empty file", view{now: sec(60), first: sec(0), last: sec(59.9), st: stat(59.9, 0), localClock: true}, true, true, time.Time{}},
		{"max_delay comes first", view{now: sec(59), first: sec(0), last: sec(58.5), st: stat(58.5, 1), localClock: true}, false, false, sec(60)},
		{"max_delay of a large file", view{now: sec(60), first: sec(0), last: sec(59.9), st: stat(59.9, 64<<20+1), localClock: true}, false, false, sec(61.9)},
		{"max_delay of a large file is over", view{now: sec(120), first: sec(0), last: sec(119.9), st: stat(119.9, 64<<20+1), localClock: true}, true, true, time.Time{}},
		{"a size beyond all limits", view{now: sec(60), first: sec(0), last: sec(59.9), st: stat(59.9, 1<<62), localClock: true}, false, false, sec(61.9)},
	}
	for _, c := range cases {
		offer, forced, next := d.quiet(c.v)
		if offer != c.offer || forced != c.forced || !next.Equal(c.next) {
			t.Errorf("%s: got %v, %v, %v, want %v, %v, %v", c.name, offer, forced, next.Sub(t0), c.offer, c.forced, c.next.Sub(t0))
		}
	}
}

func TestDebouncerHandsOutWhatIsDue(t *testing.T) {
	d := New(2*time.Second, 5*time.Second)
	t0 := time.Unix(0, 0)
	at := func(n int) time.Time { return t0.Add(time.Duration(n) * time.Second) }
	d.Touch("a/f", at(0), "event")
	d.Touch("a/g", at(1), "event")
	d.Touch("a/f", at(1), "event")
	if it := d.Pop(at(2)); it != nil {
		t.Fatalf("handed out %s, which was touched one second ago", it.Path())
	}
	if got := d.Next(); !got.Equal(at(3)) {
		t.Errorf("next: got %v, want 3 s", got.Sub(t0))
	}
	f := d.Pop(at(3))
	g := d.Pop(at(3))
	if f == nil || g == nil || d.Pop(at(3)) != nil || d.Len() != 2 || !d.Oldest().Equal(at(0)) {
		t.Fatalf("two paths are due: got %v, %v, %d, %v", f, g, d.Len(), d.Oldest())
	}
	if f.Path() != "a/f" {
		f, g = g, f
	}
	d.Touch("a/f", at(3).Add(1), "event") // While it is handed out.
	d.Done(f)
	d.Done(g)
	if d.Len() != 1 || !d.Has("a/f") {
		t.Fatalf("a touch while the path was handed out is lost: %d left", d.Len())
	}
	if f = d.Pop(at(6)); f == nil || f.Path() != "a/f" {
		t.Fatalf("got %v, want a/f", f)
	}
	d.Again(f, at(7))
	if d.Pop(at(6)) != nil || d.Pop(at(7)) != f {
		t.Error("a path is not handed out when it was asked for again")
	}
	d.Done(f)
	if d.Len() != 0 || len(d.dirs) != 0 || !d.Next().IsZero() {
		t.Errorf("something is left: %d in %d directories", d.Len(), len(d.dirs))
	}
	for i := range 6 {
		d.Touch("hot", at(10+i), "event")
	}
	if it := d.Pop(at(15)); it == nil {
		t.Error("a path that changes all the time is not handed out after max_delay")
	}
}

func TestDebouncerIsBounded(t *testing.T) {
	d := New(time.Second, time.Minute)
	now := time.Unix(0, 0)
	for i := range maxNames + 1000 {
		d.Touch(fmt.Sprintf("big/f%d", i), now, "event")
	}
	if d.names > maxNames || d.dirs["big"].list == nil || d.Has("big/f1") || !d.Covered("big/f1") {
		t.Errorf("%d names are kept of one directory", d.names)
	}
	d.Reset()
	for i := range maxDirs + 1 {
		d.Touch(fmt.Sprintf("d%d/f", i), now, "event")
	}
	if !d.overflowed || d.Len() != 0 {
		t.Errorf("overflowed %v with %d kept, want true and 0", d.overflowed, d.Len())
	}
}

func BenchmarkTouch(b *testing.B) {
	d := New(time.Second, time.Minute)
	paths := make([]string, 10_000)
	for i := range paths {
		paths[i] = fmt.Sprintf("some/directory%d/file%d", i%100, i)
	}
	now := time.Now()
	i := 0
	for b.Loop() {
		d.Touch(paths[i%len(paths)], now, "event")
		i++
	}
}
