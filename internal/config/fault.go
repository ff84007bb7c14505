package config

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Fault is one mistake: where it stands, what is wrong and what is accepted.
// At most one of File, Variable and Flag is set. It holds no secret: what looks
// like a credential is named and never quoted.
type Fault struct {
	File     string // the name that Load or Parse was given
	Line     int    // from 1
	Column   int    // from 1, in characters
	Variable string // the environment variable
	Flag     string // the command-line flag, with its dashes
	Path     string // dotted, such as sources[0].kms_key_id; "" for the file as a whole
	Value    string // as written, shortened; "" where there is none or where it may be secret
	Problem  string // "is not a duration"
	Want     string // the accepted form; "" where Problem says it
}

// String returns the fault in one line.
func (f Fault) String() string {
	var parts []string
	switch {
	case f.Flag != "":
		parts = append(parts, f.Flag)
	case f.Variable != "":
		parts = append(parts, f.Variable)
	case f.File != "":
		parts = append(parts, f.File+":"+strconv.Itoa(f.Line)+":"+strconv.Itoa(f.Column))
	}
	if f.Path != "" && f.Flag == "" && f.Variable == "" {
		parts = append(parts, f.Path)
	}
	text := strings.TrimSpace(f.Value + " " + f.Problem)
	if f.Want != "" {
		text += "; accepted: " + f.Want
	}
	return strings.Join(append(parts, text), ": ")
}

// Errors are all faults of one configuration: those of the file by line, then
// those of variables and flags by name. It is the error of Load, Parse and
// FromFlags for whatever the operator can correct.
type Errors []Fault

// Error returns one fault a line.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, f := range e {
		lines[i] = f.String()
	}
	return strings.Join(lines, "\n")
}

func (e Errors) sort() {
	slices.SortStableFunc(e, func(a, b Fault) int {
		return cmp.Or(
			cmp.Compare(min(len(a.Variable)+len(a.Flag), 1), min(len(b.Variable)+len(b.Flag), 1)),
			cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Column, b.Column),
			cmp.Compare(a.Flag, b.Flag),
			cmp.Compare(a.Variable, b.Variable),
			cmp.Compare(a.Path, b.Path),
		)
	})
}

// Fault returns a fault of the setting at path, such as sources[0].deletes, that
// points at where it was written. It is for checks of what a configuration names
// and this package cannot judge.
func (c *Config) Fault(path, value, problem, want string) Fault {
	return c.from.at(path).fault(path, quote(value), problem, want)
}

// origin is where a value was written.
type origin struct {
	file           string
	line, column   int
	variable, flag string
}

func (o origin) fault(path, value, problem, want string) Fault {
	return Fault{
		File: o.file, Line: o.line, Column: o.column, Variable: o.variable, Flag: o.flag,
		Path: path, Value: value, Problem: problem, Want: want,
	}
}

// quote returns s as a message shows it: quoted, and shortened at a limit that
// any sensible value stays below.
func quote(s string) string {
	const limit = 80
	if len(s) <= limit {
		return strconv.Quote(s)
	}
	cut := limit
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return strconv.Quote(s[:cut]) + "…"
}
