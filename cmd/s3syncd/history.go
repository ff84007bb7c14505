package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/s3syncd/s3syncd/internal/admin"
	"github.com/s3syncd/s3syncd/internal/audit"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

const historyAbout = `Prints every record of one file, oldest first: when it was looked at, what became
of it, its hash and version. The file is a key, an s3:// URI, a path relative to
the source, or an absolute path as it was on the host.

--bundle writes one document that proves the last record that says what S3 holds:
the record, its manifest, the digests up to one that is signed or known elsewhere,
and the public key. 's3syncd verify --offline FILE' checks it, anywhere.

A document that cannot be read, or is not what its digest says, is named; the
rest is printed, and it exits with 3.`

// historyLine is the form of --json: one line a record.
type historyLine struct {
	Record         json.RawMessage `json:"record"`
	Manifest       string          `json:"manifest"`
	ManifestSHA256 string          `json:"manifest_sha256,omitempty"` // left out where no digest names it yet
	Digest         string          `json:"digest,omitempty"`
}

// historyCommand prints the records of one file.
func historyCommand(io streams) *cobra.Command {
	c := newCommand("history KEY_OR_PATH (-c FILE [--source S] | --bucket B --prefix P) [flags]", "every record of one file, and what proves it",
		historyAbout, "  s3syncd history hello.txt -c s3syncd.yaml --at 7d\n"+
			"  s3syncd history hello.txt -c s3syncd.yaml --bundle proof.json")
	var from originFlags
	from.set(c.Flags(), "`name` of the host that archived, where it is not this one")
	from.setSource(c.Flags())
	at := c.Flags().String("at", "", "only what was recorded up to this `time`: "+timeForms)
	bundle := c.Flags().String("bundle", "", "write what proves the last record to `file`")
	head := c.Flags().String("head", "", "the `SHA-256` of a digest that is known elsewhere: the bundle ends with it")
	asJSON := c.Flags().Bool("json", false, "print a line of JSON a record")
	c.Args = func(_ *cobra.Command, names []string) error {
		if len(names) != 1 {
			return fmt.Errorf("%w: history: one KEY_OR_PATH is needed, got %d", errUsage, len(names))
		}
		return nil
	}
	c.RunE = func(c *cobra.Command, names []string) (err error) {
		if *head != "" && *bundle == "" {
			return fmt.Errorf("%w: history: --head is about --bundle FILE", errUsage)
		}
		o := audit.HistoryOptions{File: names[0], Instance: from.instance, Bundle: *bundle, Head: *head, Stderr: io.err}
		if o.At, err = parseAt(c.Flags(), *at, time.Now()); err != nil {
			return err
		}
		if o.Origin, err = from.origin(c.Flags(), io.env); err != nil {
			return err
		}
		o.Show = func(it trail.HistoryItem) error { return printRecord(io.out, it, *asJSON) }
		sum, err := audit.History(c.Context(), o)
		for _, fault := range sum.Faults {
			_, _ = fmt.Fprintf(io.err, "s3syncd: %s\n", admin.Plain(fault, messageLength)) // Nowhere left to say so.
		}
		switch {
		case err != nil:
			return err
		case *bundle != "":
			_, err = fmt.Fprintf(io.err, "s3syncd: %s proves the record %s; digests: %d\n", *bundle, sum.Proven, sum.Digests)
		}
		if len(sum.Faults) > 0 {
			return errors.Join(err, errNotAll)
		}
		return err
	}
	return c
}

func printRecord(w io.Writer, it trail.HistoryItem, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		return enc.Encode(historyLine{
			Record: it.Raw, Manifest: it.Manifest.S3Key, ManifestSHA256: it.Manifest.SHA256, Digest: it.Digest.Key,
		})
	}
	r := &it.Record
	size := "-"
	if r.SizeBytes != nil {
		size = admin.Bytes(*r.SizeBytes)
	}
	_, err := fmt.Fprintf(w, "%-30s  %-8s  %10s  %s\n", admin.Plain(r.Timestamp, 30), admin.Plain(string(r.Status), 20), size, details(it))
	return err
}

// details is what a line says beside time, status and size.
func details(it trail.HistoryItem) string {
	r := &it.Record
	var parts []string
	add := func(name, value string) {
		if value != "" {
			parts = append(parts, name+admin.Plain(value, messageLength))
		}
	}
	switch {
	case r.SHA256 != "":
		add("sha256=", r.SHA256)
	case r.MD5 != "":
		add("md5=", r.MD5)
	}
	add("version=", r.VersionID)
	add("mode=", r.Mode)
	add("basis=", string(r.Basis))
	add("trigger=", string(r.Trigger))
	add("class=", string(r.ErrorClass))
	add("id=", r.ID)
	if r.Recovered {
		parts = append(parts, "recovered")
	}
	if it.Digest.Key == "" {
		parts = append(parts, "(no digest names it yet)")
	}
	if r.Status == archive.StatusFailed {
		add("error: ", r.Error)
	}
	return strings.Join(parts, " ")
}
