package scan

import (
	"fmt"
	"sync"

	"github.com/s3syncd/s3syncd/internal/safefs"
)

const (
	// maxLinksTo is through how many symbolic links a scan enters one directory: two
	// links a level double the paths with each level.
	maxLinksTo = 1000
	// maxThroughLinks is how many directories a scan enters through links in all.
	maxThroughLinks = 1_000_000
	// maxOverLinked bounds how many links are remembered as refused.
	maxOverLinked = 16_384
)

// FileID identifies a file or directory whatever its path.
type FileID struct{ Dev, Ino uint64 }

// IDOf returns the identity of the file st.
func IDOf(st safefs.Stat) FileID { return FileID{st.Dev, st.Ino} }

// linkLimit counts what a scan enters through symbolic links. The zero value is
// empty.
type linkLimit struct {
	to       map[FileID]int
	depth    int // Links on the way to the current directory.
	through  int
	exceeded bool
}

// enter returns why the directory id is not entered through one more link; leave
// ends what it allows. Only the first link that a limit refuses is to be reported.
func (l *linkLimit) enter(id FileID) (report bool, err error) {
	if l.through >= maxThroughLinks {
		report, l.exceeded = !l.exceeded, true
		return report, fmt.Errorf("symbolic links lead to %d directories already", maxThroughLinks)
	}
	if l.to == nil {
		l.to = make(map[FileID]int)
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

// OverLinked are the links that the last scan of the whole source refused because
// of a limit. It may be used concurrently; the zero value is empty.
type OverLinked struct {
	mu         sync.Mutex
	last, next map[string]struct{}
}

// Begin begins a scan of the whole source.
func (o *OverLinked) Begin() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.next = make(map[string]struct{})
}

// End ends it: Has is by what it refused from now on.
func (o *OverLinked) End() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last, o.next = o.next, nil
}

func (o *OverLinked) add(path string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.next != nil && len(o.next) < maxOverLinked {
		o.next[path] = struct{}{}
	}
}

// Has reports whether the link at path was refused.
func (o *OverLinked) Has(path string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ok := o.last[path]
	return ok
}
