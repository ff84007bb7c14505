package help

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// Markdown returns a page for each command and README.md, which lists them. They
// carry neither version nor date, so that only a changed help changes them.
func Markdown(p *Program) []File {
	var index strings.Builder
	index.WriteString(generated + "\n# The commands\n\n| command | does |\n|---|---|\n")
	var files []File
	for _, c := range p.commands() {
		fmt.Fprintf(&index, "| [`%s`](%s.md) | %s |\n", c.CommandPath(), c.Name(), cell(c.Short))
		files = append(files, File{c.Name() + ".md", p.markdown(c)})
	}
	index.WriteString("\nExit codes: " + p.exitList() + "\n")
	return append(files, File{"README.md", index.String()})
}

const generated = "<!-- Made by `make docs` from the program's own help; edits are lost. -->\n"

func (p *Program) markdown(c *cobra.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n# %s\n\n%s.\n\n```\n%s\n```\n\n%s\n", generated, c.CommandPath(), upper(c.Short), c.UseLine(), c.Long)
	if c.HasExample() {
		b.WriteString("\nFor example:\n\n```\n" + strings.ReplaceAll(strings.TrimLeft(c.Example, " "), "\n  ", "\n") + "\n```\n")
	}
	list := options(c)
	if len(list) > 0 {
		b.WriteString("\n| option | meaning |\n|---|---|\n")
	}
	for _, f := range list {
		value := ""
		if f.value != "" {
			value = " " + strings.ToUpper(f.value)
		}
		fmt.Fprintf(&b, "| `%s%s` | %s |\n", strings.Join(f.spellings, ", "), value, cell(f.text))
	}
	b.WriteString("\nExit codes: " + p.exitList() + "\n")
	return b.String()
}

func (p *Program) exitList() string {
	var list []string
	for _, e := range p.Exits {
		list = append(list, fmt.Sprintf("**%d** %s", e.Code, e.Meaning))
	}
	return strings.Join(list, " · ")
}

// cell is text that does not end a cell of a table.
func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ", "<", `\<`).Replace(text)
}

// upper is text with a capital at its beginning.
func upper(text string) string {
	if text == "" {
		return ""
	}
	return strings.ToUpper(text[:1]) + text[1:]
}
