package uploader

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// metadata is the user metadata of the object that in announces.
func (l *look) metadata(in *state.Intent) map[string]string {
	id := state.ObjectID{Instance: l.Instance, Chain: in.Chain, Attempt: in.Attempt}
	meta := map[string]string{
		state.MetaMD5:         hex.EncodeToString(in.MD5[:]),
		state.MetaSHA256:      hex.EncodeToString(in.SHA256[:]),
		state.MetaMtime:       formatMtime(in.Fence.Mtime()),
		state.MetaPermissions: fmt.Sprintf("%04o", in.Attributes.Mode&0o7777),
		state.MetaOwner:       strconv.FormatUint(uint64(in.Attributes.UID), 10),
		state.MetaGroup:       strconv.FormatUint(uint64(in.Attributes.GID), 10),
		state.MetaID:          id.String(),
	}
	if l.Host != "" {
		meta[state.MetaHost] = l.Host
	}
	return meta
}

// formatMtime renders a time as seconds since 1970 with a fraction.
func formatMtime(t time.Time) string {
	sign, sec, ns := "", t.Unix(), t.Nanosecond()
	if sec < 0 {
		if ns > 0 {
			sec, ns = sec+1, 1e9-ns
		}
		sign, sec = "-", -sec
	}
	return fmt.Sprintf("%s%d.%09d", sign, sec, ns)
}

