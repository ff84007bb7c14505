package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/daemon"
	"github.com/s3syncd/s3syncd/internal/pipeline"
)

// runCommand is the daemon. It returns nil after SIGTERM.
func runCommand(io streams) *cobra.Command {
	c := newCommand("run -c FILE", "the daemon: watch, upload, journal, publish manifests, until SIGTERM",
		"Watches every source and keeps it archived until SIGTERM or SIGINT.\n"+
			"SIGHUP reads the configuration again and rescans every source.", "  s3syncd run -c s3syncd.yaml")
	var file string
	configFlag(c.Flags(), &file, "")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if file == "" {
			return fmt.Errorf("%w: run: -c FILE is needed", errUsage)
		}
		hangup := make(chan os.Signal, 1) // Hang-ups that come while one is handled merge into one more.
		signal.Notify(hangup, syscall.SIGHUP)
		defer signal.Stop(hangup)
		return daemon.Run(c.Context(), daemon.Options{
			Load:    func() (*config.Config, error) { return loadConfig(file, io.env) },
			Hangup:  hangup,
			Stderr:  io.err,
			Version: version,
			Grace:   pipeline.StandardGrace(),
		})
	}
	return c
}
