package watcher

import "fmt"

// Filter says whether a path is wanted by include patterns, as Options.Include
// has them. It may be used concurrently.
type Filter struct{ ign *ignorer }

// NewFilter returns a filter over gitignore patterns; without any, every path is
// wanted. A line that is no pattern is an error: it would choose everything, or
// nothing.
func NewFilter(patterns []string) (*Filter, error) {
	for _, line := range patterns {
		if why := PatternFault(line); why != "" {
			return nil, fmt.Errorf("the pattern %q %s", line, why)
		}
		if _, ok := parsePattern(line); !ok {
			return nil, fmt.Errorf("%q is no pattern: it is blank, or a comment; for a name that begins with # write \\#", line)
		}
	}
	ign, err := newIgnorer(patterns, nil, false)
	if err != nil {
		return nil, err
	}
	return &Filter{ign: ign}, nil
}

// Wants reports whether the file at path, below the source and in raw bytes, is
// wanted.
func (f *Filter) Wants(path string) bool { return !f.ign.excluded(path, false) }
