package watcher

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	busyWindow = 10 * time.Minute
	busySlots  = 64
)

// Busy is a directory in which much happens.
type Busy struct {
	Path   string
	Events int64 // Within the window; an upper bound.
	Window time.Duration
}

// busySet counts the events of directories. It keeps the busiest ones of a
// window by the space-saving rule: a directory without a slot takes the one with
// the fewest events and their number with it, so no busy one is left out. It may
// be used concurrently; the zero value is empty.
type busySet struct {
	mu    sync.Mutex
	slots map[string]int64
	begin time.Time
	last  []Busy // Of the window before, the busiest first.
}

// add counts an event in dir at now.
func (b *busySet) add(dir string, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.turn(now)
	if _, ok := b.slots[dir]; ok {
		b.slots[dir]++
		return
	}
	var least string
	n := int64(0)
	if len(b.slots) >= busySlots {
		n = -1
		for d, c := range b.slots {
			if n < 0 || c < n {
				least, n = d, c
			}
		}
		delete(b.slots, least)
	}
	b.slots[strings.Clone(dir)] = n + 1
}

// turn begins a new window when the current one is over.
func (b *busySet) turn(now time.Time) {
	if b.slots != nil && now.Sub(b.begin) < busyWindow {
		return
	}
	b.last = nil
	if now.Sub(b.begin) < 2*busyWindow {
		b.last = b.ranked(busyWindow)
	}
	b.slots, b.begin = make(map[string]int64), now
}

// ranked returns the directories of the current window.
func (b *busySet) ranked(window time.Duration) []Busy {
	list := make([]Busy, 0, len(b.slots))
	for d, n := range b.slots {
		list = append(list, Busy{Path: d, Events: n, Window: window})
	}
	slices.SortFunc(list, func(x, y Busy) int {
		return cmp.Or(cmp.Compare(y.Events, x.Events), strings.Compare(x.Path, y.Path))
	})
	return list
}

// top returns the n busiest directories of the last complete window, or of the
// current one while there is no other.
func (b *busySet) top(n int, now time.Time) []Busy {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.slots == nil {
		return nil
	}
	b.turn(now)
	list := b.last
	if list == nil {
		list = b.ranked(now.Sub(b.begin))
	}
	return slices.Clone(list[:min(n, len(list))])
}
