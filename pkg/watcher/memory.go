package watcher

import (
	"slices"
	"sync"

	"github.com/s3syncd/s3syncd/internal/mounts"
	"github.com/s3syncd/s3syncd/internal/safefs"
)

// Memory is what a source was when it was last in use, in whatever run. Files
// that are missing in anything else do not count as deleted.
type Memory struct {
	Path     string         // Of the source, without symbolic links; "": nothing is remembered.
	Place    safefs.Place   // Of the source.
	Replaced bool           // Another directory was in its place, and no operator has confirmed that.
	Mounts   []mounts.Mount // Inside the source, sorted by path.
}

func (m Memory) equal(o Memory) bool {
	return m.Path == o.Path && m.Place == o.Place && m.Replaced == o.Replaced && slices.Equal(m.Mounts, o.Mounts)
}

// compare compares the source as it was with id. A directory at another path is
// not judged by what the one before was.
func (m Memory) compare(id safefs.Identity) safefs.Verdict {
	v := m.Place.Compare(id.Place)
	if v == safefs.Other && m.Path != id.RealPath {
		return safefs.Unsure
	}
	return v
}

// memory holds a Memory and gives keep every change of it. It may be used
// concurrently.
type memory struct {
	keep func(Memory) // nil: not wanted.

	mu  sync.Mutex
	now Memory
}

func (m *memory) get() Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

func (m *memory) change(f func(*Memory)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.now
	f(&m.now)
	if m.keep != nil && !m.now.equal(before) {
		kept := m.now
		kept.Mounts = slices.Clone(kept.Mounts)
		m.keep(kept)
	}
}

// accept notes that id is the source.
func (m *memory) accept(id safefs.Identity) {
	m.change(func(now *Memory) { now.Path, now.Place, now.Replaced = id.RealPath, id.Place, false })
}

// suspectReplaced notes that another directory is in the place of the source.
func (m *memory) suspectReplaced() { m.change(func(now *Memory) { now.Replaced = true }) }

func (m *memory) setMounts(list []mounts.Mount) { m.change(func(now *Memory) { now.Mounts = list }) }