// record begins a record of the path.
func (l *look) record(s state.Status) *state.Record {
	r := &state.Record{
		S3Key: l.key, S3URI: "s3://" + l.Bucket + "/" + l.key,
		Status: s, Trigger: l.job.Trigger, Source: l.Name, Instance: l.Instance,
	}
	if !offPath(&l.job) {
		r.SetPath(strings.TrimSuffix(l.RealPath, "/") + "/" + l.job.Path)
	}
	if !l.job.Detected.IsZero() {
		r.DetectedAt = state.FormatTime(l.job.Detected)
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
	r.RequestID = o.RequestID
	if !o.ServerTime.IsZero() {
		r.S3Time = state.FormatTime(o.ServerTime)
	}
}

// commit makes an outcome durable. It is not cut short when the pool stops: the
// server has acknowledged what it says.
func (l *look) commit(ctx context.Context, o state.Outcome) error {
	if _, err := l.State.Commit(context.WithoutCancel(ctx), o); err != nil {
		return local(state.ClassTransient, "commit", err)
	}
	switch was := l.entry.FailClass; {
	case o.Entry != nil:
		l.countParked(was, o.Entry.FailClass)
		l.entry, l.known = *o.Entry, true
	case o.Failure != nil:
		l.countParked(was, o.Failure.Class)
		l.entry.FailClass, l.entry.FailFence, l.known = o.Failure.Class, o.Failure.Fence, true
	case o.Remove:
		l.countParked(was, "")
		l.entry, l.known = state.Entry{}, false
	}
	return nil
}

// commitUpload records the acknowledged write in, whose object is o.
func (l *look) commitUpload(ctx context.Context, in *state.Intent, o state.Object, recovered bool) error {
	if in.Op == state.OpCopy {
		return l.commitCopy(ctx, in, o, recovered)
	}
	var err error
	if l.entry, l.known, err = l.State.Get(in.Path); err != nil {
		return local(state.ClassTransient, "read the index", err)
	}
	doubted := l.entry.Doubted
	status := state.StatusUploaded
	if in.Rekey {
		status = state.StatusRekeyed
	}
	r := l.record(status)
	r.Trigger = in.Trigger
	r.SetAttributes(in.Fence, in.Attributes)
	describe(r, o, in.MD5, in.SHA256)
	r.Attempt, r.Recovered = in.Attempt, recovered
	if in.Reread {
		r.Basis = state.BasisReread
	}
	r.ReplacedVID, r.ReplacedETag = in.Replaces.VersionID, in.Replaces.ETag
	if r.DetectedAt = ""; !in.DetectedAt.IsZero() {
		r.DetectedAt = state.FormatTime(in.DetectedAt)
	}
	e := state.Entry{
		Fence: in.Fence, Attributes: in.Attributes, Racy: in.Racy, Stored: true, MD5: in.MD5, SHA256: in.SHA256,
		ETag: o.ETag, VersionID: o.VersionID, SSE: o.SSE, KMSKeyID: o.KMSKeyID, Attempt: in.Attempt,
	}
	err = l.commit(ctx, state.Outcome{Path: in.Path, Entry: &e, Record: r, Settles: in.Attempt, Key: in.Key})
	if err != nil {
		return err
	}
	l.end.status, l.end.recovered = status, recovered
	l.metrics.uploaded(status, in.Fence.Size, in.DetectedAt, time.Now())
	if doubted {
		l.metrics.repaired.Inc()
	}
	return nil
}

// adopt records that S3 held the content already.
func (l *look) adopt(ctx context.Context, o state.Object, basis state.Basis) error {
	e := l.entryOf(o)
	if l.known && Describes(&l.entry, o) {
		e.Attempt = l.entry.Attempt // Not what the object says: it is anybody's word.
	}
	if l.end.status == state.StatusUploaded && l.entry.Attempt == e.Attempt && e.Attempt != 0 {
		return l.commit(ctx, state.Outcome{Path: l.job.Path, Entry: &e}) // This look has recorded it as recovered.
	}
	return l.skip(ctx, e, o, basis, true)
}

// entryOf is the index entry of what was read, held in S3 as o.
func (l *look) entryOf(o state.Object) state.Entry {
	return state.Entry{
		Fence: l.fence, Attributes: l.attrs, Racy: l.racy, Stored: true, MD5: l.read.md5, SHA256: l.read.sha256,
		ETag: o.ETag, VersionID: o.VersionID, SSE: o.SSE, KMSKeyID: o.KMSKeyID,
	}
}

// indexed is the object that the index describes.
func (l *look) indexed() state.Object {
	return state.Object{ETag: l.entry.ETag, VersionID: l.entry.VersionID, SSE: l.entry.SSE, KMSKeyID: l.entry.KMSKeyID}
}

// skipByIndex ends a look at a file that the index alone shows unchanged.
func (l *look) skipByIndex(ctx context.Context) error {
	if l.end.status != "" {
		return nil // This look has recorded how the content came to S3.
	}
	if !l.listed() && l.entry.FailClass == "" {
		l.countSkip()
		return nil
	}
	e := l.entry
	e.FailClass, e.FailFence = "", state.Fence{}
	return l.skip(ctx, e, l.indexed(), state.BasisIndex, l.listed())
}

// listed reports whether a skip that the index alone decided gets a record.
func (l *look) listed() bool { return l.p.o.ListSkips || l.job.Trigger == archive.TriggerEvent }

// skipAttributes ends a look at a file whose content is the one that the index
// has. Only what a restore would need is worth a record.
func (l *look) skipAttributes(ctx context.Context) error {
	e := l.entryOf(l.indexed())
	e.Attempt = l.entry.Attempt
	if e.Attributes != l.entry.Attributes || !e.Fence.Mtime().Equal(l.entry.Fence.Mtime()) {
		return l.skip(ctx, e, l.indexed(), state.BasisAttributes, true)
	}
	if l.job.Kind == archive.Reread && l.unchanged() {
		return l.skipReread(ctx, e)
	}
	return l.skip(ctx, e, l.indexed(), state.BasisIndex, l.listed() && l.end.status == "")
}

// skipReread ends a look at a file whose content was read again and is what the
// index says. Nothing has to be kept of it unless skips are listed.
func (l *look) skipReread(ctx context.Context, e state.Entry) error {
	if !l.p.o.ListSkips && l.entry.FailClass == "" {
		return nil
	}
	return l.skip(ctx, e, l.indexed(), state.BasisReread, l.p.o.ListSkips)
}

// skip records that nothing had to be sent, and brings the index up to date.
// Without listed the skip is only counted.
func (l *look) skip(ctx context.Context, e state.Entry, o state.Object, basis state.Basis, listed bool) error {
	l.f.enter(PhaseCommit)
	out := state.Outcome{Path: l.job.Path, Entry: &e, Unasked: basis == state.BasisIndex || basis == state.BasisAttributes || basis == state.BasisReread}
	if listed {
		r := l.record(state.StatusSkipped)
		r.Basis = basis
		describe(r, o, e.MD5, e.SHA256)
		size := l.fence.Size
		r.SizeBytes = &size
		if basis != state.BasisIndex {
			r.SetAttributes(l.fence, l.attrs)
		}
		out.Record = r
	}
	if err := l.commit(ctx, out); err != nil {
		return err
	}
	if !listed {
		l.countSkip()
		return nil
	}
	l.end.status, l.end.basis = state.StatusSkipped, basis
	l.metrics.file(state.StatusSkipped)
	return nil
}

// countSkip counts a skip that the index alone decided.
func (l *look) countSkip() {
	if l.end.status != "" {
		return // This look has recorded something already.
	}
	l.mu.Lock()
	l.skips++
	l.mu.Unlock()
	l.end.status, l.end.basis = state.StatusSkipped, state.BasisIndex
	l.metrics.file(state.StatusSkipped)
}

// recordFailure records err once for the path, its class and its content, or
// again where a run ends with it. It reports whether there is a new record.
func (l *look) recordFailure(ctx context.Context, err error, again bool) (recorded bool, rerr error) {
	if l.job.Kind == archive.Rekey {
		return l.recordUnkeyed(ctx, err)
	}
	class := state.ClassOf(err)
	var gerr error
	if l.entry, l.known, gerr = l.State.Get(l.job.Path); gerr != nil {
		return false, local(state.ClassTransient, "read the index", gerr)
	}
	e, fence := &l.entry, l.failFence()
	if !again && e.FailClass == class && (class.Rereads() || e.FailFence.SameContent(fence)) {
		return false, nil
	}
	r := l.failure(err)
	if l.file != nil {
		size := l.fence.Size
		r.SizeBytes = &size
	}
	out := state.Outcome{Path: l.job.Path, Failure: &state.Failure{Class: class, Fence: fence}, Record: r}
	if err := l.commit(ctx, out); err != nil {
		return false, err
	}
	l.metrics.file(state.StatusFailed)
	l.metrics.failure(class)
	return true, nil
}

// failure begins the record of a failure.
func (l *look) failure(err error) *state.Record {
	r := l.record(state.StatusFailed)
	r.Error, r.ErrorClass = err.Error(), state.ClassOf(err)
	if se, ok := errors.AsType[*state.Error](err); ok {
		r.RequestID = se.RequestID
	}
	return r
}

// recordUnkeyed records that an object could not be rekeyed. That says nothing
// of the file: the index stays as it is.
func (l *look) recordUnkeyed(ctx context.Context, err error) (recorded bool, rerr error) {
	r := l.failure(err)
	if size := l.fence.Size; size > 0 {
		r.SizeBytes = &size
	}
	if err := l.commit(ctx, state.Outcome{Path: l.job.Path, Record: r}); err != nil {
		return false, err
	}
	l.metrics.file(state.StatusFailed)
	l.metrics.failure(state.ClassOf(err))
	return true, nil
}

// failFence is the content that a failure concerns, as far as it is known.
func (l *look) failFence() state.Fence {
	if l.file != nil || l.job.Kind == archive.Refused {
		return l.fence
	}
	st, err := l.Root.Lstat(l.job.Path)
	if err != nil {
		return state.Fence{}
	}
	return fenceOf(st)
}
