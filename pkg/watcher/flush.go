package watcher

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/s3syncd/s3syncd/internal/safefs"
)

// flushMargin is how long a flush waits beyond settle, so that what was quiet in
// time is offered as what it is: found by an event.
const flushMargin = 50 * time.Millisecond

// ErrEnded is returned by Flush when Run ends.
var ErrEnded = errors.New("the watcher ended")

// flushes are the calls of Flush that wait for a scan. They merge: one scan
// serves all that waited when it began. They may be used concurrently; the zero
// value is empty.
type flushes struct {
	mu      sync.Mutex
	waiting []chan error
	ended   bool
}

// add returns a channel of capacity 1 that the end of the scan is sent to.
func (f *flushes) add() chan error {
	f.mu.Lock()
	defer f.mu.Unlock()
	done := make(chan error, 1)
	if f.ended {
		done <- ErrEnded
		return done
	}
	f.waiting = append(f.waiting, done)
	return done
}

// take returns those that wait.
func (f *flushes) take() []chan error {
	f.mu.Lock()
	defer f.mu.Unlock()
	waiting := f.waiting
	f.waiting = nil
	return waiting
}

// fail ends those that wait with err.
func (f *flushes) fail(err error) {
	for _, done := range f.take() {
		done <- err
	}
}

// end is fail for those to come as well.
func (f *flushes) end() {
	f.mu.Lock()
	f.ended = true
	f.mu.Unlock()
	f.fail(ErrEnded)
}

// flushError says why a flush has not offered all that its scan was to find.
func flushError(res *ScanResult) error {
	switch {
	case errors.Is(res.Err, safefs.ErrRootChanged):
		return res.Err
	case res.Err != nil:
		return fmt.Errorf("scan: %w", res.Err)
	case res.Held > 0:
		return fmt.Errorf("%d deletions are held back until they are confirmed", res.Held)
	case res.Withheld > 0:
		return fmt.Errorf("%d missing files do not count as deleted until that is confirmed: "+
			"another directory is in the place of the source, or another file system at a mount point in it", res.Withheld)
	}
	return nil
}
