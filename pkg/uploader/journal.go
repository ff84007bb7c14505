package uploader

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
	"github.com/s3syncd/s3syncd/pkg/state"
)

// journal makes the results of one attempt durable: the index entry of its path
// and the records for the trail.
type journal struct {
	d         *destination
	listSkips bool
	job       *queue.Job
	key       string
	file      *file
	flight    *flight

	index index
	end   ending
}

// ending is what an attempt has recorded.
type ending struct {
	status    state.Status
	basis     state.Basis
	sent      int64
	recovered bool
}

// load reads what the index knows of the path.
func (j *journal) load() error {
	j.index = index{}
	if offPath(j.job) {
		return nil
	}
	var err error
	if j.index.entry, j.index.known, err = j.d.src.State.Get(j.job.Path); err != nil {
		return local(state.ClassTransient, "read the index", err)
	}
	return nil
}

// commit makes an outcome durable. It is not cut short when the pool stops: the
// server has acknowledged what it says.
func (j *journal) commit(ctx context.Context, o state.Outcome) error {
	if _, err := j.d.src.State.Commit(context.WithoutCancel(ctx), o); err != nil {
		return local(state.ClassTransient, "commit", err)
	}
	x := &j.index
	was := x.entry.FailClass
	switch {
	case o.Entry != nil:
		*x = index{entry: *o.Entry, known: true}
	case o.Failure != nil:
		x.entry.FailClass, x.entry.FailFence, x.known = o.Failure.Class, o.Failure.Fence, true
	case o.Remove:
		*x = index{}
	}
	j.d.tallies.park(was, x.entry.FailClass)
	return nil
}

// record begins a record of the path.
func (j *journal) record(s state.Status) *state.Record {
	src := j.d.src
	r := &state.Record{
		S3Key: j.key, S3URI: "s3://" + src.Bucket + "/" + j.key,
		Status: s, Trigger: j.job.Trigger, Source: src.Name, Instance: src.Instance,
	}
	if !offPath(j.job) {
		r.SetPath(strings.TrimSuffix(src.RealPath, "/") + "/" + j.job.Path)
	}
	if !j.job.Detected.IsZero() {
		r.DetectedAt = state.FormatTime(j.job.Detected)
	}
	return r
}

// describe fills in what r says of an object and its content.
func describe(r *state.Record, o state.Object, md5 [16]byte, sha256 [32]byte) {
	r.MD5 = hex.EncodeToString(md5[:])
	if sha256 != [32]byte{} {
		r.SHA256 = hex.EncodeToString(sha256[:])
	}
	r.ETag, r.VersionID, r.KMSKeyID, r.SSE = o.ETag, o.VersionID, o.KMSKeyID, o.SSE
	answered(r, o)
}

// answered fills in what r says of the answer that o is from.
func answered(r *state.Record, o state.Object) {
	r.RequestID = o.RequestID
	if !o.ServerTime.IsZero() {
		r.S3Time = state.FormatTime(o.ServerTime)
	}
}

// replaces fills in which write r is of, and what it replaced.
func replaces(r *state.Record, in *state.Intent) {
	r.Attempt, r.ReplacedVID, r.ReplacedETag = in.Attempt, in.Replaces.VersionID, in.Replaces.ETag
}

// sent notes that the content went over the network.
func (j *journal) sent() { j.end.sent = j.file.read.Size }

// stored records the acknowledged write in, whose object is o.
func (j *journal) stored(ctx context.Context, in *state.Intent, o state.Object, recovered bool) error {
	if in.Op == state.OpCopy {
		return j.copied(ctx, in, o, recovered)
	}
	var err error
	if j.index.entry, j.index.known, err = j.d.src.State.Get(in.Path); err != nil {
		return local(state.ClassTransient, "read the index", err)
	}
	suspect := j.index.entry.Doubted
	status := state.StatusUploaded
	if in.Rekey {
		status = state.StatusRekeyed
	}
	r := j.record(status)
	r.Trigger, r.Recovered = in.Trigger, recovered
	r.SetAttributes(in.Fence, in.Attributes)
	describe(r, o, in.MD5, in.SHA256)
	replaces(r, in)
	if in.Reread {
		r.Basis = state.BasisReread
	}
	if r.DetectedAt = ""; !in.DetectedAt.IsZero() {
		r.DetectedAt = state.FormatTime(in.DetectedAt)
	}
	e := state.Entry{
		Fence: in.Fence, Attributes: in.Attributes, Racy: in.Racy, Stored: true, MD5: in.MD5, SHA256: in.SHA256,
		ETag: o.ETag, VersionID: o.VersionID, SSE: o.SSE, KMSKeyID: o.KMSKeyID, Attempt: in.Attempt,
	}
	if err := j.commit(ctx, state.Outcome{Path: in.Path, Entry: &e, Record: r, Settles: in.Attempt, Key: in.Key}); err != nil {
		return err
	}
	j.end.status, j.end.recovered = status, recovered
	j.d.metrics.uploaded(status, in.Fence.Size, in.DetectedAt, time.Now())
	if suspect {
		j.d.metrics.repaired.Inc()
	}
	return nil
}

// adopt records that S3 held the content already.
func (j *journal) adopt(ctx context.Context, o state.Object, basis state.Basis) error {
	e, x := j.file.entry(o), &j.index
	if x.known && remote.Describes(&x.entry, o) {
		e.Attempt = x.entry.Attempt // Not what the object says: its metadata proves nothing.
	}
	if j.end.status == state.StatusUploaded && x.entry.Attempt == e.Attempt && e.Attempt != 0 {
		return j.commit(ctx, state.Outcome{Path: j.job.Path, Entry: &e}) // This attempt has recorded it as recovered.
	}
	return j.skip(ctx, e, o, basis, true)
}

