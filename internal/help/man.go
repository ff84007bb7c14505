package help

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// section is one heading of a manual page with its text in roff.
type section struct{ title, body string }

// Man returns a page for the program and one for each command, below man1, and
// where reference is not nil the page of the configuration file, below man5.
func Man(p *Program, reference *Reference) []File {
	files := []File{{"man1/" + p.Root.Name() + ".1", p.overview(reference)}}
	for _, c := range p.commands() {
		files = append(files, File{"man1/" + p.Root.Name() + "-" + c.Name() + ".1", p.page(c)})
	}
	if reference != nil {
		files = append(files, File{"man5/" + p.Root.Name() + ".yaml.5", p.configuration(reference)})
	}
	return files
}

func (p *Program) overview(reference *Reference) string {
	var list, also strings.Builder
	name := p.Root.Name()
	for _, c := range p.commands() {
		fmt.Fprintf(&list, ".TP\n\\fB%s %s\\fR %s\n%s\n", roff(name), roff(c.Name()), roff(arguments(c)), line(c.Short))
		fmt.Fprintf(&also, ".BR %s (1),\n", roff(name+"-"+c.Name()))
	}
	if reference != nil {
		fmt.Fprintf(&also, ".BR %s (5),\n", roff(name+".yaml"))
	}
	return p.man(name, 1, p.Root.Short, []section{
		{"SYNOPSIS", ".B " + roff(name) + "\n.I COMMAND\n[\\fIarguments\\fR]\n.br\n.B " + roff(name) + "\n.I COMMAND\n.B \\-\\-help\n"},
		{"DESCRIPTION", prose(p.Root.Long)},
		{"COMMANDS", list.String()},
		{"EXIT STATUS", p.exitStatus()},
		{"EXAMPLES", prose(p.Root.Example)},
		{"FILES", files(name)},
		{"SEE ALSO", also.String() + ".BR systemctl (1)\n"},
	})
}

func (p *Program) page(c *cobra.Command) string {
	sections := []section{
		{"SYNOPSIS", ".B " + roff(c.CommandPath()) + "\n" + line(arguments(c))},
		{"DESCRIPTION", prose(c.Long)},
	}
	var list strings.Builder
	for _, f := range options(c) {
		list.WriteString(".TP\n")
		for i, s := range f.spellings {
			if i > 0 {
				list.WriteString(", ")
			}
			list.WriteString(`\fB` + roff(s) + `\fR`)
		}
		if f.value != "" {
			list.WriteString(` \fI` + roff(f.value) + `\fR`)
		}
		list.WriteString("\n" + line(f.text))
	}
	if list.Len() > 0 {
		sections = append(sections, section{"OPTIONS", list.String()})
	}
	if c.HasExample() {
		sections = append(sections, section{"EXAMPLES", prose(c.Example)})
	}
	sections = append(sections, section{"EXIT STATUS", p.exitStatus()},
		section{"SEE ALSO", ".BR " + roff(p.Root.Name()) + " (1)\n"})
	return p.man(p.Root.Name()+"-"+c.Name(), 1, c.Short, sections)
}

func (p *Program) configuration(r *Reference) string {
	var keys strings.Builder
	for _, k := range r.Keys {
		if k.Block {
			fmt.Fprintf(&keys, ".SS %s\n%s", roff(k.Path), line(k.About))
			continue
		}
		fmt.Fprintf(&keys, ".TP\n\\fB%s\\fR: %s\n%s", roff(k.Path), strings.ReplaceAll(roff(k.Value), "/", `/\:`), line(k.About))
	}
	return p.man(p.Root.Name()+".yaml", 5, "configuration of "+p.Root.Name(), []section{
		{"DESCRIPTION", prose(strings.ReplaceAll(r.About, "\n", "\n\n"))},
		{"KEYS", "Each key is shown with its default, or with an example where it has none.\n" + keys.String()},
		{"FILES", files(p.Root.Name())},
		{"SEE ALSO", ".BR " + roff(p.Root.Name()) + " (1),\n.BR " + roff(p.Root.Name()+"-check") + " (1)\n"},
	})
}

func (p *Program) exitStatus() string {
	var b strings.Builder
	for _, e := range p.Exits {
		fmt.Fprintf(&b, ".TP\n.B %d\n%s", e.Code, line(e.Meaning))
	}
	return b.String()
}

// files are what the package installs and the daemon writes.
func files(name string) string {
	var b strings.Builder
	for _, f := range [][2]string{
		{"/etc/" + name + "/" + name + ".yaml", "the configuration of the packaged service"},
		{"/var/lib/" + name, "its state: index, journal, unpublished and local manifests"},
		{"/run/" + name + "/control.sock", "its control socket, for root and the daemon's own user"},
	} {
		b.WriteString(".TP\n.I " + roff(f[0]) + "\n" + line(f[1]))
	}
	return b.String()
}

// man assembles a page.
func (p *Program) man(name string, number int, summary string, sections []section) string {
	date := ""
	if !p.Date.IsZero() {
		date = p.Date.UTC().Format("2006-01-02")
	}
	var b strings.Builder
	fmt.Fprintf(&b, ".TH \"%s\" %d \"%s\" \"%s\"\n", roff(strings.ToUpper(name)), number, date, roff(p.Root.Name()+" "+p.Version))
	b.WriteString(".nh\n.ad l\n.SH NAME\n" + roff(name) + ` \- ` + line(summary))
	for _, s := range sections {
		b.WriteString(".SH " + s.title + "\n" + s.body)
	}
	return b.String()
}

// prose renders paragraphs: an empty line parts them, indented lines are set as
// they are.
func prose(text string) string {
	var b strings.Builder
	verbatim := false
	for l := range strings.Lines(strings.Trim(text, "\n") + "\n") {
		l = strings.TrimRight(l, " \n")
		if indented := strings.HasPrefix(l, " "); indented != verbatim && l != "" {
			verbatim = indented
			b.WriteString(map[bool]string{true: ".PP\n.nf\n", false: ".fi\n"}[verbatim])
		}
		if l == "" {
			b.WriteString(".PP\n")
			continue
		}
		b.WriteString(line(l))
	}
	if verbatim {
		b.WriteString(".fi\n")
	}
	return b.String()
}

// line is text as one line of input, which never is a request. An empty text is
// no line at all.
func line(text string) string {
	text = roff(strings.Join(strings.Split(text, "\n"), " "))
	switch {
	case strings.TrimSpace(text) == "":
		return ""
	case strings.HasPrefix(text, "."), strings.HasPrefix(text, "'"):
		text = `\&` + text
	}
	return text + "\n"
}

// roff escapes what troff would read as its own.
func roff(text string) string {
	return strings.NewReplacer(`\`, `\e`, "-", `\-`, "…", "...", "·", `\(bu`, "’", "'", "–", `\-`).Replace(text)
}
