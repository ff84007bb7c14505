package watcher

import (
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/s3syncd/s3syncd/internal/relpath"
	"github.com/s3syncd/s3syncd/internal/safefs"
)

// mountGuard follows the mounts inside a source. A mount that goes, comes, or
// has another file system than before takes files out of sight without any
// event; they are not deleted. It may be used concurrently.
type mountGuard struct {
	place   func(path string) (safefs.Place, error)
	changed func() // the mounts are others than at the check before

	mu    sync.Mutex
	info  *os.File // mountinfo; nil: not opened yet, or not there
	root  string
	begun bool
	now   map[string]mounted
	home  map[string]safefs.Place // what the archived files below a mount point are from
	away  map[string]*absence     // where archived files may be out of sight
	keep  func([]Mount)

	judging bool // a scan of the whole source is under way, and nothing was mounted since
}

// mounted is what is at a mount point.
type mounted struct {
	id    string // of the mount
	place safefs.Place
}

// absence is a mount point where not the file system is that archived files
// are from.
type absence struct {
	misses bool // this scan does not find some of them
	mixed  bool // files of what is there now may be archived as well
}

// mountInfo lists the mounts of this process, see proc_pid_mountinfo(5).
const mountInfo = "/proc/self/mountinfo"

// recall takes over what an earlier run remembered.
func (g *mountGuard) recall(m Memory) {
	g.home = make(map[string]safefs.Place)
	g.away = make(map[string]*absence)
	for _, known := range m.Mounts {
		if !known.Came {
			g.home[known.Path] = known.Place
		}
		if known.Mixed {
			g.away[known.Path] = &absence{mixed: true}
		}
	}
	g.begun = m.Path != "" || len(m.Mounts) > 0
}

// check compares the mounts below root with those seen before. Without /proc
// there are none.
func (g *mountGuard) check(root string) {
	g.mu.Lock()
	changed := g.stale() || g.root != root
	if changed {
		g.root = root
		changed = g.look()
	}
	g.mu.Unlock()
	if changed && g.changed != nil {
		g.changed()
	}
}

// refresh is check for the source that the last one was for.
func (g *mountGuard) refresh() {
	g.mu.Lock()
	root := g.root
	g.mu.Unlock()
	if root != "" {
		g.check(root)
	}
}

// stale asks the kernel whether anything was mounted or unmounted since it was
// asked before.
func (g *mountGuard) stale() bool {
	if g.info == nil {
		// Not by os.Open: the runtime's poller would take the news.
		if fd, err := unix.Open(mountInfo, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
			g.info = os.NewFile(uintptr(fd), mountInfo) // Closed with the last reference to it.
		}
		return true
	}
	fds := []unix.PollFd{{Fd: int32(g.info.Fd()), Events: unix.POLLPRI}}
	n, err := unix.Poll(fds, 0)
	return n > 0 || err != nil
}

// look reads the mounts and reports whether they changed since it last did.
func (g *mountGuard) look() bool {
	if g.info == nil {
		return false
	}
	content, err := io.ReadAll(io.NewSectionReader(g.info, 0, 1<<62))
	if err != nil {
		return false
	}
	now := make(map[string]mounted)
	for path, id := range mountsBelow(string(content), g.root) {
		if old, ok := g.now[path]; ok && old.id == id {
			now[path] = old
			continue
		}
		place, err := g.place(path)
		if err != nil {
			place = safefs.Place{} // A file, or unreadable: only its path is known.
		}
		now[path] = mounted{id: id, place: place}
	}
	changed := g.now != nil && !maps.Equal(now, g.now)
	if changed {
		g.judging = false
	}
	g.now = now
	g.compare()
	g.begun = true
	g.remember()
	return changed
}

// compare finds out where archived files may be out of sight.
func (g *mountGuard) compare() {
	away := make(map[string]*absence)
	judge := func(path string) {
		if a := g.judge(path); a != nil {
			away[path] = a
		}
	}
	for path := range g.now {
		judge(path)
	}
	for path := range g.home {
		judge(path)
	}
	for path := range g.away {
		judge(path)
	}
	g.away = away
}

// judge returns nil where what is mounted at path, or that nothing is, is as it
// was when the files below it were archived.
func (g *mountGuard) judge(path string) *absence {
	m, there := g.now[path]
	home, known := g.home[path]
	if there && !known && !g.begun {
		home, known = m.place, true
	}
	before := g.away[path]
	switch {
	case there != known || home.Compare(m.place) == safefs.Other || before != nil && before.mixed:
		if before == nil {
			before = &absence{}
		}
		return before
	case there:
		g.home[path] = m.place
	}
	return nil
}

// remember has kept what the next run must know.
func (g *mountGuard) remember() {
	if g.keep == nil {
		return
	}
	var list []Mount
	for path, place := range g.home {
		a := g.away[path]
		list = append(list, Mount{Path: path, Place: place, Mixed: a != nil && a.mixed})
	}
	for path, a := range g.away {
		if _, known := g.home[path]; !known {
			list = append(list, Mount{Path: path, Came: true, Mixed: a.mixed})
		}
	}
	g.keep(list)
}

// lost reports whether path may be out of sight because of a mount.
func (g *mountGuard) lost(path string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for m, a := range g.away {
		if path == m || relpath.Below(path, m) {
			a.misses = true
			return true
		}
	}
	return false
}

// offered notes that the file at path may be archived.
func (g *mountGuard) offered(path string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for m, a := range g.away {
		if !a.mixed && relpath.Below(path, m) {
			a.mixed = true
			g.remember()
		}
	}
}

// at reports whether path is a mount point.
func (g *mountGuard) at(path string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.now[path]
	return ok
}

// begin begins a scan of the whole source, settle ends one that is complete:
// where it missed no file, what is mounted now, or nothing, is what the files
// are from.
func (g *mountGuard) begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.judging = true
	for _, a := range g.away {
		a.misses = false
	}
}

func (g *mountGuard) settle() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for m, a := range g.away {
		if g.judging && !a.misses {
			g.adopt(m)
		}
	}
	g.remember()
}

func (g *mountGuard) adopt(path string) {
	delete(g.away, path)
	if m, there := g.now[path]; there {
		g.home[path] = m.place
	} else {
		delete(g.home, path)
	}
}

// confirm accepts that what is out of sight is gone.
func (g *mountGuard) confirm() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for m := range g.away {
		g.adopt(m)
	}
	g.remember()
}

// MountPoints returns the mount points below root, relative to it, as the kernel
// lists them: no file system is asked. Without /proc there are none.
func MountPoints(root string) []string {
	content, err := os.ReadFile(mountInfo)
	if err != nil {
		return nil
	}
	return slices.Sorted(maps.Keys(mountsBelow(string(content), root)))
}

// mountsBelow returns the mounts below root: the ids by the path relative to it.
// Of several at one path it is the uppermost.
func mountsBelow(content, root string) map[string]string {
	prefix := strings.TrimSuffix(root, "/") + "/"
	out := make(map[string]string)
	for line := range strings.Lines(content) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		if rel, ok := strings.CutPrefix(unescapeMount(f[4]), prefix); ok && rel != "" {
			out[rel] = f[0]
		}
	}
	return out
}

// unescapeMount decodes the octal escapes of blanks and backslashes.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
