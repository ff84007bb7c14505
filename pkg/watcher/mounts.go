package watcher

import (
	"os"
	"slices"
	"strings"
	"sync"
)

// mountGuard follows the mounts inside a source. A mount that goes takes its
// files out of sight without any event; they are not deleted. It may be used
// concurrently.
type mountGuard struct {
	mu    sync.Mutex
	known []string // "mount id, path" below the source, sorted
	begun bool
	gone  map[string]struct{} // paths, relative to the source, that were mount points

	kept []string       // what keep was last told
	keep func([]string) // remembers over restarts what was ever mounted; nil: nobody does
}

// recall takes up the mount points that an earlier run had kept.
func (g *mountGuard) recall(paths []string) {
	for _, p := range paths {
		g.known = append(g.known, "- "+p) // No mount has this id: it counts as changed.
	}
	g.kept, g.begun = slices.Clone(paths), len(paths) > 0
}

// remember tells keep of the mount points there are and those that are missed.
// The caller holds g.mu.
func (g *mountGuard) remember() {
	if g.keep == nil {
		return
	}
	all := make([]string, 0, len(g.known)+len(g.gone))
	for _, m := range g.known {
		all = append(all, pathOf(m))
	}
	for m := range g.gone {
		all = append(all, m)
	}
	slices.Sort(all)
	if all = slices.Compact(all); slices.Equal(all, g.kept) {
		return
	}
	g.kept = all
	g.keep(slices.Clone(all))
}

// mountInfo lists the mounts of this process, see proc_pid_mountinfo(5).
const mountInfo = "/proc/self/mountinfo"

// check reads the mounts below root and reports whether they changed since the
// last call. Without /proc it never does.
func (g *mountGuard) check(root string) bool {
	content, err := os.ReadFile(mountInfo)
	if err != nil {
		return false
	}
	now := mountsBelow(string(content), root)
	g.mu.Lock()
	defer g.mu.Unlock()
	changed := g.begun && !slices.Equal(now, g.known)
	if changed {
		g.compare(now)
	}
	g.known, g.begun = now, true
	g.remember()
	return changed
}

// compare notes which mount points are not there any more.
func (g *mountGuard) compare(now []string) {
	if g.gone == nil {
		g.gone = make(map[string]struct{})
	}
	for _, m := range g.known {
		g.gone[pathOf(m)] = struct{}{}
	}
	for _, m := range now {
		delete(g.gone, pathOf(m))
	}
}

// lost reports whether path was on a mount that is not there any more.
func (g *mountGuard) lost(path string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for m := range g.gone {
		if below(path, m) {
			return true
		}
	}
	return false
}

// confirm accepts that what was on mounts that went is gone.
func (g *mountGuard) confirm() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gone = nil
	g.remember()
}

// mountsBelow returns "id path" of every mount below root, paths relative to
// it, sorted.
func mountsBelow(content, root string) []string {
	prefix := strings.TrimSuffix(root, "/") + "/"
	var out []string
	for line := range strings.Lines(content) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		if rel, ok := strings.CutPrefix(unescapeMount(f[4]), prefix); ok && rel != "" {
			out = append(out, f[0]+" "+rel)
		}
	}
	slices.Sort(out)
	return out
}

func pathOf(mount string) string {
	_, path, _ := strings.Cut(mount, " ")
	return path
}

// unescapeMount decodes the octal escapes of blanks and backslashes.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
