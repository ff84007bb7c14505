package watcher

import (
	"cmp"
	"slices"
	"sync"

	"github.com/s3syncd/s3syncd/internal/safefs"
)

// Memory is what a source was when it was last in use, in whatever run. Files
// that are missing in anything else are not taken for deleted.
type Memory struct {
	Path     string       // of the source, without symbolic links; "": nothing is remembered
	Place    safefs.Place // of the source
	Replaced bool         // another directory was in its place, and nobody has confirmed that
	Mounts   []Mount      // inside the source, sorted by path
}

// Mount is a mount point inside a source, relative to it, and what was mounted
// there.
type Mount struct {
	Path  string
	Place safefs.Place
	Came  bool // nothing was mounted there when what is archived was
	Mixed bool // files of several file systems may be archived
}

func (m Memory) equal(o Memory) bool {
	return m.Path == o.Path && m.Place == o.Place && m.Replaced == o.Replaced && slices.Equal(m.Mounts, o.Mounts)
}

// memory holds a Memory and has every change of it kept. It may be used
// concurrently.
type memory struct {
	mu   sync.Mutex
	now  Memory
	keep func(Memory) // nil: nobody does
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

func (m *memory) setMounts(list []Mount) {
	slices.SortFunc(list, func(a, b Mount) int { return cmp.Compare(a.Path, b.Path) })
	m.change(func(now *Memory) { now.Mounts = list })
}

// verdict compares the source as it was with id. A directory at another path is
// not judged by what the one before was.
func (m Memory) verdict(id safefs.Identity) safefs.Verdict {
	v := m.Place.Compare(id.Place)
	if v == safefs.Other && m.Path != id.RealPath {
		return safefs.Unsure
	}
	return v
}
