package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/s3syncd/s3syncd/internal/admin"
	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/pipeline"
	"github.com/s3syncd/s3syncd/internal/rekey"
)

const rekeyAbout = `Brings every object below the prefixes of the configuration under the configured
key, also those that stood there before: the file is sent again where it still
holds the same content, else the server copies the object onto itself. Tags,
headers, storage class and retention stay. Objects under a key of
accept_kms_keys stay as they are. Each step is a 'rekeyed' record in the trail.

Only objects that the index or the trail knows, by version, ETag or bytes, are
moved; others are named as failed and left as they are, and so is what another
instance wrote, noncurrent versions, delete markers and the trail. It can be ended at any point
and run again. A daemon must not run on the same state meanwhile. It exits with
3 when objects failed.`

// rekeyFlags are the flags of rekey.
type rekeyFlags struct {
	config, source, rate string
	askAll, dryRun       bool
	giveUp               time.Duration
}

func (f *rekeyFlags) set(fs *pflag.FlagSet) {
	configFlag(fs, &f.config, "")
	fs.StringVar(&f.source, "source", "", "only the source of this `name`")
	fs.StringVar(&f.rate, "rate", "200/s", "`objects` a second at most, 0 for no limit")
	fs.BoolVar(&f.askAll, "ask-all", false, "ask S3 for every object, also where the index says that its key is right")
	fs.DurationVar(&f.giveUp, "give-up", 10*time.Minute, "how long an outage is waited for before an object counts as failed")
	fs.BoolVar(&f.dryRun, "dry-run", false, "write nothing; print what would be rekeyed, bytes and requests")
}

// options returns what the flags ask for.
func (f *rekeyFlags) options(env []string) (o rekey.Options, err error) {
	o = rekey.Options{Source: f.source, AskAll: f.askAll, GiveUp: f.giveUp, DryRun: f.dryRun, Version: version}
	if f.config == "" {
		return o, fmt.Errorf("%w: rekey: -c FILE is needed", errUsage)
	}
	if f.giveUp <= 0 {
		return o, fmt.Errorf("%w: rekey: --give-up %v: a duration above 0 is needed", errUsage, f.giveUp)
	}
	if o.Rate, err = strconv.ParseFloat(strings.TrimSuffix(f.rate, "/s"), 64); err != nil || !(o.Rate >= 0 && o.Rate < 1e9) {
		return o, fmt.Errorf("%w: rekey: --rate %q: a number of objects a second is needed, as in 50 or 50/s, or 0", errUsage, f.rate)
	}
	if o.Config, err = loadConfig(f.config, env); err != nil {
		return o, err
	}
	return o, knownSource(o.Config, "rekey", f.source)
}

// knownSource fails unless name is "" or that of a source.
func knownSource(cfg *config.Config, command, name string) error {
	var names []string
	for i := range cfg.Sources {
		if names = append(names, cfg.Sources[i].Name); name == "" || names[i] == name {
			return nil
		}
	}
	return fmt.Errorf("%w: %s: --source %q is not configured; there is %s", errUsage, command, name, strings.Join(names, ", "))
}

// rekeyCommand rekeys and prints what it did.
func rekeyCommand(io streams) *cobra.Command {
	c := newCommand("rekey -c FILE [flags]", "bring objects under the configured key",
		rekeyAbout, "  s3syncd rekey -c s3syncd.yaml --dry-run\n  s3syncd rekey -c s3syncd.yaml --source data --rate 50/s")
	var f rekeyFlags
	f.set(c.Flags())
	c.RunE = func(c *cobra.Command, _ []string) error {
		o, err := f.options(io.env)
		if err != nil {
			return err
		}
		show := newProgress(io, "scanning")
		o.Stderr, o.Progress = io.err, show
		sum, err := rekey.Run(c.Context(), o)
		show.finish()
		if err != nil && !errors.Is(err, pipeline.ErrSomeFailed) && !errors.Is(err, pipeline.ErrInterrupted) {
			return err
		}
		if f.dryRun {
			return errors.Join(err, printRekeyPlan(io.out, sum))
		}
		return errors.Join(err, printRekey(io.out, sum))
	}
	return c
}

const rekeyLeft = "Left as they are: noncurrent versions, delete markers, and the trail under _manifests/\n"

func printRekey(w io.Writer, s rekey.Summary) error {
	_, err := fmt.Fprintf(w, "Rekeyed: %d (%s)\nRight already: %d of %d\nFailed: %d\n%s",
		s.Rekeyed, admin.Bytes(s.Bytes), s.Right, s.Listed, s.Failed, unlisted(s)+rekeyLeft)
	return err
}

func printRekeyPlan(w io.Writer, s rekey.Summary) error {
	note := unlisted(s)
	if s.Plan.Unindexed {
		note += "A daemon holds the state: every object was asked for, and counts as one to copy\n"
	}
	_, err := fmt.Fprintf(w, "Would rekey: %d objects, %s (without a KMS key: %d, under another key: %d)\n"+
		"Right already: %d of %d\nLeft to others, or not known to index and trail: %d\n"+
		"Requests: about %d LIST, %d HEAD, %d PUT, %d COPY, %d parts\n%s",
		s.Rekeyed, admin.Bytes(s.Bytes), s.Plan.NoKey, s.Plan.OtherKey, s.Right, s.Listed, s.Failed,
		s.Plan.Lists, s.Plan.Heads, s.Plan.Sends, s.Plan.Copies, s.Plan.Parts, note+rekeyLeft)
	return err
}

// unlisted says what was not checked.
func unlisted(s rekey.Summary) string {
	if !s.Unlisted {
		return ""
	}
	return "Not looked at: what the index does not know, because s3:ListBucket is not granted\n"
}
