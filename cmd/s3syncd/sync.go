package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/s3syncd/s3syncd/internal/admin"
	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/host"
	"github.com/s3syncd/s3syncd/internal/logsink"
	"github.com/s3syncd/s3syncd/internal/oneshot"
	"github.com/s3syncd/s3syncd/internal/pipeline"
)

const syncAbout = `One sync run: scans every source, uploads what is new or changed, publishes the
manifests of the run, prints what it did and exits. It exits with 3 when files
failed, when a source could not be scanned, or when missing files do not count as
deleted until --confirm-deletes says so; and with 1 when no source could be
scanned or no destination ever answered.`

// heapFloor is a piece of the heap that is never touched, and so costs no
// memory. Without it the collector, which waits for the heap to double, would
// run for every few MiB of garbage: 6% of the processor time of an upload of
// small files, and 8% of its wall time. It lets at most twice its size of garbage lie. A daemon, which
// is there for months, goes without.
const heapFloor = 12 << 20

// syncFlags are the flags of sync.
type syncFlags struct {
	config      string
	dir         config.SyncFlags
	manifestOut string
	giveUp      time.Duration
	dryRun      bool
	confirm     bool
}

func (f *syncFlags) set(fs *pflag.FlagSet) {
	configFlag(fs, &f.config, "; or, for one directory without a file:")
	fs.StringVar(&f.dir.Dir, "dir", "", "`directory` to archive")
	fs.StringVar(&f.dir.Bucket, "bucket", "", "`bucket` to archive it in")
	fs.StringVar(&f.dir.Prefix, "prefix", "", "`prefix` of the keys")
	fs.StringVar(&f.dir.KMSKeyID, "kms-key-id", "", "KMS `key` id, ARN or alias to encrypt every object with")
	fs.StringVar(&f.dir.Region, "region", "", "AWS `region`")
	fs.StringVar(&f.dir.EndpointURL, "endpoint-url", "", "`URL` of an S3-compatible server")
	fs.StringVar(&f.dir.StateDir, "state-dir", "", "`directory` for index and journal (default: sync/<hash> in the state directory)")
	fs.StringVar(&f.manifestOut, "manifest-out", "", "also write all records of the run as one JSON array to `file`")
	fs.DurationVar(&f.giveUp, "give-up", 10*time.Minute, "how long an outage is waited for before a file counts as failed")
	fs.BoolVar(&f.confirm, "confirm-deletes", false, "accept what the directories are now: what is missing in them counts as deleted")
	fs.BoolVar(&f.dryRun, "dry-run", false, "write nothing; ask S3 for what the index does not know, and print what would be uploaded, bytes and requests")
}

// load returns the configuration that the flags name.
func (f *syncFlags) load(fs *pflag.FlagSet, env []string) (*config.Config, error) {
	given := slices.ContainsFunc([]string{"dir", "bucket", "prefix", "kms-key-id", "region", "endpoint-url", "state-dir"}, fs.Changed)
	switch {
	case f.config != "" && given:
		return nil, fmt.Errorf("%w: sync: -c FILE and --dir, --bucket, … exclude each other", errUsage)
	case f.config == "" && !given:
		return nil, fmt.Errorf("%w: sync: -c FILE, or --dir, --bucket, --prefix and --kms-key-id, are needed", errUsage)
	case f.giveUp <= 0:
		return nil, fmt.Errorf("%w: sync: --give-up %v: a duration above 0 is needed", errUsage, f.giveUp)
	case f.config != "":
		return loadConfig(f.config, env)
	default:
		f.dir.Env = env
		return config.FromFlags(f.dir)
	}
}

