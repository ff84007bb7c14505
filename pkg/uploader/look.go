package uploader

import (
	"context"
	"errors"
	"io/fs"
	"syscall"
	"time"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// rounds is how often one look asks what stands under its key.
const rounds = 4

// errNoSlot: all slots for files of this size are taken.
var errNoSlot = errors.New("no slot for a file of this size is free")

// errUnsteady: what stands under the key was another thing at each request.
var errUnsteady = errors.New("the object under this key keeps changing")

// errRefused: the path cannot be archived.
var errRefused = errors.New("not archived")

// look is one look at one path by one worker.
type look struct {
	*destination
	p     *Pool
	it    *queue.Task
	job   queue.Job
	f     *flight
	key   string
	entry state.Entry
	known bool

	file  *safefs.Opened
	fence state.Fence
	attrs state.Attributes
	racy  bool
	read  reading

	seen   standing      // What a HEAD of this look said.
	resume *state.Intent // A multipart upload of this key that is open.
	end    ending
}

// ending is how a look ended.
type ending struct {
	status    state.Status
	basis     state.Basis
	sent      int64
	recovered bool
}

// run looks at the path. A nil error means that nothing more is to be done now.
func (l *look) run(ctx context.Context) error {
	key, err := l.keyOf(&l.job)
	l.key = key
	if l.job.Kind == archive.Refused {
		if l.job.Err == nil {
			return local(state.ClassFile, "look", errRefused)
		}
		return local(state.ClassFile, "look", l.job.Err)
	}
	if err != nil {
		return l.unnamed(ctx, err)
	}
	if l.isOpen(key) {
		if err := l.settleKey(ctx); err != nil {
			return err
		}
	}
	if l.job.Kind == archive.Settle && l.resume == nil {
		return nil
	}
	if err := l.act(ctx); err != nil {
		return err
	}
	return l.dropResume(ctx)
}

// act does what the job asks for.
func (l *look) act(ctx context.Context) error {
	switch {
	case l.job.Kind == archive.Rekey:
		return l.rekey(ctx)
	case offPath(&l.job):
		return nil // Only an interrupted copy was to be settled.
	case (l.job.Kind == archive.Settle || l.job.Kind == archive.Reread) && l.LeftOut != nil && l.LeftOut(l.job.Path):
		return nil // No watcher asked for it.
	default:
		return l.lookup(ctx)
	}
}

// lookup compares the path with the index and acts on the difference.
func (l *look) lookup(ctx context.Context) error {
	var err error
	if l.entry, l.known, err = l.State.Get(l.job.Path); err != nil {
		return local(state.ClassTransient, "read the index", err)
	}
	if l.job.Kind == archive.Gone {
		return l.gone(ctx)
	}
	return l.lookFile(ctx)
}

// lookFile is the one-file protocol.
func (l *look) lookFile(ctx context.Context) error {
	l.f.enter(PhaseOpen)
	opened, err := l.Root.Open(l.job.Path)
	switch {
	case l.noFile(err):
		return l.vanished(ctx)
	case err != nil:
		return openError(err)
	}
	defer func() { _ = opened.File.Close() }() // It was only read.
	l.file = opened
	l.fence, l.attrs = fenceOf(opened.Stat), attributesOf(opened.Stat)
	l.f.size.Store(l.fence.Size)
	if err := l.checkLinks(); errors.Is(err, safefs.ErrLinkSkipped) {
		return nil
	} else if err != nil {
		return err
	}
	if l.job.Kind == archive.Settle && !l.resume.Fence.SameContent(l.fence) {
		return nil
	}
	switch {
	case l.job.Kind == archive.Reread && !l.asIndexed():
		return l.handOver()
	case l.job.Kind != archive.Reread && l.unchanged():
		return l.skipByIndex(ctx)
	}
	return l.compare(ctx)
}

// compare reads the file and sends what the index does not have of it.
func (l *look) compare(ctx context.Context) error {
	if err := CheckSize(l.fence.Size); err != nil {
		return local(state.ClassFile, "look", err)
	}
	if !l.it.TakeSlot(laneOf(l.fence.Size, l.p.o.SinglePutMax)) {
		return errNoSlot
	}
	buf, err := l.hash(ctx)
	if buf != nil {
		defer l.p.buffers.put(l.Name, buf)
	}
	if err != nil {
		return err
	}
	if l.job.Kind == archive.Reread {
		l.countReread()
	}
	if l.sameAsIndex() {
		return l.skipAttributes(ctx)
	}
	return l.send(ctx)
}

// hash reads the file. The caller returns the buffer, if there is one: of a small
// file.
func (l *look) hash(ctx context.Context) (buf []byte, err error) {
	l.f.enter(PhaseHash)
	size := l.fence.Size
	small := size <= l.p.smallMax
	want := size
	if !small {
		want = hashChunk
	}
	if buf, err = l.p.buffers.get(ctx, l.Name, want); err != nil {
		return nil, err
	}
	l.racy = racy(l.fence, time.Now())
	if small {
		l.read, err = readSmall(l.file.File, l.fence, buf)
	} else {
		h := hashing{cut: ctx.Err, stop: l.p.ending, done: func(n int64) { l.f.hashed.Add(n) }, hole: l.sayHoles}
		l.f.hashed.Store(0)
		l.read, err = readLarge(h, l.file.File, l.fence, l.partSize(), buf)
		l.p.buffers.put(l.Name, buf)
		buf = nil
	}
	if err == nil {
		l.metrics.hashed.Add(float64(size))
	}
	return buf, err
}

// partSize is the size of the file's parts, 0 when it goes in one request.
func (l *look) partSize() int64 {
	switch {
	case l.fence.Size <= l.p.o.SinglePutMax:
		return 0
	case l.resume != nil && l.resume.PartSize > 0 && l.resume.Fence.SameContent(l.fence):
		return l.resume.PartSize
	default:
		return PartSize(l.fence.Size, l.p.o.PartSize)
	}
}

// checkLinks applies the policy for files with several names.
func (l *look) checkLinks() error {
	e := &l.entry
	archived := l.known && e.Stored && l.fence.Ino != 0 && e.Fence.Ino == l.fence.Ino && e.Attributes.UID == l.attrs.UID
	if err := l.Hardlinks.Check(l.file.Stat, l.file.Dir, archived); err != nil {
		return local(state.ClassFile, "open", err)
	}
	return nil
}

// unchanged reports whether the index alone shows that S3 holds the file.
func (l *look) unchanged() bool {
	e := &l.entry
	return l.known && e.Stored && !e.Racy && !e.Doubted && e.Fence.SameContent(l.fence)
}

// sameAsIndex reports whether the content is the one that the index has.
func (l *look) sameAsIndex() bool {
	e := &l.entry
	return l.known && e.Stored && !e.Doubted && e.Fence.Size == l.read.size && e.MD5 == l.read.md5 &&
		(e.SHA256 == [32]byte{} || e.SHA256 == l.read.sha256)
}

// send brings the content to S3, unless it is there.
func (l *look) send(ctx context.Context) error {
	j, err := l.judgeOf(l.entry)
	if err != nil {
		return err
	}
	s := l.believe()
	for range rounds {
		if !s.asked && (s.stale || l.mustAsk(s)) {
			if s, err = l.ask(ctx, false); err != nil {
				return err
			}
		}
		j.memory.entry = l.entry // An earlier write may have been found taken.
		d, err := j.decide(ctx, l.read.content, &s)
		switch {
		case err != nil:
			return err
		case s.stale:
			continue
		case d.act == actSkip:
			return l.adopt(ctx, s.object, d.basis)
		}
		finished, now, err := l.write(ctx, d)
		if finished || err != nil {
			return err
		}
		s = now
	}
	return local(state.ClassTransient, "compare", errUnsteady)
}

// believe is what stands under the key as far as this host knows.
func (l *look) believe() standing {
	switch {
	case l.seen.asked:
		return l.seen
	case l.known && l.entry.Stored && !l.entry.Doubted && l.entry.Attempt != 0 && l.entry.ETag != "":
		return standing{present: true, object: state.Object{ETag: l.entry.ETag, VersionID: l.entry.VersionID}}
	default:
		return standing{}
	}
}

// mustAsk decides whether a HEAD comes before the write. One that the index
// describes as written from here is not asked for: its ETag guards it.
func (l *look) mustAsk(s standing) bool {
	return !s.present && (l.known || l.headFirst(l.read.size))
}

// ask finds out what stands under the key. When something is known to stand
// there a refusal is an error; otherwise it may mean absence, which is enough for
// a write that is conditional on it and for nothing else.
func (l *look) ask(ctx context.Context, present bool) (standing, error) {
	l.f.enter(PhaseAsk)
	o, err := l.head(ctx, l.key)
	s := standing{asked: true}
	switch {
	case err == nil:
		s.present, s.object, s.key = true, o, l.Accept(o)
	case errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, fs.ErrPermission) && !present && l.forbiddenIsAbsent():
		s.refused = true
	default:
		return s, err
	}
	l.found(s.present)
	return s, nil
}

