package config

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

const day = 24 * time.Hour

// maxDuration keeps sums and products of durations far from overflow.
const maxDuration = 3650 * day

// kind is the YAML type of a scalar. A variable or a flag has none: its text is
// read as whatever the option takes.
type kind string

const (
	kindAny     kind = ""
	kindString  kind = "a string"
	kindInteger kind = "a number"
	kindFloat   kind = "a fraction"
	kindBool    kind = "true or false"
	kindNull    kind = "null"
	kindList    kind = "a list"
	kindMap     kind = "a mapping"
	kindTagged  kind = "tagged"
	kindAlias   kind = "an alias of nothing above"
	kindOther   kind = "no plain value"
)

// scalar is a value as it was written.
type scalar struct {
	text string
	kind kind
}

func (s scalar) is(kinds ...kind) bool { return s.kind == kindAny || slices.Contains(kinds, s.kind) }

// value is one scalar option, bound to its field.
type value interface {
	// set stores s, or says what is wrong with it and stores nothing.
	set(s scalar) (problem string)
	// accepted names the accepted form.
	accepted() string
	// get returns the field as Canonical renders it: string, bool or int64.
	get() any
}

// text is an option that is a string. An empty string passes unchecked where
// optional.
type text struct {
	p        *string
	optional bool
	digits   bool // an unquoted number is taken as it is written
	form     string
	check    func(s string) (problem string)
}

func (t text) set(s scalar) string {
	if !s.is(kindString) && (!t.digits || s.kind != kindInteger) {
		return wrongKind(s.kind)
	}
	if p := checkText(s.text); p != "" {
		return p
	}
	if s.text == "" && !t.optional {
		return "is empty"
	}
	if s.text != "" && t.check != nil {
		if p := t.check(s.text); p != "" {
			return p
		}
	}
	*t.p = s.text
	return ""
}

func (t text) accepted() string {
	if t.optional {
		return t.form + `, or ""`
	}
	return t.form
}

func (t text) get() any { return *t.p }

// enum is an option that takes one of a few names.
type enum struct {
	p     *string
	names []string
}

func (e enum) set(s scalar) string {
	if !s.is(kindString) {
		return wrongKind(s.kind)
	}
	if !slices.Contains(e.names, s.text) {
		return "is not known" + didYouMean(s.text, e.names)
	}
	*e.p = s.text
	return ""
}

func (e enum) accepted() string {
	names := slices.Clone(e.names)
	for i, n := range names {
		if n == "" {
			names[i] = `""`
		}
	}
	return strings.Join(names, " | ")
}

func (e enum) get() any { return *e.p }

// boolean is an option that is true or false.
type boolean struct{ p *bool }

func (b boolean) set(s scalar) string {
	if !s.is(kindBool) {
		return wrongKind(s.kind)
	}
	switch strings.ToLower(s.text) {
	case "true":
		*b.p = true
	case "false":
		*b.p = false
	default:
		return "is not a boolean"
	}
	return ""
}

func (boolean) accepted() string { return "true or false" }
func (b boolean) get() any       { return *b.p }

// integer is an option that counts something.
type integer[T int | int64] struct {
	p        *T
	min, max T
}

func (i integer[T]) set(s scalar) string {
	if !s.is(kindInteger) {
		return wrongKind(s.kind)
	}
	n, err := strconv.ParseInt(s.text, 10, 64)
	if err != nil {
		return "is not a whole number in decimal digits"
	}
	if n < int64(i.min) || n > int64(i.max) {
		return "is out of range"
	}
	*i.p = T(n)
	return ""
}

func (i integer[T]) accepted() string {
	return fmt.Sprintf("a whole number from %d to %d", i.min, i.max)
}
func (i integer[T]) get() any { return int64(*i.p) }

// size is an option in bytes.
type size struct {
	p        *int64
	min, max int64
}

