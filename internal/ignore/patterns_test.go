package ignore

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestPatternsThatAreNoneAreFaults(t *testing.T) {
	for _, line := range []string{"[a-", "[", "dir/[abc", "a[]", "[[:word:]]", "x\\", "![a-", "a/b[!", "[a\\"} {
		if Fault(line) == "" {
			t.Errorf("Fault(%q) = \"\"", line)
		}
	}
	for _, line := range []string{"[a-z]", "[]a]", "[!a]", "\\[a-", "[[:digit:]]*", "*.tmp", "cache/", "/a/**/b", "#", "", "a\\ ", "!x", "[a-]", "[\\]]"} {
		if why := Fault(line); why != "" {
			t.Errorf("PatternFault(%q) = %q, want none", line, why)
		}
	}
}

func TestPatternsThatCannotMatchAreWarnedOf(t *testing.T) {
	const root = "/opt/app/data"
	for _, c := range []struct {
		option string
		lines  []string
		want   string // in the only warning; "": no warning
	}{
		{"exclude", []string{"#*#"}, "is a comment"},
		{"exclude", []string{"# cache"}, "is a comment"},
		{"exclude", []string{"./cache/"}, `no component "."`},
		{"exclude", []string{"../other"}, `no component ".."`},
		{"exclude", []string{"a/../b"}, `no component ".."`},
		{"exclude", []string{"a//b"}, "empty component"},
		{"exclude", []string{"//"}, "matches nothing"},
		{"exclude", []string{"/opt/app/data/cache"}, `as in "/cache"`},
		{"exclude", []string{"/opt/app/data/"}, "does not match the source"},
		{"exclude", []string{"/opt/app/"}, "does not match the source"},
		{"exclude", []string{"!keep"}, "takes back"},
		{"exclude", []string{"*.{tmp,log}"}, "braces"},
		{"exclude", []string{"   "}, "is blank"},
		{"include", []string{"./logs", "*.csv"}, `no component "."`},
		{"exclude", []string{"*.tmp", "!keep.tmp", "/cache/", "a/**/b", "\\#x", "...", ".hidden/", "**", "/opt", "opt/app/x", ".", "#x"}[:10], ""},
		{"include", []string{"*.csv", "!old.csv"}, ""},
	} {
		got := Warnings(c.option, c.lines, root)
		if c.want == "" && len(got) > 0 || c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)) {
			t.Errorf("PatternWarnings(%s, %q) = %q, want %q", c.option, c.lines, got, c.want)
		}
	}
	for _, c := range []struct {
		lines []string
		want  string
	}{{[]string{"#x"}, "everything is archived"}, {[]string{"!x"}, "nothing is archived"}} {
		if got := Warnings("include", c.lines, root); len(got) != 2 || !strings.Contains(got[1], c.want) {
			t.Errorf("PatternWarnings(include, %q) = %q, want that %s", c.lines, got, c.want)
		}
	}
}

// An include under which there is no file is named by the scan, until a file
// comes.
func TestAScanNamesIncludesWithoutFiles(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"logs/a.log", "data/deep/b.csv", "tmp/c.csv"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, f)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g, err := New([]string{"./logs", "logs/", "*.log", "nothing/", "*.csv", "!old.csv", "tmp/"}, []string{"tmp/"}, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"logs/a.log", "data/deep/b.csv", "tmp/c.csv"} {
		g.Excluded(f, false)
	}
	if got, want := g.use.list(), []string{"./logs", "nothing/", "tmp/"}; !slices.Equal(got, want) {
		t.Errorf("without files are %q, want %q", got, want)
	}
	g.Excluded("nothing/here", false)
	if got, want := g.use.list(), []string{"./logs", "tmp/"}; !slices.Equal(got, want) {
		t.Errorf("without files are %q, want %q", got, want)
	}
}

func TestUnusedIncludesLooksIntoTheDirectory(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"logs/a.log", "cache/b.log", "deep/er/c.csv"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, f)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	include := []string{"logs/", "cache/", "er/", "./logs"}
	got, err := UnusedIncludes(t.Context(), dir, include, []string{"cache/"}, 1000)
	if err != nil || !slices.Equal(got, []string{"cache/", "./logs"}) {
		t.Errorf("UnusedIncludes = %q, %v; want cache/ and ./logs", got, err)
	}
	if got, err := UnusedIncludes(t.Context(), dir, include, nil, 2); err != nil || got != nil {
		t.Errorf("UnusedIncludes of too much = %q, %v; want nothing, for not all was seen", got, err)
	}
	if _, err := UnusedIncludes(t.Context(), filepath.Join(dir, "none"), include, nil, 2); err == nil {
		t.Error("UnusedIncludes of no directory: no error")
	}
}

func TestAFilterOfNoPatternIsRefused(t *testing.T) {
	for _, line := range []string{"[a-", "#x", "", "  "} {
		if _, err := NewFilter([]string{"*.csv", line}); err == nil {
			t.Errorf("NewFilter of %q: no error", line)
		}
	}
	f, err := NewFilter([]string{"*.csv", "!old.csv"})
	if err != nil || !f.Wants("a/b.csv") || f.Wants("old.csv") || f.Wants("x") {
		t.Errorf("NewFilter of patterns: %v", err)
	}
}
