package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/s3syncd/s3syncd/internal/app"
	"github.com/s3syncd/s3syncd/internal/host"
)

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
		warn(io.err, app.IncludeWarnings(c.Context(), cfg))
		_, err = fmt.Fprintf(io.out, "%s: no faults; sources: %d\n", file, len(cfg.Sources))
		return err
	}
	return c
}
