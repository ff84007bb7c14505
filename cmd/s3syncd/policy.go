package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/s3syncd/s3syncd/internal/app"
)

const policyAbout = `Prints the least policy for this configuration as JSON on stdout, and on stderr
what to fill in where an ARN cannot be known. It makes no request.

  role     what the host may do: run, sync and preflight need this and no more;
           --with rekey,restore,verify adds what those commands need beside it
  bucket   what nobody may do in the bucket: write under another key or
           algorithm, speak without TLS
  kms-key  who may use the key`

// policyCommand prints one policy.
func policyCommand(_ context.Context, args []string, io streams) error {
	fs := newFlags("iam-policy", "-c FILE [--kind role|bucket|kms-key] [flags]", policyAbout, io)
	file := fs.StringP("config", "c", "", "configuration `file`")
	kind := fs.String("kind", string(app.PolicyRole), "`kind` of policy: role, bucket or kms-key")
	source := fs.String("source", "", "only the source of this `name`")
	with := fs.StringSlice("with", nil, "`commands` that the role is to allow as well: rekey, restore, verify")
	if err := parseFlags(fs, args); err != nil {
		return err
	}
	kinds := []string{string(app.PolicyRole), string(app.PolicyBucket), string(app.PolicyKey)}
	if !slices.Contains(kinds, *kind) {
		return fmt.Errorf("%w: iam-policy: --kind %q: one of %s is needed", errUsage, *kind, strings.Join(kinds, ", "))
	}
	for _, c := range *with {
		if known := []string{app.PolicyForRekey, app.PolicyForRestore, app.PolicyForVerify}; !slices.Contains(known, c) {
			return fmt.Errorf("%w: iam-policy: --with %q: only %s need more than a daemon", errUsage, c, strings.Join(known, ", "))
		}
	}
	if *file == "" {
		return fmt.Errorf("%w: iam-policy: -c FILE is needed", errUsage)
	}
	cfg, err := loadConfig(*file, io.env)
	if err != nil {
		return err
	}
	if err := knownSource(cfg, "iam-policy", *source); err != nil {
		return err
	}
	doc, notes, err := app.Policy(app.PolicyOptions{
		Config: cfg, Kind: app.PolicyKind(*kind), Source: *source, With: *with, Region: environmentRegion(io.env),
	})
	if errors.Is(err, app.ErrPolicyChoice) {
		return fmt.Errorf("%w: iam-policy: %w", errUsage, err)
	}
	if err != nil {
		return err
	}
	for _, n := range notes {
		_, _ = fmt.Fprintf(io.err, "s3syncd: note: %s\n", n) // Nowhere left to say so.
	}
	_, err = io.out.Write(doc)
	return err
}

// environmentRegion is the region that the AWS environment names in a variable.
func environmentRegion(env []string) string {
	for _, name := range []string{"AWS_REGION=", "AWS_DEFAULT_REGION="} {
		for _, kv := range slices.Backward(env) {
			if v, ok := strings.CutPrefix(kv, name); ok && v != "" {
				return v
			}
		}
	}
	return ""
}
