package help

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Reference is the configuration file, as its annotated example has it.
type Reference struct {
	About string // a line a fact
	Keys  []Key
}

// Key is one line of the example.
type Key struct {
	Path  string // dotted, as in sources[].bucket
	Value string
	About string
	Block bool // holds other keys
}

// A line is `key: value # about`, two spaces and perhaps a dash in front of it
// where it belongs to the block above.
var exampleLine = regexp.MustCompile(`^(  (?:  |- )?)?([a-z0-9_]+):(?: ([^#\s].*?)??)? *(?: # (.*))?$`)

// Uncomment returns the example with the defaults that its comments show: each
// is a # right before a key, or before its spaces. One space behind a # begins a
// sentence.
func Uncomment(text string) string {
	return commentedKey.ReplaceAllString(text, "$1")
}

var commentedKey = regexp.MustCompile(`(?m)^#((?:  +)?[a-z0-9_]+:)`)

// ParseReference reads the annotated example: a head of comments, then a line a
// key with its comment, in blocks that hold no blocks; defaults are comments, as
// for Uncomment. A line of another form is an error that names it.
func ParseReference(text string) (*Reference, error) {
	r := &Reference{}
	block := ""
	for number, l := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		if head, ok := strings.CutPrefix(l, "# "); ok && len(r.Keys) == 0 {
			r.About += head + "\n"
			continue
		}
		if strings.TrimSpace(l) == "" {
			continue
		}
		l = Uncomment(l)
		m := exampleLine.FindStringSubmatch(l)
		if len(m) == 0 || (m[1] != "" && block == "") {
			return nil, fmt.Errorf("line %d of the example is not a key with a comment: %q", number+1, l)
		}
		k := Key{Path: m[2], Value: m[3], About: m[4]}
		switch {
		case m[1] == "":
			k.Block = m[3] == ""
			block = m[2]
		case len(m[1]) > 2: // An item of a list.
			k.Path = block + "[]." + m[2]
		default:
			k.Path = block + "." + m[2]
		}
		r.Keys = append(r.Keys, k)
	}
	if len(r.Keys) == 0 {
		return nil, errors.New("the example has no keys")
	}
	return r, nil
}
