package watcher

// Filter says whether a path is wanted by include patterns, as Options.Include
// has them. It may be used concurrently.
type Filter struct{ ign *ignorer }

// NewFilter returns a filter over gitignore patterns; without any, every path is
// wanted.
func NewFilter(patterns []string) (*Filter, error) {
	ign, err := newIgnorer(patterns, nil, false)
	if err != nil {
		return nil, err
	}
	return &Filter{ign: ign}, nil
}

// Wants reports whether the file at path, below the source and in raw bytes, is
// wanted.
func (f *Filter) Wants(path string) bool { return !f.ign.excluded(path, false) }
