// Package restore writes the files that a trail names back to disk. It verifies
// the trail before the first byte, and each file against its record.
package restore

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/verify"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// Objects is where the bytes of restored files come from.
type Objects interface {
	// GetFrom reads an object from one of its bytes on: the version that version
	// names, or the current one for "". With ifMatch, another ETag is
	// state.ErrPrecondition. What is not there is io/fs.ErrNotExist. The Size that
	// it returns is that of the whole object.
	GetFrom(ctx context.Context, key, version string, from int64, ifMatch string) (io.ReadCloser, archive.Object, error)
}

// Status is what became of one file of a restore.
type Status string

// The statuses of a restore.
const (
	FileRestored Status = "restored" // or would be, in a dry run
	FileKept     Status = "kept"     // it was there already, as the trail has it
	FileFailed   Status = "failed"
)

// RestoredFile is what became of one file.
type RestoredFile struct {
	Path       string // below the target, raw bytes; "" where the key has none
	Key        string
	Size       int64
	Status     Status
	Unverified bool  // its bytes are not those that the trail names
	Err        error // FileFailed only
}

// Progress hears what a restore does. Its methods are called from many
// goroutines and must not block for long.
type Progress interface {
	// Anchored is called first, and once: what vouches for the trail, nothing where
	// both are 0.
	Anchored(keys, heads int)
	Planned(files, bytes int64) // once, before the first file
	Received(bytes int64)       // of the files' content
	Done(f RestoredFile)
}

// Options are what a restore needs beside the trail and the objects.
type Options struct {
	Prefix string // of the trail
	// Verify is what the trail is checked against before anything is planned; nil:
	// it is believed as it is.
	Verify   *verify.Options
	At       time.Time // what S3 held then; zero: what the trail has last
	Instance string    // whose files; "": there is only one
	Dir      string    // this directory or file alone, below the source; "": everything
	// Wants says whether a path below the source is wanted; nil: all are.
	Wants func(path string) bool

	Target  string      // the directory to write below
	DirMode fs.FileMode // of the directories that are made
	DryRun  bool        // write nothing
	// Overwrite: what is in the way of a file and is not a directory makes
	// way. Otherwise such a file fails.
	Overwrite bool
	// Owner: files get their recorded owner and group, and new directories the
	// owner of the directory above them. It needs the right to do so.
	Owner bool
	// Unverified: current objects that are not what the trail says are restored
	// nevertheless, checked against their own metadata alone.
	Unverified bool
	// CheckSpace: do not begin what does not fit on the file system.
	CheckSpace bool

	Workers int
	GiveUp  time.Duration // how long an outage is waited for
	TempDir string        // for sorting; "": Target, or in a dry run the directory for temporary files
	Memory  int64         // bytes, for sorting

	Progress Progress
}

// Summary is what a restore did, or would do.
type Summary struct {
	Restored, Kept, Failed int64
	Unverified             int64    // of Restored: not the bytes that the trail names
	Current                int64    // of Restored: from the current object, for lack of versions
	OwnersLeft             int64    // files whose recorded owner was not restored
	NewDirs                int64    // directories that were made, with DirMode
	OwnersOut              int64    // files in directories that their owner cannot enter
	InOpen                 int64    // of Restored: in directories that others can change
	LeftOut                int64    // what an earlier restore had left half-written when it was archived
	Bytes                  int64    // of the files to restore, as planned
	NotVouched             int64    // documents left out because nothing that is known from elsewhere vouches for them
	Unproven               int64    // manifests that were used though no digest names them yet
	Faults                 []string // documents that were not believed, and why; at most maxFaults
	FaultCount             int64    // all of them
}

// maxFaults bounds the documents that a summary names.
const maxFaults = 100

// Errors of a restore as a whole.
var (
	// ErrNoSpace: the target has not enough room.
	ErrNoSpace = errors.New("not enough room")
	// ErrOutage: S3 did not answer for GiveUp.
	ErrOutage = errors.New("S3 does not answer")
)

