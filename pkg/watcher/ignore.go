package watcher

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

// ignoreName is the file in a directory whose patterns apply below it.
const ignoreName = ".s3syncignore"

// fileBudget bounds the steps that all ignore files together may take for one
// path: whoever may write to the source writes them. Beyond it the path is
// archived, because leaving it out is what would lose something.
const fileBudget = 100_000

// maxIgnoreFile bounds the size of an ignore file; a larger one is refused.
const maxIgnoreFile = 1 << 20

// pattern is one line of gitignore syntax, see gitignore(5).
type pattern struct {
	text    string
	negated bool
	dirOnly bool
	base    bool // without a slash: matches the last component
	literal int  // bytes at the start without a special character
}

// parsePattern reads one line; ok is false for one without a pattern.
func parsePattern(line string) (p pattern, ok bool) {
	line = trimTrailingSpaces(line)
	if line == "" || line[0] == '#' {
		return pattern{}, false
	}
	if line[0] == '!' {
		p.negated = true
		line = line[1:]
	}
	if strings.HasSuffix(line, "/") {
		p.dirOnly = true
		line = line[:len(line)-1]
	}
	p.base = !strings.Contains(line, "/")
	if !p.base {
		line = strings.TrimPrefix(line, "/")
	}
	p.text = line
	for p.literal < len(line) && !globSpecial(line[p.literal]) {
		p.literal++
	}
	return p, true
}

// trimTrailingSpaces cuts spaces that no backslash escapes.
func trimTrailingSpaces(s string) string {
	last := -1
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case ' ':
			if last < 0 {
				last = i
			}
			continue
		case '\\':
			i++
			if i == len(s) {
				return s
			}
		}
		last = -1
	}
	if last >= 0 {
		return s[:last]
	}
	return s
}

// parsePatterns reads the content of an ignore file.
func parsePatterns(content string) []pattern {
	var out []pattern
	content = strings.TrimPrefix(content, "\ufeff")
	for line := range strings.SplitSeq(content, "\n") {
		line = strings.TrimSuffix(line, "\r")
		if i := strings.IndexByte(line, 0); i >= 0 {
			line = line[:i]
		}
		if p, ok := parsePattern(line); ok {
			out = append(out, p)
		}
	}
	return out
}

// matches reports whether p matches the path rel, relative to where p stands.
func (p *pattern) matches(rel string, isDir bool) bool {
	budget := wildBudget
	return p.matchesWithin(rel, isDir, &budget)
}

// matchesWithin is matches, and takes the steps that it needs off budget.
func (p *pattern) matchesWithin(rel string, isDir bool, budget *int) bool {
	*budget--
	if p.dirOnly && !isDir {
		return false
	}
	if p.base {
		name := rel[strings.LastIndexByte(rel, '/')+1:]
		if p.literal == len(p.text) {
			return name == p.text
		}
		return p.wild(p.text, name, false, budget)
	}
	if !strings.HasPrefix(rel, p.text[:p.literal]) {
		return false
	}
	if p.literal == len(p.text) {
		return len(rel) == p.literal
	}
	return p.wild(p.text[p.literal:], rel[p.literal:], true, budget)
}

func (p *pattern) wild(text, name string, path bool, budget *int) bool {
	matched, steps := wildmatchWithin(text, name, path, max(0, min(*budget, wildBudget)))
	*budget -= steps
	return matched
}

// lastMatch returns the last pattern that matches, nil for none. The patterns
// are an operator's: each may take its steps.
func lastMatch(patterns []pattern, rel string, isDir bool) *pattern {
	for i := len(patterns) - 1; i >= 0; i-- {
		if patterns[i].matches(rel, isDir) {
			return &patterns[i]
		}
	}
	return nil
}

