// Package help renders what the program says about itself, as manual pages,
// shell completions and Markdown. It knows no command: a Program comes from the
// command table and the flag sets, so that a new command shows up everywhere.
//
// Every renderer is a pure function: the same Program gives the same bytes.
package help

import (
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// Program is what all help texts together say.
type Program struct {
	Name     string
	Summary  string // half a sentence, without a full stop
	Version  string
	Date     time.Time // of the manual pages; the zero time leaves it out
	Commands []Command
	Exits    []Exit
}

// Command is one subcommand.
type Command struct {
	Name    string
	Args    string // what follows the name in its usage line
	Summary string // half a sentence
	About   string // paragraphs; indented lines are kept as they are
	Flags   []Flag
}

// Flag is one option of a command.
type Flag struct {
	Name    string // without dashes
	Short   string // one letter, or ""
	Value   string // what its value is called; "" for a switch
	Usage   string
	Default string // "" where it says nothing
}

// Exit is one exit code.
type Exit struct {
	Code    int
	Meaning string
}

// File is one rendered file. Path is relative, with slashes.
type File struct{ Path, Text string }

// Flags returns the options of fs, in the order in which they were defined
// where fs is not sorted. Hidden ones are left out.
func Flags(fs *pflag.FlagSet) []Flag {
	var list []Flag
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		if f.NoOptDefVal != "" {
			value = ""
		}
		flag := Flag{Name: f.Name, Short: f.Shorthand, Value: value, Usage: usage}
		if !slices.Contains([]string{"", "0", "0s", "false", "[]"}, f.DefValue) {
			flag.Default = f.DefValue
		}
		list = append(list, flag)
	})
	return list
}

// takesPath reports whether the value is a name in the file system.
func (f Flag) takesPath() bool {
	return slices.Contains([]string{"file", "directory", "dir", "path"}, strings.ToLower(f.Value))
}

// spellings are the forms of f, as in -c, --config.
func (f Flag) spellings() []string {
	if f.Short == "" {
		return []string{"--" + f.Name}
	}
	return []string{"-" + f.Short, "--" + f.Name}
}

// text is the usage of f with its default.
func (f Flag) text() string {
	if f.Default == "" {
		return f.Usage
	}
	return f.Usage + " (default " + f.Default + ")"
}

// names are the commands and help.
func (p *Program) names() []string {
	var names []string
	for i := range p.Commands {
		names = append(names, p.Commands[i].Name)
	}
	return append(names, "help")
}
