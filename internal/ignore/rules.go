// Package ignore decides which files of a source are archived, by patterns with
// the syntax and meaning of gitignore(5): those of the configuration, and those of
// the ignore files in the source.
package ignore

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/s3syncd/s3syncd/internal/relpath"
	"github.com/s3syncd/s3syncd/internal/safefs"
)

// FileName is the file in a directory whose patterns apply below it.
const FileName = ".s3syncignore"

// Budget bounds the steps that all ignore files together may take for one path:
// anyone who can write to the source can write them. Beyond it the path is
// archived, because leaving it out is what would lose something.
const Budget = 100_000

// maxIgnoreFile bounds the size of an ignore file; a larger one is refused.
const maxIgnoreFile = 1 << 20

// File is one ignore file that a scan honored.
type File struct{ Path, SHA256 string }

type ignoreFile struct {
	patterns []pattern
	sha256   string
}

// Rules decide which paths of a source are not archived: by the patterns of the
// configuration, and by the ignore files that Enter has read. They may be used
// concurrently.
type Rules struct {
	include, exclude []pattern
	use              *includeUse
	files            bool

	mu   sync.RWMutex
	dirs map[string]ignoreFile // by directory

	costly atomic.Int64 // paths that are archived because they used up Budget
}

// New returns rules of gitignore patterns: if there are any in include, only files
// that match them are archived; exclude wins over everything else. With files the
// rules honor ignore files as well.
func New(include, exclude []string, files bool) (*Rules, error) {
	r := &Rules{files: files, dirs: make(map[string]ignoreFile), use: newIncludeUse(include)}
	var err error
	if r.include, err = compile("include", include); err != nil {
		return nil, err
	}
	if r.exclude, err = compile("exclude", exclude); err != nil {
		return nil, err
	}
	return r, nil
}

func compile(option string, lines []string) ([]pattern, error) {
	out := make([]pattern, 0, len(lines))
	for _, l := range lines {
		if strings.ContainsAny(l, "\x00\n") {
			return nil, fmt.Errorf("watcher: %s: %q is not one pattern", option, l)
		}
		if p, ok := parsePattern(l); ok {
			out = append(out, p)
		}
	}
	return out, nil
}

// Unused returns the patterns of include that have matched no file so far.
func (r *Rules) Unused() []string { return r.use.list() }

// TakeCostly returns how many paths used up Budget since it was last called.
func (r *Rules) TakeCostly() int64 { return r.costly.Swap(0) }

// Excluded reports whether the path or one of its parents is excluded.
func (r *Rules) Excluded(path string, isDir bool) bool {
	for i := range len(path) {
		if path[i] == '/' && r.ExcludedHere(path[:i], true) {
			return true
		}
	}
	return r.ExcludedHere(path, isDir)
}

// ExcludedHere is Excluded for a path whose parents are known not to be.
func (r *Rules) ExcludedHere(path string, isDir bool) bool {
	if path == "" {
		return false
	}
	if p := lastMatch(r.exclude, path, isDir, nil); p != nil && !p.negated {
		return true
	}
	if r.files && r.byFile(path, isDir) {
		return true
	}
	return !isDir && len(r.include) > 0 && !r.included(path)
}

// byFile reports whether the ignore files above path exclude it. The nearest one
// that matches decides.
func (r *Rules) byFile(path string, isDir bool) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if len(r.dirs) == 0 {
		return false
	}
	budget := Budget
	for dir := path; dir != "" && budget > 0; {
		dir = relpath.Parent(dir)
		f, ok := r.dirs[dir]
		if !ok {
			continue
		}
		rel := path
		if dir != "" {
			rel = path[len(dir)+1:]
		}
		if p := lastMatch(f.patterns, rel, isDir, &budget); p != nil {
			return !p.negated
		}
	}
	if budget <= 0 {
		r.costly.Add(1)
	}
	return false
}

func (r *Rules) included(path string) bool {
	r.use.note(path)
	for i := range len(path) {
		if path[i] != '/' {
			continue
		}
		if p := lastMatch(r.include, path[:i], true, nil); p != nil && !p.negated {
			return true
		}
	}
	p := lastMatch(r.include, path, false, nil)
	return p != nil && !p.negated
}

// Enter reads the ignore file of dir, if one is present, and applies it from now
// on. One that cannot be read leaves the patterns in force that were read before.
func (r *Rules) Enter(root *safefs.Root, dir string, present bool) (found *File, err error) {
	if !r.files {
		return nil, nil
	}
	if !present {
		r.mu.Lock()
		delete(r.dirs, dir)
		r.mu.Unlock()
		return nil, nil
	}
	path := relpath.Join(dir, FileName)
	content, err := readIgnoreFile(root, path)
	if err != nil {
		return nil, fmt.Errorf("ignore file: %w", err)
	}
	sum := sha256.Sum256(content)
	f := ignoreFile{patterns: parsePatterns(string(content)), sha256: hex.EncodeToString(sum[:])}
	r.mu.Lock()
	r.dirs[dir] = f
	r.mu.Unlock()
	return &File{Path: path, SHA256: f.sha256}, nil
}

func readIgnoreFile(root *safefs.Root, path string) ([]byte, error) {
	o, err := root.Open(path)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(o.File, maxIgnoreFile+1))
	if err := errors.Join(err, o.File.Close()); err != nil {
		return nil, err
	}
	if len(content) > maxIgnoreFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxIgnoreFile)
	}
	return content, nil
}

// Filter decides by include patterns which paths are wanted. It may be used
// concurrently.
type Filter struct{ rules *Rules }

// NewFilter returns a filter over gitignore patterns; without any, every path is
// wanted. A line that is no pattern is an error: it would select everything, or
// nothing.
func NewFilter(patterns []string) (*Filter, error) {
	for _, line := range patterns {
		if why := Fault(line); why != "" {
			return nil, fmt.Errorf("the pattern %q %s", line, why)
		}
		if _, ok := parsePattern(line); !ok {
			return nil, fmt.Errorf("%q is no pattern: it is blank, or a comment; for a name that begins with # write \\#", line)
		}
	}
	rules, err := New(patterns, nil, false)
	if err != nil {
		return nil, err
	}
	return &Filter{rules: rules}, nil
}

// Wants reports whether the file at path, below the source and in raw bytes, is
// wanted.
func (f *Filter) Wants(path string) bool { return !f.rules.Excluded(path, false) }
