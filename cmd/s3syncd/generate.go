package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/s3syncd/s3syncd/internal/help"
	"github.com/s3syncd/s3syncd/internal/safefs"
)

// generateName is a command that packagers use; it is in no list.
const generateName = "generate"

// generateCommand writes what is made from the command table and the help of
// each command: manual pages, completions, Markdown.
func generateCommand(ctx context.Context, args []string, io streams) error {
	fs := newFlags(generateName, "[--man DIR] [--completions DIR] [--markdown DIR] [--configuration FILE]",
		"Writes manual pages, shell completions and Markdown from the help of every command.\n"+
			"SOURCE_DATE_EPOCH is the date of the pages.", io)
	man := fs.String("man", "", "`directory` for man1 and man5")
	completions := fs.String("completions", "", "`directory` for the completions of bash, zsh and fish")
	markdown := fs.String("markdown", "", "`directory` for a page a command")
	configuration := fs.String("configuration", "", "the annotated example, a `file`; man5 is made from it")
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	if *man == "" && *completions == "" && *markdown == "" {
		return fmt.Errorf("%w: generate: one of --man, --completions and --markdown is needed", errUsage)
	}
	p, err := describe(ctx, io.env)
	if err != nil {
		return err
	}
	if *man != "" {
		reference, err := readReference(*configuration)
		if err != nil {
			return err
		}
		err = writeAll(*man, help.Man(p, reference))
		if err != nil {
			return err
		}
	}
	if *completions != "" {
		if err := writeAll(*completions, help.Completions(p)); err != nil {
			return err
		}
	}
	if *markdown != "" {
		return writeAll(*markdown, help.Markdown(p))
	}
	return nil
}

// describe asks every command of the table for its help.
func describe(ctx context.Context, env []string) (*help.Program, error) {
	p := &help.Program{
		Name: "s3syncd", Summary: "directories archived in S3 under a KMS key, with an audit trail", Version: version,
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
	for _, c := range commands() {
		h := help.Command{Name: c.name, Summary: c.about}
		asked := streams{describe: func(args, about string, fs *pflag.FlagSet) {
			h.Args, h.About, h.Flags = args, about, help.Flags(fs)
		}}
		if err := c.run(ctx, []string{"--help"}, asked); !errors.Is(err, pflag.ErrHelp) {
			return nil, fmt.Errorf("%s --help: %w", c.name, err)
		}
		p.Commands = append(p.Commands, h)
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
