package main

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/iam"
)

// packagedConfig is the configuration of the packaged service.
const packagedConfig = "/etc/s3syncd/s3syncd.yaml"

const rootAbout = `s3syncd keeps directories archived in S3, encrypted under your KMS key, with an audit trail.

Where neither -c nor --dir, --bucket, --offline or --socket is given, a command reads
` + packagedConfig + `, the configuration of the package, where that exists.

Exit codes: 0 done, 1 could not run, 2 wrong usage or configuration, 3 ran, but not
everything is as it should be (files failed, verify found faults, something is behind),
130 interrupted.`

const rootExample = `  s3syncd preflight -c s3syncd.yaml
  s3syncd run -c s3syncd.yaml
  s3syncd status
  s3syncd help restore`

// newRoot returns the program: every command, with its help and its completion.
func newRoot(io streams) *cobra.Command {
	cobra.EnableCommandSorting = false // The order in the help is the order of use.
	root := newCommand("s3syncd --version", "directories archived in S3 under a KMS key, with an audit trail", rootAbout, rootExample)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetOut(io.out)
	root.SetErr(io.err)
	root.CompletionOptions.DisableDefaultCmd = true // The package installs the scripts.
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.SetFlagErrorFunc(flagError)
	root.PersistentPreRunE = func(c *cobra.Command, _ []string) error { return usePackaged(c.Flags(), io.packaged) }
	showVersion := root.Flags().Bool("version", false, "print version, commit and Go version")
	root.Args = func(_ *cobra.Command, args []string) error { return unknownCommand(root, args) }
	root.RunE = func(c *cobra.Command, _ []string) error {
		if *showVersion {
			return printVersion(io.out)
		}
		c.SetOut(io.err)
		return errors.Join(c.Help(), errNoCommand)
	}
	root.AddCommand(
		runCommand(io), syncCommand(io), statusCommand(io), rescanCommand(io), flushCommand(io), verifyCommand(io), restoreCommand(io),
		historyCommand(io), rekeyCommand(io), retireCommand(io), preflightCommand(io), policyCommand(io), checkCommand(io),
		versionCommand(io), generateCommand(io),
	)
	for _, c := range root.Commands() {
		completeFlags(c, io)
	}
	root.InitDefaultHelpCmd()
	if help, _, err := root.Find([]string{"help"}); err == nil {
		help.Short = "what a command does, and its flags"
		help.Args = func(_ *cobra.Command, args []string) error {
			if found, _, _ := root.Find(args); found != root {
				return nil
			}
			return unknownCommand(root, args)
		}
	}
	return root
}

// errNoCommand is a call without a command: the help has been printed.
var errNoCommand = fmt.Errorf("%w: a command is needed", errUsage)

// newCommand returns a command whose flags keep their order. Use begins with its
// name; it takes no arguments unless the caller says otherwise.
func newCommand(use, short, long, example string) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Long: long, Example: example, Args: noArguments, DisableFlagsInUseLine: true}
	c.Flags().SortFlags = false
	return c
}

// noArguments refuses every argument that is neither a flag nor its value.
func noArguments(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%w: %s: %q is not expected here", errUsage, c.Name(), args[0])
	}
	return nil
}

// unknownCommand refuses args, whose first is no command of root.
func unknownCommand(root *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, c := range root.Commands() {
		names = append(names, c.Name())
	}
	return fmt.Errorf("%w: unknown command %q; 's3syncd help' lists them%s", errUsage, args[0], meant("", args[0], names))
}

// flagError makes wrong usage of what is wrong with a flag, and names the flag
// that was probably meant.
func flagError(c *cobra.Command, err error) error {
	hint := ""
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok {
		var names []string
		c.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		hint = meant("--", unknown.GetSpecifiedName(), names)
	}
	return fmt.Errorf("%w: %s: %w%s", errUsage, c.Name(), err, hint)
}

// meant asks whether the name that is nearest to given was meant.
func meant(dashes, given string, names []string) string {
	if best := config.Nearest(given, names); best != "" {
		return "; did you mean " + dashes + best + "?"
	}
	return ""
}

// configFlag adds -c to the flags of a command.
func configFlag(fs *pflag.FlagSet, file *string, more string) {
	fs.StringVarP(file, "config", "c", "", "configuration `file`, by default "+packagedConfig+" where it exists"+more)
}

// usePackaged sets -c to the packaged configuration, file, unless a flag says
// where to read instead. What asks a daemon knows its socket (see daemonFlags).
func usePackaged(fs *pflag.FlagSet, file string) error {
	others := []string{
		"config", "dir", "bucket", "prefix", "kms-key-id", "region", "endpoint-url", "allow-insecure-endpoint", "state-dir", "offline",
	}
	if fs.Lookup("config") == nil || fs.Lookup("socket") != nil || slices.ContainsFunc(others, fs.Changed) || !exists(file) {
		return nil
	}
	return fs.Set("config", file)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// completeFlags says what a shell offers for the values of the flags of c:
// sources of the configuration, fixed choices, or files.
func completeFlags(c *cobra.Command, io streams) {
	choices := map[string][]string{
		"kind":     {string(iam.PolicyRole), string(iam.PolicyBucket), string(iam.PolicyKey)},
		"with":     {iam.PolicyForRekey, iam.PolicyForRestore, iam.PolicyForVerify},
		"deep":     {"5%", "all"},
		"dir-mode": {"0700", "0750", "0755"},
		"rate":     {"50/s", "200/s", "0"},
	}
	c.Flags().VisitAll(func(f *pflag.Flag) {
		value, _ := pflag.UnquoteUsage(f)
		var complete cobra.CompletionFunc
		switch {
		case f.NoOptDefVal != "": // A switch has no value.
			return
		case value == "file" || value == "directory" || value == "path":
			complete = cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault)
		case f.Name == "source" || f.Name == "only":
			complete = sourceNames(io)
		default:
			complete = cobra.FixedCompletions(choices[f.Name], cobra.ShellCompDirectiveNoFileComp)
		}
		if err := c.RegisterFlagCompletionFunc(f.Name, complete); err != nil {
			panic(err) // The flag is one of c, and has none yet.
		}
	})
}

// sourceNames offers the sources of the configuration that -c names.
func sourceNames(io streams) cobra.CompletionFunc {
	return func(c *cobra.Command, given []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		file, err := c.Flags().GetString("config")
		if file == "" {
			file = io.packaged
		}
		cfg, loadErr := config.Load(file, io.env)
		if errors.Join(err, loadErr) != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp // There is nowhere to say why.
		}
		var names []string
		for i := range cfg.Sources {
			if name := cfg.Sources[i].Name; !slices.Contains(given, name) {
				names = append(names, name)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