// vanished ends a look at a path where no file is.
func (l *look) vanished(ctx context.Context) error {
	if !l.known || l.job.Kind == archive.Reread {
		return nil // What is gone and what is out of sight, a scan tells apart.
	}
	return l.gone(ctx)
}

// hasMoved reports whether a file was read and another stands at the path now.
func (l *look) hasMoved() bool {
	if l.file == nil {
		return false
	}
	stat := l.Root.Lstat
	if l.Root.Options().Follow {
		stat = l.Root.Stat
	}
	st, err := stat(l.job.Path)
	return err != nil || fenceOf(st) != l.fence
}

// noFile reports whether err says that no file that is archived stands at the
// path: nothing does, or something else. A file that was there is gone.
func (l *look) noFile(err error) bool {
	return absentPath(err) || errors.Is(err, safefs.ErrNotRegular) ||
		errors.Is(err, safefs.ErrSymlink) && !l.Root.Options().Follow
}

// absentPath reports whether err says that nothing is at a path.
func absentPath(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// openError classifies why a file was not opened. What concerns this host for
// a while is retried; the rest concerns the file.
func openError(err error) error {
	for _, busy := range []error{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EIO, syscall.ESTALE, syscall.EINTR,
		syscall.EAGAIN, syscall.ETIMEDOUT, syscall.EHOSTDOWN, syscall.ENOTCONN, syscall.ENODEV,
		safefs.ErrRootChanged, // The source is away; its return is followed by a scan.
	} {
		if errors.Is(err, busy) {
			if errors.Is(err, safefs.ErrRootChanged) {
				return local(state.ClassTransient, "open", err)
			}
			return unreadable("open", err)
		}
	}
	return local(state.ClassFile, "open", err)
}
