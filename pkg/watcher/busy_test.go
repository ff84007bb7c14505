package watcher

import (
	"fmt"
	"testing"
	"time"
)

func TestTheBusiestDirectoryIsFoundAmongManyOthers(t *testing.T) {
	var b busySet
	now := time.Unix(1000, 0)
	for i := range 10_000 {
		b.add(fmt.Sprintf("quiet/%d", i), now)
		if i%5 == 0 {
			b.add("busy", now)
		}
	}
	top := b.top(3, now.Add(time.Minute))
	if len(top) != 3 || top[0].Path != "busy" || top[0].Events < 2000 || top[0].Window != time.Minute {
		t.Errorf("top(3) = %v, want busy first, with at least 2000 events in a minute", top)
	}
	if len(b.slots) > busySlots {
		t.Errorf("%d directories are kept, want at most %d", len(b.slots), busySlots)
	}
}

func TestBusyDirectoriesAreOfTheLastWindow(t *testing.T) {
	var b busySet
	now := time.Unix(1000, 0)
	if got := b.top(1, now); got != nil {
		t.Errorf("top of nothing = %v, want none", got)
	}
	b.add("old", now)
	b.add("new", now.Add(busyWindow))
	if top := b.top(5, now.Add(busyWindow)); len(top) != 1 || top[0] != (Busy{Path: "old", Events: 1, Window: busyWindow}) {
		t.Errorf("top in the second window = %v, want old with 1 event", top)
	}
	if top := b.top(5, now.Add(5*busyWindow)); len(top) != 0 {
		t.Errorf("top after a pause = %v, want none", top)
	}
}
