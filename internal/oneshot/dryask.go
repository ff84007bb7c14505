package oneshot

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/s3syncd/s3syncd/internal/listing"
	"github.com/s3syncd/s3syncd/internal/pipeline"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/uploader"
)

// bucketView answers a dry run's questions about the objects of one source. Their
// keys come roughly in order, so one listing is read beside them, and only objects
// that it shows are asked for by a HEAD. It is for one goroutine, except for what
// show returns.
type bucketView struct {
	source *pipeline.Source
	listed chan string
	ended  chan struct{}
	cancel context.CancelFunc
	err    error // why the listing ended, once listed is closed

	next   string // the listing's next key, "" behind its end or before its first
	passed string // the listing's last key below next
	begun  bool
	lost   bool // the listing was refused: every object is asked for
}

// viewPatience is how long a dry run waits for the next part of a listing.
const viewPatience = 30 * time.Second

// errNoListing reports a listing that gave no answer in time.
var errNoListing = errors.New("S3 did not answer in time")

// errUnsaid reports that S3 does not say whether an object exists: without the
// right to list it gives the same answer for one that may not be seen.
var errUnsaid = errors.New("s3:ListBucket is not granted")

// viewBucket begins a listing of what is below the prefix of s.
func viewBucket(ctx context.Context, s *pipeline.Source) *bucketView {
	ctx, cancel := context.WithCancel(ctx)
	v := &bucketView{source: s, listed: make(chan string, listing.Page), ended: make(chan struct{}), cancel: cancel}
	go func() {
		defer close(v.ended)
		defer close(v.listed)
		v.err = listing.ListData(ctx, s.Store, s.Mapper, func(o archive.Object) error {
			select {
			case v.listed <- o.Key:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	return v
}

// stop ends the listing.
func (v *bucketView) stop() {
	v.cancel()
	<-v.ended
}

// show returns a question for the object under key, which any goroutine may ask
// later. A key that the listing skipped needs no request, unless it comes out of
// order, as escaped ones do.
func (v *bucketView) show(key string) (question, error) {
	backward := v.begun && key <= v.passed
	if !backward {
		if err := v.advance(key); err != nil {
			return nil, err
		}
	}
	if !v.lost && !backward && v.next != key {
		return func(context.Context) (archive.Object, bool, error) { return archive.Object{}, false, nil }, nil
	}
	lost := v.lost
	return func(ctx context.Context) (archive.Object, bool, error) {
		o, err := v.source.Store.Head(ctx, key)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return o, false, nil
		case lost && errors.Is(err, fs.ErrPermission):
			return o, false, errUnsaid
		}
		return o, err == nil, err
	}, nil
}

// question asks S3 for one object.
type question func(ctx context.Context) (o archive.Object, there bool, err error)

// advance moves the listing to key, or beyond it where key is not listed.
func (v *bucketView) advance(key string) error {
	for !v.lost && (!v.begun || v.next != "" && v.next < key) {
		v.passed, v.begun = v.next, true
		select {
		case next, more := <-v.listed:
			if v.next = next; !more {
				return v.ends()
			}
		case <-time.After(viewPatience):
			return errNoListing
		}
	}
	return nil
}

// ends handles the end of the listing.
func (v *bucketView) ends() error {
	if errors.Is(v.err, fs.ErrPermission) {
		v.lost = true
		return nil
	}
	return v.err
}

// forecaster predicts for each file of one source what a run would do with it,
// given what S3 holds. One scan calls it.
type forecaster struct {
	*planner

	source uploader.Source
	bucket *bucketView
	group  *errgroup.Group
	ctx    context.Context //nolint:containedctx // Of the scan: the questions outlive the call that begins them.

	mu      sync.Mutex
	refused error // why S3 is not asked any more
}

// forecast connects to the bucket of s. It makes no request yet.
func (p *planner) forecast(ctx context.Context, s *pipeline.Source) *forecaster {
	f := &forecaster{planner: p, source: s.Uploads(), bucket: viewBucket(ctx, s)}
	if !s.Store.Resolved() {
		// Only a write tells which key is behind the alias.
		f.source.Accept = func(o archive.Object) archive.KeyVerdict {
			if v := s.Store.KeyVerdict(o); v != archive.KeyOther {
				return v
			}
			return archive.KeyOK
		}
		p.count(func(p *Plan) { p.Aliases = append(p.Aliases, s.Config.KMSKeyID) })
	}
	f.group, f.ctx = errgroup.WithContext(ctx)
	f.group.SetLimit(max(1, p.opts.Config.Upload.Workers))
	return f
}

// notAskedError marks that S3 gave no answer, as opposed to what is wrong with a file.
type notAskedError struct{ error }

// Unwrap returns why.
func (e notAskedError) Unwrap() error { return e.error }

// offer begins to check a file that the index does not show to be in S3.
func (f *forecaster) offer(path string, size int64) {
	key, err := f.source.Mapper.Key(path)
	if err != nil {
		f.note(pipeline.Outcome{Source: f.source.Name, Path: path, Status: pipeline.Failed, Size: size, Err: err})
		return
	}
	show, err := f.bucket.show(key)
	if err != nil {
		f.refuse(err)
	}
	f.group.Go(func() error {
		f.note(f.outcome(path, size, show))
		return nil
	})
}

// refuse stops asking S3, because of err.
func (f *forecaster) refuse(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refused == nil {
		f.refused = err
	}
}

// asks reports whether S3 is still asked.
func (f *forecaster) asks() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refused == nil
}

// outcome is what a run would make of one file.
func (f *forecaster) outcome(path string, size int64, show question) pipeline.Outcome {
	o := pipeline.Outcome{Source: f.source.Name, Path: path, Size: size, Status: pipeline.Planned}
	if !f.asks() {
		f.count(func(p *Plan) { p.Unasked++ })
		return o
	}
	v, err := uploader.Foresee(f.ctx, f.source, path, func(ctx context.Context) (archive.Object, bool, error) {
		object, there, err := show(ctx)
		if err != nil {
			err = notAskedError{err}
		}
		return object, there, err
	})
	switch _, silent := errors.AsType[notAskedError](err); {
	case silent:
		if !errors.Is(err, errUnsaid) {
			f.refuse(err)
		}
		f.count(func(p *Plan) { p.Unasked++ })
		return o
	case err != nil:
		o.Status, o.Err = pipeline.Failed, err
		return o
	}
	switch v {
	case uploader.ForecastRead:
		f.count(func(p *Plan) { p.Run.Get++ })
		o.Status = pipeline.Skipped
	case uploader.ForecastSkip:
		o.Status = pipeline.Skipped
	case uploader.ForecastNothing:
		o.Status = ""
	case uploader.ForecastSend, uploader.ForecastConflict: // A conflict comes with its error.
	}
	return o
}

// wait ends the questions, and says why they ended early.
func (f *forecaster) wait() error {
	err := f.group.Wait()
	f.bucket.stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(err, f.refused)
}
