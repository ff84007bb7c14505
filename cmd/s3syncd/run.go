package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/s3syncd/s3syncd/internal/app"
	"github.com/s3syncd/s3syncd/internal/config"
)

// runCommand is the daemon. It returns nil after SIGTERM.
func runCommand(ctx context.Context, args []string, io streams) error {
	fs := newFlags("run", "-c FILE", "Watches every source and keeps it archived until SIGTERM or SIGINT.\n"+
		"SIGHUP reads the configuration again and rescans every source.", io)
	file := fs.StringP("config", "c", "", "configuration `file`")
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	if *file == "" {
		return fmt.Errorf("%w: run: -c FILE is needed", errUsage)
	}
	hangup := make(chan os.Signal, 1) // Hang-ups that come while one is handled merge into one more.
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	return app.Run(ctx, app.Options{
		Load:    func() (*config.Config, error) { return loadConfig(*file, io.env) },
		Hangup:  hangup,
		Stderr:  io.err,
		Version: version,
		Grace:   app.StandardGrace(),
	})
}
