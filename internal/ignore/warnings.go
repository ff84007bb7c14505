package ignore

import (
	"fmt"
	"strings"
)

// Fault says why a line cannot match anything: a bracket that is not closed, or a
// backslash before nothing. "" if it can.
func Fault(line string) string {
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

// Warnings names the patterns of an option, include or exclude, that are unlikely
// to mean what their author meant, for a source at root. It does not read the file
// system.
func Warnings(option string, lines []string, root string) (warnings []string) {
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

// doubt says why p, read from line after that many positive patterns, is unlikely to
// be meant as it is, "" if it is not; is: the line is a pattern.
func (p *pattern) doubt(line string, is bool, positive int, root string) string {
	switch {
	case !is:
		return noPattern(line)
	case p.negated && positive == 0:
		return "takes back what no pattern before it has matched"
	}
	return p.never(root)
}

// noPattern says why a line is not a pattern.
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
