package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/s3syncd/s3syncd/internal/iam"
)

const policyAbout = `Prints the least policy for this configuration as JSON on stdout, and on stderr
what to fill in where an ARN cannot be known. It makes no request.

  role     what the host may do: run, sync and preflight need this and no more;
           --with rekey,restore,verify adds what those commands need beside it
  bucket   what nobody may do in the bucket: write under another key or
           algorithm, speak without TLS
  kms-key  who may use the key

A bucket has one policy for all hosts that write to it. --instance prints it for
several hosts, and --merge puts it into the policy that the bucket has: the
prefixes of other hosts and what others have written stay.`

// policyCommand prints one policy.
func policyCommand(io streams) *cobra.Command {
	c := newCommand("iam-policy -c FILE [--kind role|bucket|kms-key] [flags]", "print the least policy for this configuration",
		policyAbout, "  s3syncd iam-policy -c s3syncd.yaml --with rekey,restore\n"+
			"  s3syncd iam-policy -c s3syncd.yaml --kind bucket --instance '*'")
	var file string
	configFlag(c.Flags(), &file, "")
	kind := c.Flags().String("kind", string(iam.PolicyRole), "`kind` of policy: role, bucket or kms-key")
	source := c.Flags().String("source", "", "only the source of this `name`")
	instances := c.Flags().StringSlice("instance", nil, "`names` of the hosts, with * for any text: '*', 'app-*' (default: the configuration's own); may be repeated")
	present := c.Flags().String("merge", "", "`file` with the bucket's present policy, or empty, to put this one into (with --kind bucket)")
	with := c.Flags().StringSlice("with", nil, "`commands` that the role is to allow as well: rekey, restore, verify")
	c.RunE = func(c *cobra.Command, _ []string) error {
		o := iam.PolicyOptions{Kind: iam.PolicyKind(*kind), Source: *source, With: *with, Region: environmentRegion(io.env), Instances: *instances}
		if err := checkPolicy(o, file, *present); err != nil {
			return err
		}
		cfg, err := loadConfig(file, io.env)
		if err != nil {
			return err
		}
		if err := knownSource(cfg, "iam-policy", *source); err != nil {
			return err
		}
		o.Config = cfg
		if *present != "" {
			if o.Merge, err = os.ReadFile(*present); err != nil {
				return fmt.Errorf("--merge: %w", err)
			}
		}
		doc, notes, err := iam.Policy(o)
		if errors.Is(err, iam.ErrPolicyChoice) {
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
	return c
}

var instancePattern = regexp.MustCompile(`^[A-Za-z0-9._*-]{1,128}$`)

// checkPolicy refuses what cannot be meant.
func checkPolicy(o iam.PolicyOptions, file, present string) error {
	kinds := []string{string(iam.PolicyRole), string(iam.PolicyBucket), string(iam.PolicyKey)}
	if !slices.Contains(kinds, string(o.Kind)) {
		return fmt.Errorf("%w: iam-policy: --kind %q: one of %s is needed", errUsage, o.Kind, strings.Join(kinds, ", "))
	}
	for _, c := range o.With {
		if known := []string{iam.PolicyForRekey, iam.PolicyForRestore, iam.PolicyForVerify}; !slices.Contains(known, c) {
			return fmt.Errorf("%w: iam-policy: --with %q: only %s need more than a daemon", errUsage, c, strings.Join(known, ", "))
		}
	}
	switch {
	case file == "":
		return fmt.Errorf("%w: iam-policy: -c FILE is needed", errUsage)
	case present != "" && o.Kind != iam.PolicyBucket:
		return fmt.Errorf("%w: iam-policy: --merge needs --kind bucket", errUsage)
	}
	for _, n := range o.Instances {
		if !instancePattern.MatchString(n) {
			return fmt.Errorf("%w: iam-policy: --instance %q: letters, digits, dots, underscores and hyphens are possible, and * for any text", errUsage, n)
		}
	}
	return nil
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
