package uploader

import (
	"context"
	"errors"
	"io/fs"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// write announces and sends the content as d says. The look has ended when
// finished is true; otherwise the condition did not hold, and now is what stands
// there instead.
func (l *look) write(ctx context.Context, d decision) (finished bool, now standing, err error) {
	in, err := l.announce(ctx, d)
	if err != nil {
		return false, now, err
	}
	l.f.enter(PhaseSend)
	l.f.sent.Store(0)
	var o state.Object
	if in.Op == state.OpMultipart {
		o, err = l.sendParts(ctx, in, d.cond)
	} else {
		o, err = l.sendWhole(ctx, in, d.cond)
	}
	switch {
	case err == nil:
		return true, now, l.stored(ctx, in, o)
	case errors.Is(err, state.ErrPrecondition):
		return l.surprised(ctx, in, d.cond.Absent)
	case errors.Is(err, state.ErrNoUpload), errors.Is(err, fs.ErrNotExist) && d.cond.ETag != "" && !isLocal(err):
		return l.surprised(ctx, in, false)
	default:
		return false, now, l.broken(ctx, in, err)
	}
}

// announce makes the intent durable, or takes up the one of an open multipart
// upload of the same content.
func (l *look) announce(ctx context.Context, d decision) (*state.Intent, error) {
	if err := l.claim(ctx); err != nil {
		return nil, err
	}
	if l.resume != nil {
		if l.continues(l.resume) {
			in := l.resume
			l.resume = nil
			return in, nil
		}
		if err := l.dropResume(ctx); err != nil {
			return nil, err
		}
	}
	if in, err := l.again(); in != nil || err != nil {
		return in, err
	}
	in := &state.Intent{
		Op: state.OpPut, Path: l.job.Path, Key: l.key, Fence: l.fence, Attributes: l.attrs, Racy: l.racy,
		MD5: l.read.md5, SHA256: l.read.sha256, Trigger: l.job.Trigger, DetectedAt: l.job.Detected,
		Replaces: d.replaces, Rekey: l.job.Kind == archive.Rekey, Reread: l.changedUnseen(),
	}
	if l.read.partSize > 0 {
		in.Op, in.PartSize = state.OpMultipart, l.read.partSize
	}
	return in, l.begin(ctx, in)
}

// again returns the unresolved announcement of this very content, if there is
// one: whichever of the two requests the server takes, the object shows it, and
// an outage of days leaves one announcement a key.
func (l *look) again() (*state.Intent, error) {
	if l.read.partSize > 0 || !l.isOpen(l.key) {
		return nil, nil //nolint:nilnil // No announcement and no error is an answer.
	}
	intents, err := l.State.Intent(l.key)
	if err != nil {
		return nil, local(state.ClassTransient, "read intents", err)
	}
	for i := range intents {
		in := &intents[i]
		if in.Op == state.OpPut && in.Unresolved && in.Fence == l.fence && in.MD5 == l.read.md5 && in.SHA256 == l.read.sha256 {
			return in, l.gate()
		}
	}
	return nil, nil //nolint:nilnil // As above.
}

// claim asks whether this run may write.
func (l *look) claim(ctx context.Context) error {
	if l.Claim == nil {
		return nil
	}
	if err := l.Claim(ctx); err != nil {
		return local(state.ClassTransient, "claim the trail", err) // It is no fault of the destination's objects.
	}
	return nil
}

// begin makes in durable and draws its number.
func (l *look) begin(ctx context.Context, in *state.Intent) error {
	if err := l.claim(ctx); err != nil {
		return err
	}
	if err := l.gate(); err != nil {
		return err
	}
	chain, err := l.State.Chain()
	if err != nil {
		return local(state.ClassTransient, "read the chain", err)
	}
	in.Chain = chain.ID
	n, err := l.State.Begin(ctx, *in)
	if errors.Is(err, state.ErrKeyBusy) {
		l.setOpen(in.Key, 0) // The next look settles it.
	}
	if err != nil {
		return local(state.ClassTransient, "announce the write", err)
	}
	in.Attempt = n
	if !l.isOpen(in.Key) {
		l.setOpen(in.Key, 0)
	}
	return nil
}

// sendWhole sends the content in one request.
func (l *look) sendWhole(ctx context.Context, in *state.Intent, cond state.Condition) (state.Object, error) {
	b := newBody(ctx, l.read.section(l.file.File, 0, l.read.size), l.read.size, l.p.limiter, &l.f.sent)
	o, err := l.put(ctx, state.Put{
		Key: l.key, Body: b, Size: l.read.size, MD5: l.read.md5, SHA256: l.read.sha256, Metadata: l.metadata(in), If: cond,
	})
	if ferr := b.err(); err != nil && ferr != nil {
		err = ferr
	}
	return o, err
}

// stored records a write that the server acknowledged. What was read stands in
// the record, whatever the file is by now.
func (l *look) stored(ctx context.Context, in *state.Intent, o state.Object) error {
	l.f.enter(PhaseCommit)
	if err := l.commitUpload(ctx, in, o, false); err != nil {
		return err
	}
	l.end.sent = l.read.size
	return l.forget(ctx, in)
}

// surprised finds out what stands under the key after a condition did not hold
// or a multipart upload was not there. It may be this very write, whose first
// answer was lost. Present: something certainly stands there.
func (l *look) surprised(ctx context.Context, in *state.Intent, present bool) (finished bool, now standing, err error) {
	now, err = l.ask(ctx, present)
	if err != nil {
		return false, now, err
	}
	taken, err := wasTaken(ctx, l, in, now)
	if err != nil {
		return false, now, err
	}
	if taken {
		if err := l.commitUpload(ctx, in, now.object, true); err != nil {
			return false, now, err
		}
		l.end.sent = l.read.size
		return true, now, l.forget(ctx, in)
	}
	if err := l.settleEarlier(ctx, in, now); err != nil {
		return false, now, err
	}
	return false, now, l.discard(ctx, in)
}

// settleEarlier records an earlier write of the key that now turns out to have
// been taken.
func (l *look) settleEarlier(ctx context.Context, in *state.Intent, now standing) error {
	if !now.present || now.key != archive.KeyOK {
		return nil
	}
	intents, err := l.State.Intent(in.Key)
	if err != nil {
		return local(state.ClassTransient, "read intents", err)
	}
	for i := range intents {
		if intents[i].Attempt == in.Attempt || intents[i].Op == state.OpDelete {
			continue
		}
		taken, err := wasTaken(ctx, l, &intents[i], now)
		if err != nil {
			return err
		}
		if taken {
			return l.commitUpload(ctx, &intents[i], now.object, true)
		}
	}
	return nil
}

// wasTaken reports whether the server has taken the write that in announced: its
// object, and its bytes, stand under the key.
func wasTaken(ctx context.Context, l *look, in *state.Intent, now standing) (bool, error) {
	if !now.present || now.key != archive.KeyOK {
		return false, nil
	}
	j, err := l.judgeOf(l.entry)
	if err != nil {
		return false, err
	}
	return j.proves(ctx, now.object, in)
}

// broken ends a write that failed. Where the server certainly has not taken it
// the intent goes; otherwise it stays, and the next look settles it first.
func (l *look) broken(ctx context.Context, in *state.Intent, err error) error {
	taken := ambiguous(err)
	if !isLocal(err) && state.ClassOf(err).Meaning().Effect == state.EffectFails && ctx.Err() == nil && l.file != nil && sameFence(l.file.File, l.fence) != nil {
		err = changed("send") // A body of another length looks like a broken connection.
	}
	if taken {
		return err
	}
	return errors.Join(err, l.discard(ctx, in))
}

// ambiguous reports whether a write that failed with err may have been taken.
func ambiguous(err error) bool {
	if errors.Is(err, state.ErrConcurrent) {
		return false
	}
	e, ok := errors.AsType[*state.Error](err)
	if !ok || errors.Is(err, errHeldBack) {
		return true
	}
	return !e.Class.Meaning().Refused
}

// forget drops what is left of earlier writes of the key, once one was
// acknowledged: they were conditional, and cannot be taken any more.
func (l *look) forget(ctx context.Context, in *state.Intent) error {
	ctx = context.WithoutCancel(ctx)
	left, err := l.State.Intent(in.Key)
	if err != nil {
		return local(state.ClassTransient, "read intents", err)
	}
	for i := range left {
		if left[i].Attempt == in.Attempt {
			continue
		}
		if err := l.discard(ctx, &left[i]); err != nil {
			return err
		}
	}
	l.setClosed(in.Key)
	return nil
}

// discard gives a write up: its multipart upload is aborted and its intent
// dropped. An upload that the server does not let go yet keeps its intent. One
// that the server does not know any more may have been completed after its key
// was asked for: it is then recorded as recovered.
func (l *look) discard(ctx context.Context, in *state.Intent) error {
	ctx = context.WithoutCancel(ctx)
	taken := false
	if in.UploadID != "" {
		gone, err := l.abort(ctx, in)
		if err == nil && gone {
			taken, err = l.completedLate(ctx, in)
		}
		if err != nil {
			return err
		}
	}
	if !taken {
		err := l.State.DropIntent(ctx, in.Key, in.Attempt)
		if err != nil && !errors.Is(err, state.ErrNoIntent) {
			return local(state.ClassTransient, "drop intent", err)
		}
	}
	left, err := l.State.Intent(in.Key)
	if err == nil && len(left) == 0 {
		l.setClosed(in.Key)
	}
	return nil
}

// completedLate records the upload of in if its object stands under the key.
func (l *look) completedLate(ctx context.Context, in *state.Intent) (taken bool, err error) {
	now, err := l.ask(ctx, false)
	if err != nil {
		return false, err
	}
	if taken, err = wasTaken(ctx, l, in, now); !taken || err != nil {
		return false, err
	}
	l.seen = now
	return true, l.commitUpload(ctx, in, now.object, true)
}
