package uploader

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// gone ends a look at a path of the index where no file is said to be, but
// nothing, a directory, a symbolic link that is not followed or a special file.
// That is believed only while the source is the directory that it was.
func (l *look) gone(ctx context.Context) error {
	if !l.known {
		return nil
	}
	if !l.sourceIntact() {
		return nil // A source that is away has deleted nothing; its scan looks again.
	}
	st, err := l.Root.Stat(l.job.Path)
	switch {
	case err == nil && st.IsRegular() && l.Root.Misnamed(l.job.Path):
		// Another name that differs in case is found by this one.
	case err == nil && st.IsRegular():
		if l.job.Kind == archive.Gone {
			l.job.Kind, l.job.Confirmed = archive.Look, false
			return l.lookFile(ctx)
		}
		return local(state.ClassTransient, "open", fs.ErrNotExist) // It comes and goes.
	case err != nil && !l.noFile(err):
		return unknownFile(err)
	}
	if !l.sourceIntact() {
		return nil
	}
	return l.settleGone(ctx)
}

// unknownFile ends a look at a path of which nobody can say whether a file is
// there.
func unknownFile(err error) error {
	if errors.Is(err, safefs.ErrLocked) {
		return nil // The next scan looks again.
	}
	return openError(err)
}

// settleGone ends a look at a path of the index that certainly is not there.
func (l *look) settleGone(ctx context.Context) error {
	switch {
	case !l.entry.Stored:
		return l.commit(ctx, state.Outcome{Path: l.job.Path, Key: l.key, Remove: true})
	case l.Deletes == archive.DeletesMirror && !l.job.Confirmed:
		l.unconfirmed()
		return nil
	case l.Deletes == archive.DeletesMirror:
		return l.mirror(ctx)
	default:
		return l.commitDelete(ctx, nil, state.Object{})
	}
}

// unnamed ends a look at a path that has no key, because of cause. Once such a
// path is gone its failure is forgotten: nothing of it was ever archived.
func (l *look) unnamed(ctx context.Context, cause error) error {
	failure := local(state.ClassFile, "name", cause)
	if _, err := l.Root.Lstat(l.job.Path); !absentPath(err) || !l.sourceIntact() {
		return failure
	}
	var err error
	if l.entry, l.known, err = l.State.Get(l.job.Path); err != nil {
		return local(state.ClassTransient, "read the index", err)
	}
	switch {
	case !l.known:
		return nil
	case l.entry.Stored:
		return failure
	default:
		return l.commit(ctx, state.Outcome{Path: l.job.Path, Remove: true})
	}
}

// errReplaced: what stands under the key is neither what the index describes
// nor this instance's.
var errReplaced = errors.New("the object was replaced by somebody else")

// unconfirmed ends a look at a file of a mirror that is gone without a scan that
// says so: it is for one to confirm.
func (l *look) unconfirmed() {
	if l.Requeue != nil && l.p.o.GiveUp == 0 {
		l.Requeue(l.job.Path) // Nobody else may know of it.
	}
}

// mirror deletes the object of a file that a scan has confirmed to be gone, if
// the object is still the one that is indexed, or another of this
// instance's. What anybody else put there stays.
func (l *look) mirror(ctx context.Context) error {
	now := standing{present: true, object: l.indexed()}
	for range rounds {
		if (l.entry.Attempt == 0 || l.entry.ETag == "" || l.entry.Doubted) && !now.asked {
			var err error
			if now, err = l.ask(ctx, true); err != nil {
				return err
			}
		}
		if !now.present {
			return l.commitDelete(ctx, nil, state.Object{})
		}
		if err := l.mayDelete(ctx, now); err != nil {
			return err
		}
		done, next, err := l.deleteObject(ctx, now)
		if done || err != nil {
			return err
		}
		now = next
	}
	return local(state.ClassTransient, "compare", errUnsteady)
}

// mayDelete refuses to delete an object that was asked for and is somebody
// else's.
func (l *look) mayDelete(ctx context.Context, s standing) error {
	if !s.asked {
		return nil
	}
	j, err := l.judgeOf(l.entry)
	if err != nil {
		return err
	}
	why, err := j.stranger(ctx, s.object)
	if why == nil && err == nil && s.object.Metadata[state.MetaID] == "" && !Describes(&l.entry, s.object) {
		why = state.Classified(state.ClassConflict, "compare", errReplaced)
	}
	return cmp.Or(err, why)
}

// deleteObject announces and sends one conditional deletion.
func (l *look) deleteObject(ctx context.Context, s standing) (done bool, now standing, err error) {
	in := &state.Intent{
		Op: state.OpDelete, Path: l.job.Path, Key: l.key, Fence: l.entry.Fence, Attributes: l.entry.Attributes,
		MD5: l.entry.MD5, SHA256: l.entry.SHA256, Trigger: l.job.Trigger, DetectedAt: l.job.Detected,
		Replaces: state.Object{ETag: s.object.ETag, VersionID: s.object.VersionID},
	}
	if err := l.begin(ctx, in); err != nil {
		return false, now, err
	}
	l.f.enter(PhaseSend)
	o, err := l.remove(ctx, l.key, state.Condition{ETag: s.object.ETag})
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
		if err := l.commitDelete(ctx, in, o); err != nil {
			return false, now, err
		}
		return true, now, l.forget(ctx, in)
	case errors.Is(err, state.ErrPrecondition):
		if err := l.discard(ctx, in); err != nil {
			return false, now, err
		}
		now, err = l.ask(ctx, true)
		return false, now, err
	default:
		return false, now, l.broken(ctx, in, err)
	}
}

// commitDelete records that the file is gone. The deletion in was announced; it
// is nil when the object stays.
func (l *look) commitDelete(ctx context.Context, in *state.Intent, o state.Object) error {
	r := l.record(state.StatusDeleted)
	out := state.Outcome{Path: l.job.Path, Key: l.key, Remove: true, Record: r}
	if in != nil {
		out.Settles = in.Attempt
		r.Attempt = in.Attempt
		r.ReplacedVID, r.ReplacedETag = in.Replaces.VersionID, in.Replaces.ETag
		r.VersionID, r.RequestID = o.VersionID, o.RequestID
		if !o.ServerTime.IsZero() {
			r.S3Time = state.FormatTime(o.ServerTime)
		}
	}
	short := l.shortLived(time.Now())
	if err := l.commit(ctx, out); err != nil {
		return err
	}
	if short {
		l.metrics.shortLived.Inc()
	}
	l.end.status = state.StatusDeleted
	l.metrics.file(state.StatusDeleted)
	return nil
}

// shortLived reports whether the file that is gone outlived its last change by so
// little that it need not have been uploaded.
func (l *look) shortLived(now time.Time) bool {
	if d := l.job.Detected; !d.IsZero() {
		now = d
	}
	return l.entry.Stored && now.Sub(time.Unix(0, l.entry.Fence.CtimeNs)) < l.ShortLife
}

// sourceIntact reports whether the source is there and the directory that the
// index describes, down to the path.
func (l *look) sourceIntact() bool {
	id, err := l.Root.Identify()
	if err != nil {
		return false
	}
	if l.Intact != nil {
		return l.Intact(id, l.job.Path)
	}
	d := l.destination
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.identity != nil && d.identity.SameDirectory(id) && d.identity.MountID == id.MountID
}

// identify keeps which directory the source was when the pool began, unless
// Intact knows: a source that does not answer must not hold up the pool.
func (d *destination) identify() {
	if d.Intact != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.identity != nil {
		return
	}
	if id, err := d.Root.Identify(); err == nil {
		d.identity = &id
	}
}