// skipByIndex ends an attempt at a file that the index alone shows unchanged.
func (j *journal) skipByIndex(ctx context.Context) error {
	if j.end.status != "" {
		return nil // This attempt has recorded how the content came to S3.
	}
	if !j.listed() && j.index.entry.FailClass == "" {
		j.countSkip()
		return nil
	}
	e := j.index.entry
	e.FailClass, e.FailFence = "", state.Fence{}
	return j.skip(ctx, e, remote.Indexed(&e), state.BasisIndex, j.listed())
}

// listed reports whether a skip that the index alone decided gets a record.
func (j *journal) listed() bool { return j.listSkips || j.job.Trigger == archive.TriggerEvent }

// skipAttributes ends an attempt at a file whose content is the one that the
// index has. Only what a restore would need is worth a record.
func (j *journal) skipAttributes(ctx context.Context) error {
	was := &j.index.entry
	o := remote.Indexed(was)
	e := j.file.entry(o)
	e.Attempt = was.Attempt
	switch {
	case e.Attributes != was.Attributes, !e.Fence.Mtime().Equal(was.Fence.Mtime()):
		return j.skip(ctx, e, o, state.BasisAttributes, true)
	case j.job.Kind != archive.Reread || !j.index.unchanged(j.file):
		return j.skip(ctx, e, o, state.BasisIndex, j.listed() && j.end.status == "")
	case j.listSkips || was.FailClass != "":
		return j.skip(ctx, e, o, state.BasisReread, j.listSkips)
	}
	return nil // It was read again and is what the index says.
}

// skip records that nothing had to be sent, and brings the index up to date.
// Without listed the skip is only counted.
func (j *journal) skip(ctx context.Context, e state.Entry, o state.Object, basis state.Basis, listed bool) error {
	j.flight.enter(PhaseCommit)
	out := state.Outcome{Path: j.job.Path, Entry: &e, Unasked: basis == state.BasisIndex || basis == state.BasisAttributes || basis == state.BasisReread}
	if listed {
		r := j.record(state.StatusSkipped)
		r.Basis = basis
		describe(r, o, e.MD5, e.SHA256)
		size := j.file.fence.Size
		r.SizeBytes = &size
		if basis != state.BasisIndex {
			r.SetAttributes(j.file.fence, j.file.attrs)
		}
		out.Record = r
	}
	if err := j.commit(ctx, out); err != nil {
		return err
	}
	if !listed {
		j.countSkip()
		return nil
	}
	j.end.status, j.end.basis = state.StatusSkipped, basis
	j.d.metrics.file(state.StatusSkipped)
	return nil
}

// countSkip counts a skip that the index alone decided.
func (j *journal) countSkip() {
	if j.end.status != "" {
		return // This attempt has recorded something already.
	}
	j.d.tallies.skip()
	j.end.status, j.end.basis = state.StatusSkipped, state.BasisIndex
	j.d.metrics.file(state.StatusSkipped)
}

// deleted records that the file is gone. The deletion of its object was
// announced as in; it is nil when the object stays.
func (j *journal) deleted(ctx context.Context, in *state.Intent, o state.Object) error {
	r := j.record(state.StatusDeleted)
	out := state.Outcome{Path: j.job.Path, Key: j.key, Remove: true, Record: r}
	if in != nil {
		out.Settles = in.Attempt
		replaces(r, in)
		r.VersionID = o.VersionID
		answered(r, o)
	}
	now := time.Now()
	if !j.job.Detected.IsZero() {
		now = j.job.Detected
	}
	e := &j.index.entry
	short := e.Stored && now.Sub(time.Unix(0, e.Fence.CtimeNs)) < j.d.src.ShortLife
	if err := j.commit(ctx, out); err != nil {
		return err
	}
	if short {
		j.d.metrics.shortLived.Inc()
	}
	j.end.status = state.StatusDeleted
	j.d.metrics.file(state.StatusDeleted)
	return nil
}

// failed records err once for the path, its class and its content, or again
// where a run ends with it. It reports whether there is a new record. That an
// object could not be rekeyed says nothing of the file: the index stays as it is.
func (j *journal) failed(ctx context.Context, err error, again bool) (recorded bool, rerr error) {
	class := state.ClassOf(err)
	out := state.Outcome{Path: j.job.Path}
	rekeys := j.job.Kind == archive.Rekey
	if !rekeys {
		var gerr error
		if j.index.entry, j.index.known, gerr = j.d.src.State.Get(j.job.Path); gerr != nil {
			return false, local(state.ClassTransient, "read the index", gerr)
		}
		e, fence := &j.index.entry, j.failFence()
		if !again && e.FailClass == class && (class.Rereads() || e.FailFence.SameContent(fence)) {
			return false, nil
		}
		out.Failure = &state.Failure{Class: class, Fence: fence}
	}

	r := j.record(state.StatusFailed)
	r.Error, r.ErrorClass = err.Error(), class
	if se, ok := errors.AsType[*state.Error](err); ok {
		r.RequestID = se.RequestID
	}
	if size := j.file.fence.Size; rekeys && size > 0 || !rekeys && j.file.opened != nil {
		r.SizeBytes = &size
	}
	out.Record = r
	if err := j.commit(ctx, out); err != nil {
		return false, err
	}
	j.d.metrics.file(state.StatusFailed)
	j.d.metrics.failure(class)
	return true, nil
}

// failFence is the content that a failure concerns, as far as it is known.
func (j *journal) failFence() state.Fence {
	if j.file.opened != nil || j.job.Kind == archive.Refused {
		return j.file.fence
	}
	st, err := j.d.src.Root.Lstat(j.job.Path)
	if err != nil {
		return state.Fence{}
	}
	return localfile.FenceOf(st)
}
