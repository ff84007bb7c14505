package watches

import (
	"maps"
	"slices"
	"sync"

	"github.com/s3syncd/s3syncd/internal/relpath"
)

// polled is a directory that is scanned from time to time instead of being
// watched, with everything below it.
type polled struct {
	reason pollReason
	dirs   int64 // At and below it, as last counted.
}

// pollReason says why a directory is polled.
type pollReason uint8

const (
	pollLimit   pollReason = iota // a limit of watches or of watchers: tried again
	pollNetwork                   // others change the file system without events here
	pollAlias                     // the directory is watched under another path
	pollDeep                      // its path is too long for a watch
	pollFailed                    // the watch was refused for another reason: tried again
)

// polls is what has to be polled. It may be used concurrently.
type polls struct {
	mu    sync.Mutex
	roots map[string]polled
	lists map[string]struct{} // Single directories.
}

func (p *polls) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.roots, p.lists = make(map[string]polled), make(map[string]struct{})
}

func (p *polls) add(dir string, reason pollReason, dirs int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.roots[dir] = polled{reason: reason, dirs: dirs}
}

// counted notes how many directories are at and below dir.
func (p *polls) counted(dir string, dirs int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r, ok := p.roots[dir]; ok {
		r.dirs = dirs
		p.roots[dir] = r
	}
}

func (p *polls) addList(dir string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lists[dir] = struct{}{}
}

// removeBelow forgets dir and everything below it.
func (p *polls) removeBelow(dir string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.roots, func(r string, _ polled) bool { return r == dir || relpath.Below(r, dir) })
	maps.DeleteFunc(p.lists, func(l string, _ struct{}) bool { return l == dir || relpath.Below(l, dir) })
}

// all returns the directories to scan, and the single ones to list.
func (p *polls) all() (roots, lists []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.roots)), slices.Sorted(maps.Keys(p.lists))
}

// retryable returns what may be possible to watch by now.
func (p *polls) retryable() (dirs []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for dir, r := range p.roots {
		if r.reason == pollLimit || r.reason == pollFailed {
			dirs = append(dirs, dir)
		}
	}
	slices.Sort(dirs)
	return dirs
}

// count returns the number of polled directories, and of those that a limit keeps
// from being watched.
func (p *polls) count() (dirs, limited int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.roots {
		dirs += r.dirs
		if r.reason == pollLimit {
			limited += r.dirs
		}
	}
	return dirs + int64(len(p.lists)), limited
}
