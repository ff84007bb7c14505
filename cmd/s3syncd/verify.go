package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/s3syncd/s3syncd/internal/admin"
	"github.com/s3syncd/s3syncd/internal/audit"
	"github.com/s3syncd/s3syncd/internal/bundle"
	"github.com/s3syncd/s3syncd/internal/verify"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

const verifyAbout = `Checks the audit trail: names, hashes, links, sequence, counts, records, times,
signatures and keys of every document under the prefix. --remote compares what it
says with the objects, --deep downloads and hashes them, --source reads the tree.

The newest digest can only be checked against something outside the trail: the
host's state and copies (with -c), --expect-head or --anchor. Without one the end
of the trail may have been taken away; that is said (tail-unanchored) and is no
fault. With --public-key nothing counts but what its signatures cover.

With -c, --remote, --deep and --source have a running daemon publish first.

What could not be read is named and counted (unchecked) and does not end the
rest. It exits with 3 when a claim did not hold or something could not be read,
and with 1 when nothing could.`

// shownOfKind bounds what the text names of one kind; --json has all.
const shownOfKind = 20

// verifyFlags are the flags of verify.
type verifyFlags struct {
	from originFlags
	deep string
	json bool
	o    audit.VerifyOptions
}

func (f *verifyFlags) set(fs *pflag.FlagSet) {
	f.from.set(fs, "only the chains of this `host`")
	fs.StringArrayVar(&f.o.Only, "only", nil, "`name` of a source of the configuration (default: all); may be repeated")
	fs.StringVar(&f.o.Offline, "offline", "", "read the copies in this `directory` alone, or check this bundle of 's3syncd history'")
	fs.StringVar(&f.o.ExpectHead, "expect-head", "", "a digest with this `SHA-256` must be there")
	fs.StringVar(&f.o.AnchorFile, "anchor", "", "`file` of heads seen earlier, which must be there; brought up to date when all is clean")
	fs.StringArrayVar(&f.o.PublicKeys, "public-key", nil, "PEM `file` of a key that signatures must lead to; may be repeated")
	fs.DurationVar(&f.o.MaxAge, "max-age", 0, "every chain that has not ended must have a digest younger than this, also one that was stopped (default: any age)")
	fs.BoolVar(&f.o.Remote, "remote", false, "compare the newest record of each key with its object")
	fs.StringVar(&f.deep, "deep", "", "also download and hash this `share` of the objects: 5%, or all")
	fs.Uint64Var(&f.o.Seed, "seed", 0, "chooses what --deep downloads (default: drawn and printed)")
	fs.BoolVar(&f.o.Source, "source", false, "compare the newest record of each file with the directory (with -c)")
	fs.StringVar(&f.o.TempDir, "temp-dir", "", "`directory` for sorting the trail (default: $TMPDIR)")
	fs.BoolVar(&f.json, "json", false, "print JSON")
}

var headForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// check refuses what cannot be meant.
func (f *verifyFlags) check(fs *pflag.FlagSet) error {
	named := f.from.bucket != "" && fs.Changed("prefix")
	for _, rule := range []struct {
		broken bool
		fault  string
	}{
		{f.from.config != "" && f.from.given(fs), "-c FILE and --bucket, --prefix, … exclude each other"},
		{f.from.config == "" && f.o.Offline == "" && !named, "-c FILE, or --bucket and --prefix, or --offline, are needed"},
		{(f.from.bucket != "") != fs.Changed("prefix"), "--bucket and --prefix belong together"},
		{f.from.config == "" && (f.o.Source || len(f.o.Only) > 0), "--source and --only need -c FILE"},
		{f.o.Offline != "" && (f.o.Remote || f.deep != ""), "--offline reads nothing from S3, as --remote and --deep would"},
		{f.o.ExpectHead != "" && !headForm.MatchString(f.o.ExpectHead), fmt.Sprintf("--expect-head %q: a SHA-256 of 64 hex digits is needed", f.o.ExpectHead)},
		{f.o.MaxAge < 0, fmt.Sprintf("--max-age %v: a duration above 0 is needed", f.o.MaxAge)},
	} {
		if rule.broken {
			return fmt.Errorf("%w: verify: %s", errUsage, rule.fault)
		}
	}
	return nil
}

// options returns the options that the flags ask for.
func (f *verifyFlags) options(fs *pflag.FlagSet, io streams) (audit.VerifyOptions, error) {
	if err := f.check(fs); err != nil {
		return f.o, err
	}
	var err error
	if f.o.Deep, err = parseShare(f.deep); err != nil {
		return f.o, err
	}
	if !fs.Changed("seed") {
		f.o.Seed = rand.Uint64() >> 32 // Short enough to type.
	}
	f.o.Origin, f.o.Instance, f.o.Stderr = f.from.named(), f.from.instance, io.err
	if f.from.config != "" {
		if f.o.Config, err = loadConfig(f.from.config, io.env); err != nil {
			return f.o, err
		}
	}
	return f.o, nil
}