// Run rebuilds files below a directory from what trail says and objects
// holds. It blocks until that is done or ctx ends. What it has done is durable
// then, and a second run resumes where the first one ended, however that was:
// files that are right already are kept. A file that cannot be rebuilt is
// counted and does not hold up the others. It returns an error when it could
// not run, or not to its end; the summary is valid in each case.
func Run(ctx context.Context, trail *trail.Trail, objects Objects, o Options) (Summary, error) {
	r := &restorer{o: o, trail: trail, objects: objects, mapper: archive.NewMapper(o.Prefix)}
	r.lastAnswer.Store(time.Now().UnixNano())
	if err := r.open(); err != nil {
		return r.sum, err
	}
	defer r.close()
	if o.Verify != nil {
		o.Progress.Anchored(len(o.Verify.Keys), len(o.Verify.Anchors))
	}
	err := r.plan(ctx)
	if err == nil {
		err = r.checkSpace()
	}
	if err == nil {
		o.Progress.Planned(r.files, r.sum.Bytes)
		err = r.work(ctx)
	}
	if r.target != nil && !o.DryRun {
		r.sum.NewDirs = r.target.Made()
		if err == nil {
			err = r.target.Sync()
		}
	}
	return r.sum, err
}

// restorer is one restore.
type restorer struct {
	o       Options
	trail   *trail.Trail
	objects Objects
	mapper  archive.Mapper
	target  *safefs.Target // nil: a dry run without a directory
	spool   *os.File       // the plan, unnamed
	begun   int64          // the file system's time when the restore began, ns

	trust    *trust          // nil: all is believed
	doubted  map[string]bool // keys of documents that verifying has found fault with
	files    int64           // in the plan
	excluded map[string]string

	lastAnswer atomic.Int64 // of S3, in nanoseconds since 1970

	mu  sync.Mutex // guards sum
	sum Summary
}

func (r *restorer) open() error {
	var err error
	if r.o.DryRun {
		r.target, err = safefs.LookAtTarget(r.o.Target)
		if errors.Is(err, fs.ErrNotExist) {
			r.target, err = nil, nil
		}
	} else {
		r.target, err = safefs.OpenTarget(r.o.Target, r.o.DirMode)
	}
	if err != nil {
		return err
	}
	if r.o.TempDir == "" && !r.o.DryRun {
		r.o.TempDir = r.o.Target
	}
	if r.spool, err = safefs.Unnamed(r.o.TempDir); err == nil {
		err = r.readClock()
	}
	if err != nil {
		r.close()
		return fmt.Errorf("make a temporary file: %w", err)
	}
	return nil
}

// readClock notes the time of the target's file system, which may be another
// host's.
func (r *restorer) readClock() error {
	if r.o.DryRun {
		return nil
	}
	f, err := safefs.Unnamed(r.o.Target)
	if err != nil {
		return err
	}
	st, err := safefs.Fstat(f)
	r.begun = st.CtimeNs
	return errors.Join(err, f.Close())
}

func (r *restorer) close() {
	if r.target != nil {
		r.target.Close()
	}
	if r.spool != nil {
		_ = r.spool.Close() // Nothing of it is kept.
	}
}

// checkSpace refuses what does not fit.
func (r *restorer) checkSpace() error {
	if !r.o.CheckSpace || r.target == nil {
		return nil
	}
	bytes, inodes, err := r.target.Free()
	if err != nil {
		return err
	}
	need, files := uint64(r.sum.Bytes), uint64(r.files)
	if need > bytes || files > inodes {
		if need, files, err = r.missing(); err != nil {
			return err
		}
	}
	switch {
	case need > bytes:
		return fmt.Errorf("%w in %s: %d bytes are needed and %d are free", ErrNoSpace, r.o.Target, need, bytes)
	case files > inodes:
		return fmt.Errorf("%w in %s: %d files are to be made and it can hold %d more", ErrNoSpace, r.o.Target, files, inodes)
	}
	return nil
}

