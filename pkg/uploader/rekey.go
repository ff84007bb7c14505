package uploader

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"maps"
	"strings"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// metaTrail marks the documents of a trail, whoever's it is.
const metaTrail = "s3syncd-instance"

// RekeyPath returns the path of a Rekey job for an object that no path of the
// source maps to.
func RekeyPath(key string) string { return "/" + key }

// offPath reports whether the job's path only names a key.
func offPath(j *queue.Job) bool { return strings.HasPrefix(j.Path, "/") }

// keyOf returns the key of the job's path.
func (d *destination) keyOf(j *queue.Job) (string, error) {
	if offPath(j) {
		return j.Path[1:], nil
	}
	return d.Mapper.Key(j.Path)
}

// rekey brings the object under the configured key. One that is under it, or is
// gone, is left alone, and so is a document of a trail.
func (l *look) rekey(ctx context.Context) error {
	if err := l.readEntry(); err != nil {
		return err
	}
	s := l.seen
	for range rounds {
		if !s.asked {
			var err error
			if s, err = l.ask(ctx, true); err != nil {
				return err
			}
		}
		l.file, l.fence = nil, state.Fence{Size: s.object.Size}
		if !movable(l, s) {
			return nil
		}
		a, err := archived(ctx, l, s)
		if err != nil {
			return err
		}
		if s.key == archive.KeyOK {
			return l.noteKey(ctx, s.object)
		}
		finished, now, err := l.rekeyObject(ctx, s, a)
		if finished || err != nil {
			return err
		}
		s = now
	}
	return local(state.ClassTransient, "compare", errUnsteady)
}

// movable reports whether there is an object that a rekey is about.
func movable(l *look, s standing) bool {
	switch {
	case !s.present:
		return false
	case s.key == archive.KeyOK:
		return misplaced(l)
	default:
		return !IsTrailDocument(s.object)
	}
}

// IsTrailDocument reports whether o is a document of a trail, whoever's it is. One
// that only says so, and stands among the data, is none.
func IsTrailDocument(o state.Object) bool {
	return o.Metadata[metaTrail] != "" && strings.Contains("/"+o.Key, "/"+state.ReservedDir+"/")
}

// misplaced reports whether the index has the path's object under another key.
func misplaced(l *look) bool {
	indexed := state.Object{SSE: l.entry.SSE, KMSKeyID: l.entry.KMSKeyID}
	return l.known && l.entry.Stored && l.Accept(indexed) != archive.KeyOK
}

// archived returns what is known of the object that is to be rekeyed. What this
// host has not archived is not brought under its key: that would make it the
// host's word.
func archived(ctx context.Context, l *look, s standing) (archivedObject, error) {
	j, err := l.judgeOf(l.entry)
	if err != nil {
		return archivedObject{}, err
	}
	why, err := j.stranger(ctx, s.object)
	if err := cmp.Or(err, why); err != nil {
		return archivedObject{}, err
	}
	var record *state.Record
	if l.Archived != nil {
		if r, ok := l.Archived(l.job.Path); ok {
			record = &r
		}
	}
	return find(s.object, archives(&l.entry, record), func(c content) (verdict, error) { return j.read(ctx, s.object, c) })
}

// readEntry reads what the index knows of the path.
func (l *look) readEntry() error {
	l.entry, l.known = state.Entry{}, false
	if offPath(&l.job) {
		return nil
	}
	var err error
	if l.entry, l.known, err = l.State.Get(l.job.Path); err != nil {
		return local(state.ClassTransient, "read the index", err)
	}
	return nil
}

// rekeyObject writes the object anew under the configured key: from the file
// where that is archived, holds the same content, and nothing of the object
// would be lost, else by a copy on the server.
func (l *look) rekeyObject(ctx context.Context, s standing, a archivedObject) (finished bool, now standing, err error) {
	if !s.object.Dressed && l.known && l.entry.Stored {
		sent, finished, now, err := l.resend(ctx, s, a)
		if sent {
			return finished, now, err
		}
	}
	l.file, l.fence = nil, state.Fence{Size: s.object.Size} // Of no file.
	return l.copyOnto(ctx, s, a)
}

// resend sends the file in the object's place if its content is the same. What
// is wrong with the file is no reason to fail: sent is false then.
func (l *look) resend(ctx context.Context, s standing, a archivedObject) (sent, finished bool, now standing, err error) {
	opened, err := l.Root.Open(l.job.Path)
	if err != nil {
		return false, false, now, nil // The object can be copied.
	}
	defer func() { _ = opened.File.Close() }() // It was only read.
	l.file = opened
	l.fence, l.attrs = fenceOf(opened.Stat), attributesOf(opened.Stat)
	if l.fence.Size != s.object.Size || l.checkLinks() != nil {
		return false, false, now, nil
	}
	if !l.it.TakeSlot(laneOf(l.fence.Size, l.p.o.SinglePutMax)) {
		return true, false, now, errNoSlot
	}
	buf, err := l.hash(ctx)
	if buf != nil {
		defer l.p.buffers.put(l.Name, buf)
	}
	if err != nil {
		return ctx.Err() != nil, false, now, ctx.Err()
	}
	if !a.holds(l.read.content) {
		return false, false, now, nil
	}
	finished, now, err = l.write(ctx, decision{
		cond:     state.Condition{ETag: s.object.ETag},
		replaces: state.Object{ETag: s.object.ETag, VersionID: s.object.VersionID},
	})
	return true, finished, now, err
}