// parseShare reads a percentage.
func parseShare(s string) (float64, error) {
	switch s {
	case "":
		return 0, nil
	case "all":
		return 100, nil
	}
	p, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
	if err != nil || !(p > 0 && p <= 100) {
		return 0, fmt.Errorf("%w: verify: --deep %q: 5%%, or all, is needed", errUsage, s)
	}
	return p, nil
}

// verifyCommand checks trails and prints what was found.
func verifyCommand(io streams) *cobra.Command {
	c := newCommand("verify (-c FILE | --bucket B --prefix P | --offline DIR) [flags]", "check the audit trail and what it claims",
		verifyAbout, "  s3syncd verify -c s3syncd.yaml --remote\n"+
			"  s3syncd verify --bucket my-company-data --prefix backups/app-01 --public-key key.pem --deep 5%\n"+
			"  s3syncd verify --offline proof.json")
	var f verifyFlags
	f.set(c.Flags())
	c.RunE = func(c *cobra.Command, _ []string) error {
		o, err := f.options(c.Flags(), io)
		if err != nil {
			return err
		}
		if info, err := os.Stat(o.Offline); err == nil && !info.IsDir() {
			return f.bundle(o, io)
		}
		show := &verifyProgress{errs: io.err}
		o.Progress = show
		results, err := audit.Verify(c.Context(), o)
		show.finish()
		if err != nil {
			return err
		}
		clean := !slices.ContainsFunc(results, func(r audit.VerifyResult) bool { return !r.Clean })
		if f.json {
			err = printVerifyJSON(io.out, results, clean)
		} else {
			err = printVerify(io.out, results)
		}
		if err == nil && !clean {
			return errNotAll
		}
		return err
	}
	return c
}

func printVerifyJSON(w io.Writer, results []audit.VerifyResult, clean bool) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(struct {
		Format int                  `json:"format"`
		Clean  bool                 `json:"clean"`
		Trails []audit.VerifyResult `json:"trails"`
	}{1, clean, results})
}

// bundleJSON is what --json prints of a bundle.
type bundleJSON struct {
	Format   int            `json:"format"`
	Clean    bool           `json:"clean"`
	Record   archive.Record `json:"record"`
	Instance string         `json:"instance"`
	Chain    string         `json:"chain"`
	Digests  int            `json:"digests"`
	Head     string         `json:"head_sha256"`
	SignedBy string         `json:"signed_by"`
	Anchored bool           `json:"anchored"`
	Findings []string       `json:"findings"`
	Notes    []string       `json:"notes"`
}

// bundle checks one bundle.
func (f *verifyFlags) bundle(o audit.VerifyOptions, io streams) error {
	r, err := audit.VerifyBundle(o)
	if err != nil {
		return err
	}
	if f.json {
		enc := json.NewEncoder(io.out)
		enc.SetIndent("", "  ")
		err = enc.Encode(bundleJSON{
			Format: 1, Clean: len(r.Faults) == 0, Record: r.Record, Instance: r.Instance, Chain: r.Chain, Digests: r.Digests,
			Head: r.Head, SignedBy: r.SignedBy, Anchored: r.Anchored, Findings: append([]string{}, r.Faults...), Notes: append([]string{}, r.Notes...),
		})
	} else {
		err = printBundle(io.out, r)
	}
	if err == nil && len(r.Faults) > 0 {
		return errNotAll
	}
	return err
}

func printBundle(w io.Writer, r bundle.Report) error {
	var b strings.Builder
	fmt.Fprintf(&b, "record %s: %s %s at %s\n", shown(r.Record.ID), r.Record.Status, shown(r.Record.S3Key), shown(r.Record.Timestamp))
	fmt.Fprintf(&b, "chain %s of %s, %d digests up to %s\n", r.Chain, r.Instance, r.Digests, r.Head)
	if r.SignedBy != "" {
		fmt.Fprintf(&b, "signed by %s\n", r.SignedBy)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "note: %s\n", shown(n))
	}
	for _, n := range r.Faults {
		fmt.Fprintf(&b, "FAILED: %s\n", shown(n))
	}
	fmt.Fprintf(&b, "Findings: %d\n", len(r.Faults))
	_, err := io.WriteString(w, b.String())
	return err
}

