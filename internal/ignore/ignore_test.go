package ignore

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/relpath"
)

func oneOf(rng *rand.Rand, from ...string) string { return from[rng.IntN(len(from))] }

func randomPattern(rng *rand.Rand) string {
	var b strings.Builder
	if rng.IntN(5) == 0 {
		b.WriteString("!")
	}
	if rng.IntN(5) == 0 {
		b.WriteString("/")
	}
	for range 1 + rng.IntN(5) {
		b.WriteString(oneOf(rng, "a", "b", "ab", "c", "*", "?", "**", "/", "**/", "/**", "/**/", "[ab]", "[!a]", "[^b]", "[a-c]",
			"[]a]", "[!]]", "[a-", "[[:alpha:]]", "[[:digit:]-]", "[[:nope:]]", "[\\]]", "\\*", "\\a", "\\", ".", "a.b", "*.b", " ", "\\ ", "#", "-"))
	}
	if rng.IntN(4) == 0 {
		b.WriteString("/")
	}
	if rng.IntN(12) == 0 {
		b.WriteString(oneOf(rng, " ", "  ", "\\ ", "\t", "\r"))
	}
	return b.String()
}

func randomPath(rng *rand.Rand) string {
	parts := make([]string, 1+rng.IntN(4))
	for i := range parts {
		parts[i] = oneOf(rng, "a", "b", "c", "ab", "abc", "a.b", "x.b", "*", "?x", "[a", "a]", "]", "-", "1", "a b", "a ", "#", "#a", "\\", "\\a", "!", "!a", "ba")
	}
	return strings.Join(parts, "/")
}

// Git itself says what is ignored: generated patterns in files of several
// directories are compared with git check-ignore.
func TestIgnoreAgreesWithGit(t *testing.T) {
	git, err := exec.LookPath("git")
	if err != nil {
		t.Fatalf("this test compares with git: %v", err)
	}
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	ignored := 0
	for round := range 150 {
		dir := t.TempDir()
		runGit(t, git, dir, "", "init", "-q")
		g, err := New(nil, nil, true)
		if err != nil {
			t.Fatal(err)
		}
		var paths []string
		for range 40 {
			p := randomPath(rng)
			if os.MkdirAll(filepath.Join(dir, filepath.Dir(p)), 0o755) == nil && os.WriteFile(filepath.Join(dir, p), nil, 0o644) == nil {
				paths = append(paths, p)
			}
		}
		var files strings.Builder
		for _, at := range []string{"", "a", "b", "a/b", "ab"} {
			if fi, err := os.Stat(filepath.Join(dir, at)); err != nil || !fi.IsDir() || at != "" && rng.IntN(2) == 0 {
				continue
			}
			lines := make([]string, 1+rng.IntN(5))
			for i := range lines {
				lines[i] = randomPattern(rng)
			}
			content := oneOf(rng, "", "\ufeff") + strings.Join(lines, oneOf(rng, "\n", "\r\n")) + oneOf(rng, "", "\n")
			if err := os.WriteFile(filepath.Join(dir, at, ".gitignore"), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
			g.dirs[at] = ignoreFile{patterns: parsePatterns(content)}
			fmt.Fprintf(&files, "%q: %q\n", at, content)
		}
		paths = append(paths, directories(paths)...)
		out := runGit(t, git, dir, strings.Join(paths, "\x00")+"\x00", "check-ignore", "-z", "--no-index", "--stdin")
		want := make(map[string]bool)
		for p := range strings.SplitSeq(out, "\x00") {
			want[p] = true
		}
		for _, p := range paths {
			fi, err := os.Lstat(filepath.Join(dir, p))
			if err != nil {
				t.Fatal(err)
			}
			if got := g.Excluded(p, fi.IsDir()); got != want[p] {
				t.Fatalf("round %d: %q: got ignored %v, git says %v; patterns:\n%s", round, p, got, want[p], files.String())
			}
			if want[p] {
				ignored++
			}
		}
	}
	if ignored < 100 {
		t.Errorf("only %d paths were ignored: the patterns test nothing", ignored)
	}
}

func directories(paths []string) []string {
	seen := make(map[string]bool)
	for _, p := range paths {
		for d := relpath.Parent(p); d != ""; d = relpath.Parent(d) {
			seen[d] = true
		}
	}
	var out []string
	for d := range seen {
		out = append(out, d)
	}
	return out
}

// runGit returns what git says; status 1 means that nothing is ignored.
func runGit(t *testing.T, git, dir, stdin string, args ...string) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), git, append([]string{"-c", "core.excludesFile=/dev/null"}, args...)...)
	c.Dir = dir
	c.Stdin = strings.NewReader(stdin)
	out, err := c.Output()
	if err != nil && c.ProcessState.ExitCode() != 1 {
		t.Fatalf("git %v: %v", args, err)
	}
	return string(out)
}

