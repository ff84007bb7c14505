package help

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

// sample is a program with everything that is hard to quote.
func sample() *Program {
	fs := pflag.NewFlagSet("copy", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.StringP("config", "c", "", "configuration `file`, it's [needed]: always")
	fs.Duration("give-up", 10*time.Minute, "how long")
	fs.Bool("dry-run", false, `nothing; a \ and 100% | done`)
	fs.String("secret", "", "hidden")
	if err := fs.MarkHidden("secret"); err != nil {
		panic(err)
	}
	return &Program{
		Name: "tool", Summary: "a sample", Version: "1.2-3", Date: time.Unix(1_700_000_000, 0),
		Commands: []Command{
			{
				Name: "copy", Args: "-c FILE [--dry-run]", Summary: "the first: copy <all>, it's safe",
				About: "Copies.\n.hidden files too.\n\n  as is   here\n\nEnds.", Flags: Flags(fs),
			},
			{Name: "version", Summary: "version"},
		},
		Exits: []Exit{{0, "done"}, {2, "wrong usage"}},
	}
}

func text(t *testing.T, files []File, path string) string {
	t.Helper()
	i := slices.IndexFunc(files, func(f File) bool { return f.Path == path })
	if i < 0 {
		t.Fatalf("no file %s among %d", path, len(files))
	}
	return files[i].Text
}

func mustHave(t *testing.T, name, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%s does not have %q:\n%s", name, w, text)
		}
	}
}

func TestEveryCommandHasAManualPageWithItsOptions(t *testing.T) {
	files := Man(sample(), nil)
	if len(files) != 3 {
		t.Fatalf("Man() = %d files, want one for the program and one a command", len(files))
	}
	mustHave(t, "tool.1", text(t, files, "man1/tool.1"), `.TH "TOOL" 1 "2023-11-14" "tool 1.2\-3"`, `.BR tool\-copy (1)`, `\fBtool version\fR`)
	page := text(t, files, "man1/tool-copy.1")
	mustHave(t, "tool-copy.1", page, `tool\-copy \- the first`, `\fB\-c\fR, \fB\-\-config\fR \fIfile\fR`, `\fB\-\-dry\-run\fR`+"\n",
		`how long (default 10m0s)`, "\n\\&.hidden files too.\n", ".nf\n  as is   here\n", `a \e and`, ".B 2\nwrong usage")
	if strings.Contains(page, "secret") {
		t.Errorf("a hidden option is in the page")
	}
}

func TestManualPagesHaveNoFaults(t *testing.T) {
	groff, err := exec.LookPath("groff")
	if err != nil {
		t.Skip("no groff: the pages are not formatted")
	}
	dir := t.TempDir()
	for _, f := range Man(sample(), &Reference{About: "a\nb", Keys: []Key{{Path: "s3", Block: true}, {Path: "s3.region", Value: `""`, About: ".x"}}}) {
		file := filepath.Join(dir, filepath.Base(f.Path))
		if err := os.WriteFile(file, []byte(f.Text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), groff, "-man", "-ww", "-z", "-Tutf8", file).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("groff %s: %v\n%s", f.Path, err, out)
		}
	}
}

func TestBashCompletes(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash: its completion is not run")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	script := text(t, Completions(sample()), "tool")
	cases := []struct {
		words []string
		want  string
	}{
		{[]string{"tool", "co"}, "copy"},
		{[]string{"tool", "copy", "--d"}, "--dry-run"},
		{[]string{"tool", "copy", "--give-up", "-"}, ""},
		{[]string{"tool", "copy", "--config", "a"}, "a file"},
		{[]string{"tool", "version", "--"}, "--help"},
		{[]string{"tool", "nothing", "--"}, ""},
	}
	for _, c := range cases {
		t.Run(strings.Join(c.words, " "), func(t *testing.T) {
			// The option that turns on quoting of names works inside a completion only.
			code := "compopt() { :; }\n" + script + "\nCOMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _tool; printf '%s\\n' \"${COMPREPLY[@]}\"\n"
			cmd := exec.CommandContext(t.Context(), bash, append([]string{"-c", code, "bash"}, c.words...)...)
			cmd.Dir = dir
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("bash: %v\n%s", err, out)
			}
			if got := strings.TrimSpace(string(out)); got != c.want {
				t.Errorf("completions of %q = %q, want %q", c.words, got, c.want)
			}
		})
	}
}

func TestCompletionsAreScriptsOfTheirShell(t *testing.T) {
	files := Completions(sample())
	for path, shell := range map[string]string{"tool": "bash", "_tool": "zsh", "tool.fish": "fish"} {
		t.Run(shell, func(t *testing.T) {
			script := text(t, files, path)
			mustHave(t, path, script, "copy", "dry-run", "give-up", "version")
			program, err := exec.LookPath(shell)
			if err != nil {
				t.Skipf("no %s: its completion is not parsed", shell)
			}
			cmd := exec.CommandContext(t.Context(), program, "-n", "/dev/stdin")
			cmd.Stdin = strings.NewReader(script)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s -n: %v\n%s\n%s", shell, err, out, script)
			}
		})
	}
}

func TestFishCompletes(t *testing.T) {
	fish, err := exec.LookPath("fish")
	if err != nil {
		t.Skip("no fish: its completion is not run")
	}
	script := text(t, Completions(sample()), "tool.fish")
	cmd := exec.CommandContext(t.Context(), fish, "--no-config", "-c", script+"\ncomplete -C 'tool copy --'\ncomplete -C 'tool co'")
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("fish: %v\n%s", err, out)
	}
	mustHave(t, "fish", string(out), "--dry-run\tnothing; a \\ and 100% | done", "--config\tconfiguration file, it's [needed]: always", "copy\tthe first: copy <all>, it's safe")
}

func TestMarkdownHasAPageACommandAndAList(t *testing.T) {
	files := Markdown(sample())
	if len(files) != 3 {
		t.Fatalf("Markdown() = %d files, want 3", len(files))
	}
	mustHave(t, "README.md", text(t, files, "README.md"), "[`tool copy`](copy.md)", `copy \<all>`)
	mustHave(t, "copy.md", text(t, files, "copy.md"), "# tool copy\n", "The first: copy <all>, it's safe.\n", "tool copy -c FILE [--dry-run]",
		"| `-c, --config FILE` |", `100% \| done`, "**2** wrong usage")
}

func TestTheReferenceIsReadFromTheExample(t *testing.T) {
	r, err := ParseReference("# head\n# more\n\nname: a#b # about: it\ns3:\n  region: \"\"   # where # now\n\nlist: # of some\n  - key: {a: 1, b: 2} # x\n    plain: 0\nlast: []\n")
	if err != nil {
		t.Fatal(err)
	}
	want := []Key{
		{"name", "a#b", "about: it", false},
		{"s3", "", "", true},
		{"s3.region", `""`, "where # now", false},
		{"list", "", "of some", true},
		{"list[].key", "{a: 1, b: 2}", "x", false},
		{"list[].plain", "0", "", false},
		{"last", "[]", "", false},
	}
	if r.About != "head\nmore\n" || !slices.Equal(r.Keys, want) {
		t.Errorf("ParseReference() = %q %+v\nwant %+v", r.About, r.Keys, want)
	}
	for _, bad := range []string{"", "# only a head\n", "a: 1\n      deep: 2\n", "  lost: 1\n", "a: 1\nno key\n"} {
		if _, err := ParseReference(bad); err == nil {
			t.Errorf("ParseReference(%q) = no error", bad)
		}
	}
}
