package main

import (
	"context"
	"fmt"

	"github.com/s3syncd/s3syncd/internal/app"
)

// checkCommand reads the configuration and prints every fault.
func checkCommand(ctx context.Context, args []string, io streams) error {
	fs := newFlags("check", "-c FILE", "Reads the configuration only and names every fault with file, line and key.", io)
	file := fs.StringP("config", "c", "", "configuration `file`")
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	if *file == "" {
		return fmt.Errorf("%w: check: -c FILE is needed", errUsage)
	}
	cfg, err := loadConfig(*file, io.env)
	if err != nil {
		return err
	}
	if err := app.Supported(cfg); err != nil {
		return err
	}
	warn(io.err, cfg.Warnings)
	warn(io.err, app.HostWarnings(cfg))
	warn(io.err, app.IncludeWarnings(ctx, cfg))
	_, err = fmt.Fprintf(io.out, "%s: no faults; sources: %d\n", *file, len(cfg.Sources))
	return err
}
