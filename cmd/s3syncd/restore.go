package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/s3syncd/s3syncd/internal/admin"
	"github.com/s3syncd/s3syncd/internal/audit"
	"github.com/s3syncd/s3syncd/internal/restore"
)

const restoreAbout = `Rebuilds files from the audit trail: as it has them last, or as S3 held them at a
time. Every file is checked against the hash in the trail, written beside its
place and renamed, and gets its mode, its modification time and, as root, its
owner. What is there already and right is kept, so that an interrupted run is
simply run again; what is there and different is replaced with --overwrite only.

Nothing is written outside --to, and no symbolic link in it is followed.
Empty directories, links and extended attributes are not archived. What a
directory allowed is not known either: one that is made gets --dir-mode (0700,
which keeps others out), and as root the owner of the one above it.

What is there already is kept if nobody else can change it: neither by its mode
or its directory's, nor by another name, nor by having owned it. Otherwise it is
written again.

The trail is verified before the first byte is written. With --public-key,
--anchor, --expect-head, or -c on the host itself (its own copies), only what they
vouch for is restored; without any of them the first line says so.

It exits with 3 when a file could not be rebuilt, or a document of the trail is
missing or cannot be believed.`

// maxFailures bounds the files that --json names.
const maxFailures = 10_000

// messageLength bounds an error as it is shown.
const messageLength = 500

// restoreFlags are the flags of restore.
type restoreFlags struct {
	from     originFlags
	at       string
	dirMode  string
	json     bool
	noSpace  bool
	progress *restoreProgress
	o        audit.RestoreOptions
}

func (f *restoreFlags) set(fs *pflag.FlagSet) {
	f.from.set(fs, "`name` of the host that archived, where it is not this one")
	f.from.setSource(fs)
	fs.StringVar(&f.o.ExpectHead, "expect-head", "", "believe what the digest with this `SHA-256` leads to")
	fs.StringVar(&f.o.AnchorFile, "anchor", "", "believe what the heads in this `file` of 's3syncd verify' lead to")
	fs.StringArrayVar(&f.o.PublicKeys, "public-key", nil, "believe only what this PEM `file`'s key has signed, or a signed digest leads to; may be repeated")
	fs.StringVar(&f.o.To, "to", "", "`directory` to restore below; it is made where it is missing")
	fs.StringVar(&f.o.Path, "path", "", "only this `directory` or file of the source")
	fs.StringVar(&f.at, "at", "", "as S3 held the files at this `time`: "+timeForms)
	fs.StringArrayVar(&f.o.Include, "include", nil, "only files that match this gitignore `pattern`, relative to the source; may be repeated")
	fs.BoolVar(&f.o.DryRun, "dry-run", false, "write nothing; print what would be restored")
	fs.BoolVar(&f.o.Overwrite, "overwrite", false, "replace what stands in the way of a file and is not a directory")
	fs.BoolVar(&f.o.Owner, "owner", isRoot(), "restore owner and group (default: as root)")
	fs.StringVar(&f.dirMode, "dir-mode", "0700", "`mode` of directories that are made, in octal")
	fs.BoolVar(&f.o.Unverified, "unverified", false, "where an object is not the one that the trail names (no versions, or no record yet), restore it nevertheless")
	fs.BoolVar(&f.noSpace, "no-space-check", false, "begin although the file system seems to have too little room")
	fs.IntVar(&f.o.Workers, "workers", 16, "files that are restored at once")
	fs.DurationVar(&f.o.GiveUp, "give-up", 10*time.Minute, "how long an outage is waited for")
	fs.StringVar(&f.o.TempDir, "temp-dir", "", "`directory` for sorting the trail (default: --to; in a dry run $TMPDIR)")
	fs.BoolVar(&f.json, "json", false, "print the summary as JSON, with the files that failed")
}

// check refuses what cannot be meant.
func (f *restoreFlags) check(fs *pflag.FlagSet) error {
	dirMode, err := strconv.ParseUint(f.dirMode, 8, 32)
	f.o.DirMode = iofs.FileMode(dirMode)
	switch {
	case f.o.To == "":
		return fmt.Errorf("%w: restore: --to DIR is needed", errUsage)
	case f.o.Workers < 1 || f.o.Workers > 1024:
		return fmt.Errorf("%w: restore: --workers %d: 1 to 1024 are possible", errUsage, f.o.Workers)
	case f.o.GiveUp <= 0:
		return fmt.Errorf("%w: restore: --give-up %v: a duration above 0 is needed", errUsage, f.o.GiveUp)
	case fs.Changed("expect-head") && !headForm.MatchString(f.o.ExpectHead):
		return fmt.Errorf("%w: restore: --expect-head %q: a SHA-256 of 64 hex digits is needed", errUsage, f.o.ExpectHead)
	case err != nil || dirMode > 0o777 || dirMode&0o700 != 0o700:
		return fmt.Errorf("%w: restore: --dir-mode %q: 0700 to 0777 in octal are possible", errUsage, f.dirMode)
	}
	return nil
}

