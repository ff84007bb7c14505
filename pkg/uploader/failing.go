package uploader

import (
	"sync"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

const (
	// stuckAfter is how long a file fails, and stuckTries how often, before it
	// counts as one that keeps failing: a flush does not wait for it any more.
	stuckAfter = time.Minute
	stuckTries = 3
	// lostAfter and lostTries are the same for a record of the failure where the
	// destination is at fault: an outage is no failure of a file.
	lostAfter = 15 * time.Minute
	lostTries = 5
	// failingMax bounds how many paths are remembered as failing.
	failingMax = 10_000
	// movingMax bounds how many paths are remembered as changing.
	movingMax = 10_000
)

// failing remembers the paths that fail in a row for causes that may pass.
// Unlike the queue's own count it lasts until an attempt at the path succeeds.
type failing struct {
	mu    sync.Mutex
	paths map[string]*failure
}

// failure is one path that fails.
type failure struct {
	since time.Time
	tries int
	class archive.Class
}

// stuck reports whether the path keeps failing.
func (f *failure) stuck(now time.Time) bool {
	return f.tries >= stuckTries && now.Sub(f.since) >= stuckAfter
}

// add notes one more failure of path and returns all that is known of it.
func (f *failing) add(path string, class archive.Class, now time.Time) failure {
	f.mu.Lock()
	defer f.mu.Unlock()
	one := f.paths[path]
	if one == nil {
		one = &failure{since: now}
		if len(f.paths) < failingMax {
			f.paths[path] = one
		}
	}
	one.tries++
	one.class = class
	return *one
}

// clear notes that an attempt at path did not fail.
func (f *failing) clear(path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.paths, path)
}

// Failing is how many files keep failing, since when the first of them does,
// and why.
type Failing struct {
	Files int
	Since time.Time
	Class archive.Class
}

// list returns the paths that keep failing.
func (f *failing) list(now time.Time) (l Failing) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, one := range f.paths {
		if !one.stuck(now) {
			continue
		}
		if l.Files++; l.Since.IsZero() || one.since.Before(l.Since) {
			l.Since, l.Class = one.since, one.class
		}
	}
	return l
}

// moving counts the attempts in a row at which a path changed.
type moving struct {
	mu    sync.Mutex
	paths map[string]int
}

func (m *moving) count(path string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.paths[path]; !ok && len(m.paths) >= movingMax {
		clear(m.paths) // They only have to be counted again.
	}
	m.paths[path]++
	return m.paths[path]
}

func (m *moving) clear(path string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.paths, path)
}
