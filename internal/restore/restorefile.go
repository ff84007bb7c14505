package restore

import (
	"cmp"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/s3syncd/s3syncd/internal/backoff"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// copyBuffer is what one download holds in memory.
const copyBuffer = 256 << 10

// maxPause is the longest wait between two attempts at one file: an operator waits.
const maxPause = 20 * time.Second

// Why one file cannot be restored.
var (
	errDiffers     = errors.New("a file with other content stands there; --overwrite replaces it")
	errOther       = errors.New("something that is not a regular file stands there; --overwrite replaces it")
	errTwice       = errors.New("it was written since this restore began: by another name that this file system does not tell from this one, or by someone else")
	errNoHash      = errors.New("the trail has no hash of it; --unverified restores it nevertheless")
	errNothing     = errors.New("the object is not in the bucket")
	errOverwritten = errors.New("the object was written again since and the bucket keeps no versions; --unverified restores what is there now")
)

// file is one file on its way from S3 to its place.
type file struct {
	*restorer
	*planned

	path string

	current    bool // it comes from the current object, for lack of a version
	unverified bool // its bytes are not those that the trail names
	ownerLeft  bool
	ownerOut   bool // its owner cannot enter its directory
	open       bool // others can change its directory
}

// restore makes the file what the record says, or finds that it is.
func (f *file) restore(ctx context.Context) (Status, error) {
	kept, replace, err := f.keep(ctx)
	switch {
	case err != nil:
		return "", err
	case kept:
		return FileKept, nil
	case f.o.DryRun:
		return FileRestored, nil
	}
	if f.SHA256 == "" && f.MD5 == "" && !f.o.Unverified {
		return "", errNoHash
	}
	owner := safefs.DirOwnerSelf
	if f.o.Owner {
		owner = safefs.DirOwnerParent
	}
	in, err := f.target.Create(f.path, owner)
	if err != nil {
		return "", clearer(err)
	}
	defer in.Close()
	obj, err := f.download(ctx, in)
	if err != nil {
		return "", err
	}
	a := f.allowed(f.attributes(obj.Metadata))
	enters, open, err := in.Place(a)
	if err == nil {
		err = in.Commit(a, replace)
	}
	if err != nil {
		return "", clearer(err)
	}
	f.ownerOut, f.open = !enters, open
	return FileRestored, nil
}

// keep checks what is there. It reports whether that is the wanted file, and
// else whether it may be replaced.
func (f *file) keep(ctx context.Context) (kept, replace bool, err error) {
	if f.target == nil {
		return false, false, nil
	}
	there, err := f.target.Open(f.path)
	if err != nil {
		replace, err := f.inTheWay(there.Stat, err)
		return false, replace, err
	}
	defer func() { _ = there.Close() }() // Only read.
	same, err := f.sameContent(ctx, there, there.Stat)
	switch {
	case err != nil:
		return false, false, err
	case same:
		return f.keepAttributes(&there)
	case !f.o.Overwrite:
		return false, false, errDiffers
	case there.CtimeNs > f.begun && f.begun != 0 && !f.o.DryRun:
		return false, false, errTwice
	}
	return false, true, nil
}

// inTheWay decides what an error of looking at the file's place means: nil, that
// the file can be written, replacing what is there or not.
func (f *file) inTheWay(st safefs.Stat, err error) (replace bool, _ error) {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case errors.Is(err, safefs.ErrSymlink), errors.Is(err, safefs.ErrNotRegular):
		if !f.o.Overwrite {
			return false, errOther
		}
		return true, nil
	case errors.Is(err, fs.ErrPermission) && st.IsRegular() && f.o.Overwrite:
		return true, nil
	}
	return false, clearer(err)
}

// keepAttributes gives a file of the right content its attributes. One that
// another user could change, now or through what they have open of it, is
// written again, and so is one that has yet to become setuid or setgid.
func (f *file) keepAttributes(there *safefs.Found) (kept, replace bool, err error) {
	a := f.allowed(f.attributes(nil))
	equal := a.Equal(there.Stat)
	switch {
	case !there.Sole(a), !equal && a.RunsAs():
		return false, true, nil
	case equal, f.o.DryRun:
		return true, false, nil
	}
	if err := a.Apply(there.File); err != nil {
		return false, false, fmt.Errorf("the content is right already, its attributes cannot be: %w", err)
	}
	return true, false, nil
}

