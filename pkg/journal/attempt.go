package journal

import (
	"context"
	"encoding/hex"
	"errors"
	"strings"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/localfile"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/remote"
)

// Attempt is the journal of one attempt at one path: what the index knew when the
// attempt began, and what was recorded since.
type Attempt struct {
	j    *Journal
	job  *queue.Job
	key  string
	file *localfile.File

	Index Index
	End   Ending
}

// Ending is what an attempt has recorded.
type Ending struct {
	Status    archive.Status // "": nothing.
	Basis     archive.Basis
	Sent      int64 // Bytes that were sent and acknowledged.
	Recovered bool
}

// Load reads what the index knows of the path.
func (a *Attempt) Load() error {
	a.Index = Index{}
	if a.job.OffPath() {
		return nil
	}
	var err error
	if a.Index.Entry, a.Index.Known, err = a.j.State.Get(a.job.Path); err != nil {
		return localfile.Local(archive.ClassTransient, "read the index", err)
	}
	return nil
}

// Commit makes an outcome durable. It is not cut short when the pool stops: the
// server has acknowledged what it says.
func (a *Attempt) Commit(ctx context.Context, o archive.Outcome) error {
	if _, err := a.j.State.Commit(context.WithoutCancel(ctx), o); err != nil {
		return localfile.Local(archive.ClassTransient, "commit", err)
	}
	x := &a.Index
	was := x.Entry.FailClass
	switch {
	case o.Entry != nil:
		*x = Index{Entry: *o.Entry, Known: true}
	case o.Failure != nil:
		x.Entry.FailClass, x.Entry.FailFence, x.Known = o.Failure.Class, o.Failure.Fence, true
	case o.Remove:
		*x = Index{}
	}
	a.j.tallies.park(was, x.Entry.FailClass)
	return nil
}

// record begins a record of the path.
func (a *Attempt) record(s archive.Status) *archive.Record {
	j := a.j
	r := &archive.Record{
		S3Key: a.key, S3URI: "s3://" + j.Bucket + "/" + a.key,
		Status: s, Trigger: a.job.Trigger, Source: j.Source, Instance: j.Instance,
	}
	if !a.job.OffPath() {
		r.SetPath(strings.TrimSuffix(j.RealPath, "/") + "/" + a.job.Path)
	}
	if !a.job.Detected.IsZero() {
		r.DetectedAt = archive.FormatTime(a.job.Detected)
	}
	return r
}

// describe fills in what r says of an object and its content.
func describe(r *archive.Record, o archive.Object, md5 [16]byte, sha256 [32]byte) {
	r.MD5 = hex.EncodeToString(md5[:])
	if sha256 != [32]byte{} {
		r.SHA256 = hex.EncodeToString(sha256[:])
	}
	r.ETag, r.VersionID, r.KMSKeyID, r.SSE = o.ETag, o.VersionID, o.KMSKeyID, o.SSE
	answered(r, o)
}

// answered fills in what r says of the answer that o is from.
func answered(r *archive.Record, o archive.Object) {
	r.RequestID = o.RequestID
	if !o.ServerTime.IsZero() {
		r.S3Time = archive.FormatTime(o.ServerTime)
	}
}

// replaces fills in which write r is of, and what it replaced.
func replaces(r *archive.Record, in *archive.Intent) {
	r.Attempt, r.ReplacedVID, r.ReplacedETag = in.Attempt, in.Replaces.VersionID, in.Replaces.ETag
}

// Sent notes that the content went over the network.
func (a *Attempt) Sent() { a.End.Sent = a.file.Reading.Size }

