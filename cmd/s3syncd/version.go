package main

import (
	"context"
	"fmt"

	"github.com/s3syncd/s3syncd/internal/app"
)

// versionCommand prints version, commit and Go version.
func versionCommand(_ context.Context, args []string, io streams) error {
	if err := parseFlags(newFlags("version", "", "Prints version, commit and Go version.", io), args); err != nil {
		return err
	}
	b := app.ReadBuild(version)
	_, err := fmt.Fprintf(io.out, "s3syncd %s\ncommit %s\n%s\n", b.Version, b.Revision, b.GoVersion)
	return err
}
