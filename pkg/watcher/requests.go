package watcher

import (
	"sync"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

const (
	// triggerOverflow is that of a scan after events were lost.
	triggerOverflow archive.Trigger = "overflow"
	// triggerRemoval is that of a full scan of a mirrored source: inotify reported
	// deletions, which a scan has to confirm before they are made in S3.
	triggerRemoval archive.Trigger = "removal"
)

// requests merges what the scanner is asked for: at most one scan of the source
// and one poll wait.
type requests struct {
	mu      sync.Mutex
	trigger archive.Trigger // Of the scan that waits; "": none.
	poll    bool
	removed bool // A scan is wanted that decides on removals.
	wake    chan struct{}
}

func newRequests() *requests { return &requests{wake: make(chan struct{}, 1)} }

// scan asks for a scan. An operator's request lends its trigger to one that waits.
func (r *requests) scan(trigger archive.Trigger) {
	r.ask(func() {
		if r.trigger == "" || trigger == archive.TriggerHangup {
			r.trigger = trigger
		}
	})
}

// polls asks for a scan of what is polled.
func (r *requests) polls() { r.ask(func() { r.poll = true }) }

// removals asks for a scan that decides on removals. Any scan will do.
func (r *requests) removals() { r.ask(func() { r.removed = true }) }

func (r *requests) ask(change func()) {
	r.mu.Lock()
	change()
	r.mu.Unlock()
	r.signal()
}

// wantsRemovals reports whether such a scan waits.
func (r *requests) wantsRemovals() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.removed
}

func (r *requests) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// take returns what waits and forgets it. A scan because of removals keeps waiting
// until they are due.
func (r *requests) take(removalsDue bool) (trigger archive.Trigger, poll bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	trigger, poll = r.trigger, r.poll
	if trigger == "" && r.removed && removalsDue {
		trigger = triggerRemoval
	}
	r.trigger, r.poll = "", false
	r.removed = r.removed && trigger == ""
	return trigger, poll
}
