package config

import "strings"

// Look is what stands at a path.
type Look struct {
	Real  string // the path without symbolic links, as far as that could be found out
	There bool   // something is there
	File  bool   // and it is no directory
}

// place is a path as it was written and as it is without symbolic links.
type place struct{ path, real string }

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

// CheckPlaces refuses sources that overlap and writes of ours inside a source,
// as Load does, but by what stands at the paths: look is called for each of them
// and may follow links. Load itself touches no source, which may be on a file
// system that does not answer. The error is Errors.
func (c *Config) CheckPlaces(look func(path string) Look) error {
	found := *c.from
	found.faults, found.bad = nil, map[string]bool{}
	(&checker{report: &found, cfg: c}).checkPaths(look)
	if len(found.faults) > 0 {
		found.faults.sort()
		return found.faults
	}
	return nil
}

// asWritten is the look of a caller that opens nothing.
func asWritten(path string) Look { return Look{Real: path} }

// checkPaths refuses sources that overlap and writes of ours inside a source. A
// path that does not exist may be mounted later.
func (c *checker) checkPaths(look func(string) Look) {
	cfg := c.cfg
	places := make([]place, len(cfg.Sources))
	for i := range cfg.Sources {
		key := sourceKey(i) + ".path"
		path := cfg.Sources[i].Path
		if path == "" || !c.usable(key) {
			continue
		}
		at := look(path)
		if at.File {
			c.fault(key, quote(path), "is not a directory", "the path of a directory")
			continue
		}
		places[i] = place{path, at.Real}
		c.checkOverlap(i, places)
	}
	own := func(key, path string) {
		if path != "" && c.usable(key) {
			c.checkOwn(key, place{path, look(path).Real}, places)
		}
	}
	own("state_dir", cfg.StateDir)
	if c.written("manifest.local_dir") {
		own("manifest.local_dir", cfg.Manifest.LocalDir)
	}
	if !cfg.Admin.defaultSocket || !below(cfg.Admin.Socket, cfg.StateDir) {
		own("admin.socket", cfg.Admin.Socket)
	}
}

// checkOverlap compares source i with those before it.
func (c *checker) checkOverlap(i int, places []place) {
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
		c.fault(sourceKey(i)+".path", places[i].quoted(), relation+sourceKey(j)+", "+other.String(), "directories that do not overlap")
		return
	}
}

// checkOwn refuses a path that the daemon writes to inside a source: it would
// archive itself for ever.
func (c *checker) checkOwn(key string, own place, places []place) {
	for i, p := range places {
		if p.path != "" && own.in(p) {
			c.fault(key, own.quoted(), "lies inside "+sourceKey(i)+", "+p.String(), "a path outside all sources")
			return
		}
	}
}

// checkPrefixes refuses two sources whose objects could share a key.
func (c *checker) checkPrefixes() {
	byBucket := map[string][]int{}
	for i := range c.cfg.Sources {
		s, key := &c.cfg.Sources[i], sourceKey(i)
		if s.Bucket == "" || !c.usable(key+".bucket", key+".prefix", "instance") {
			continue
		}
		for _, j := range byBucket[s.Bucket] {
			other := c.cfg.Sources[j].Prefix
			if below(s.Prefix, other) || below(other, s.Prefix) {
				c.fault(key+".prefix", quote(s.Prefix), "would mix its objects with those of "+sourceKey(j)+", whose prefix in the same bucket is "+quote(other),
					"prefixes of which none contains the other")
				break
			}
		}
		byBucket[s.Bucket] = append(byBucket[s.Bucket], i)
	}
}
