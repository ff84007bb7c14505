package watcher

import (
	"errors"
	"fmt"
	"sync"
)

const (
	// Through how many symbolic links a scan enters one directory:
	// two links a level double the paths with each level.
	maxLinksTo = 1000
	// How many directories a scan sees through links, and then no further link.
	maxThroughLinks = 1_000_000
)

// errLeave: a directory that is scanned cannot be gone on with; it is dealt with.
var errLeave = errors.New("the directory is left")

// linkLimit counts what a scan enters through symbolic links. The zero value is
// empty.
type linkLimit struct {
	to       map[fileID]int
	depth    int // links on the way to the current directory
	through  int
	exceeded bool
}

// enter returns why the directory id is not entered through one more link; leave
// ends what it allows. Only the first of those that one limit keeps out is to be
// reported.
func (l *linkLimit) enter(id fileID) (report bool, err error) {
	if l.through >= maxThroughLinks {
		report, l.exceeded = !l.exceeded, true
		return report, fmt.Errorf("symbolic links lead to %d directories already", maxThroughLinks)
	}
	if l.to == nil {
		l.to = make(map[fileID]int)
	}
	l.to[id]++
	if n := l.to[id]; n > maxLinksTo {
		return n == maxLinksTo+1, fmt.Errorf("%d symbolic links lead to this directory already", maxLinksTo)
	}
	l.depth++
	return false, nil
}

func (l *linkLimit) leave() { l.depth-- }

// count counts a directory that is scanned.
func (l *linkLimit) count() {
	if l.depth > 0 {
		l.through++
	}
}

// refusedLinks are the links that the last scan of the whole source reported
// because of a limit. It may be used concurrently; the zero value is empty.
type refusedLinks struct {
	mu         sync.Mutex
	last, next map[string]struct{}
}

func (r *refusedLinks) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next = make(map[string]struct{})
}

func (r *refusedLinks) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last, r.next = r.next, nil
}

func (r *refusedLinks) add(path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next != nil && len(r.next) < maxTold {
		r.next[path] = struct{}{}
	}
}

func (r *refusedLinks) has(path string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.last[path]
	return ok
}