// options returns what the flags come to.
func (f *restoreFlags) options(fs *pflag.FlagSet, io streams) (o audit.RestoreOptions, err error) {
	if err := f.check(fs); err != nil {
		return o, err
	}
	if f.o.At, err = parseAt(fs, f.at, time.Now()); err != nil {
		return o, err
	}
	if f.o.Origin, err = f.from.origin(fs, io.env); err != nil {
		return o, err
	}
	if f.o.To, err = filepath.Abs(f.o.To); err != nil {
		return o, err
	}
	f.o.Instance, f.o.CheckSpace, f.o.Stderr = f.from.instance, !f.noSpace && !f.o.DryRun, io.err
	f.progress = &restoreProgress{progress: newProgress(io, "reading the trail"), err: io.err, quiet: f.json, dryRun: f.o.DryRun}
	f.o.Progress = f.progress
	return f.o, nil
}

// restoreCommand rebuilds files and prints a summary.
func restoreCommand(io streams) *cobra.Command {
	c := newCommand("restore (-c FILE --source S | --bucket B --prefix P) --to DIR [flags]", "rebuild files from the audit trail, as of now or of a time",
		restoreAbout, "  s3syncd restore -c s3syncd.yaml --source data --to /srv/restored --dry-run\n"+
			"  s3syncd restore --bucket my-company-data --prefix backups/app-01 --to /srv/restored --at 7d")
	var f restoreFlags
	f.set(c.Flags())
	c.RunE = func(c *cobra.Command, _ []string) error {
		o, err := f.options(c.Flags(), io)
		if err != nil {
			return err
		}
		sum, err := audit.Restore(c.Context(), o)
		f.progress.finish()
		if errors.Is(err, audit.ErrWrongUse) || (err != nil && sum.Restored+sum.Kept+sum.Failed == 0) {
			return err
		}
		if perr := f.print(io, sum); perr != nil || err != nil {
			return errors.Join(err, perr)
		}
		if sum.Failed > 0 || sum.FaultCount > 0 {
			return errNotAll
		}
		return nil
	}
	return c
}

// print prints what was done, and on stderr what one has to know of it.
func (f *restoreFlags) print(io streams, sum restore.Summary) error {
	for _, fault := range sum.Faults {
		_, _ = fmt.Fprintf(io.err, "s3syncd: not believed: %s\n", admin.Plain(fault, messageLength)) // Nowhere left to say so.
	}
	for _, note := range f.notes(sum) {
		say(io.err, "s3syncd: note: %s\n", note)
	}
	if f.json {
		return f.printJSON(io.out, sum)
	}
	form := "Restored: %d\nKept: %d (already there)\nFailed: %d\n"
	if f.o.DryRun {
		form = "Would restore: %d\nWould keep: %d (already there)\nWould fail: %d\n"
	}
	_, err := fmt.Fprintf(io.out, form, sum.Restored, sum.Kept, sum.Failed)
	return err
}

// notes says what is not as one might think.
func (f *restoreFlags) notes(sum restore.Summary) []string {
	var notes []string
	note := func(n int64, text string) {
		if n > 0 {
			notes = append(notes, strings.ReplaceAll(text, "#", admin.Count(n)))
		}
	}
	note(sum.FaultCount-int64(len(sum.Faults)), "# more documents of the trail are not believed")
	note(sum.FaultCount, "what those documents say may be missing here: 's3syncd verify' tells more")
	note(sum.NotVouched, "documents that nothing vouches for, left out: #; where what you gave, or this host's copies, are older than the trail,"+
		" --bucket and --prefix without them believe the bucket alone")
	note(sum.Unproven, "manifests that no digest names yet: #; they were written shortly before the host ended, and used")
	note(sum.Current, "files from the current object, for lack of a version in the trail or the bucket: #; each had the recorded hash, unless said otherwise")
	note(sum.Unverified, "files that are NOT proven by the trail, because of --unverified: #")
	note(sum.OwnersLeft, "files whose owner was not restored: #; run as root, or with --owner")
	note(sum.NewDirs, "directories that were made: #, with mode "+f.dirMode+"; the trail does not say what they allowed, see --dir-mode")
	note(sum.InOpen, "files in directories that others than their owner can write: #; they can be exchanged at any time")
	note(sum.OwnersOut, "files whose owner cannot enter their directory: #; give the new directories their owners and modes")
	note(sum.LeftOut, "half-written files of an earlier restore that had been archived, left out: #")
	return notes
}

