package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/s3syncd/s3syncd/internal/admin"
	"github.com/s3syncd/s3syncd/internal/host"
	"github.com/s3syncd/s3syncd/internal/preflight"
)

const preflightAbout = `Proves against the real bucket and key of every source that a run can work, with
small objects below _manifests/.canary/ that it removes again where that is
granted, and names each permission that is missing: the IAM action, its
resource, and what suffers without it. Prints also what the next run and a day
cost in requests. It may run beside a daemon.

It exits with 0 when all that the configuration needs works, 3 when something is
missing, 1 when no destination answered.`

// preflightCommand tries everything once and prints what it found.
func preflightCommand(io streams) *cobra.Command {
	c := newCommand("preflight -c FILE [--json]", "prove against the real bucket and key that a run can work",
		preflightAbout, "  s3syncd preflight -c s3syncd.yaml")
	var file string
	configFlag(c.Flags(), &file, "")
	asJSON := c.Flags().Bool("json", false, "print the report as JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if file == "" {
			return fmt.Errorf("%w: preflight: -c FILE is needed", errUsage)
		}
		cfg, err := loadConfig(file, io.env)
		if err != nil {
			return err
		}
		warn(io.err, cfg.Warnings)
		warn(io.err, host.Warnings(cfg))
		report, err := preflight.Run(c.Context(), preflight.Options{Config: cfg, Stderr: io.err})
		if len(report.Sources) == 0 {
			return err
		}
		if *asJSON {
			enc := json.NewEncoder(io.out)
			enc.SetIndent("", "  ")
			return errors.Join(err, enc.Encode(report))
		}
		return errors.Join(err, printPreflight(io.out, report))
	}
	return c
}

func printPreflight(w io.Writer, r preflight.Report) error {
	var b strings.Builder
	for i := range r.Sources {
		s := &r.Sources[i]
		fmt.Fprintf(&b, "%s: s3://%s/%s in %s under %s\n", admin.Plain(s.Source, 255), s.Bucket, admin.Plain(s.Prefix, 512), s.Region, s.KMSKeyID)
		for _, c := range s.Checks {
			printCheck(&b, c)
		}
		if len(s.Left) > 0 {
			fmt.Fprintf(&b, "  left in the bucket, because they cannot be removed: %s\n", strings.Join(s.Left, ", "))
		}
		printCost(&b, s.Plan)
	}
	if r.OK {
		b.WriteString("All that this configuration needs works.\n")
	} else {
		b.WriteString("Something is missing: see above. 's3syncd iam-policy' prints the policies.\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func printCheck(b *strings.Builder, c preflight.Check) {
	fmt.Fprintf(b, "  %-9s %-13s", c.Verdict, c.Check)
	if len(c.Actions) > 0 {
		fmt.Fprintf(b, " %s on %s", strings.Join(c.Actions, " or "), c.Resource)
	} else if c.Detail != "" {
		b.WriteString(" " + admin.Plain(c.Detail, 400))
	}
	b.WriteString("\n")
	if c.Feature != "" {
		fmt.Fprintf(b, "%25s for: %s\n", "", c.Feature)
	}
	if len(c.Actions) > 0 && c.Detail != "" {
		fmt.Fprintf(b, "%25s said: %s\n", "", admin.Plain(c.Detail, 400))
	}
}

func printCost(b *strings.Builder, p *preflight.Plan) {
	if p == nil {
		b.WriteString("  cost      not known: the directory cannot be read\n")
		return
	}
	note := ""
	if !p.Indexed {
		note = " (every file: there is no index, or a daemon holds it)"
	}
	fmt.Fprintf(b, "  next run  %d files, %s%s: up to %s\n", p.Files, admin.Bytes(p.Bytes), note, requests(p.Run))
	fmt.Fprintf(b, "  a day     without a change: %s; with changes: a PUT a file, and up to %d manifests more\n", requests(p.Day), p.FlushesDay)
}

// checkCommand reads the configuration and prints every fault.
func checkCommand(io streams) *cobra.Command {
	c := newCommand("check -c FILE", "read the configuration only; every fault with file, line and key",
		"Reads the configuration only and names every fault with file, line and key.", "  s3syncd check -c s3syncd.yaml")
	var file string
	configFlag(c.Flags(), &file, "")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if file == "" {
			return fmt.Errorf("%w: check: -c FILE is needed", errUsage)
		}
		cfg, err := loadConfig(file, io.env)
		if err != nil {
			return err
		}
		if err := host.Supported(cfg); err != nil {
			return err
		}
		warn(io.err, cfg.Warnings)
		warn(io.err, host.Warnings(cfg))
		warn(io.err, preflight.IncludeWarnings(c.Context(), cfg))
		_, err = fmt.Fprintf(io.out, "%s: no faults; sources: %d\n", file, len(cfg.Sources))
		return err
	}
	return c
}