func TestIncludeAndExclude(t *testing.T) {
	g, err := New([]string{"*.txt", "docs/", "!secret.txt"}, []string{"tmp/", "docs/old.md"}, false)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		"a.txt": false, "a/b/c.txt": false, "a.bin": true, "secret.txt": true, "docs/x.bin": false, "docs/deep/y": false,
		"docs/old.md": true, "tmp/a.txt": true, "a/tmp/b.txt": true,
	} {
		if got := g.Excluded(path, false); got != want {
			t.Errorf("excluded(%q): got %v, want %v", path, got, want)
		}
	}
	if g.Excluded("anything", true) {
		t.Error("a directory is excluded because of include patterns for files")
	}
	if _, err := New(nil, []string{"a\nb"}, false); err == nil {
		t.Error("a pattern of two lines was accepted")
	}
}

func TestWildmatchIsBounded(t *testing.T) {
	pattern := strings.Repeat("**/*a", 40) + "b"
	text := strings.Repeat("aaaaaaaaaa/", 50)
	begin := time.Now()
	if matched, _ := wildmatch(pattern, text, true, wildBudget); matched {
		t.Error("matched")
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("took %v", took)
	}
}

func TestIgnoreFilesMadeToHurtAreBounded(t *testing.T) {
	deep := strings.Repeat("a/", 100) + "a"
	for _, line := range []string{"*a*a*a*a*a*a*b", "**/a*/**/a*/**/b*", "[a-", "x", "!**/x/**"} {
		g, err := New(nil, nil, true)
		if err != nil {
			t.Fatal(err)
		}
		patterns := parsePatterns(strings.Repeat(line+"\n", maxIgnoreFile/(len(line)+1)))
		for dir := range strings.SplitSeq("//a//a/a", "//") {
			g.dirs[dir] = ignoreFile{patterns: patterns}
		}
		budget := Budget
		lastMatch(patterns, deep, false, &budget)
		if budget > 0 || budget < -2 {
			t.Errorf("%q: %d steps are left of %d, want none, and none beyond", line, budget, Budget)
		}
		if g.Excluded(deep, false) {
			t.Errorf("%q: the path is left out", line)
		}
		if g.costly.Load() == 0 {
			t.Errorf("%q: nothing tells that the patterns took too long", line)
		}
	}
	if !func() bool { // What an ordinary file asks for is not touched by the bound.
		g, err := New(nil, nil, true)
		if err != nil {
			t.Fatal(err)
		}
		g.dirs[""] = ignoreFile{patterns: parsePatterns("*.log\n" + strings.Repeat("cache-*/tmp?\n", 2000))}
		return g.Excluded("a/b/c.log", false)
	}() {
		t.Error("the first of 2,001 patterns was not asked")
	}
}

func FuzzWildmatch(f *testing.F) {
	f.Add("a/**/[!b]*", "a/b/c")
	f.Fuzz(func(_ *testing.T, pattern, text string) {
		p, ok := parsePattern(strings.ReplaceAll(pattern, "\x00", ""))
		if ok {
			p.matches(text, false, nil)
		}
	})
}
