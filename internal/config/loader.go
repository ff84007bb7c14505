package config

import (
	"strconv"
	"strings"
)

// loader fills one Config and collects what is wrong on the way. Where a value
// came from is kept by its dotted path, so that a later check can point at it.
type loader struct {
	cfg     *Config
	file    string
	env     environment
	flags   bool // there is no file: settings come from flags
	faults  Errors
	origins map[string]origin
	bad     map[string]bool // paths whose value was refused
}

func newLoader(file string, env []string) *loader {
	return &loader{
		cfg: defaults(), file: file, env: newEnvironment(env),
		origins: map[string]origin{}, bad: map[string]bool{},
	}
}

// result returns the configuration, or its faults in order.
func (l *loader) result() (*Config, error) {
	if len(l.faults) > 0 {
		l.faults.sort()
		return nil, l.faults
	}
	l.cfg.from = l
	return l.cfg, nil
}

// at returns where key was set: itself, else the nearest block around it, else
// the beginning of the file.
func (l *loader) at(key string) origin {
	for k := key; k != ""; k = parent(k) {
		if o, found := l.origins[k]; found {
			return o
		}
	}
	if l.flags {
		return flagOrigin(key)
	}
	return origin{file: l.file, line: 1, column: 1}
}

// parent returns the path around a path: a.b[0] → a.b → a → "".
func parent(key string) string { return key[:max(strings.LastIndexAny(key, ".["), 0)] }

// written reports whether key was set by the file, a variable or a flag.
func (l *loader) written(key string) bool { _, found := l.origins[key]; return found }

// usable reports whether the values under all keys were accepted, so that it
// makes sense to check them against each other.
func (l *loader) usable(keys ...string) bool {
	for _, k := range keys {
		if l.bad[k] {
			return false
		}
	}
	return true
}

// fault records a fault of key, at the place where it was set.
func (l *loader) fault(key, value, problem, accepted string) {
	l.faults = append(l.faults, l.at(key).fault(key, value, problem, accepted))
	l.bad[key] = true
}

// faultAt records a fault at a place of its own.
func (l *loader) faultAt(o origin, key, value, problem, accepted string) {
	l.faults = append(l.faults, o.fault(key, value, problem, accepted))
	l.bad[key] = true
}

func (l *loader) warn(key, text string) {
	o := l.at(key)
	place := o.variable + o.flag
	if place == "" {
		place = o.file + ":" + strconv.Itoa(o.line) + ": " + key
	}
	l.cfg.Warnings = append(l.cfg.Warnings, place+": "+text)
}

// set gives an option its value.
func (l *loader) set(o origin, key string, v value, s scalar) {
	l.origins[key] = o
	problem := v.set(s)
	if problem == "" {
		return
	}
	l.faultAt(o, key, shown(s), problem, v.accepted())
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
