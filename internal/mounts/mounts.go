// Package mounts follows what is mounted inside a source. A mount that goes,
// comes, or has another file system than before takes files out of sight without
// any event: they must not count as deleted.
package mounts

import (
	"cmp"
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

// Mount is a mount point inside a source, relative to it, and what was mounted
// there.
type Mount struct {
	Path  string
	Place safefs.Place
	Came  bool // Nothing was mounted there when what is archived was.
	Mixed bool // Files of several file systems may be archived.
}

// Guard knows the mounts inside a source, and which file system the archived files
// below each of them are from. It may be used concurrently.
type Guard struct {
	place   func(path string) (safefs.Place, error)
	keep    func([]Mount)
	changed func()

	mu    sync.Mutex
	info  *os.File // mountinfo; nil: not opened yet, or not there.
	root  string
	begun bool // home is complete: a mount that it lacks came later.
	now   map[string]mounted
	home  map[string]safefs.Place // What the archived files below a mount point are from.
	away  map[string]*absence     // Where archived files may be out of sight.

	judging bool // A scan of the whole source is running, and nothing was mounted since it began.
}

// mounted is what is at a mount point.
type mounted struct {
	id    string // Of the mount.
	place safefs.Place
}

// absence is a mount point where the file system is not the one that archived
// files are from.
type absence struct {
	misses bool // This scan does not find some of them.
	mixed  bool // Files of what is there now may be archived as well.
}

// mountInfo lists the mounts of this process, see proc_pid_mountinfo(5).
const mountInfo = "/proc/self/mountinfo"

// New returns a guard that remembers what keep was last given. Begun: there is
// such a memory, even if it is empty. Place identifies the file system at a path
// in the source. keep is given every change, sorted by path; changed is called
// after mounts have changed. Neither must block for long, nor call the guard.
func New(known []Mount, begun bool, place func(path string) (safefs.Place, error), keep func([]Mount), changed func()) *Guard {
	g := &Guard{
		place: place, keep: keep, changed: changed, begun: begun,
		home: make(map[string]safefs.Place), away: make(map[string]*absence),
	}
	for _, m := range known {
		if !m.Came {
			g.home[m.Path] = m.Place
		}
		if m.Mixed {
			g.away[m.Path] = &absence{mixed: true}
		}
	}
	return g
}

// Check compares the mounts below root with those seen before. Without /proc
// there are none.
func (g *Guard) Check(root string) {
	g.mu.Lock()
	changed := g.stale() || g.root != root
	if changed {
		g.root = root
		changed = g.read()
	}
	g.mu.Unlock()
	if changed {
		g.changed()
	}
}

// stale asks the kernel whether anything was mounted or unmounted since the last
// call.
func (g *Guard) stale() bool {
	if g.info == nil {
		// Not by os.Open: the runtime's poller would consume the notification.
		if fd, err := unix.Open(mountInfo, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
			g.info = os.NewFile(uintptr(fd), mountInfo) // Closed with the last reference to it.
		}
		return true
	}
	fds := []unix.PollFd{{Fd: int32(g.info.Fd()), Events: unix.POLLPRI}}
	n, err := unix.Poll(fds, 0)
	return n > 0 || err != nil
}

// read reads the mounts and reports whether they changed since the last call.
func (g *Guard) read() bool {
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

// compare finds the mount points where archived files may be out of sight.
func (g *Guard) compare() {
	away := make(map[string]*absence)
	check := func(path string) {
		if a := g.absenceAt(path); a != nil {
			away[path] = a
		}
	}
	for path := range g.now {
		check(path)
	}
	for path := range g.home {
		check(path)
	}
	for path := range g.away {
		check(path)
	}
	g.away = away
}

// absenceAt returns nil if what is mounted at path, or that nothing is, has not
// changed since the files below it were archived.
func (g *Guard) absenceAt(path string) *absence {
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

// remember keeps what the next run must know.
func (g *Guard) remember() {
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
	slices.SortFunc(list, func(a, b Mount) int { return cmp.Compare(a.Path, b.Path) })
	g.keep(list)
}

// Hides reports whether the archived file at path may be out of sight because of a
// mount. It checks the mounts first.
func (g *Guard) Hides(path string) bool {
	g.mu.Lock()
	root := g.root
	g.mu.Unlock()
	if root != "" {
		g.Check(root)
	}

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

// Offered notes that the file at path may be archived from now on.
func (g *Guard) Offered(path string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for m, a := range g.away {
		if !a.mixed && relpath.Below(path, m) {
			a.mixed = true
			g.remember()
		}
	}
}

// At reports whether path is a mount point.
func (g *Guard) At(path string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.now[path]
	return ok
}

// BeginScan begins a scan of the whole source.
func (g *Guard) BeginScan() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.judging = true
	for _, a := range g.away {
		a.misses = false
	}
}

// EndScan ends a scan that is complete: where it missed no file, the archived
// files are from what is mounted now, or from nothing.
func (g *Guard) EndScan() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for m, a := range g.away {
		if g.judging && !a.misses {
			g.adopt(m)
		}
	}
	g.remember()
}

// Confirm accepts that what is out of sight is gone.
func (g *Guard) Confirm() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for m := range g.away {
		g.adopt(m)
	}
	g.remember()
}

func (g *Guard) adopt(path string) {
	delete(g.away, path)
	if m, there := g.now[path]; there {
		g.home[path] = m.place
	} else {
		delete(g.home, path)
	}
}

// Points returns the mount points below root, relative to it, as the kernel lists
// them: it asks no file system. Without /proc there are none.
func Points(root string) []string {
	content, err := os.ReadFile(mountInfo)
	if err != nil {
		return nil
	}
	return slices.Sorted(maps.Keys(mountsBelow(string(content), root)))
}

// mountsBelow returns the mounts below root: their ids by the path relative to it.
// Of several at one path it returns the uppermost.
func mountsBelow(content, root string) map[string]string {
	prefix := strings.TrimSuffix(root, "/") + "/"
	out := make(map[string]string)
	for line := range strings.Lines(content) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		if rel, ok := strings.CutPrefix(unescape(f[4]), prefix); ok && rel != "" {
			out[rel] = f[0]
		}
	}
	return out
}

// unescape decodes the octal escapes of blanks and backslashes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
