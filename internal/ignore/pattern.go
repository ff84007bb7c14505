package ignore

import "strings"

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

// matches reports whether p matches rel, a path relative to the directory that
// the pattern applies to. It takes the steps that it needs off budget; nil: each
// match may take wildBudget.
func (p *pattern) matches(rel string, isDir bool, budget *int) bool {
	if budget != nil {
		*budget--
	}
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
	if budget == nil {
		matched, _ := wildmatch(text, name, path, wildBudget)
		return matched
	}
	matched, steps := wildmatch(text, name, path, max(0, min(*budget, wildBudget)))
	*budget -= steps
	return matched
}

// lastMatch returns the last pattern that matches, nil if none does or budget is
// used up.
func lastMatch(patterns []pattern, rel string, isDir bool, budget *int) *pattern {
	for i := len(patterns) - 1; i >= 0 && (budget == nil || *budget > 0); i-- {
		if patterns[i].matches(rel, isDir, budget) {
			return &patterns[i]
		}
	}
	return nil
}

// covers reports whether p matches the file at path or a directory above it.
func (p *pattern) covers(path string) bool {
	for i := range len(path) {
		if path[i] == '/' && p.matches(path[:i], true, nil) {
			return true
		}
	}
	return p.matches(path, false, nil)
}