// sameContent reports whether the open file has the recorded size and hash.
func (f *file) sameContent(ctx context.Context, there io.Reader, st safefs.Stat) (bool, error) {
	want, h := f.expected()
	if h == nil || st.Size != f.Size {
		return false, nil
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, &untilDone{ctx: ctx, r: there}, make([]byte, copyBuffer)); err != nil {
		return false, fmt.Errorf("read what is there: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)) == want, nil
}

// expected returns the recorded hash and an empty one of its kind, nil for none.
func (p *planned) expected() (want string, h hash.Hash) {
	switch {
	case p.SHA256 != "":
		return p.SHA256, sha256.New()
	case p.MD5 != "":
		return p.MD5, md5.New()
	}
	return "", nil
}

// untilDone reads until a context ends.
type untilDone struct {
	ctx context.Context //nolint:containedctx // It lives as long as one copy.
	r   io.Reader
}

func (u *untilDone) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(p)
}

// allowed takes out of a what this restore does not set. A file that runs with
// its owner's or its group's rights must run with no others: these bits stay only
// where the file gets the owner and the group that the trail names.
func (f *file) allowed(a safefs.Attributes) safefs.Attributes {
	known := a.UID != nil && a.GID != nil
	if !f.o.Owner {
		f.ownerLeft = a.UID != nil && *a.UID != uint32(os.Geteuid()) || a.GID != nil && *a.GID != uint32(os.Getegid())
		a.UID, a.GID = nil, nil
	}
	if a.RunsAs() && (!known || f.ownerLeft) {
		mode := *a.Mode &^ 0o6000
		a.Mode = &mode
	}
	return a
}

// download writes the object's bytes into in and checks them. An interrupted
// answer is continued where it broke.
func (f *file) download(ctx context.Context, in io.Writer) (archive.Object, error) {
	d := &transfer{file: f, out: in, version: f.Version, since: time.Now()}
	d.current = d.version == ""
	for n := 0; ; n++ {
		before := d.got
		done, err := d.attempt(ctx)
		if done {
			return d.obj, d.check()
		}
		if d.got > before {
			n, d.since = 0, time.Now()
		}
		if err == nil {
			continue // Another object is to be tried.
		}
		if !trail.Temporary(err) || ctx.Err() != nil {
			return d.obj, err
		}
		if time.Since(d.since) > f.o.GiveUp {
			if time.Since(time.Unix(0, f.lastAnswer.Load())) > f.o.GiveUp {
				return d.obj, fmt.Errorf("%w for %v: %w", ErrOutage, f.o.GiveUp, err)
			}
			return d.obj, err
		}
		if !backoff.Pause(ctx, min(backoff.Jittered(n, archive.ClassOf(err)), maxPause)) {
			return d.obj, ctx.Err()
		}
	}
}

// transfer is one download.
type transfer struct {
	*file

	out     io.Writer
	version string
	obj     archive.Object
	want    string
	hash    hash.Hash // nil: nothing to compare with
	got     int64     // bytes that were written
	begun   bool      // the object has been chosen
	since   time.Time // when bytes came last
}

// attempt makes one request. It reports whether all bytes are there; without
// that and an error, another object is to be asked for.
func (d *transfer) attempt(ctx context.Context) (done bool, err error) {
	etag := ""
	if d.got > 0 && d.version == "" {
		etag = d.obj.ETag
	}
	body, obj, err := d.objects.GetFrom(ctx, d.Key, d.version, d.got, etag)
	if errors.Is(err, fs.ErrNotExist) {
		d.answered()
		return false, d.missing(err)
	}
	if errors.Is(err, archive.ErrPrecondition) {
		return false, errors.New("the object was written again while it was read")
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = body.Close() }() // What it had to say, Read has said.
	d.answered()
	if !d.begun {
		if err := d.accept(obj); err != nil {
			return false, err
		}
	}
	return d.receive(body)
}

func (d *transfer) answered() { d.lastAnswer.Store(time.Now().UnixNano()) }

// missing goes over to the current object where a version is gone: its bytes
// may still be the wanted ones.
func (d *transfer) missing(err error) error {
	switch {
	case d.version == "":
		return fmt.Errorf("%w: %w", errNothing, err)
	case d.begun:
		return fmt.Errorf("version %s was removed while it was read: %w", d.version, err)
	}
	d.version, d.current = "", true
	return nil
}

// accept decides whether obj, whose bytes are about to be read, can be the
// wanted one, and what they are compared with.
func (d *transfer) accept(obj archive.Object) error {
	d.obj, d.begun = obj, true
	d.want, d.hash = d.expected()
	own := planned{SHA256: obj.Metadata[archive.MetaSHA256], MD5: obj.Metadata[archive.MetaMD5]}
	other := d.Size >= 0 && obj.Size != d.Size || d.contradicts(&own)
	if other {
		if err := d.refuse(&own); err != nil {
			return err
		}
	}
	if other || d.hash == nil { // Only what the object says of itself is left.
		d.want, d.hash = own.expected()
		d.Size, d.unverified = obj.Size, true
	}
	return nil
}

// contradicts reports whether p and own name different hashes.
func (p *planned) contradicts(own *planned) bool {
	if p.SHA256 != "" {
		return own.SHA256 != "" && own.SHA256 != p.SHA256
	}
	return p.MD5 != "" && own.MD5 != "" && own.MD5 != p.MD5
}

// refuse says why another object than the recorded one is not restored, nil
// where it was asked for.
func (d *transfer) refuse(own *planned) error {
	switch {
	case !d.current:
		return fmt.Errorf("version %s is not what the trail says: it has %d bytes, SHA-256 %s", d.version, d.obj.Size, cmp.Or(own.SHA256, "unknown"))
	case d.o.Unverified:
		return nil
	case d.Version != "":
		return fmt.Errorf("version %s is gone, and the current object is another one; --unverified restores that", d.Version)
	}
	return errOverwritten
}

// receive reads an answer to its end.
func (d *transfer) receive(body io.Reader) (done bool, err error) {
	buf := make([]byte, copyBuffer)
	for {
		n, rerr := body.Read(buf)
		if n > 0 {
			if _, err := d.out.Write(buf[:n]); err != nil {
				return false, &writeError{err}
			}
			if d.hash != nil {
				d.hash.Write(buf[:n])
			}
			d.got += int64(n)
			d.o.Progress.Received(int64(n))
			d.answered()
		}
		switch {
		case errors.Is(rerr, io.EOF) && d.got >= d.obj.Size:
			return true, nil
		case errors.Is(rerr, io.EOF):
			return false, archive.Classified(archive.ClassTransient, "GetObject", io.ErrUnexpectedEOF)
		case rerr != nil:
			return false, rerr
		}
	}
}

// check compares what was received with what was wanted.
func (d *transfer) check() error {
	if d.Size >= 0 && d.got != d.Size {
		return fmt.Errorf("S3 sent %d bytes, the trail says %d", d.got, d.Size)
	}
	if d.hash == nil {
		return nil
	}
	got := hex.EncodeToString(d.hash.Sum(nil))
	if got != d.want && d.current && d.o.Unverified {
		d.unverified = true
		return nil
	}
	if got != d.want {
		return fmt.Errorf("the bytes in S3 are not those of the record: their hash is %s instead of %s", got, d.want)
	}
	return nil
}

// writeError is a fault of the local file system.
type writeError struct{ err error }

func (e *writeError) Error() string { return e.err.Error() }
func (e *writeError) Unwrap() error { return e.err }

// fullOrBroken reports whether the local file system takes nothing any more.
func fullOrBroken(err error) bool {
	for _, e := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EIO, syscall.EMFILE, syscall.ENFILE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// clearer words what is in the way for an operator.
func clearer(err error) error {
	switch {
	case errors.Is(err, safefs.ErrParent):
		return fmt.Errorf("%w (a symbolic link is not followed)", err)
	case errors.Is(err, safefs.ErrNotReplaced):
		return fmt.Errorf("%w; --overwrite replaces it", err)
	case errors.Is(err, syscall.ENAMETOOLONG):
		return fmt.Errorf("%w: this file system does not hold such a name", err)
	}
	return err
}