// copyOnto announces and makes a copy of the object onto itself.
func (l *look) copyOnto(ctx context.Context, s standing, a archivedObject) (finished bool, now standing, err error) {
	if err := l.dropResume(ctx); err != nil {
		return false, now, err
	}
	o := s.object
	in := &state.Intent{
		Op: state.OpCopy, Rekey: true, Path: l.job.Path, Key: l.key, Fence: state.Fence{Size: o.Size}.WithMtime(a.mtime),
		Attributes: a.attributes, MD5: a.md5, SHA256: a.sha256,
		Trigger: l.job.Trigger, Replaces: state.Object{ETag: o.ETag, VersionID: o.VersionID},
	}
	if err := l.begin(ctx, in); err != nil {
		return false, now, err
	}
	meta := l.copyMetadata(in, o.Metadata)
	l.f.enter(PhaseSend)
	l.f.size.Store(o.Size)
	o, err = l.copyObject(ctx, state.Copy{
		Key: l.key, Size: o.Size, ETag: o.ETag, Metadata: meta, SHA256: in.SHA256,
		Opened: func(id string) error {
			in.UploadID = id
			return l.State.Attempt(context.WithoutCancel(ctx), in.Attempt, in.Key, func(i *state.Intent) { i.UploadID = id })
		},
	})
	switch {
	case err == nil:
		return true, now, l.stored(ctx, in, o)
	case errors.Is(err, state.ErrPrecondition):
		return l.surprised(ctx, in, true)
	case errors.Is(err, state.ErrNoUpload), errors.Is(err, fs.ErrNotExist) && !isLocal(err):
		return l.surprised(ctx, in, false)
	default:
		return false, now, l.broken(ctx, in, err)
	}
}

// copyMetadata is the object's metadata with the id of the copy in announces,
// and with what is known of its content.
func (l *look) copyMetadata(in *state.Intent, old map[string]string) map[string]string {
	meta := maps.Clone(old)
	if meta == nil {
		meta = map[string]string{}
	}
	meta[state.MetaID] = state.ObjectID{Instance: l.Instance, Chain: in.Chain, Attempt: in.Attempt}.String()
	delete(meta, state.MetaHost)
	if l.Host != "" {
		meta[state.MetaHost] = l.Host
	}
	if in.MD5 != [16]byte{} {
		meta[state.MetaMD5] = hex.EncodeToString(in.MD5[:])
	}
	if in.SHA256 != [32]byte{} {
		meta[state.MetaSHA256] = hex.EncodeToString(in.SHA256[:])
	}
	return meta
}

// copyObject is Source.Copy behind the gate.
func (d *destination) copyObject(ctx context.Context, c state.Copy) (state.Object, error) {
	leave, err := d.enter(ctx, 0)
	if err != nil {
		return state.Object{}, err
	}
	defer leave()
	if d.Copy == nil {
		return state.Object{}, local(state.ClassConfiguration, "copy", errors.ErrUnsupported)
	}
	o, err := d.Copy(ctx, c)
	d.observe(err)
	if err == nil {
		d.wrote()
	}
	return o, err
}

// commitCopy records the acknowledged copy in, whose object is o. The index
// entry stays that of the file, whatever that holds by now; where it describes
// another object than the one that was copied the next look asks.
func (l *look) commitCopy(ctx context.Context, in *state.Intent, o state.Object, recovered bool) error {
	if err := l.readEntry(); err != nil {
		return err
	}
	if l.file == nil {
		l.fence = state.Fence{Size: o.Size}
	}
	r := l.rekeyRecord(o, archivedObject{
		content: content{size: o.Size, md5: in.MD5, sha256: in.SHA256}, mtime: in.Fence.Mtime(), attributes: in.Attributes,
	})
	r.Trigger, r.Attempt, r.Recovered = in.Trigger, in.Attempt, recovered
	r.ReplacedVID, r.ReplacedETag = in.Replaces.VersionID, in.Replaces.ETag
	out := state.Outcome{Path: in.Path, Record: r, Settles: in.Attempt, Key: in.Key}
	if l.known && l.entry.Stored {
		e := l.entry
		copied := content{size: o.Size, md5: in.MD5, sha256: in.SHA256}
		if Describes(&e, in.Replaces) || holds(&e, copied) {
			e.ETag, e.VersionID, e.SSE, e.KMSKeyID, e.Attempt = o.ETag, o.VersionID, o.SSE, o.KMSKeyID, in.Attempt
		} else {
			e.Doubted = true
		}
		out.Entry = &e
	}
	if err := l.commit(ctx, out); err != nil {
		return err
	}
	l.end.status, l.end.recovered = state.StatusRekeyed, recovered
	l.metrics.file(state.StatusRekeyed)
	return nil
}

// noteKey records that an object which the index has under another key is under
// the right one: somebody else has done it.
func (l *look) noteKey(ctx context.Context, o state.Object) error {
	e := l.entry
	r := l.rekeyRecord(o, archiveOfEntry(&e))
	e.ETag, e.VersionID, e.SSE, e.KMSKeyID = o.ETag, o.VersionID, o.SSE, o.KMSKeyID
	if err := l.commit(ctx, state.Outcome{Path: l.job.Path, Entry: &e, Record: r}); err != nil {
		return err
	}
	l.end.status = state.StatusRekeyed
	l.metrics.file(state.StatusRekeyed)
	return nil
}

// rekeyRecord is the record of o, with what was known of its content before.
func (l *look) rekeyRecord(o state.Object, a archivedObject) *state.Record {
	r := l.record(state.StatusRekeyed)
	r.DetectedAt = ""
	describe(r, o, a.md5, a.sha256)
	if a.md5 == [16]byte{} {
		r.MD5 = ""
	}
	size := o.Size
	r.SizeBytes = &size
	if !a.mtime.IsZero() || a.attributes != (state.Attributes{}) {
		r.SetAttributes(state.Fence{Size: size}.WithMtime(a.mtime), a.attributes)
	}
	return r
}