// lastMatchWithin is lastMatch as far as budget goes.
func lastMatchWithin(patterns []pattern, rel string, isDir bool, budget *int) *pattern {
	for i := len(patterns) - 1; i >= 0 && *budget > 0; i-- {
		if patterns[i].matchesWithin(rel, isDir, budget) {
			return &patterns[i]
		}
	}
	return nil
}

type ignoreFile struct {
	patterns []pattern
	sha256   string
}

// ignorer knows what is not archived. It may be used concurrently.
type ignorer struct {
	include, exclude []pattern
	use              *includeUse
	files            bool

	mu   sync.RWMutex
	dirs map[string]ignoreFile // by directory

	costly atomic.Int64 // paths that were archived because fileBudget was used up
}

func newIgnorer(include, exclude []string, files bool) (*ignorer, error) {
	g := &ignorer{files: files, dirs: make(map[string]ignoreFile), use: newIncludeUse(include)}
	var err error
	if g.include, err = compile("include", include); err != nil {
		return nil, err
	}
	if g.exclude, err = compile("exclude", exclude); err != nil {
		return nil, err
	}
	return g, nil
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

// unused returns the patterns of include that have matched no file so far.
func (g *ignorer) unused() []string { return g.use.list() }

// takeCostly returns how many paths used up fileBudget since it was last called.
func (g *ignorer) takeCostly() int64 { return g.costly.Swap(0) }

// excluded reports whether the path or one of its parents is excluded.
func (g *ignorer) excluded(path string, isDir bool) bool {
	for i := range len(path) {
		if path[i] == '/' && g.excludedHere(path[:i], true) {
			return true
		}
	}
	return g.excludedHere(path, isDir)
}

// excludedHere is excluded for a path whose parents are known not to be.
func (g *ignorer) excludedHere(path string, isDir bool) bool {
	if path == "" {
		return false
	}
	if p := lastMatch(g.exclude, path, isDir); p != nil && !p.negated {
		return true
	}
	if g.files && g.byFile(path, isDir) {
		return true
	}
	return !isDir && len(g.include) > 0 && !g.included(path)
}

// byFile asks the ignore files above path, the nearest first.
func (g *ignorer) byFile(path string, isDir bool) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if len(g.dirs) == 0 {
		return false
	}
	budget := fileBudget
	for dir := path; dir != "" && budget > 0; {
		dir = relpath.Parent(dir)
		f, ok := g.dirs[dir]
		if !ok {
			continue
		}
		rel := path
		if dir != "" {
			rel = path[len(dir)+1:]
		}
		if p := lastMatchWithin(f.patterns, rel, isDir, &budget); p != nil {
			return !p.negated
		}
	}
	if budget <= 0 {
		g.costly.Add(1)
	}
	return false
}

func (g *ignorer) included(path string) bool {
	g.use.note(path)
	for i := range len(path) {
		if path[i] != '/' {
			continue
		}
		if p := lastMatch(g.include, path[:i], true); p != nil && !p.negated {
			return true
		}
	}
	p := lastMatch(g.include, path, false)
	return p != nil && !p.negated
}

// enter learns of the ignore file of dir, or that there is none. An ignore file
// that cannot be read keeps what was known of it.
func (g *ignorer) enter(root *safefs.Root, dir string, present bool) (found *IgnoreFile, err error) {
	if !g.files {
		return nil, nil
	}
	if !present {
		g.mu.Lock()
		delete(g.dirs, dir)
		g.mu.Unlock()
		return nil, nil
	}
	path := relpath.Join(dir, ignoreName)
	content, err := readIgnoreFile(root, path)
	if err != nil {
		return nil, fmt.Errorf("ignore file: %w", err)
	}
	sum := sha256.Sum256(content)
	f := ignoreFile{patterns: parsePatterns(string(content)), sha256: hex.EncodeToString(sum[:])}
	g.mu.Lock()
	g.dirs[dir] = f
	g.mu.Unlock()
	return &IgnoreFile{Path: path, SHA256: f.sha256}, nil
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
