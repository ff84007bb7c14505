package config

import (
	"os"
	"path/filepath"
	"strings"
)

// place is a path as it was written and as it is without symbolic links.
type place struct{ path, real string }

// newPlace resolves the links of path as far as it exists.
func newPlace(path string) place {
	rest := ""
	for dir := path; ; dir = filepath.Dir(dir) {
		if resolved, err := filepath.EvalSymlinks(dir); err == nil {
			return place{path, filepath.Join(resolved, rest)}
		}
		if dir == filepath.Dir(dir) {
			return place{path, path}
		}
		rest = filepath.Join(filepath.Base(dir), rest)
	}
}

// quoted is String as the value of a fault.
func (p place) quoted() string {
	if p.real == p.path {
		return quote(p.path)
	}
	return quote(p.path) + " (that is " + p.real + ")"
}

// in reports whether p is q or below it, under either name.
func (p place) in(q place) bool {
	return below(p.path, q.path) || below(p.real, q.real)
}

// String names both where they differ.
func (p place) String() string {
	if p.real == p.path {
		return p.path
	}
	return p.path + " (that is " + p.real + ")"
}

// below reports whether name is root or below it. Everything is below "".
func below(name, root string) bool {
	if name == root || root == "" {
		return true
	}
	return strings.HasPrefix(name, strings.TrimSuffix(root, "/")+"/")
}

// checkPaths refuses sources that overlap and writes of ours inside a source.
// It looks at the paths that exist, so it may wait for a network file system; a
// path that does not exist may be mounted later.
func (l *loader) checkPaths() {
	c := l.cfg
	places := make([]place, len(c.Sources))
	for i := range c.Sources {
		key := sourceKey(i) + ".path"
		path := c.Sources[i].Path
		if path == "" || !l.usable(key) {
			continue
		}
		if fi, err := os.Stat(path); err == nil && !fi.IsDir() {
			l.fault(key, quote(path), "is not a directory", "the path of a directory")
			continue
		}
		places[i] = newPlace(path)
		l.checkOverlap(i, places)
	}
	l.checkOwn("state_dir", c.StateDir, places)
	if l.written("manifest.local_dir") {
		l.checkOwn("manifest.local_dir", c.Manifest.LocalDir, places)
	}
	if !c.Admin.defaultSocket || !below(c.Admin.Socket, c.StateDir) {
		l.checkOwn("admin.socket", c.Admin.Socket, places)
	}
}

// checkOverlap compares source i with those before it.
func (l *loader) checkOverlap(i int, places []place) {
	for j, other := range places[:i] {
		if other.path == "" {
			continue
		}
		var relation string
		switch {
		case places[i].in(other) && other.in(places[i]):
			relation = "is the directory of "
		case places[i].in(other):
			relation = "lies inside "
		case other.in(places[i]):
			relation = "contains "
		default:
			continue
		}
		l.fault(sourceKey(i)+".path", places[i].quoted(), relation+sourceKey(j)+", "+other.String(), "directories that do not overlap")
		return
	}
}

// checkOwn refuses a path that the daemon writes to inside a source: it would
// archive itself for ever.
func (l *loader) checkOwn(key, path string, places []place) {
	if path == "" || !l.usable(key) {
		return
	}
	own := newPlace(path)
	for i, p := range places {
		if p.path != "" && own.in(p) {
			l.fault(key, own.quoted(), "lies inside "+sourceKey(i)+", "+p.String(), "a path outside all sources")
			return
		}
	}
}

// checkPrefixes refuses two sources whose objects could share a key.
func (l *loader) checkPrefixes() {
	byBucket := map[string][]int{}
	for i := range l.cfg.Sources {
		s, key := &l.cfg.Sources[i], sourceKey(i)
		if s.Bucket == "" || !l.usable(key+".bucket", key+".prefix", "instance") {
			continue
		}
		for _, j := range byBucket[s.Bucket] {
			other := l.cfg.Sources[j].Prefix
			if below(s.Prefix, other) || below(other, s.Prefix) {
				l.fault(key+".prefix", quote(s.Prefix), "would mix its objects with those of "+sourceKey(j)+", whose prefix in the same bucket is "+quote(other),
					"prefixes of which none contains the other")
				break
			}
		}
		byBucket[s.Bucket] = append(byBucket[s.Bucket], i)
	}
}
