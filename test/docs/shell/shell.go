// Package shell reads the commands that the documents show, and says which of
// them a test runs and why the others are not run.
package shell

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Ran returns the programs that the tests run as the documents show them. A
// test that does not find one of them skips its commands and says so.
func Ran() []string {
	return []string{"s3syncd", "systemctl", "jq", "python3", "curl", "grep", "echo", "tee"}
}

// NotRun returns, for each program that the documents name and that no test
// runs, why that is so.
func NotRun() map[string]string {
	return map[string]string{
		".ci/run":    "calls the tests",
		"apt":        "installs into the host; the tests of the package do that in a machine of their own",
		"aws":        "acts on an account of AWS; what it is to do is prepared in MinIO",
		"duckdb":     "is no package of Debian; the tables and queries are run in it by make e2e",
		"journalctl": "needs the journal of a host; the tests of the package read it in a machine of their own",
		"make":       "the targets are what runs the tests; that each is there is checked",
		"podman":     "needs base images from a registry",
		"ssh":        "needs a second host",
		"sudoedit":   "is a person at work; the configuration of the README is put there",
	}
}

// Command is one command line of a document.
type Command struct {
	File string // below the root of the repository
	Line int    // where it begins
	Text string // without comment and sudo, on one line unless a quoted text spans several
}

// String says where the command stands.
func (c Command) String() string { return fmt.Sprintf("%s:%d: %s", c.File, c.Line, c.Text) }

// Programs returns the names of the programs that the command calls, in order.
func (c Command) Programs() []string {
	var names []string
	for _, part := range split(c.Text) {
		words := strings.Fields(part)
		if len(words) > 0 {
			names = append(names, words[0])
		}
	}
	return names
}

// Documents returns the paths, below root, of the documents whose commands
// count, in the order in which they are read: the README begins.
func Documents(root string) ([]string, error) {
	names := []string{"README.md"}
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return nil, fmt.Errorf("list the documents: %w", err)
		}
		for _, f := range files {
			name, err := filepath.Rel(root, f)
			if err != nil {
				return nil, fmt.Errorf("list the documents: %w", err)
			}
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names, nil
}

// Commands returns every command of a document, from its blocks of language sh.
func Commands(root, name string) ([]Command, error) {
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		return nil, fmt.Errorf("read the document: %w", err)
	}
	var commands []Command
	for _, b := range Blocks(string(text)) {
		if b.Language == "sh" {
			commands = append(commands, b.commands(name)...)
		}
	}
	return commands, nil
}

// Block is a fenced block of a document.
type Block struct {
	Language string
	Line     int // of its first line
	Text     string
}

// Blocks returns the fenced blocks of a text; one in a list without its indent.
func Blocks(text string) []Block {
	fence := regexp.MustCompile("^( *)```(.*)$")
	var all []Block
	var open *Block
	indent := ""
	for i, line := range strings.Split(text, "\n") {
		m := fence.FindStringSubmatch(line)
		switch {
		case m != nil && open == nil:
			open, indent = &Block{Language: m[2], Line: i + 2}, m[1]
		case m != nil:
			all = append(all, *open)
			open = nil
		case open != nil:
			open.Text += strings.TrimPrefix(line, indent) + "\n"
		}
	}
	return all
}

// commands cuts a block into commands: a line each, but for lines that end in a
// backslash or inside quotes.
func (b Block) commands(file string) []Command {
	var all []Command
	begin, text := b.Line, ""
	for i, line := range strings.Split(b.Text, "\n") {
		if text == "" {
			begin = b.Line + i
		}
		plain, inside := uncomment(text + line)
		if cut, more := strings.CutSuffix(plain, "\\"); more && !inside {
			text = cut
			continue
		}
		if inside {
			text += line + "\n"
			continue
		}
		text = ""
		if plain = withoutSudo(plain); plain != "" {
			all = append(all, Command{File: file, Line: begin, Text: plain})
		}
	}
	return all
}

func withoutSudo(text string) string {
	return strings.TrimSpace(regexp.MustCompile(`(^|[|&;] *)sudo `).ReplaceAllString(text, "$1"))
}

// uncomment removes the comment at the end of text; inside reports that text
// ends within quotes.
func uncomment(text string) (plain string, inside bool) {
	quote := rune(0)
	for i, c := range text {
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '"':
			quote = c
		case c == '#' && (i == 0 || text[i-1] == ' '):
			return strings.TrimSpace(text[:i]), false
		}
	}
	return strings.TrimRight(text, " "), quote != 0
}

// split cuts a command at |, && and ; outside of quotes.
func split(text string) []string {
	var parts []string
	quote, begin := rune(0), 0
	for i, c := range text {
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '"':
			quote = c
		case c == '|' || c == ';' || c == '&':
			parts = append(parts, text[begin:i])
			begin = i + 1
		}
	}
	return append(parts, text[begin:])
}