// syncCommand runs one sync and prints its summary.
func syncCommand(io streams) *cobra.Command {
	c := newCommand("sync (-c FILE | --dir D --bucket B --prefix P --kms-key-id K) [flags]", "one sync run of every source, its manifests, then exit",
		syncAbout, "  s3syncd sync -c s3syncd.yaml\n"+
			"  s3syncd sync --dir /srv/data --bucket my-company-data --prefix backups/data --kms-key-id alias/archive --dry-run")
	var f syncFlags
	f.set(c.Flags())
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := f.load(c.Flags(), io.env)
		if err != nil {
			return err
		}
		warn(io.err, host.Warnings(cfg))
		floor := make([]byte, heapFloor)
		defer runtime.KeepAlive(floor)
		show := newProgress(io, "scanning")
		sum, err := oneshot.Sync(c.Context(), oneshot.SyncOptions{
			Config: cfg,
			GiveUp: f.giveUp,
			DryRun: f.dryRun, ConfirmDeletes: f.confirm,
			ManifestOut: f.manifestOut,
			Stderr:      io.err,
			Version:     version,
			Progress:    show,
		})
		show.finish()
		switch {
		case f.dryRun && (err == nil || errors.Is(err, pipeline.ErrSomeFailed) || errors.Is(err, pipeline.ErrInterrupted)):
			return errors.Join(err, printPlan(io.out, sum))
		case f.dryRun, sum.Sources == 0: // Nothing was begun.
			return err
		}
		return errors.Join(err, printSummary(io.out, sum))
	}
	return c
}

func printSummary(w io.Writer, s oneshot.Summary) error {
	_, err := fmt.Fprintf(w, "Uploaded: %d\nSkipped: %d (unchanged)\nFailed: %d\n", s.Uploaded, s.Skipped, s.Failed)
	if err == nil && s.Deleted > 0 {
		_, err = fmt.Fprintf(w, "Deleted: %d (gone here)\n", s.Deleted)
	}
	if err == nil && s.Held > 0 {
		_, err = fmt.Fprintf(w, "Held back: %d (gone here; nothing of the mirror was deleted: 'sync --confirm-deletes')\n", s.Held)
	}
	if err == nil && s.Withheld > 0 {
		_, err = fmt.Fprintf(w, "Withheld: %d (missing, but another directory, or a mount less, is in the place: 'sync --confirm-deletes')\n", s.Withheld)
	}
	if err == nil && s.Unread > 0 {
		_, err = fmt.Fprintf(w, "Not read: %d of %d sources\n", s.Unread, s.Sources)
	}
	return err
}

func printPlan(w io.Writer, s oneshot.Summary) error {
	_, err := fmt.Fprintf(w, "Would upload: %d files, %s\nUnchanged: %d\nRequests: up to %s\n"+
		"A day without a change: %s\nA day with changes: a PUT a file, and up to %d manifests more\n",
		s.Uploaded, admin.Bytes(s.Bytes), s.Skipped, requests(s.Plan.Run), requests(s.Plan.Day), s.Plan.FlushesDay)
	if err == nil && s.Failed > 0 {
		_, err = fmt.Fprintf(w, "Would fail: %d\n", s.Failed)
	}
	if err == nil && s.Plan.Unasked > 0 {
		_, err = fmt.Fprintf(w, "S3 did not say whether it holds %d of these files: those that it holds are skipped\n", s.Plan.Unasked)
	}
	for _, why := range s.Plan.Silent {
		if err == nil {
			_, err = fmt.Fprintf(w, "  %s\n", strings.ReplaceAll(why, "\n", "; "))
		}
	}
	for _, alias := range s.Plan.Aliases {
		if err == nil {
			_, err = fmt.Fprintf(w, "Which key is behind %s is not known yet: an object under any KMS key counts as right\n", alias)
		}
	}
	return err
}

// requests renders a count of requests by kind.
func requests(n oneshot.RequestCount) string {
	get := ""
	if n.Get > 0 {
		get = fmt.Sprintf("%d GET, ", n.Get)
	}
	return get + fmt.Sprintf("%d HEAD, %d PUT, %d multipart parts, %d LIST, %d PUT for the trail", n.Head, n.Put, n.Parts, n.List, n.Trail)
}

// isTerminal reports whether w is a terminal that a progress bar fits on.
func isTerminal(w io.Writer) bool {
	if s, ok := w.(*logsink.Sink); ok {
		w = s.Behind()
	}
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}
