package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/s3syncd/s3syncd/internal/admin"
	"github.com/s3syncd/s3syncd/internal/pipeline"
)

// packagedSocket is where the daemon listens that the systemd unit starts.
const packagedSocket = "/run/s3syncd/control.sock"

// errNotAll is the end of a command that ran and has said itself what is not as
// it should be.
var errNotAll = errors.New("not everything is in S3")

// daemonFlags say which daemon a command asks.
type daemonFlags struct{ config, socket string }

func (f *daemonFlags) set(fs *pflag.FlagSet) {
	fs.StringVarP(&f.config, "config", "c", "", "configuration `file` of the daemon (its admin.socket)")
	fs.StringVar(&f.socket, "socket", "", "`path` of the daemon's control socket; without both: that of "+packagedConfig+", else "+packagedSocket)
}

// client returns a client of the daemon that the flags name. Where the socket is
// not configured, the packaged daemon's is tried as well. Without flags the
// packaged configuration names the socket, to those who may read it.
func (f *daemonFlags) client(command string, io streams) (*admin.Client, error) {
	switch {
	case f.config != "" && f.socket != "":
		return nil, fmt.Errorf("%w: %s: -c FILE and --socket PATH exclude each other", errUsage, command)
	case f.socket != "":
		return admin.NewClient(f.socket), nil
	case f.config == "":
		if cfg, err := loadConfig(io.packaged, io.env); err == nil && !cfg.Admin.DerivedSocket() {
			return admin.NewClient(cfg.Admin.Socket), nil
		}
		return admin.NewClient(packagedSocket), nil
	}
	cfg, err := loadConfig(f.config, io.env)
	if err != nil {
		return nil, err
	}
	socket := cfg.Admin.Socket
	if cfg.Admin.DerivedSocket() && !exists(socket) && exists(packagedSocket) {
		socket = packagedSocket
	}
	return admin.NewClient(socket), nil
}

// asked makes wrong usage of the daemon's answer that it knows no such source,
// and an interruption of the end of ctx.
func asked(ctx context.Context, command string, err error) error {
	_, unknown := errors.AsType[*admin.UnknownSourceError](err)
	switch {
	case err == nil:
		return nil
	case unknown:
		return fmt.Errorf("%w: %s: %w", errUsage, command, err)
	case ctx.Err() != nil:
		return pipeline.ErrInterrupted
	default:
		return fmt.Errorf("%s: %w", command, err)
	}
}

// statusCommand prints what a running daemon is doing.
func statusCommand(io streams) *cobra.Command {
	c := newCommand("status [-c FILE | --socket PATH] [--json]", "what a running daemon is doing; exits with 0 when it is current, 3 when not",
		"Prints what a running daemon is doing, a sentence a source first.\n"+
			"Exits with 0 when every source is current or working, with 3 when one is behind,\nparked or not available, and with 1 when no daemon answers.", "  s3syncd status\n  s3syncd status --json")
	var f daemonFlags
	f.set(c.Flags())
	asJSON := c.Flags().Bool("json", false, "print JSON, as docs/STATUS.md has it")
	c.RunE = func(c *cobra.Command, _ []string) error {
		daemon, err := f.client("status", io)
		if err != nil {
			return err
		}
		st, raw, err := daemon.StatusJSON(c.Context())
		if err != nil {
			return asked(c.Context(), "status", err)
		}
		if *asJSON {
			err = printJSON(io, raw)
		} else {
			err = st.Text(io.out)
		}
		if err == nil && !st.Current {
			return errNotAll
		}
		return err
	}
	return c
}

// printJSON prints what the daemon sent, so that fields of a newer one show.
func printJSON(io streams, raw json.RawMessage) error {
	enc := json.NewEncoder(io.out)
	enc.SetIndent("", "  ")
	return enc.Encode(raw)
}

// rescanCommand asks a running daemon for a rescan.
func rescanCommand(io streams) *cobra.Command {
	c := newCommand("rescan [SOURCE] [-c FILE | --socket PATH] [--remote] [--confirm-deletes]", "ask a running daemon to scan now and to try again what is parked",
		"Asks a running daemon to scan SOURCE, or every source, now, and to try again at\nonce what is parked. Returns when that is asked for, not when it is done.", "  s3syncd rescan\n  s3syncd rescan data --remote")
	var f daemonFlags
	f.set(c.Flags())
	var req admin.RescanRequest
	c.Flags().BoolVar(&req.Remote, "remote", false, "also compare the bucket with the index, and put back what was removed or replaced there")
	c.Flags().BoolVar(&req.ConfirmDeletes, "confirm-deletes", false, "accept what the directory is now: what is missing in it counts as deleted")
	c.Args = func(c *cobra.Command, names []string) error { return noArguments(c, names[min(len(names), 1):]) }
	c.ValidArgsFunction = sourceNames(io)
	c.RunE = func(c *cobra.Command, names []string) error {
		if len(names) > 0 {
			req.Source = names[0]
		}
		daemon, err := f.client("rescan", io)
		if err != nil {
			return err
		}
		a, err := daemon.Rescan(c.Context(), req)
		if err != nil {
			return asked(c.Context(), "rescan", err)
		}
		what := "rescan asked for, what is parked is tried again"
		if req.Remote {
			what += ", the bucket is compared"
		}
		if req.ConfirmDeletes {
			what += ", what is missing counts as deleted"
		}
		for _, s := range a.Sources {
			if _, err := fmt.Fprintf(io.out, "%s: %s\n", s, what); err != nil {
				return err
			}
		}
		return nil
	}
	return c
}

// flushCommand waits until all that changed before it is in S3 and on record.
func flushCommand(io streams) *cobra.Command {
	c := newCommand("flush [SOURCE...] [-c FILE | --socket PATH] [--timeout D]", "return once all that changed before is in S3 and in a published manifest",
		"Returns with 0 once all that had changed in the sources before the call is in S3\nand in a published manifest, with 3 and the reason when that is not so.", "  s3syncd flush\n  s3syncd flush data --timeout 1m")
	var f daemonFlags
	f.set(c.Flags())
	timeout := c.Flags().Duration("timeout", 10*time.Minute, "how long to wait at most; 0: without limit")
	c.Args = cobra.ArbitraryArgs
	c.ValidArgsFunction = sourceNames(io)
	c.RunE = func(c *cobra.Command, names []string) error {
		if *timeout < 0 {
			return fmt.Errorf("%w: flush: --timeout %v: a duration of 0 or more is needed", errUsage, *timeout)
		}
		daemon, err := f.client("flush", io)
		if err != nil {
			return err
		}
		a, err := daemon.Flush(c.Context(), names, *timeout)
		if err != nil {
			return asked(c.Context(), "flush", err)
		}
		return printFlush(io, a)
	}
	return c
}

func printFlush(io streams, a admin.FlushAnswer) error {
	all := true
	for _, s := range a.Sources {
		if s.Done {
			if _, err := fmt.Fprintf(io.out, "%s: done; chain %s, digest %d\n", s.Source, s.Chain, s.Sequence); err != nil {
				return err
			}
			continue
		}
		all = false
		for _, r := range s.Reasons {
			if _, err := fmt.Fprintf(io.err, "s3syncd: %s: not flushed: %s\n", s.Source, r); err != nil {
				return err
			}
		}
	}
	if !all {
		return errNotAll
	}
	return nil
}
