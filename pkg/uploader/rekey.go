package uploader

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"maps"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/localfile"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/remote"
)

// keyOf returns the key of the job's path.
func (s *Source) keyOf(j *queue.Job) (string, error) {
	if j.OffPath() {
		return j.Path[1:], nil
	}
	return s.Mapper.Key(j.Path)
}

// rekey is an attempt to bring an object under the configured KMS key.
type rekey struct{ a *attempt }

// run leaves an object alone that is under the KMS key or gone, and a document of
// a trail. What this host has not archived is not brought under its key: that
// would make it the host's word.
func (k rekey) run(ctx context.Context) error {
	a := k.a
	if err := a.journal.Load(); err != nil {
		return err
	}
	return a.remote.converge(ctx, a.remote.seen, convergence{
		present: true,
		ask:     func(remote.State) bool { return true },
		act: func(ctx context.Context, s remote.State) (bool, remote.State, error) {
			a.file.None(s.Object.Size)
			right := s.Key == archive.KeyOK
			if !s.Present || right && !k.misplaced() || !right && remote.IsTrailDocument(s.Object) {
				return true, s, nil
			}
			known, err := k.known(ctx, s.Object)
			switch {
			case err != nil:
				return false, s, err
			case right:
				return true, s, a.journal.NoteKey(ctx, s.Object)
			}
			if x := &a.journal.Index; !s.Object.Dressed && x.Stored() {
				sent, done, now, err := k.resend(ctx, s, &known)
				if sent {
					return done, now, err
				}
			}
			a.file.None(s.Object.Size)
			return k.copyOnto(ctx, s.Object, &known)
		},
	})
}

// misplaced reports whether the index has the path's object under another KMS
// key.
func (k rekey) misplaced() bool {
	x := &k.a.journal.Index
	return x.Stored() && k.a.d.src.Accept(remote.Indexed(&x.Entry)) != archive.KeyOK
}

// known returns what the index or the trail knows of the object.
func (k rekey) known(ctx context.Context, o archive.Object) (remote.Archived, error) {
	a := k.a
	j, err := a.d.judge(a.journal.Index.Entry)
	if err != nil {
		return remote.Archived{}, err
	}
	why, err := j.Stranger(ctx, o)
	if err := cmp.Or(err, why); err != nil {
		return remote.Archived{}, err
	}
	var record *archive.Record
	if a.d.src.Archived != nil {
		if r, ok := a.d.src.Archived(a.job.Path); ok {
			record = &r
		}
	}
	return remote.Find(o, &a.journal.Index.Entry, record, func(c localfile.Content) (remote.Bytes, error) { return j.Read(ctx, o, c) })
}

// resend sends the file in the object's place if its content is the same and
// nothing of the object would be lost. What is wrong with the file is no reason
// to fail: sent is false then, and the object can be copied.
func (k rekey) resend(ctx context.Context, s remote.State, known *remote.Archived) (sent, done bool, now remote.State, err error) {
	a := k.a
	opened, err := a.d.src.Root.Open(a.job.Path)
	if err != nil {
		return false, false, now, nil
	}
	defer func() { _ = opened.File.Close() }() // It was only read.
	a.file.Take(opened)
	if a.file.Fence.Size != s.Object.Size || a.journal.Index.CheckLinks(a.d.src.Hardlinks, &a.file) != nil {
		return false, false, now, nil
	}
	if !a.takeSlot() {
		return true, false, now, errNoSlot
	}
	buf, err := a.hash(ctx)
	defer a.release(buf)
	if err != nil {
		return ctx.Err() != nil, false, now, ctx.Err()
	}
	if !known.Holds(a.file.Reading.Content) {
		return false, false, now, nil
	}
	done, now, err = a.write(ctx, remote.Replace(s.Object))
	return true, done, now, err
}

// copyOnto writes an intent and has the server copy the object onto itself.
func (k rekey) copyOnto(ctx context.Context, o archive.Object, known *remote.Archived) (done bool, now remote.State, err error) {
	a := k.a
	if err := a.intents.dropResume(ctx); err != nil {
		return false, now, err
	}
	in := &archive.Intent{
		Op: archive.OpCopy, Rekey: true, Path: a.job.Path, Key: a.key, Fence: archive.Fence{Size: o.Size}.WithMtime(known.Mtime),
		Attributes: known.Attributes, MD5: known.MD5, SHA256: known.SHA256,
		Trigger: a.job.Trigger, Replaces: remote.Replace(o).Replaces,
	}
	if err := a.intents.claim(ctx); err != nil {
		return false, now, err
	}
	if err := a.intents.begin(ctx, in); err != nil {
		return false, now, err
	}
	meta := maps.Clone(o.Metadata)
	if meta == nil {
		meta = map[string]string{}
	}
	identify(meta, a.d.src, in)
	if in.MD5 != [16]byte{} {
		meta[archive.MetaMD5] = hex.EncodeToString(in.MD5[:])
	}
	if in.SHA256 != [32]byte{} {
		meta[archive.MetaSHA256] = hex.EncodeToString(in.SHA256[:])
	}

	a.flight.enter(PhaseSend)
	a.flight.size.Store(o.Size)
	copied, err := a.d.gate.Copy(ctx, archive.Copy{
		Key: a.key, Size: o.Size, ETag: o.ETag, Metadata: meta, SHA256: in.SHA256,
		Opened: func(id string) error {
			in.UploadID = id
			return a.d.src.State.Attempt(context.WithoutCancel(ctx), in.Attempt, in.Key, func(i *archive.Intent) { i.UploadID = id })
		},
	})
	switch {
	case err == nil:
		return true, now, a.intents.stored(ctx, in, copied)
	case errors.Is(err, archive.ErrPrecondition):
		return a.intents.surprised(ctx, in, true)
	case errors.Is(err, archive.ErrNoUpload), errors.Is(err, fs.ErrNotExist) && !localfile.IsLocal(err):
		return a.intents.surprised(ctx, in, false)
	default:
		return false, now, a.broken(ctx, in, err)
	}
}
