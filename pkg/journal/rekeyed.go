package journal

import (
	"context"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/localfile"
	"github.com/s3syncd/s3syncd/pkg/remote"
)

// copied records the acknowledged copy in, whose object is o. The index entry
// stays that of the file, whatever that holds by now; where it describes another
// object than the one that was copied the next attempt asks.
func (a *Attempt) copied(ctx context.Context, in *archive.Intent, o archive.Object, recovered bool) error {
	if err := a.Load(); err != nil {
		return err
	}
	if a.file.Opened == nil {
		a.file.None(o.Size)
	}
	content := localfile.Content{Size: o.Size, MD5: in.MD5, SHA256: in.SHA256}
	r := a.rekeyRecord(o, &remote.Archived{Content: content, Mtime: in.Fence.Mtime(), Attributes: in.Attributes})
	r.Trigger, r.Recovered = in.Trigger, recovered
	replaces(r, in)
	out := archive.Outcome{Path: in.Path, Record: r, Settles: in.Attempt, Key: in.Key}
	if a.Index.Stored() {
		e := a.Index.Entry
		if remote.Describes(&e, in.Replaces) || remote.Holds(&e, content) {
			e.ETag, e.VersionID, e.SSE, e.KMSKeyID, e.Attempt = o.ETag, o.VersionID, o.SSE, o.KMSKeyID, in.Attempt
		} else {
			e.Suspect = true
		}
		out.Entry = &e
	}
	if err := a.rekeyed(ctx, out); err != nil {
		return err
	}
	a.End.Recovered = recovered
	return nil
}

// NoteKey records that an object which the index has under another KMS key is
// under the right one: another writer has done it.
func (a *Attempt) NoteKey(ctx context.Context, o archive.Object) error {
	e := a.Index.Entry
	known := remote.ArchivedEntry(&e)
	e.ETag, e.VersionID, e.SSE, e.KMSKeyID = o.ETag, o.VersionID, o.SSE, o.KMSKeyID
	return a.rekeyed(ctx, archive.Outcome{Path: a.job.Path, Entry: &e, Record: a.rekeyRecord(o, &known)})
}

// rekeyed commits the outcome of a rekey.
func (a *Attempt) rekeyed(ctx context.Context, out archive.Outcome) error {
	if err := a.Commit(ctx, out); err != nil {
		return err
	}
	a.End.Status = archive.StatusRekeyed
	a.j.count.File(archive.StatusRekeyed)
	return nil
}

// rekeyRecord is the record of o, with what was known of its content before.
func (a *Attempt) rekeyRecord(o archive.Object, known *remote.Archived) *archive.Record {
	r := a.record(archive.StatusRekeyed)
	r.DetectedAt = ""
	describe(r, o, known.MD5, known.SHA256)
	if known.MD5 == [16]byte{} {
		r.MD5 = ""
	}
	size := o.Size
	r.SizeBytes = &size
	if !known.Mtime.IsZero() || known.Attributes != (archive.Attributes{}) {
		r.SetAttributes(archive.Fence{Size: size}.WithMtime(known.Mtime), known.Attributes)
	}
	return r
}
