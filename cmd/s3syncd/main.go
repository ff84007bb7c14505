// Command s3syncd keeps local directories archived in Amazon S3: every file
// encrypted under a customer-managed KMS key, unchanged files skipped, and
// every outcome written to an audit trail.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/s3syncd/s3syncd/internal/app"
	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/logsink"
)

// The exit codes that scripts rely on.
const (
	exitDone        = 0
	exitCannotRun   = 1
	exitUsage       = 2
	exitSomeFailed  = 3
	exitInterrupted = 130
)

// errUsage is a command line that cannot be understood.
var errUsage = errors.New("usage")

// errConfig is a configuration that cannot be read at all.
var errConfig = errors.New("configuration")

// version is set by the build.
var version = "dev" // The linker can set nothing but a package variable.

// streams are what a command may read and write.
type streams struct {
	out, err io.Writer
	env      []string

	// describe, where it is set, gets what a command would print for --help.
	describe func(args, about string, fs *pflag.FlagSet)
}

// command is one subcommand. Its run parses the arguments, blocks until the work
// is done, and returns what main turns into an exit code.
type command struct {
	name, args, about string
	run               func(ctx context.Context, args []string, io streams) error
}

func commands() []command {
	return []command{
		{"run", "-c FILE", "the daemon: watch, upload, journal, publish manifests, until SIGTERM", runCommand},
		{"sync", "-c FILE | --dir D --bucket B --prefix P --kms-key-id K", "one sync run of every source, its manifests, then exit", syncCommand},
		{"status", "[-c FILE | --socket PATH] [--json]", "what a running daemon is doing; exits with 0 when it is current, 3 when not", statusCommand},
		{"rescan", "[SOURCE] [--remote] [--confirm-deletes]", "ask a running daemon to scan now and to try again what is parked", rescanCommand},
		{"flush", "[SOURCE...] [--timeout D]", "return once all that changed before is in S3 and in a published manifest", flushCommand},
		{"verify", "-c FILE | --bucket B --prefix P | --offline DIR", "check the audit trail and what it claims", verifyCommand},
		{"restore", "(-c FILE --source S | --bucket B --prefix P) --to DIR", "rebuild files from the audit trail, as of now or of a time", restoreCommand},
		{"history", "KEY_OR_PATH (-c FILE | --bucket B --prefix P) [--bundle FILE]", "every record of one file, and what proves it", historyCommand},
		{"rekey", "-c FILE [--dry-run] [--source NAME] [--rate N/s]", "bring objects under the configured key", rekeyCommand},
		{"retire", "-c FILE [--force]", "this host is done: a last sync, and a final digest for each source", retireCommand},
		{"preflight", "-c FILE [--json]", "prove against the real bucket and key that a run can work", preflightCommand},
		{"iam-policy", "-c FILE [--kind role|bucket|kms-key]", "print the least policy for this configuration", policyCommand},
		{"check", "-c FILE", "read the configuration only; every fault with file, line and key", checkCommand},
		{"version", "", "version, commit, Go version", versionCommand},
	}
}

func main() {
	debug.SetTraceback("crash") // A panic ends with SIGABRT: exit code 2 would say that the usage is wrong.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)   // A second signal ends the process at once.
	signal.Ignore(syscall.SIGPIPE) // Else a pipe that nobody reads any more, the log's too, would end the process.
	if limit := app.MemoryLimit(); limit > 0 && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(limit - limit/heapSpare)
	}
	errs := logsink.New(os.Stderr)
	code := run(ctx, os.Args[1:], streams{out: &output{ctx: ctx, w: os.Stdout}, err: errs, env: os.Environ()})
	errs.Close(lastWords)
	os.Exit(code)
}

// heapSpare is which part of the memory that the control groups allow is kept from
// Go, for what else they count: the program itself, the kernel's share.
const heapSpare = 8

// lastWords is how long the end of a process waits for standard error to take
// what was said.
const lastWords = 5 * time.Second

