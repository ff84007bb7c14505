package watcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/s3syncd/s3syncd/internal/relpath"
)

// PatternFault says why a line is no pattern that could ever match: a bracket
// that is not closed, or a backslash before nothing. "" is none.
func PatternFault(line string) string {
	p, ok := parsePattern(line)
	if !ok {
		return ""
	}
	for i := 0; i < len(p.text); i++ {
		switch p.text[i] {
		case '\\':
			if i++; i == len(p.text) {
				return "ends with a backslash that escapes nothing"
			}
		case '[':
			w := wild{pattern: p.text}
			end, _, v := w.class(i, 'a')
			if v == abortAll {
				return "has a bracket that is not closed, or a class that is not known"
			}
			i = end
		}
	}
	return ""
}

// PatternWarnings says what is not as one might think in the patterns of an
// option, include or exclude, of a source that stands at root. The file system
// is not asked.
func PatternWarnings(option string, lines []string, root string) (warnings []string) {
	patterns, positive := 0, 0
	for _, line := range lines {
		p, ok := parsePattern(line)
		if text := p.doubt(line, ok, positive, root); text != "" {
			warnings = append(warnings, fmt.Sprintf("%q %s", line, text))
		}
		if !ok {
			continue
		}
		if patterns++; !p.negated {
			positive++
		}
	}
	switch {
	case option != "include" || len(lines) == 0 || positive > 0:
	case patterns > 0:
		warnings = append(warnings, "no pattern includes anything: nothing is archived")
	default:
		warnings = append(warnings, "there is no pattern in it: everything is archived")
	}
	return warnings
}

// doubt says what is not as one might think of p, which was read from line behind
// some positive patterns, where it is one.
func (p *pattern) doubt(line string, is bool, positive int, root string) string {
	switch {
	case !is:
		return noPattern(line)
	case p.negated && positive == 0:
		return "takes back what no pattern before it has matched"
	}
	return p.never(root)
}

// noPattern says why a line is none.
func noPattern(line string) string {
	if strings.HasPrefix(line, "#") {
		return "is a comment and matches nothing; for a name that begins with # write \\#"
	}
	return "is blank and matches nothing"
}

// never says why no path below root can match p, "" if one can.
func (p *pattern) never(root string) string {
	if text := impossible(p.text); text != "" {
		return text
	}
	if _, list, ok := strings.Cut(p.text, "{"); ok && strings.Contains(list, ",") && strings.Contains(list, "}") {
		return "matches names with these braces in them only: write a pattern for each of the alternatives"
	}
	if p.base || root == "/" || root == "" {
		return ""
	}
	if inside, ok := strings.CutPrefix("/"+p.text, strings.TrimSuffix(root, "/")+"/"); ok {
		return fmt.Sprintf("does not match what lies in the source: patterns are relative to it, as in %q", "/"+inside)
	}
	if strings.HasPrefix(root+"/", "/"+p.text+"/") && strings.Contains(p.text, "/") {
		return "does not match the source: patterns are relative to it"
	}
	return ""
}

// impossible says which component of a pattern no path has, "" for none.
func impossible(text string) string {
	if text == "" {
		return "matches nothing: patterns are relative to the source"
	}
	for c := range strings.SplitSeq(text, "/") {
		switch c {
		case "":
			return "can never match: a path has no empty component"
		case ".", "..":
			return fmt.Sprintf("can never match: a path has no component %q, patterns are relative to the source", c)
		}
	}
	return ""
}

// includeUse keeps which patterns of include have matched no file yet.
type includeUse struct {
	left atomic.Int64

	mu      sync.Mutex
	unused  []pattern
	written []string // as the configuration has them
}

func newIncludeUse(lines []string) *includeUse {
	u := &includeUse{}
	for _, l := range lines {
		if p, ok := parsePattern(l); ok && !p.negated {
			u.unused, u.written = append(u.unused, p), append(u.written, l)
		}
	}
	u.left.Store(int64(len(u.unused)))
	return u
}

// note strikes out the patterns that match the file at path, or a directory
// above it.
func (u *includeUse) note(path string) {
	if u.left.Load() == 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := len(u.unused) - 1; i >= 0; i-- {
		if u.unused[i].covers(path) {
			u.unused, u.written = slices.Delete(u.unused, i, i+1), slices.Delete(u.written, i, i+1)
		}
	}
	u.left.Store(int64(len(u.unused)))
}

// list returns the patterns that have matched no file.
func (u *includeUse) list() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.written)
}

// UnusedIncludes looks below the directory root for files that the patterns of
// include match and those of exclude do not, and returns the patterns without
// any. It gives up after limit entries, or when ctx ends: then none is named. It
// follows no symbolic link, and blocks where the file system does.
func UnusedIncludes(ctx context.Context, root string, include, exclude []string, limit int) ([]string, error) {
	g, err := newIgnorer(include, exclude, false)
	if err != nil {
		return nil, err
	}
	for dirs := []string{""}; len(dirs) > 0 && g.use.left.Load() > 0; {
		dir := dirs[len(dirs)-1]
		below, err := g.look(ctx, root, dir, &limit)
		if ctx.Err() != nil || errors.Is(err, errTooMany) {
			return nil, ctx.Err()
		}
		if err != nil && dir == "" {
			return nil, err
		}
		dirs = append(dirs[:len(dirs)-1], below...)
	}
	return g.use.list(), nil
}

// look notes the files of a directory, and returns its subdirectories that are
// not excluded. It takes the entries off limit.
func (g *ignorer) look(ctx context.Context, root, dir string, limit *int) (below []string, err error) {
	err = eachEntryOf(filepath.Join(root, dir), func(e fs.DirEntry) error {
		path := relpath.Join(dir, e.Name())
		switch *limit--; {
		case ctx.Err() != nil:
			return ctx.Err()
		case *limit < 0:
			return errTooMany
		case e.Type().IsRegular():
			g.excludedHere(path, false) // It notes what is included.
		case e.IsDir() && !g.excludedHere(path, true):
			below = append(below, path)
		}
		return nil
	})
	return below, err
}

var errTooMany = errors.New("too many entries")

// eachEntryOf calls fn for the entries of a directory, which is read in parts.
func eachEntryOf(dir string, fn func(fs.DirEntry) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }() // Only read.
	for {
		entries, err := d.ReadDir(1000)
		for _, e := range entries {
			if err := fn(e); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// covers reports whether p matches the file at path or a directory above it.
func (p *pattern) covers(path string) bool {
	for i := range len(path) {
		if path[i] == '/' && p.matches(path[:i], true) {
			return true
		}
	}
	return p.matches(path, false)
}