// Stored records the acknowledged write in, whose object is o.
func (a *Attempt) Stored(ctx context.Context, in *archive.Intent, o archive.Object, recovered bool) error {
	if in.Op == archive.OpCopy {
		return a.copied(ctx, in, o, recovered)
	}
	var err error
	if a.Index.Entry, a.Index.Known, err = a.j.State.Get(in.Path); err != nil {
		return localfile.Local(archive.ClassTransient, "read the index", err)
	}
	suspect := a.Index.Entry.Suspect
	status := archive.StatusUploaded
	if in.Rekey {
		status = archive.StatusRekeyed
	}
	r := a.record(status)
	r.Trigger, r.Recovered = in.Trigger, recovered
	r.SetAttributes(in.Fence, in.Attributes)
	describe(r, o, in.MD5, in.SHA256)
	replaces(r, in)
	if in.Reread {
		r.Basis = archive.BasisReread
	}
	if r.DetectedAt = ""; !in.DetectedAt.IsZero() {
		r.DetectedAt = archive.FormatTime(in.DetectedAt)
	}
	e := archive.Entry{
		Fence: in.Fence, Attributes: in.Attributes, Racy: in.Racy, Stored: true, MD5: in.MD5, SHA256: in.SHA256,
		ETag: o.ETag, VersionID: o.VersionID, SSE: o.SSE, KMSKeyID: o.KMSKeyID, Attempt: in.Attempt,
	}
	if err := a.Commit(ctx, archive.Outcome{Path: in.Path, Entry: &e, Record: r, Settles: in.Attempt, Key: in.Key}); err != nil {
		return err
	}
	a.End.Status, a.End.Recovered = status, recovered
	a.j.count.Uploaded(status, in.Fence.Size, in.DetectedAt, time.Now())
	if suspect {
		a.j.count.Repaired()
	}
	return nil
}

// Adopt records that S3 held the content already.
func (a *Attempt) Adopt(ctx context.Context, o archive.Object, basis archive.Basis) error {
	e, x := entryOf(a.file, o), &a.Index
	if x.Known && remote.Describes(&x.Entry, o) {
		e.Attempt = x.Entry.Attempt // Not what the object says: its metadata proves nothing.
	}
	if a.End.Status == archive.StatusUploaded && x.Entry.Attempt == e.Attempt && e.Attempt != 0 {
		return a.Commit(ctx, archive.Outcome{Path: a.job.Path, Entry: &e}) // This attempt has recorded it as recovered.
	}
	return a.skip(ctx, e, o, basis, true)
}

// SkipByIndex ends an attempt at a file that the index alone shows unchanged.
func (a *Attempt) SkipByIndex(ctx context.Context) error {
	if a.End.Status != "" {
		return nil // This attempt has recorded how the content came to S3.
	}
	if !a.listed() && a.Index.Entry.FailClass == "" {
		a.countSkip()
		return nil
	}
	e := a.Index.Entry
	e.FailClass, e.FailFence = "", archive.Fence{}
	return a.skip(ctx, e, remote.Indexed(&e), archive.BasisIndex, a.listed())
}

// listed reports whether a skip that the index alone decided gets a record.
func (a *Attempt) listed() bool { return a.j.ListSkips || a.job.Trigger == archive.TriggerEvent }

// SkipAttributes ends an attempt at a file whose content is the one that the
// index has. Only what a restore would need is worth a record.
func (a *Attempt) SkipAttributes(ctx context.Context) error {
	was := &a.Index.Entry
	o := remote.Indexed(was)
	e := entryOf(a.file, o)
	e.Attempt = was.Attempt
	switch {
	case e.Attributes != was.Attributes, !e.Fence.Mtime().Equal(was.Fence.Mtime()):
		return a.skip(ctx, e, o, archive.BasisAttributes, true)
	case a.job.Kind != archive.Reread || !a.Index.Unchanged(a.file):
		return a.skip(ctx, e, o, archive.BasisIndex, a.listed() && a.End.Status == "")
	case a.j.ListSkips || was.FailClass != "":
		return a.skip(ctx, e, o, archive.BasisReread, a.j.ListSkips)
	}
	return nil // It was read again and is what the index says.
}

