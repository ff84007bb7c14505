package ignore

import (
	"strings"
	"testing"
)

// Any content of an ignore file has a meaning: the last line that
// matches decides, a comment and a repetition change nothing.
func FuzzIgnoreFile(f *testing.F) {
	for _, content := range []string{
		"*.log\n!keep.log\n", "/build/\n", "a/**/b\n**/c\nd/**", "#comment\n\\#file\n\\!file\n", "trailing \nspace\\ \n", "[a-z]?[!0-9]\n",
		"\r\n*.tmp\r\n", "[", "\\", "!", "/", "**", "***/a", "[]a]", "[[:alpha:]]*", "\xff*", "*a*a*a*a*a*a*b",
	} {
		for _, path := range []string{"a/b/c.log", "keep.log", "build", "#file", "\xff\xfe", "aaaaaaaaaaaaaaaaaaaaaaaa"} {
			f.Add(content, path)
		}
	}
	f.Fuzz(func(t *testing.T, content, path string) {
		verdict := func(content string, dir bool) string {
			p := lastMatch(parsePatterns(content), path, dir, nil)
			switch {
			case p == nil:
				return "none"
			case p.negated:
				return "kept"
			}
			return "ignored"
		}
		for _, dir := range []bool{false, true} {
			want := verdict(content, dir)
			if got := verdict(content+"\n#comment\n\n", dir); !strings.HasSuffix(content, "\\") && got != want {
				t.Errorf("with a comment after it %q says %s of %q, want %s", content, got, path, want)
			}
			if got := verdict(content+"\n"+content, dir); got != want && !strings.HasPrefix(content, "\ufeff") {
				t.Errorf("%q twice says %s of %q, want %s", content, got, path, want)
			}
		}
	})
}
