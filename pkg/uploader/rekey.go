package uploader

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// metaTrail marks the documents of a trail, whoever's it is.
const metaTrail = "s3syncd-instance"

// RekeyPath returns the path of a Rekey job for an object that no path of the
// source maps to.
func RekeyPath(key string) string { return "/" + key }

// offPath reports whether the job's path only names a key.
func (j *Job) offPath() bool { return strings.HasPrefix(j.Path, "/") }

// keyOf returns the key of the job's path.
func (d *destination) keyOf(j *Job) (string, error) {
	if j.offPath() {
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
		switch {
		case !s.present, s.key != KeyOK && s.object.Metadata[metaTrail] != "":
			return nil
		case s.key == KeyOK:
			return l.noteKey(ctx, s.object)
		case foreign(s.object, l.Instance):
			return state.Classified(state.ClassConflict, "compare", fmt.Errorf("%w: %s", errConflict, s.object.Metadata[state.MetaID]))
		}
		finished, now, err := l.rekeyObject(ctx, s)
		if finished || err != nil {
			return err
		}
		s = now
	}
	return local(state.ClassTransient, "compare", errUnsteady)
}

// readEntry reads what the index knows of the path.
func (l *look) readEntry() error {
	l.entry, l.known = state.Entry{}, false
	if l.job.offPath() {
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
func (l *look) rekeyObject(ctx context.Context, s standing) (finished bool, now standing, err error) {
	if !s.object.Dressed && l.known && l.entry.Stored {
		sent, finished, now, err := l.resend(ctx, s)
		if sent {
			return finished, now, err
		}
	}
	l.file, l.fence = nil, state.Fence{Size: s.object.Size} // Of no file.
	return l.copyOnto(ctx, s)
}

// resend sends the file in the object's place if its content is the same. What
// is wrong with the file is no reason to fail: sent is false then.
func (l *look) resend(ctx context.Context, s standing) (sent, finished bool, now standing, err error) {
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
	if !l.q.takeSlot(l.it, laneOf(l.fence.Size, l.p.o.SinglePutMax)) {
		return true, false, now, errNoSlot
	}
	buf, err := l.hash(ctx)
	if buf != nil {
		defer l.p.buffers.put(l.Name, buf)
	}
	if err != nil {
		return ctx.Err() != nil, false, now, ctx.Err()
	}
	if _, equal := sameContent(l.read.content, s.object); !equal {
		return false, false, now, nil
	}
	finished, now, err = l.write(ctx, decision{
		cond:     state.Condition{ETag: s.object.ETag},
		replaces: state.Object{ETag: s.object.ETag, VersionID: s.object.VersionID},
	})
	return true, finished, now, err
}

// copyOnto announces and makes a copy of the object onto itself.
func (l *look) copyOnto(ctx context.Context, s standing) (finished bool, now standing, err error) {
	if err := l.dropResume(ctx); err != nil {
		return false, now, err
	}
	o := s.object
	in := &state.Intent{
		Op: state.OpCopy, Rekey: true, Path: l.job.Path, Key: l.key, Fence: state.Fence{Size: o.Size},
		Trigger: l.job.Trigger, Replaces: state.Object{ETag: o.ETag, VersionID: o.VersionID},
	}
	hashOf(in.MD5[:], o.Metadata[state.MetaMD5])
	hashOf(in.SHA256[:], o.Metadata[state.MetaSHA256])
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

// hashOf decodes a hash in hex, and leaves to as it is where it is none.
func hashOf(to []byte, s string) bool {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(to) {
		return false
	}
	copy(to, b)
	return true
}

// copyMetadata is the object's metadata with the id of the copy in announces.
func (l *look) copyMetadata(in *state.Intent, old map[string]string) map[string]string {
	meta := maps.Clone(old)
	if meta == nil {
		meta = map[string]string{}
	}
	meta[state.MetaID] = state.ObjectID{Instance: l.Instance, Chain: in.Chain, Attempt: in.Attempt}.String()
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
	r := l.rekeyRecord(o, l.known && l.entry.Stored && l.entry.ETag == in.Replaces.ETag)
	r.Trigger, r.Attempt, r.Recovered = in.Trigger, in.Attempt, recovered
	r.ReplacedVID, r.ReplacedETag = in.Replaces.VersionID, in.Replaces.ETag
	out := state.Outcome{Path: in.Path, Record: r, Settles: in.Attempt, Key: in.Key}
	if l.known && l.entry.Stored {
		e := l.entry
		if e.ETag == in.Replaces.ETag {
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
// the right one: an interrupted run or somebody else has done it.
func (l *look) noteKey(ctx context.Context, o state.Object) error {
	indexed := state.Object{SSE: l.entry.SSE, KMSKeyID: l.entry.KMSKeyID}
	if !l.known || !l.entry.Stored || l.Accept(indexed) == KeyOK {
		return nil
	}
	e := l.entry
	same := describes(&e, o)
	e.SSE, e.KMSKeyID, e.Doubted = o.SSE, o.KMSKeyID, e.Doubted || !same
	r := l.rekeyRecord(o, same)
	if id, ok := state.ParseObjectID(o.Metadata[state.MetaID]); ok && id.Instance == l.Instance {
		if c, err := l.State.Chain(); err == nil && c.ID == id.Chain {
			e.Attempt, r.Attempt, r.Recovered = id.Attempt, id.Attempt, true
		}
	}
	if same {
		e.ETag, e.VersionID = o.ETag, o.VersionID
	}
	if err := l.commit(ctx, state.Outcome{Path: l.job.Path, Entry: &e, Record: r}); err != nil {
		return err
	}
	l.end.status, l.end.recovered = state.StatusRekeyed, r.Recovered
	l.metrics.file(state.StatusRekeyed)
	return nil
}

// describes reports whether e is the entry of o's content.
func describes(e *state.Entry, o state.Object) bool {
	return e.ETag == o.ETag || o.Size == e.Fence.Size && strings.EqualFold(o.Metadata[state.MetaMD5], hex.EncodeToString(e.MD5[:]))
}

// rekeyRecord is the record of o, as its metadata describes its content; where
// that is silent and indexed, the index does.
func (l *look) rekeyRecord(o state.Object, indexed bool) *state.Record {
	r := l.record(state.StatusRekeyed)
	r.DetectedAt = ""
	describe(r, o, [16]byte{}, [32]byte{})
	r.MD5 = ""
	size := o.Size
	r.SizeBytes = &size
	e := &l.entry
	var md5 [16]byte
	var sha [32]byte
	if hashOf(md5[:], o.Metadata[state.MetaMD5]) || indexed && hashOf(md5[:], hex.EncodeToString(e.MD5[:])) {
		r.MD5 = hex.EncodeToString(md5[:])
	}
	if hashOf(sha[:], o.Metadata[state.MetaSHA256]) || indexed && e.SHA256 != [32]byte{} && hashOf(sha[:], hex.EncodeToString(e.SHA256[:])) {
		r.SHA256 = hex.EncodeToString(sha[:])
	}
	switch f, a, ok := archivedAttributes(o.Metadata); {
	case ok:
		f.Size = o.Size
		r.SetAttributes(f, a)
	case indexed:
		r.SetAttributes(e.Fence, e.Attributes)
	}
	return r
}

// archivedAttributes reads the attributes of a file out of its object's
// metadata; ok is false unless all are there.
func archivedAttributes(meta map[string]string) (f state.Fence, a state.Attributes, ok bool) {
	mtime, okTime := parseMtime(meta[state.MetaMtime])
	mode, merr := strconv.ParseUint(meta[state.MetaPermissions], 8, 32)
	uid, uerr := strconv.ParseUint(meta[state.MetaOwner], 10, 32)
	gid, gerr := strconv.ParseUint(meta[state.MetaGroup], 10, 32)
	if !okTime || errors.Join(merr, uerr, gerr) != nil {
		return f, a, false
	}
	return state.Fence{MtimeNs: mtime}, state.Attributes{Mode: uint32(mode), UID: uint32(uid), GID: uint32(gid)}, true
}

// parseMtime reads what formatMtime wrote, or whole seconds.
func parseMtime(s string) (ns int64, ok bool) {
	d, err := time.ParseDuration(s + "s")
	if err != nil || strings.Trim(s, "-.0123456789") != "" {
		return 0, false
	}
	return int64(d), true
}