// restoreResult is the form of --json.
type restoreResult struct {
	Restored   int64            `json:"restored"`
	Kept       int64            `json:"kept"`
	Failed     int64            `json:"failed"`
	Bytes      int64            `json:"bytes"`
	DryRun     bool             `json:"dry_run"`
	Current    int64            `json:"from_current_objects"`
	Unverified int64            `json:"unverified"`
	OwnersLeft int64            `json:"owners_not_restored"`
	NewDirs    int64            `json:"directories_made"`
	OwnersOut  int64            `json:"owners_kept_out"`
	InOpen     int64            `json:"in_open_directories"`
	LeftOut    int64            `json:"left_out"`
	Anchored   bool             `json:"anchored"`
	NotVouched int64            `json:"not_vouched"`
	Unproven   int64            `json:"unproven_manifests"`
	Faults     []string         `json:"not_believed"`
	FaultCount int64            `json:"not_believed_count"`
	Failures   []restoreFailure `json:"failures"` // at most maxFailures
}

type restoreFailure struct {
	Path  string `json:"path"`
	Key   string `json:"s3_key"`
	Error string `json:"error"`
}

func (f *restoreFlags) printJSON(w io.Writer, sum restore.Summary) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(restoreResult{
		Restored: sum.Restored, Kept: sum.Kept, Failed: sum.Failed, Bytes: sum.Bytes, DryRun: f.o.DryRun, Current: sum.Current,
		Unverified: sum.Unverified, OwnersLeft: sum.OwnersLeft,
		Anchored: f.progress.anchored, NewDirs: sum.NewDirs, OwnersOut: sum.OwnersOut, InOpen: sum.InOpen, LeftOut: sum.LeftOut, NotVouched: sum.NotVouched, Unproven: sum.Unproven,
		Faults: append([]string{}, sum.Faults...), FaultCount: sum.FaultCount, Failures: append([]restoreFailure{}, f.progress.failures...),
	})
}

// restoreProgress shows a restore.
type restoreProgress struct {
	*progress
	err    io.Writer
	quiet  bool // --json: no lines on stdout
	dryRun bool

	anchored bool // something vouches for the trail
	failures []restoreFailure
}

// Anchored implements manifest.RestoreProgress: what it prints is the first line.
func (p *restoreProgress) Anchored(keys, heads int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.anchored = keys+heads > 0
	p.bar.clear()
	if !p.anchored {
		_, _ = fmt.Fprintln(p.err, "s3syncd: note: unanchored: nothing outside the bucket vouches for this trail, whoever can write it may have made it up;"+
			" give --public-key, --anchor or --expect-head where you can") // Nowhere left to say so.
		return
	}
	say(p.err, "s3syncd: note: only what is vouched for is restored: public keys given: %d, digests known: %d\n", keys, heads)
}

// Planned implements manifest.RestoreProgress.
func (p *restoreProgress) Planned(files, bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.files = files
	p.bar.total(bytes)
}

// Received implements manifest.RestoreProgress.
func (p *restoreProgress) Received(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bar.add(n)
}

// Done implements manifest.RestoreProgress.
func (p *restoreProgress) Done(f restore.RestoredFile) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done++
	name := f.Path
	if name == "" {
		name = f.Key
	}
	if f.Status == restore.FileFailed {
		why := admin.Plain(f.Err.Error(), messageLength)
		if len(p.failures) < maxFailures {
			p.failures = append(p.failures, restoreFailure{Path: f.Path, Key: f.Key, Error: why})
		}
		p.bar.clear()
		say(p.err, "failed %s: %s\n", strconv.Quote(name), why)
	}
	if f.Status == restore.FileKept || p.dryRun {
		p.bar.add(f.Size)
	}
	p.bar.describe(p.done, p.files)
	if p.bar != nil {
		return
	}
	p.line(f, strconv.Quote(name))
}

// line shows one file where there is no bar.
func (p *restoreProgress) line(f restore.RestoredFile, name string) {
	verb := "restored"
	switch {
	case p.quiet || f.Status == restore.FileFailed:
		return
	case f.Status == restore.FileKept:
		say(p.out, "kept %s\n", name)
		return
	case p.dryRun:
		verb = "would restore"
	}
	mark := ""
	if f.Unverified {
		mark = ", not proven by the trail"
	}
	say(p.out, "%s %s (%s%s)\n", verb, name, admin.Bytes(max(f.Size, 0)), mark)
}
