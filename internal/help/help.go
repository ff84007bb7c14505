// Package help renders the commands as manual pages and Markdown, and the
// annotated example as the manual page of the configuration. It reads the
// commands themselves, so that a new command or flag shows up everywhere.
//
// The generators of cobra/doc are not used: they know neither exit codes nor the
// names of values, read the help as Markdown, and bring a Markdown parser into
// the daemon.
package help

import (
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Program is what all pages together say.
type Program struct {
	Root    *cobra.Command
	Version string
	Date    time.Time // of the manual pages; the zero time leaves it out
	Exits   []Exit
}

// Exit is one exit code.
type Exit struct {
	Code    int
	Meaning string
}

// File is one rendered file. Path is relative, with slashes.
type File struct{ Path, Text string }

// commands are those of the help, in its order.
func (p *Program) commands() []*cobra.Command {
	return slices.DeleteFunc(slices.Clone(p.Root.Commands()), func(c *cobra.Command) bool {
		return !c.IsAvailableCommand() || c.Name() == "help"
	})
}

// arguments is what follows the name of c in its usage line.
func arguments(c *cobra.Command) string {
	return strings.TrimSpace(strings.TrimPrefix(c.Use, c.Name()))
}

// option is one flag of a command.
type option struct {
	spellings []string // as in -c, --config
	value     string   // what its value is called; "" for a switch
	text      string   // its usage with its default
}

// options returns the flags of c, without the hidden ones and --help.
func options(c *cobra.Command) []option {
	var list []option
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		o := option{spellings: []string{"--" + f.Name}}
		if f.Shorthand != "" {
			o.spellings = []string{"-" + f.Shorthand, "--" + f.Name}
		}
		o.value, o.text = pflag.UnquoteUsage(f)
		if f.NoOptDefVal != "" {
			o.value = ""
		}
		if !slices.Contains([]string{"", "0", "0s", "false", "[]"}, f.DefValue) {
			o.text += " (default " + f.DefValue + ")"
		}
		list = append(list, o)
	})
	return list
}
