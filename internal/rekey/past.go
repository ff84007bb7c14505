package rekey

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"math"
	"slices"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/pipeline"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// past reads what the trail knows of objects, in the order of their keys, beside a
// listing.
type past struct {
	records chan archive.Record
	ended   chan struct{}
	err     error // once records is closed
	cancel  context.CancelFunc
	next    *archive.Record
}

// readPast reads what this host's trail says of objects. It begins with the head
// that the state knows, or without a state with the bucket's newest, and goes back
// by hashes. What it reaches is believed.
func readPast(ctx context.Context, s *pipeline.Source) *past {
	ctx, cancel := context.WithCancel(ctx)
	p := &past{records: make(chan archive.Record), ended: make(chan struct{}), cancel: cancel}
	go func() {
		defer close(p.ended)
		defer close(p.records)
		p.err = archived(ctx, s, func(r archive.Record) error {
			select {
			case p.records <- r:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	return p
}

// stop ends the reading and waits until it has ended.
func (p *past) stop() {
	p.cancel()
	<-p.ended
}

// of returns the record of key, nil where there is none. Keys come in order.
func (p *past) of(key string) (*archive.Record, error) {
	for p.next == nil || p.next.S3Key < key {
		r, ok := <-p.records
		if !ok {
			p.next = nil
			return nil, p.err
		}
		p.next = &r
	}
	if p.next.S3Key == key {
		return p.next, nil
	}
	return nil, nil
}

// archived calls fn for each object that the trail knows, in the order of keys.
func archived(ctx context.Context, s *pipeline.Source, fn func(archive.Record) error) error {
	lib := localFirst{far: s.Store}
	if near, err := trail.DirLibrary(s.Session.CopiesOf(s.Config.Name), s.Mapper.TrailPrefix()); err == nil {
		lib.near = near
	}
	t := trail.NewTrail(lib, s.Mapper.Prefix())
	head, pending, err := knownHead(ctx, s, t)
	if err != nil {
		return err
	}
	broken := func(key string, err error) {
		s.Log.Warn("the trail is known from here on only: objects that it names before are left as they are", zap.String("document", key), zap.Error(err))
	}
	return t.Archived(ctx, head, s.Mapper.Prefix(), "", pending, broken, fn)
}

// knownHead returns the head that the state knows, and the records that no digest
// names yet; or, without a state, the newest head of this instance.
func knownHead(ctx context.Context, s *pipeline.Source, t *trail.Trail) (head trail.Head, pending func(func([]byte) error) error, err error) {
	if s.State == nil {
		return newestHead(ctx, s.Session.Config.Instance, t)
	}
	c, err := s.State.Chain()
	if err != nil {
		return head, nil, err
	}
	head = trail.Head{Chain: c.ID, Key: c.PrevKey, SHA256: c.PrevSHA256}
	if c.PrevKey == "" {
		head = trail.Head{Chain: c.AbandonsChain, SHA256: c.AbandonsSHA256}
	}
	return head, func(fn func([]byte) error) error {
		return s.State.Records(0, math.MaxInt64, func(_ uint64, _ archive.Status, line []byte) error { return fn(line) })
	}, nil
}

// newestHead returns the bucket's newest head of this instance. Nothing
// proves it: it is only good for what changes nothing.
func newestHead(ctx context.Context, instance string, t *trail.Trail) (head trail.Head, pending func(func([]byte) error) error, err error) {
	chains, err := t.Chains(ctx)
	if err != nil {
		return head, nil, err
	}
	for _, c := range slices.Backward(chains) {
		if c.Instance == instance && len(c.Digests) > 0 {
			return trail.Head{Chain: c.ID}, nil, nil
		}
	}
	return head, nil, nil
}

// localFirst reads documents from the host's copies, and what is not there from
// the bucket. The reader compares hashes.
type localFirst struct{ near, far trail.Library }

// Get implements trail.Library.
func (l localFirst) Get(ctx context.Context, key string) (io.ReadCloser, archive.Object, error) {
	if l.near != nil {
		r, o, err := l.near.Get(ctx, key)
		if !errors.Is(err, fs.ErrNotExist) {
			return r, o, err
		}
	}
	return l.far.Get(ctx, key)
}

// List implements trail.Library.
func (l localFirst) List(ctx context.Context, prefix, startAfter string, fn func(archive.Object) error) error {
	return l.far.List(ctx, prefix, startAfter, fn)
}
