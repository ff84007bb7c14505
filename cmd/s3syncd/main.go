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
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/s3syncd/s3syncd/internal/audit"
	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/host"
	"github.com/s3syncd/s3syncd/internal/logsink"
	"github.com/s3syncd/s3syncd/internal/pipeline"
	"github.com/s3syncd/s3syncd/internal/stdout"
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
	packaged string // the configuration that stands for -c where nothing else is named
}

// say prints a line of progress or a note. It drops the error of w: what became of
// the work is in the exit code.
func say(w io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }

func main() {
	debug.SetTraceback("crash") // A panic ends with SIGABRT: exit code 2 would say that the usage is wrong.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)   // A second signal ends the process at once.
	signal.Ignore(syscall.SIGPIPE) // Else a pipe without a reader, the log's too, would end the process.
	if limit := host.MemoryLimit(); limit > 0 && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(limit - limit/heapSpare)
	}
	errs := logsink.New(os.Stderr)
	code := run(ctx, os.Args[1:], streams{out: stdout.New(ctx, os.Stdout), err: errs, env: os.Environ(), packaged: packagedConfig})
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
	root := newRoot(io) //nolint:contextcheck // A command has its context from cobra.
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	complain(io.err, err)
	if errors.Is(err, errUsage) && cmd.HasParent() {
		complain(io.err, fmt.Errorf("'%s --help' shows how it is used", cmd.CommandPath()))
	}
	return exitCode(err)
}

// exitCode decides once what an error means to a script.
func exitCode(err error) int {
	var faults config.Errors
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errUsage), errors.Is(err, errConfig), errors.Is(err, audit.ErrWrongUse), errors.Is(err, audit.ErrRefused), errors.As(err, &faults):
		return exitUsage
	case errors.Is(err, pipeline.ErrInterrupted):
		return exitInterrupted
	case errors.Is(err, pipeline.ErrSomeFailed), errors.Is(err, errNotAll):
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

// complain prints err for an operator, a line for each of several faults.
func complain(w io.Writer, err error) {
	if err == nil || errors.Is(err, pipeline.ErrSomeFailed) || errors.Is(err, errNotAll) {
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

// versionCommand prints version, commit and Go version.
func versionCommand(io streams) *cobra.Command {
	c := newCommand("version", "version, commit, Go version", "Prints version, commit and Go version.", "  s3syncd version")
	c.RunE = func(*cobra.Command, []string) error { return printVersion(io.out) }
	return c
}

func printVersion(w io.Writer) error {
	b := host.ReadBuild(version)
	_, err := fmt.Fprintf(w, "s3syncd %s\ncommit %s\n%s\n", b.Version, b.Revision, b.GoVersion)
	return err
}
