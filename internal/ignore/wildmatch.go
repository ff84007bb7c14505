package ignore

import "strings"

// This file matches exactly as git's wildmatch.c does, corner cases included.

type result int

const (
	noMatch result = iota
	match
	abortAll        // no later text can match
	abortToStarStar // only a ** further out can match
)

// wildBudget bounds the steps of one match: anyone who can write to the source can
// write a pattern.
const wildBudget = 100_000

// wild is one match in progress. With path, only ** matches a slash.
type wild struct {
	pattern, text string
	path          bool
	steps, budget int
}

// wildmatch reports whether pattern matches text within budget steps, and how many
// it took.
func wildmatch(pattern, text string, path bool, budget int) (matched bool, steps int) {
	w := wild{pattern: pattern, text: text, path: path, budget: budget}
	matched = w.from(0, 0) == match
	return matched, w.steps
}

// at returns the byte of s at i, 0 after its end: neither patterns nor names
// contain a zero byte.
func at(s string, i int) byte {
	if i < len(s) {
		return s[i]
	}
	return 0
}

func (w *wild) from(p, t int) result {
	begin := p
	for ; p < len(w.pattern); p, t = p+1, t+1 {
		if w.steps++; w.steps > w.budget {
			return abortAll
		}
		pc, tc := w.pattern[p], at(w.text, t)
		if pc == '*' {
			v, np, nt, done := w.star(begin, p, t)
			if done {
				return v
			}
			p, t = np, nt
			continue
		}
		if tc == 0 {
			return abortAll
		}
		np, v := w.one(p, pc, tc)
		if v != match {
			return v
		}
		p = np
	}
	if t < len(w.text) {
		return noMatch
	}
	return match
}

// one matches a single byte with what is at p and returns where that ends.
func (w *wild) one(p int, pc, tc byte) (end int, v result) {
	var ok bool
	switch pc {
	case '?':
		ok = !w.path || tc != '/'
	case '[':
		end, in, v := w.class(p, tc)
		if v == abortAll || in && (!w.path || tc != '/') {
			return end, v
		}
		return end, noMatch
	case '\\':
		p++
		ok = at(w.pattern, p) == tc
	default:
		ok = pc == tc
	}
	if ok {
		return p, match
	}
	return p, noMatch
}

// star handles the asterisk at p. Unless done, matching continues after np and nt.
func (w *wild) star(begin, p, t int) (v result, np, nt int, done bool) {
	first := p
	for p++; at(w.pattern, p) == '*'; {
		p++
	}
	slash := !w.path || p-first > 1 && w.wholeComponent(begin, first, p)
	if w.path && slash && at(w.pattern, p) == '/' && w.from(p+1, t) == match {
		return match, 0, 0, true
	}
	if p < len(w.pattern) && (slash || w.pattern[p] != '/') {
		return w.extend(p, t, slash), 0, 0, true
	}
	return w.component(p, t, slash)
}

// component handles an asterisk that matches the rest of a component, or of the
// text.
func (w *wild) component(p, t int, slash bool) (v result, np, nt int, done bool) {
	next := strings.IndexByte(w.text[min(t, len(w.text)):], '/')
	switch {
	case p == len(w.pattern) && (slash || next < 0):
		return match, 0, 0, true
	case p == len(w.pattern) || next < 0:
		return noMatch, 0, 0, true
	}
	return 0, p, t + next, false
}

// wholeComponent reports whether the run of asterisks from first to p matches
// whole components.
func (w *wild) wholeComponent(begin, first, p int) bool {
	if first-1 >= begin && w.pattern[first-1] != '/' {
		return false
	}
	next := at(w.pattern, p)
	return next == 0 || next == '/' || next == '\\' && at(w.pattern, p+1) == '/'
}

// extend lets an asterisk match more and more of the text until the rest matches.
func (w *wild) extend(p, t int, slash bool) result {
	for ; t < len(w.text); t++ {
		if pc := w.pattern[p]; !globSpecial(pc) {
			if t = w.find(pc, t, slash); at(w.text, t) != pc {
				return noMatch
			}
		}
		v := w.from(p, t)
		if v == noMatch {
			if !slash && at(w.text, t) == '/' {
				return abortToStarStar
			}
		} else if !slash || v != abortToStarStar {
			return v
		}
	}
	return abortAll
}

// find returns where the text has c at or after t, or where the search ends.
func (w *wild) find(c byte, t int, slash bool) int {
	for t < len(w.text) && w.text[t] != c && (slash || w.text[t] != '/') {
		t++
	}
	return t
}

func globSpecial(c byte) bool { return c == '*' || c == '?' || c == '[' || c == '\\' }

// class matches tc with the bracket expression at p and returns the place of
// its closing bracket; v is abortAll for a malformed one, else match.
func (w *wild) class(p int, tc byte) (end int, ok bool, v result) {
	p++
	negated := at(w.pattern, p) == '!' || at(w.pattern, p) == '^'
	if negated {
		p++
	}
	var prev byte
	found := false
	for first := true; first || at(w.pattern, p) != ']'; first = false {
		next, last, hit := w.classItem(p, prev, tc)
		if next < 0 {
			return 0, false, abortAll
		}
		found = found || hit
		p, prev = next+1, last
	}
	return p, found != negated, match
}

// classItem matches tc with one item of a bracket expression. It returns where
// the item ends, -1 for a malformed one, and the byte that may begin a range, 0
// for none.
func (w *wild) classItem(p int, prev, tc byte) (end int, last byte, hit bool) {
	pc, next := at(w.pattern, p), at(w.pattern, p+1)
	if pc == '[' && next == ':' {
		return w.namedClass(p, tc)
	}
	isRange := pc == '-' && prev != 0 && next != 0 && next != ']'
	if isRange {
		p++
		pc = next
	}
	if pc == '\\' {
		p++
		pc = at(w.pattern, p)
	}
	switch {
	case pc == 0:
		return -1, 0, false
	case isRange:
		return p, 0, prev <= tc && tc <= pc
	}
	return p, pc, tc == pc
}

func (w *wild) namedClass(p int, tc byte) (end int, last byte, hit bool) {
	i := strings.IndexByte(w.pattern[p+2:], ']')
	if i < 0 {
		return -1, 0, false
	}
	end = p + 2 + i
	if i == 0 || w.pattern[end-1] != ':' {
		return p, '[', tc == '[' // Not a named class: an opening bracket as such.
	}
	hit, known := inClass(w.pattern[p+2:end-1], tc)
	if !known {
		return -1, 0, false
	}
	return end, 0, hit
}

// inClass reports whether c is in the ASCII character class name.
func inClass(name string, c byte) (in, known bool) {
	members, known := classes(name)
	for ; len(members) > 1; members = members[2:] {
		if members[0] <= c && c <= members[1] {
			return true, known
		}
	}
	return false, known
}

// classes returns the ranges of a character class.
func classes(name string) (ranges string, known bool) {
	for _, class := range [...]struct{ name, ranges string }{
		{"alnum", "azAZ09"},
		{"alpha", "azAZ"},
		{"blank", "  \t\t"},
		{"cntrl", "\x00\x1f\x7f\x7f"},
		{"digit", "09"},
		{"graph", "!~"},
		{"lower", "az"},
		{"print", " ~"},
		{"punct", "!/:@[`{~"},
		{"space", "  \t\r"},
		{"upper", "AZ"},
		{"xdigit", "09afAF"},
	} {
		if class.name == name {
			return class.ranges, true
		}
	}
	return "", false
}