// run executes one subcommand and returns the process's exit code.
func run(ctx context.Context, args []string, io streams) int {
	if len(args) == 0 {
		usage(io.err)
		return exitUsage
	}
	name := args[0]
	switch name {
	case "help", "--help", "-h":
		usage(io.out)
		return exitDone
	case "--version":
		name = "version"
	}
	all := append(commands(), command{name: generateName, run: generateCommand})
	i := slices.IndexFunc(all, func(c command) bool { return c.name == name })
	if i < 0 {
		complain(io.err, fmt.Errorf("%w: unknown command %q; 's3syncd help' lists them", errUsage, name))
		return exitUsage
	}
	err := all[i].run(ctx, args[1:], io)
	if errors.Is(err, pflag.ErrHelp) {
		return exitDone
	}
	complain(io.err, err)
	return exitCode(err)
}

// exitCode decides once what an error means to a script.
func exitCode(err error) int {
	var faults config.Errors
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errUsage), errors.Is(err, errConfig), errors.Is(err, app.ErrWrongUse), errors.Is(err, app.ErrRefused), errors.As(err, &faults):
		return exitUsage
	case errors.Is(err, app.ErrInterrupted):
		return exitInterrupted
	case errors.Is(err, app.ErrSomeFailed), errors.Is(err, errNotAll):
		return exitSomeFailed
	default:
		return exitCannotRun
	}
}

// loadConfig reads file. Whatever is wrong with it ends the program as wrong
// usage does: a restart would not help.
func loadConfig(file string, env []string) (*config.Config, error) {
	cfg, err := config.Load(file, env)
	if _, ok := errors.AsType[config.Errors](err); err != nil && !ok {
		err = fmt.Errorf("%w: %w", errConfig, err)
	}
	return cfg, err
}

// complain prints err for a person, a line for each of several faults.
func complain(w io.Writer, err error) {
	if err == nil || errors.Is(err, app.ErrSomeFailed) || errors.Is(err, errNotAll) {
		return // The command has said so.
	}
	for line := range strings.Lines(err.Error()) {
		_, _ = fmt.Fprintf(w, "s3syncd: %s\n", strings.TrimRight(line, "\n")) // Nowhere left to say so.
	}
}

// warn prints what is legal and probably not meant.
func warn(w io.Writer, warnings []string) {
	for _, text := range warnings {
		_, _ = fmt.Fprintf(w, "s3syncd: warning: %s\n", text) // Nowhere left to say so.
	}
}

func usage(w io.Writer) {
	var b strings.Builder
	b.WriteString("s3syncd keeps directories archived in S3, encrypted under your KMS key, with an audit trail.\n\n")
	for _, c := range commands() {
		fmt.Fprintf(&b, "  %s\n                   %s\n", strings.TrimSpace(fmt.Sprintf("s3syncd %-10s %s", c.name, c.args)), c.about)
	}
	b.WriteString("\n's3syncd COMMAND --help' tells more. Exit codes: 0 done, 1 could not run, 2 wrong usage\n" +
		"or configuration, 3 ran, but not everything is as it should be (files failed, verify found\n" +
		"faults, something is behind), 130 interrupted.\n")
	_, _ = io.WriteString(w, b.String()) // Nowhere left to say so.
}

// newFlags returns a flag set whose help is the command's own.
func newFlags(name, args, about string, io streams) *pflag.FlagSet {
	fs := pflag.NewFlagSet(name, pflag.ContinueOnError)
	fs.SetOutput(io.out)
	fs.SortFlags = false
	fs.Usage = func() {
		if io.describe != nil {
			io.describe(args, about, fs)
			return
		}
		_, _ = fmt.Fprintf(io.out, "usage: s3syncd %s %s\n\n%s\n\n%s", name, args, about, fs.FlagUsages())
	}
	return fs
}

// parseFlags parses args, of which every one must be a flag or its value.
func parseFlags(fs *pflag.FlagSet, args []string) error {
	names, err := parseNames(fs, args)
	if err == nil && len(names) > 0 {
		return fmt.Errorf("%w: %s: %q is not expected here", errUsage, fs.Name(), names[0])
	}
	return err
}

// parseNames parses args and returns those that are neither flags nor their
// values.
func parseNames(fs *pflag.FlagSet, args []string) ([]string, error) {
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %s: %w", errUsage, fs.Name(), err)
	}
	return fs.Args(), nil
}
