// Package cgroup reads what the kernel's control groups allow this process.
package cgroup

import (
	"io/fs"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
)

// unlimited is from where on a limit of version 1 means none.
const unlimited = math.MaxInt64 / 2

// maxDepth bounds how many groups around the process's own are asked.
const maxDepth = 64

// MemoryLimit returns the least memory, in bytes, that the control groups of
// this process allow, of either version, those around its own included; ok is
// false where none limits it. The file system is that of the host, as from
// os.DirFS("/"). What cannot be read limits nothing.
func MemoryLimit(host fs.FS) (limit int64, ok bool) {
	groups, err := fs.ReadFile(host, "proc/self/cgroup")
	if err != nil {
		return 0, false
	}
	mounts, err := fs.ReadFile(host, "proc/self/mountinfo")
	if err != nil {
		return 0, false
	}
	least := int64(unlimited)
	for _, h := range hierarchies(groups, mounts) {
		for _, dir := range h.directories() {
			for _, file := range h.files {
				least = min(least, read(host, path.Join(dir, file)))
			}
		}
	}
	return least, least < unlimited
}

// hierarchy is one mounted tree of groups.
type hierarchy struct {
	mount string // where it is mounted
	root  string // which group is there
	group string // the process's
	files []string
}

// hierarchies returns those that limit memory.
func hierarchies(groups, mounts []byte) []hierarchy {
	var list []hierarchy
	for _, m := range memoryMounts(mounts) {
		for line := range strings.Lines(string(groups)) {
			parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
			if len(parts) != 3 {
				continue
			}
			controllers := strings.Split(parts[1], ",")
			if m.version2 && parts[0] == "0" && parts[1] == "" {
				list = append(list, hierarchy{m.at, m.root, parts[2], []string{"memory.max", "memory.high"}})
			}
			if !m.version2 && slices.Contains(controllers, "memory") {
				list = append(list, hierarchy{m.at, m.root, parts[2], []string{"memory.limit_in_bytes"}})
			}
		}
	}
	return list
}

// memoryMount is a mount of control groups.
type memoryMount struct {
	root, at string
	version2 bool
}

// memoryMounts returns the mounts that may limit memory, see
// proc_pid_mountinfo(5).
func memoryMounts(mounts []byte) []memoryMount {
	var list []memoryMount
	for line := range strings.Lines(string(mounts)) { // A line of an overlay may be long.
		before, after, ok := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(kind) < 1 {
			continue
		}
		m := memoryMount{root: unescape(fields[3]), at: unescape(fields[4]), version2: kind[0] == "cgroup2"}
		if m.version2 || kind[0] == "cgroup" && len(kind) > 2 && slices.Contains(strings.Split(kind[2], ","), "memory") {
			list = append(list, m)
		}
	}
	return list
}

// unescape undoes what mountinfo does to spaces and the like.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// directories returns where the process's group and those around it are seen. A
// container sees its own group at the top of the mount, whatever it is called
// outside.
func (h *hierarchy) directories() []string {
	rel := h.group
	if inside, ok := strings.CutPrefix(rel, strings.TrimSuffix(h.root, "/")); ok && (inside == "" || inside[0] == '/') {
		rel = inside
	}
	var list []string
	for dir := path.Join("/", rel); len(list) < maxDepth; dir = path.Dir(dir) {
		list = append(list, path.Join(h.mount, dir))
		if dir == "/" {
			break
		}
	}
	return list
}

// read returns the limit in a file, unlimited where there is none.
func read(host fs.FS, name string) int64 {
	b, err := fs.ReadFile(host, strings.TrimPrefix(path.Clean(name), "/"))
	if err != nil {
		return unlimited
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64) // "max" is no number.
	if err != nil || n <= 0 {
		return unlimited
	}
	return n
}
