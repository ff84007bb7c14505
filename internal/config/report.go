package config

import (
	"strconv"
	"strings"
)

// report is what is wrong with a configuration. It knows where each value came
// from by its dotted path, so that a later check can point at it.
type report struct {
	file     string
	flags    bool // there is no file: settings come from flags
	faults   Errors
	warnings []string
	origins  map[string]origin
	bad      map[string]bool // paths whose value was refused
}

// at returns where key was set: itself, else the nearest block around it, else
// the beginning of the file.
func (r *report) at(key string) origin {
	for k := key; k != ""; k = parent(k) {
		if o, found := r.origins[k]; found {
			return o
		}
	}
	if r.flags {
		return flagOrigin(key)
	}
	return origin{file: r.file, line: 1, column: 1}
}

// parent returns the path around a path: a.b[0] → a.b → a → "".
func parent(key string) string { return key[:max(strings.LastIndexAny(key, ".["), 0)] }

// written reports whether key was set by the file, a variable or a flag.
func (r *report) written(key string) bool { _, found := r.origins[key]; return found }

// usable reports whether the values under all keys were accepted, so that it
// makes sense to check them against each other.
func (r *report) usable(keys ...string) bool {
	for _, k := range keys {
		if r.bad[k] {
			return false
		}
	}
	return true
}

// fault records a fault of key, at the place where it was set.
func (r *report) fault(key, value, problem, accepted string) {
	r.faults = append(r.faults, r.at(key).fault(key, value, problem, accepted))
	r.bad[key] = true
}

// faultAt records a fault at a place of its own.
func (r *report) faultAt(o origin, key, value, problem, accepted string) {
	r.faults = append(r.faults, o.fault(key, value, problem, accepted))
	r.bad[key] = true
}

// warn records a warning about key, at the place where it was set.
func (r *report) warn(key, text string) {
	o := r.at(key)
	place := o.variable + o.flag
	if place == "" {
		place = o.file + ":" + strconv.Itoa(o.line) + ": " + key
	}
	r.warnings = append(r.warnings, place+": "+text)
}

// set gives an option its value.
func (r *report) set(o origin, key string, v value, s scalar) {
	r.origins[key] = o
	problem := v.set(s)
	if problem == "" {
		return
	}
	r.faultAt(o, key, shown(s), problem, v.accepted())
}

// shown returns a refused value as a fault shows it. What may hold a password
// is not shown.
func shown(s scalar) string {
	if strings.Contains(s.text, "@") && strings.Contains(s.text, "://") {
		return "the URL"
	}
	if !s.is(kindString) {
		return s.text
	}
	return quote(s.text)
}

func sourceKey(i int) string { return "sources[" + strconv.Itoa(i) + "]" }
