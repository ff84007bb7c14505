package uploader

import (
	"context"
	"errors"
	"io/fs"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/journal"
	"github.com/s3syncd/s3syncd/pkg/localfile"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/remote"
)

// errNoSlot: all slots for files of this size are taken.
var errNoSlot = errors.New("no slot for a file of this size is free")

// errRefused: the path cannot be archived.
var errRefused = errors.New("not archived")

// attempt is one try at one path by one worker: it finds out what the file holds
// and what S3 holds, and brings both in line. Its parts hold what is known of
// each side.
type attempt struct {
	p      *Pool
	d      *destination
	task   *queue.Task
	job    queue.Job
	flight *flight

	key     string
	keyErr  error // The path has no key.
	file    localfile.File
	remote  *keyState
	journal *journal.Attempt
	intents *intents
}

func newAttempt(p *Pool, d *destination, task *queue.Task, job queue.Job) *attempt {
	a := &attempt{p: p, d: d, task: task, job: job, flight: &flight{source: d.src.Name, path: job.Path, started: time.Now()}}
	a.key, a.keyErr = d.src.keyOf(&job)
	a.remote = &keyState{d: d, key: a.key, flight: a.flight}
	a.journal = d.journal.Attempt(&a.job, a.key, &a.file)
	a.intents = &intents{d: d, key: a.key, remote: a.remote, journal: a.journal}
	return a
}

// run makes the attempt. A nil error means that nothing more is to be done now.
func (a *attempt) run(ctx context.Context) error {
	switch {
	case a.job.Kind == archive.Refused && a.job.Err == nil:
		return localfile.Local(archive.ClassFile, "check", errRefused)
	case a.job.Kind == archive.Refused:
		return localfile.Local(archive.ClassFile, "check", a.job.Err)
	case a.keyErr != nil:
		return removal{a}.unnamed(ctx, a.keyErr)
	}
	if a.d.open.has(a.key) {
		if err := a.intents.resolve(ctx); err != nil {
			return err
		}
	}
	if a.job.Kind == archive.Settle && a.intents.resume == nil {
		return nil
	}
	if err := a.act(ctx); err != nil {
		return err
	}
	return a.intents.dropResume(ctx)
}

// act does what the job asks for.
func (a *attempt) act(ctx context.Context) error {
	unasked := a.job.Kind == archive.Settle || a.job.Kind == archive.Reread // No watcher asked for it.
	switch {
	case a.job.Kind == archive.Rekey:
		return rekey{a}.run(ctx)
	case a.job.OffPath():
		return nil // Only an interrupted copy was to be resolved.
	case unasked && a.d.src.LeftOut != nil && a.d.src.LeftOut(a.job.Path):
		return nil
	}
	if err := a.journal.Load(); err != nil {
		return err
	}
	if a.job.Kind == archive.Gone {
		return removal{a}.run(ctx)
	}
	return a.checkFile(ctx)
}

// checkFile compares the file with the index, and uploads it where they differ.
func (a *attempt) checkFile(ctx context.Context) error {
	a.flight.enter(PhaseOpen)
	opened, err := a.d.src.Root.Open(a.job.Path)
	switch {
	case noFile(a.d.src.Root, err):
		return a.vanished(ctx)
	case err != nil:
		return openError(err)
	}
	defer func() { _ = opened.File.Close() }() // It was only read.
	a.file.Take(opened)
	a.flight.size.Store(a.file.Fence.Size)
	index, reread := &a.journal.Index, a.job.Kind == archive.Reread
	if err := index.CheckLinks(a.d.src.Hardlinks, &a.file); errors.Is(err, safefs.ErrLinkSkipped) {
		return nil
	} else if err != nil {
		return err
	}
	switch {
	case a.job.Kind == archive.Settle && !a.intents.resume.Fence.SameContent(a.file.Fence):
		return nil
	case reread && !index.SameTimes(&a.file):
		// It is not as the index describes it, and was only to be read again: the
		// watcher knows whether it is excluded or still changing.
		if a.d.src.Requeue != nil {
			a.d.src.Requeue(a.job.Path)
		}
		return nil
	case !reread && index.Unchanged(&a.file):
		a.flight.enter(PhaseCommit)
		return a.journal.SkipByIndex(ctx)
	}
	if err := localfile.CheckSize(a.file.Fence.Size); err != nil {
		return localfile.Local(archive.ClassFile, "check", err)
	}
	if !a.takeSlot() {
		return errNoSlot
	}

	buf, err := a.hash(ctx)
	defer a.release(buf)
	if err != nil {
		return err
	}
	if reread {
		a.countReread()
	}
	if index.SameContent(a.file.Reading.Content) {
		a.flight.enter(PhaseCommit)
		return a.journal.SkipAttributes(ctx)
	}
	return a.upload(ctx)
}

// vanished ends an attempt at a path where no file is.
func (a *attempt) vanished(ctx context.Context) error {
	if !a.journal.Index.Known || a.job.Kind == archive.Reread {
		return nil // A scan tells what is gone from what is out of sight.
	}
	return removal{a}.run(ctx)
}

// takeSlot takes the slot that a file of this size needs, if one is free.
func (a *attempt) takeSlot() bool {
	return a.task.TakeSlot(queue.LaneOf(a.file.Fence.Size, a.p.o.SinglePutMax))
}