// shown makes text from a document fit a terminal.
func shown(s string) string { return admin.Plain(s, messageLength) }

// printVerify prints what was found for an operator.
func printVerify(w io.Writer, results []audit.VerifyResult) error {
	var b strings.Builder
	found, noted, unchecked := int64(0), int64(0), int64(0)
	for _, r := range results {
		printTrail(&b, r)
		unchecked += r.Unchecked
		for _, k := range r.FoundBy {
			found += k.Count
		}
		for _, k := range r.NotedBy {
			noted += k.Count
		}
	}
	fmt.Fprintf(&b, "Findings: %d\nNotes: %d\nUnchecked: %d\n", found, noted, unchecked)
	_, err := io.WriteString(w, b.String())
	return err
}

func printTrail(b *strings.Builder, r audit.VerifyResult) {
	if r.Source != "" {
		fmt.Fprintf(b, "source %s: ", r.Source)
	}
	fmt.Fprintf(b, "s3://%s/%s\n", shown(r.Bucket), shown(r.Prefix))
	for i := range r.Chains {
		printChain(b, &r.Chains[i])
	}
	if o := r.Objects; o != nil {
		fmt.Fprintf(b, "  objects: %d of %d compared, %d deleted", o.Compared, o.Records, o.Deleted)
		if o.Deep > 0 {
			fmt.Fprintf(b, ", %d downloaded and hashed (%s; %g%%, seed %d)", o.Downloaded, admin.Bytes(o.Bytes), o.Deep, o.Seed)
		}
		for _, part := range []struct {
			n    int64
			text string
		}{
			{o.Unproven, "with a content that only their metadata proves"}, {o.Foreign, "not written by s3syncd"}, {o.Unchecked, "unchecked"},
		} {
			if part.n > 0 {
				fmt.Fprintf(b, ", %d %s", part.n, part.text)
			}
		}
		if o.ChangedSince > 0 {
			fmt.Fprintf(b, ", %d written since the trail was published (the oldest at %s)", o.ChangedSince, shown(o.OldestChange))
		}
		b.WriteString("\n")
	}
	if s := r.Tree; s != nil {
		fmt.Fprintf(b, "  directory: %d files compared, %s read\n", s.Files, admin.Bytes(s.Bytes))
	}
	if r.First != nil {
		fmt.Fprintf(b, "  FAILED first: %s\n", findingText(*r.First, true))
	}
	printKinds(b, "findings", r.FoundBy, r.Findings)
	printKinds(b, "notes", r.NotedBy, r.Notes)
}

func printChain(b *strings.Builder, c *verify.ChainSummary) {
	fmt.Fprintf(b, "  chain %s of %s: digests %d to %d, %d manifests, %d records", c.Chain, shown(c.Instance), c.FirstSequence, c.LastSequence, c.Manifests, c.Records)
	if c.HeadTime != "" {
		fmt.Fprintf(b, "; until %s (%s)", shown(c.HeadTime), shown(c.HeadReason))
	}
	if c.Signed > 0 {
		fmt.Fprintf(b, "; signed to %d", c.SignedTo)
	}
	if c.AnchoredTo > 0 {
		fmt.Fprintf(b, "; anchored to %d", c.AnchoredTo)
	}
	if c.HeadSHA256 != "" {
		fmt.Fprintf(b, "\n    head %s", c.HeadSHA256)
	}
	b.WriteString("\n")
}

// printKinds prints findings in groups.
func printKinds(b *strings.Builder, title string, kinds []verify.KindCount, list []verify.Finding) {
	for _, k := range kinds {
		fmt.Fprintf(b, "  %s: %s (%d)\n", title, k.Kind, k.Count)
		n := int64(0)
		for _, f := range list {
			if f.Kind != k.Kind {
				continue
			}
			if n++; n > shownOfKind {
				break
			}
			fmt.Fprintf(b, "    %s\n", findingText(f, false))
		}
		if k.Count > shownOfKind {
			fmt.Fprintf(b, "    … and %d more (--json has them)\n", k.Count-shownOfKind)
		}
	}
}

// findingText is one finding in a line.
func findingText(f verify.Finding, withKind bool) string {
	var parts []string
	if withKind {
		parts = append(parts, string(f.Kind))
	}
	switch {
	case f.Chain != "" && f.Sequence > 0:
		parts = append(parts, fmt.Sprintf("chain %s digest %d", shown(f.Chain), f.Sequence))
	case f.Chain != "":
		parts = append(parts, "chain "+shown(f.Chain))
	}
	if f.Key != "" {
		parts = append(parts, shown(f.Key))
	}
	return strings.Join(append(parts, shown(f.Detail)), ": ")
}