func (v size) set(s scalar) string {
	if !s.is(kindString, kindInteger) {
		return wrongKind(s.kind)
	}
	n, problem := parseSize(s.text)
	if problem != "" {
		return problem
	}
	if n < v.min || n > v.max {
		return "is out of range"
	}
	*v.p = n
	return ""
}

func (v size) accepted() string {
	form := "a size such as 500KiB, 16MiB, 1GiB or plain bytes"
	switch {
	case v.max < math.MaxInt64:
		return form + ", from " + formatSize(v.min) + " to " + formatSize(v.max)
	case v.min > 0:
		return form + ", " + formatSize(v.min) + " or more"
	}
	return form
}
func (v size) get() any { return *v.p }

// duration is an option that is a length of time.
type duration struct {
	p    *time.Duration
	min  time.Duration
	max  time.Duration // 0: maxDuration
	zero bool          // 0 is accepted below min
}

// most returns the longest that is accepted.
func (v duration) most() time.Duration { return cmp.Or(v.max, maxDuration) }

func (v duration) set(s scalar) string {
	if !s.is(kindString, kindInteger) {
		return wrongKind(s.kind)
	}
	d, problem := parseDuration(s.text)
	switch {
	case problem != "":
		return problem
	case d < v.min && (!v.zero || d != 0):
		return "is too short"
	case d > v.most():
		return "is too long"
	}
	*v.p = d
	return ""
}

func (v duration) accepted() string {
	form := "a duration such as 500ms, 2s, 5m, 1h or 30d, from " + formatDuration(v.min) + " to " + formatDuration(v.most())
	if v.zero {
		form += ", or 0"
	}
	return form
}
func (v duration) get() any { return formatDuration(*v.p) }

func wrongKind(k kind) string {
	switch k {
	case kindTagged:
		return "has a tag; tags are not read"
	case kindNull:
		return "has no value"
	default:
		return "is " + string(k)
	}
}

// parseSize reads plain bytes or a whole number of KiB, MiB, GiB or TiB.
func parseSize(s string) (n int64, problem string) {
	digits := strings.TrimRight(s, "KMGTiB")
	unit := s[len(digits):]
	shift := map[string]uint{"": 0, "B": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}
	bits, known := shift[unit]
	u, err := strconv.ParseUint(digits, 10, 64)
	if !known || err != nil {
		return 0, "is not a size"
	}
	if u > math.MaxInt64>>bits {
		return 0, "is out of range"
	}
	return int64(u << bits), ""
}

func formatSize(n int64) string {
	for _, u := range []struct {
		bytes int64
		name  string
	}{{gib, "GiB"}, {mib, "MiB"}, {kib, "KiB"}} {
		if n > 0 && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// parseDuration reads what time.ParseDuration does, without a sign, and whole
// days before it: 30d, 1d12h. A bare 0 is a duration, another number is not.
func parseDuration(s string) (d time.Duration, problem string) {
	const no = "is not a duration"
	if strings.ContainsAny(s, "+-") {
		return 0, no
	}
	var days time.Duration
	rest := s
	if head, tail, found := strings.Cut(s, "d"); found {
		n, err := strconv.ParseUint(head, 10, 32)
		if err != nil {
			return 0, no
		}
		if n > uint64(maxDuration/day) {
			return 0, "is too long"
		}
		days, rest = time.Duration(n)*day, tail
		if rest == "" {
			return days, ""
		}
	}
	d, err := time.ParseDuration(rest)
	if err != nil {
		if _, numeric := strconv.ParseFloat(rest, 64); numeric == nil {
			return 0, "has no unit"
		}
		return 0, no
	}
	if d > maxDuration {
		return 0, "is too long"
	}
	return days + d, ""
}

// formatDuration returns d as parseDuration reads it, without parts that are
// zero: 30d, 1h, 1m30s.
func formatDuration(d time.Duration) string {
	if d > 0 && d%day == 0 {
		return strconv.FormatInt(int64(d/day), 10) + "d"
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	if d == 0 {
		return "0"
	}
	return s
}