// skip records that nothing had to be sent, and brings the index up to date.
// Without listed the skip is only counted.
func (a *Attempt) skip(ctx context.Context, e archive.Entry, o archive.Object, basis archive.Basis, listed bool) error {
	out := archive.Outcome{Path: a.job.Path, Entry: &e, Unasked: basis == archive.BasisIndex || basis == archive.BasisAttributes || basis == archive.BasisReread}
	if listed {
		r := a.record(archive.StatusSkipped)
		r.Basis = basis
		describe(r, o, e.MD5, e.SHA256)
		size := a.file.Fence.Size
		r.SizeBytes = &size
		if basis != archive.BasisIndex {
			r.SetAttributes(a.file.Fence, a.file.Attributes)
		}
		out.Record = r
	}
	if err := a.Commit(ctx, out); err != nil {
		return err
	}
	if !listed {
		a.countSkip()
		return nil
	}
	a.End.Status, a.End.Basis = archive.StatusSkipped, basis
	a.j.count.File(archive.StatusSkipped)
	return nil
}

// countSkip counts a skip that the index alone decided.
func (a *Attempt) countSkip() {
	if a.End.Status != "" {
		return // This attempt has recorded something already.
	}
	a.j.tallies.addSkips(1)
	a.End.Status, a.End.Basis = archive.StatusSkipped, archive.BasisIndex
	a.j.count.File(archive.StatusSkipped)
}

// Deleted records that the file is gone. The deletion of its object was
// announced as in; it is nil when the object stays.
func (a *Attempt) Deleted(ctx context.Context, in *archive.Intent, o archive.Object) error {
	r := a.record(archive.StatusDeleted)
	out := archive.Outcome{Path: a.job.Path, Key: a.key, Remove: true, Record: r}
	if in != nil {
		out.Settles = in.Attempt
		replaces(r, in)
		r.VersionID = o.VersionID
		answered(r, o)
	}
	now := time.Now()
	if !a.job.Detected.IsZero() {
		now = a.job.Detected
	}
	e := &a.Index.Entry
	short := e.Stored && now.Sub(time.Unix(0, e.Fence.CtimeNs)) < a.j.ShortLife
	if err := a.Commit(ctx, out); err != nil {
		return err
	}
	if short {
		a.j.count.ShortLived()
	}
	a.End.Status = archive.StatusDeleted
	a.j.count.File(archive.StatusDeleted)
	return nil
}

// Failed records err once for the path, its class and its content, or again
// where a run ends with it. It reports whether there is a new record. That an
// object could not be rekeyed says nothing of the file: the index stays as it is.
func (a *Attempt) Failed(ctx context.Context, err error, again bool) (recorded bool, rerr error) {
	class := archive.ClassOf(err)
	out := archive.Outcome{Path: a.job.Path}
	rekeys := a.job.Kind == archive.Rekey
	if !rekeys {
		var gerr error
		if a.Index.Entry, a.Index.Known, gerr = a.j.State.Get(a.job.Path); gerr != nil {
			return false, localfile.Local(archive.ClassTransient, "read the index", gerr)
		}
		e, fence := &a.Index.Entry, a.failFence()
		if !again && e.FailClass == class && (class.Rereads() || e.FailFence.SameContent(fence)) {
			return false, nil
		}
		out.Failure = &archive.Failure{Class: class, Fence: fence}
	}

	r := a.record(archive.StatusFailed)
	r.Error, r.ErrorClass = err.Error(), class
	if se, ok := errors.AsType[*archive.Error](err); ok {
		r.RequestID = se.RequestID
	}
	if size := a.file.Fence.Size; rekeys && size > 0 || !rekeys && a.file.Opened != nil {
		r.SizeBytes = &size
	}
	out.Record = r
	if err := a.Commit(ctx, out); err != nil {
		return false, err
	}
	a.j.count.File(archive.StatusFailed)
	a.j.count.Failure(class)
	return true, nil
}

// failFence is the content that a failure concerns, as far as it is known.
func (a *Attempt) failFence() archive.Fence {
	if a.file.Opened != nil || a.job.Kind == archive.Refused {
		return a.file.Fence
	}
	st, err := a.j.Root.Lstat(a.job.Path)
	if err != nil {
		return archive.Fence{}
	}
	return localfile.FenceOf(st)
}
