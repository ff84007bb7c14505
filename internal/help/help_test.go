package help

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// sample is a program with everything that is hard to quote.
func sample() *Program {
	cobra.EnableCommandSorting = false
	root := &cobra.Command{Use: "tool", Short: "a sample", Long: "Does things.", Example: "  tool copy"}
	nothing := func(*cobra.Command, []string) {}
	c := &cobra.Command{
		Use: "copy -c FILE [--dry-run]", Short: "the first: copy <all>, it's safe", Long: "Copies.\n.hidden files too.\n\n  as is   here\n\nEnds.",
		Example: "  tool copy -c f\n  tool copy --dry-run", DisableFlagsInUseLine: true, Run: nothing,
	}
	fs := c.Flags()
	fs.SortFlags = false
	fs.StringP("config", "c", "", "configuration `file`, it's [needed]: always")
	fs.Duration("give-up", 10*time.Minute, "how long")
	fs.Bool("dry-run", false, `nothing; a \ and 100% | done`)
	fs.String("secret", "", "hidden")
	if err := fs.MarkHidden("secret"); err != nil {
		panic(err)
	}
	root.AddCommand(c, &cobra.Command{Use: "version", Short: "version", Run: nothing}, &cobra.Command{Use: "unlisted", Hidden: true, Run: nothing})
	return &Program{
		Root: root, Version: "1.2-3", Date: time.Unix(1_700_000_000, 0),
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
		`how long (default 10m0s)`, "\n\\&.hidden files too.\n", ".nf\n  as is   here\n", `a \e and`, ".B 2\nwrong usage",
		".SH EXAMPLES\n.PP\n.nf\n  tool copy \\-c f\n")
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

func TestMarkdownHasAPageACommandAndAList(t *testing.T) {
	files := Markdown(sample())
	if len(files) != 3 {
		t.Fatalf("Markdown() = %d files, want 3", len(files))
	}
	mustHave(t, "README.md", text(t, files, "README.md"), "[`tool copy`](copy.md)", `copy \<all>`)
	mustHave(t, "copy.md", text(t, files, "copy.md"), "# tool copy\n", "The first: copy <all>, it's safe.\n", "tool copy -c FILE [--dry-run]",
		"| `-c, --config FILE` |", `100% \| done`, "**2** wrong usage", "```\ntool copy -c f\ntool copy --dry-run\n```")
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