// missing counts what is planned and has no file of its size yet.
func (r *restorer) missing() (bytes, files uint64, err error) {
	err = r.eachPlanned(func(p *planned) error {
		path, ok := r.mapper.Path(p.Key)
		if !ok || p.Problem != "" {
			return nil
		}
		if st, err := r.target.Lstat(path); err == nil && st.IsRegular() && st.Size == p.Size {
			return nil
		}
		bytes += uint64(max(p.Size, 0))
		files++
		return nil
	})
	return bytes, files, err
}

// work restores what is planned.
func (r *restorer) work(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queue := make(chan *planned, r.o.Workers)
	var wg sync.WaitGroup
	for range r.o.Workers {
		wg.Go(func() {
			for p := range queue {
				if err := r.one(ctx, p); err != nil {
					cancel(err) // Nothing more can be done; the queue is emptied.
				}
			}
		})
	}
	err := r.eachPlanned(func(p *planned) error {
		select {
		case queue <- p:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	close(queue)
	wg.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// one restores one file. It returns an error when the whole restore has to end.
func (r *restorer) one(ctx context.Context, p *planned) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	f := &file{restorer: r, planned: p}
	done := RestoredFile{Key: p.Key, Size: p.Size}
	var ok bool
	done.Path, ok = r.mapper.Path(p.Key)
	var err error
	switch why := r.excluded[p.Key]; {
	case p.Problem != "":
		err = errors.New(p.Problem)
	case !ok:
		err = errors.New("no path below a source has this key")
	case why != "":
		err = errors.New(why)
	default:
		f.path = done.Path
		done.Status, err = f.restore(ctx)
	}
	if err != nil {
		if end := r.endsAll(ctx, err); end != nil {
			return end
		}
		done.Status, done.Err = FileFailed, err
	}
	done.Unverified = f.unverified
	r.count(done, f)
	r.o.Progress.Done(done)
	return nil
}

// endsAll returns why the restore has to end, nil when err concerns one file.
func (r *restorer) endsAll(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, ErrOutage), fullOrBroken(err):
		return err
	}
	if e, ok := errors.AsType[*archive.Error](err); ok && e.Class.Meaning().EveryRequest {
		return err
	}
	return nil
}

func (r *restorer) count(done RestoredFile, f *file) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch done.Status {
	case FileRestored:
		r.sum.Restored++
		if f.unverified {
			r.sum.Unverified++
		}
		if f.current {
			r.sum.Current++
		}
	case FileKept:
		r.sum.Kept++
	case FileFailed:
		r.sum.Failed++
		return
	}
	if f.ownerLeft {
		r.sum.OwnersLeft++
	}
	if f.ownerOut {
		r.sum.OwnersOut++
	}
	if f.open {
		r.sum.InOpen++
	}
}

// fault notes a document that is not believed.
func (r *restorer) fault(key string, err error) {
	if errors.Is(err, errNotVouched) || errors.Is(err, errUnnamed) {
		r.sum.NotVouched++
	}
	if r.doubted[key] {
		return // Verifying has said so.
	}
	text := err.Error()
	if !strings.Contains(text, key) {
		text = key + ": " + text
	}
	if slices.Contains(r.sum.Faults, text) {
		return // It was asked for twice.
	}
	r.sum.FaultCount++
	if len(r.sum.Faults) < maxFaults {
		r.sum.Faults = append(r.sum.Faults, text)
	}
}

// eachPlanned calls fn for each line of the plan.
func (r *restorer) eachPlanned(fn func(*planned) error) error {
	if _, err := r.spool.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read the plan: %w", err)
	}
	dec := json.NewDecoder(bufio.NewReaderSize(r.spool, 1<<16))
	for {
		p := new(planned)
		err := dec.Decode(p)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the plan: %w", err)
		}
		if err := fn(p); err != nil {
			return err
		}
	}
}