// hash reads the file. The caller releases the buffer, which is that of a small
// file and nil otherwise.
func (a *attempt) hash(ctx context.Context) (buf []byte, err error) {
	a.flight.enter(PhaseHash)
	f, size := &a.file, a.file.Fence.Size
	small := size <= a.p.smallMax
	want := size
	if !small {
		want = localfile.ChunkSize
	}
	if buf, err = a.p.buffers.get(ctx, a.d.src.Name, want); err != nil {
		return nil, err
	}
	f.Racy = localfile.Racy(f.Fence, time.Now())
	if small {
		f.Reading, err = localfile.ReadSmall(f.Opened.File, f.Fence, buf)
	} else {
		a.flight.hashed.Store(0)
		w := localfile.Watch{
			Cut: ctx.Err, Stop: a.p.ending, Sparse: a.warnSparse,
			Hashed: func(n int64) { a.flight.hashed.Add(n) },
		}
		f.Reading, err = localfile.ReadLarge(w, f.Opened.File, f.Fence, a.partSize(), buf)
		a.release(buf)
		buf = nil
	}
	if err == nil {
		a.d.metrics.m.hashed.WithLabelValues(a.d.src.Name).Add(float64(size))
	}
	return buf, err
}

func (a *attempt) release(buf []byte) {
	if buf != nil {
		a.p.buffers.put(a.d.src.Name, buf)
	}
}

func (a *attempt) warnSparse(holes int64) {
	a.d.log.Warn("file is sparse, its holes are archived as zeros",
		zap.String("path", a.job.Path), zap.Int64("size", a.file.Fence.Size), zap.Int64("bytes_in_holes", holes))
}

// partSize is the size of the file's parts, 0 when it goes in one request.
func (a *attempt) partSize() int64 {
	resume := a.intents.resume
	switch {
	case a.file.Fence.Size <= a.p.o.SinglePutMax:
		return 0
	case resume != nil && resume.PartSize > 0 && resume.Fence.SameContent(a.file.Fence):
		return resume.PartSize
	default:
		return localfile.PartSize(a.file.Fence.Size, a.p.o.PartSize)
	}
}

// countReread counts a file that was read again although its times say that it
// is unchanged.
func (a *attempt) countReread() {
	changed := a.changedUnseen()
	a.d.metrics.reread(changed)
	if changed {
		a.d.log.Warn("content changed although size and times did not: a store through a mapping, or a failing disk; the file is uploaded as it is now",
			zap.String("path", a.job.Path))
	}
}

// changedUnseen reports whether a file that is read again has another content
// although size and times are those of the index.
func (a *attempt) changedUnseen() bool {
	x := &a.journal.Index
	return a.job.Kind == archive.Reread && x.SameTimes(&a.file) && !x.Entry.Suspect && !x.SameContent(a.file.Reading.Content)
}

// upload brings the content to S3, unless it is there.
func (a *attempt) upload(ctx context.Context) error {
	index := &a.journal.Index
	start := a.remote.seen
	if !start.Asked {
		start = index.Believed()
	}
	return a.remote.converge(ctx, start, convergence{
		// An object that the index describes as written from here is not asked
		// for: its ETag guards it.
		ask: func(s remote.State) bool {
			return s.Stale || !s.Present && (index.Known || a.d.headFirst(a.file.Reading.Size))
		},
		act: func(ctx context.Context, s remote.State) (bool, remote.State, error) {
			j, err := a.d.judge(index.Entry) // An earlier write may have been found taken.
			if err != nil {
				return false, s, err
			}
			decision, err := j.Decide(ctx, a.file.Reading.Content, &s)
			switch {
			case err != nil || s.Stale:
				return false, s, err
			case decision.Act == remote.Skip:
				a.flight.enter(PhaseCommit)
				return true, s, a.journal.Adopt(ctx, s.Object, decision.Basis)
			}
			return a.write(ctx, decision)
		},
	})
}

// hasMoved reports whether a file was read and another is at the path now.
func (a *attempt) hasMoved() bool {
	if a.file.Opened == nil {
		return false
	}
	root := a.d.src.Root
	stat := root.Lstat
	if root.Options().Follow {
		stat = root.Stat
	}
	st, err := stat(a.job.Path)
	return err != nil || localfile.FenceOf(st) != a.file.Fence
}

// noFile reports whether err says that no file that is archived is at the path:
// nothing is, or something else. A file that was there is gone.
func noFile(root *safefs.Root, err error) bool {
	return absentPath(err) || errors.Is(err, safefs.ErrNotRegular) ||
		errors.Is(err, safefs.ErrSymlink) && !root.Options().Follow
}

// absentPath reports whether err says that nothing is at a path.
func absentPath(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// openError classifies why a file was not opened. What concerns this host for
// a while is retried; the rest concerns the file.
func openError(err error) error {
	if errors.Is(err, safefs.ErrRootChanged) {
		return localfile.Local(archive.ClassTransient, "open", err) // The source is away; its return is followed by a scan.
	}
	for _, busy := range []error{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EIO, syscall.ESTALE, syscall.EINTR,
		syscall.EAGAIN, syscall.ETIMEDOUT, syscall.EHOSTDOWN, syscall.ENOTCONN, syscall.ENODEV,
	} {
		if errors.Is(err, busy) {
			return localfile.Unreadable("open", err)
		}
	}
	return localfile.Local(archive.ClassFile, "open", err)
}
