package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/s3syncd/s3syncd/internal/host"
)

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
