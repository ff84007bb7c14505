package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/s3syncd/s3syncd/internal/oneshot"
	"github.com/s3syncd/s3syncd/internal/pipeline"
)

const retireAbout = `This host is done: a last sync run of every source, after which the audit trail of
each ends with a final digest, so that its silence is no fault. Stop the daemon
first (systemctl disable --now s3syncd). A later run or sync begins a new chain.

It closes nothing and exits with 3 when files failed or wait for an operator: mend
that and run it again, or say --force.`

// retireCommand publishes the last digest of each source.
func retireCommand(io streams) *cobra.Command {
	c := newCommand("retire -c FILE [flags]", "this host is done: a last sync, and a final digest for each source",
		retireAbout, "  s3syncd retire -c s3syncd.yaml")
	var file string
	configFlag(c.Flags(), &file, "")
	force := c.Flags().Bool("force", false, "close the trails although files failed or a source cannot be read")
	giveUp := c.Flags().Duration("give-up", 10*time.Minute, "how long an outage is waited for")
	c.RunE = func(c *cobra.Command, _ []string) error {
		switch {
		case file == "":
			return fmt.Errorf("%w: retire: -c FILE is needed", errUsage)
		case *giveUp <= 0:
			return fmt.Errorf("%w: retire: --give-up %v: a duration above 0 is needed", errUsage, *giveUp)
		}
		cfg, err := loadConfig(file, io.env)
		if err != nil {
			return err
		}
		show := newProgress(io, "scanning")
		sum, err := oneshot.Retire(c.Context(), oneshot.RetireOptions{
			SyncOptions: oneshot.SyncOptions{Config: cfg, GiveUp: *giveUp, Stderr: io.err, Version: version, Progress: show},
			Force:       *force,
		})
		show.finish()
		if err != nil && !errors.Is(err, pipeline.ErrSomeFailed) && !errors.Is(err, pipeline.ErrInterrupted) {
			return err
		}
		if perr := printSummary(io.out, sum); perr != nil {
			return errors.Join(err, perr)
		}
		said := fmt.Sprintf("Retired: the trails of all sources are closed (%d)\n", len(cfg.Sources))
		if err != nil && !*force {
			said = "Not retired: mend what failed and run it again, or say --force\n"
		}
		if _, perr := fmt.Fprint(io.out, said); perr != nil {
			return errors.Join(err, perr)
		}
		return err
	}
	return c
}
