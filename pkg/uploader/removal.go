package uploader

import (
	"cmp"
	"context"
	"errors"
	"io/fs"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/localfile"
	"github.com/s3syncd/s3syncd/pkg/remote"
)

// errReplaced: the object under the key is neither what the index describes nor
// this instance's.
var errReplaced = errors.New("the object was replaced by somebody else")

// removal is an attempt at a path where no file is any more.
type removal struct{ a *attempt }

// run ends an attempt at a path of the index where, it is said, no file is:
// nothing, a directory, a symbolic link that is not followed or a special file.
// That is believed only while the source is the directory that it was.
func (r removal) run(ctx context.Context) error {
	a, root := r.a, r.a.d.src.Root
	if !a.journal.Index.Known || !a.d.intact(a.job.Path) {
		return nil // A source that is away has deleted nothing; its scan checks again.
	}
	st, err := root.Stat(a.job.Path)
	switch {
	case err == nil && st.IsRegular() && root.Misnamed(a.job.Path):
		// Another name that differs in case is found by this one.
	case err == nil && st.IsRegular() && a.job.Kind == archive.Gone:
		a.job.Kind, a.job.Confirmed = archive.Look, false
		return a.checkFile(ctx)
	case err == nil && st.IsRegular():
		return localfile.Local(archive.ClassTransient, "open", fs.ErrNotExist) // It comes and goes.
	case errors.Is(err, safefs.ErrLocked):
		return nil // Nothing says whether the file is there; the next scan checks again.
	case err != nil && !noFile(root, err):
		return openError(err)
	}
	if !a.d.intact(a.job.Path) {
		return nil
	}
	switch mirrors := a.d.src.Deletes == archive.DeletesMirror; {
	case !a.journal.Index.Entry.Stored:
		return a.journal.Commit(ctx, archive.Outcome{Path: a.job.Path, Key: a.key, Remove: true})
	case mirrors && a.job.Confirmed:
		return r.mirror(ctx)
	case mirrors:
		if a.d.src.Requeue != nil && a.p.o.GiveUp == 0 {
			a.d.src.Requeue(a.job.Path) // For a scan to confirm, which may not know of it.
		}
		return nil
	default:
		return a.journal.Deleted(ctx, nil, archive.Object{})
	}
}

// unnamed ends an attempt at a path that has no key, because of cause. When such
// a path is gone its failure is forgotten: nothing of it was ever archived.
func (r removal) unnamed(ctx context.Context, cause error) error {
	a := r.a
	failure := localfile.Local(archive.ClassFile, "name", cause)
	if _, err := a.d.src.Root.Lstat(a.job.Path); !absentPath(err) || !a.d.intact(a.job.Path) {
		return failure
	}
	if err := a.journal.Load(); err != nil {
		return err
	}
	switch x := &a.journal.Index; {
	case !x.Known:
		return nil
	case x.Entry.Stored:
		return failure
	default:
		return a.journal.Commit(ctx, archive.Outcome{Path: a.job.Path, Remove: true})
	}
}

// mirror deletes the object of a file that a scan has confirmed to be gone, if
// the object is still the one that is indexed, or another of this instance's.
// What anybody else put there stays.
func (r removal) mirror(ctx context.Context) error {
	a, e := r.a, &r.a.journal.Index.Entry
	indexed := remote.State{Present: true, Object: remote.Indexed(e)}
	return a.remote.converge(ctx, indexed, convergence{
		present: true,
		ask:     func(remote.State) bool { return e.Attempt == 0 || e.ETag == "" || e.Suspect },
		act: func(ctx context.Context, s remote.State) (bool, remote.State, error) {
			if !s.Present {
				return true, s, a.journal.Deleted(ctx, nil, archive.Object{})
			}
			if err := r.mayDelete(ctx, s); err != nil {
				return false, s, err
			}
			return r.deleteObject(ctx, s)
		},
	})
}

// mayDelete refuses to delete an object that was asked for and is another
// writer's.
func (r removal) mayDelete(ctx context.Context, s remote.State) error {
	if !s.Asked {
		return nil
	}
	e := &r.a.journal.Index.Entry
	j, err := r.a.d.judge(*e)
	if err != nil {
		return err
	}
	why, err := j.Stranger(ctx, s.Object)
	if why == nil && err == nil && s.Object.Metadata[archive.MetaID] == "" && !remote.Describes(e, s.Object) {
		why = archive.Classified(archive.ClassConflict, "compare", errReplaced)
	}
	return cmp.Or(err, why)
}

// deleteObject writes an intent and sends one conditional deletion.
func (r removal) deleteObject(ctx context.Context, s remote.State) (done bool, now remote.State, err error) {
	a, e := r.a, &r.a.journal.Index.Entry
	d := remote.Replace(s.Object)
	in := &archive.Intent{
		Op: archive.OpDelete, Path: a.job.Path, Key: a.key, Fence: e.Fence, Attributes: e.Attributes,
		MD5: e.MD5, SHA256: e.SHA256, Trigger: a.job.Trigger, DetectedAt: a.job.Detected, Replaces: d.Replaces,
	}
	if err := a.intents.claim(ctx); err != nil {
		return false, now, err
	}
	if err := a.intents.begin(ctx, in); err != nil {
		return false, now, err
	}
	a.flight.enter(PhaseSend)
	o, err := a.d.gate.Delete(ctx, a.key, d.Cond)
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
		if err := a.journal.Deleted(ctx, in, o); err != nil {
			return false, now, err
		}
		return true, now, a.intents.forget(ctx, in)
	case errors.Is(err, archive.ErrPrecondition):
		if err := a.intents.discard(ctx, in); err != nil {
			return false, now, err
		}
		now, err = a.remote.ask(ctx, true)
		return false, now, err
	default:
		return false, now, a.broken(ctx, in, err)
	}
}

// intact reports whether the source is there and the directory that the index
// describes, down to path.
func (d *destination) intact(path string) bool {
	id, err := d.src.Root.Identify()
	if err != nil {
		return false
	}
	if d.src.Intact != nil {
		return d.src.Intact(id, path)
	}
	was := d.identity.Load()
	return was != nil && was.SameDirectory(id) && was.MountID == id.MountID
}

// identify keeps which directory the source is when the pool begins, unless
// Intact knows: a source that does not answer must not hold up the pool.
func (d *destination) identify() {
	if d.src.Intact != nil || d.identity.Load() != nil {
		return
	}
	if id, err := d.src.Root.Identify(); err == nil {
		d.identity.Store(&id)
	}
}
