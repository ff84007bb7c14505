package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/s3syncd/s3syncd/internal/help"
	"github.com/s3syncd/s3syncd/internal/safefs"
)

// generateCommand writes what is made from the help of each command: manual
// pages, completions, Markdown. Packagers use it; it is in no list.
func generateCommand(io streams) *cobra.Command {
	c := newCommand("generate [--man DIR] [--completions DIR] [--markdown DIR] [--configuration FILE]", "manual pages, completions and Markdown",
		"Writes manual pages, shell completions and Markdown from the help of every command.\nSOURCE_DATE_EPOCH is the date of the pages.",
		"  s3syncd generate --man man --configuration deploy/s3syncd.example.yaml")
	c.Hidden = true
	fs := c.Flags()
	man := fs.String("man", "", "`directory` for man1 and man5")
	completions := fs.String("completions", "", "`directory` for the completions of bash, zsh and fish")
	markdown := fs.String("markdown", "", "`directory` for a page a command")
	configuration := fs.String("configuration", "", "the annotated example, a `file`; man5 is made from it")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if *man == "" && *completions == "" && *markdown == "" {
			return fmt.Errorf("%w: generate: one of --man, --completions and --markdown is needed", errUsage)
		}
		p, err := describe(c.Root(), io.env)
		if err != nil {
			return err
		}
		if *man != "" {
			reference, err := readReference(*configuration)
			if err != nil {
				return err
			}
			if err := writeAll(*man, help.Man(p, reference)); err != nil {
				return err
			}
		}
		if *completions != "" {
			if err := writeCompletions(*completions, c.Root()); err != nil {
				return err
			}
		}
		if *markdown != "" {
			return writeAll(*markdown, help.Markdown(p))
		}
		return nil
	}
	return c
}

// writeCompletions writes one script for each of bash, zsh and fish, under the
// names that those look for. The scripts ask the program what to offer.
func writeCompletions(dir string, root *cobra.Command) error {
	var bash, zsh, fish bytes.Buffer
	err := errors.Join(root.GenBashCompletionV2(&bash, true), root.GenZshCompletion(&zsh), root.GenFishCompletion(&fish, true))
	if err != nil {
		return err
	}
	return writeAll(dir, []help.File{
		{Path: root.Name(), Text: bash.String()}, {Path: "_" + root.Name(), Text: zsh.String()}, {Path: root.Name() + ".fish", Text: fish.String()},
	})
}

// describe returns what the pages say of root.
func describe(root *cobra.Command, env []string) (*help.Program, error) {
	p := &help.Program{
		Root: root, Version: version,
		Exits: []help.Exit{
			{Code: exitDone, Meaning: "done"},
			{Code: exitCannotRun, Meaning: "could not run, or no daemon answers"},
			{Code: exitUsage, Meaning: "wrong usage or configuration"},
			{Code: exitSomeFailed, Meaning: "ran, but not everything is as it should be"},
			{Code: exitInterrupted, Meaning: "interrupted (not run, which ends with 0 after SIGTERM)"},
		},
	}
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "SOURCE_DATE_EPOCH="); ok {
			seconds, err := strconv.ParseInt(v, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("%w: SOURCE_DATE_EPOCH=%q is not a number of seconds", errUsage, v)
			}
			p.Date = time.Unix(seconds, 0)
		}
	}
	return p, nil
}

// readReference reads the annotated example, nil where file is "".
func readReference(file string) (*help.Reference, error) {
	if file == "" {
		return nil, nil //nolint:nilnil // No example is no reference.
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return help.ParseReference(string(text))
}

// writeAll writes files below dir, readable by everybody.
func writeAll(dir string, files []help.File) error {
	for _, f := range files {
		path := filepath.Join(dir, filepath.FromSlash(f.Path))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // Documents are public.
			return err
		}
		if err := safefs.WriteFile(path, []byte(f.Text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
