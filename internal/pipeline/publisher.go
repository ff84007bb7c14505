package pipeline

import (
	"context"
	"errors"
	"io"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/breaker"
	"github.com/s3syncd/s3syncd/pkg/manifest"
)

// publisher sends the documents of one source's trail where its files go, and
// only while they would: nothing is sent to a destination whose canary has not
// passed, or that did not confirm the key since.
type publisher struct{ source *Source }

// errUnproven reports a destination whose canary has not passed.
var errUnproven = errors.New("the destination has not proven that it encrypts")

// CreateDoc implements manifest.Publisher.
func (p publisher) CreateDoc(ctx context.Context, key string, body io.ReadSeeker, size int64, md5 [16]byte, sha [32]byte, contentType string) (archive.Object, error) {
	s := p.source
	if d := s.Pool.Destination(s.Config.Name); !d.Proven {
		return archive.Object{}, unproven(d)
	}
	if !s.Session.once { // A run that ends by itself publishes before it writes files only when it claims to.
		if err := s.prove(ctx); err != nil {
			return archive.Object{}, err
		}
	}
	o, err := s.Store.CreateDoc(ctx, key, body, size, md5, sha, contentType)
	if err != nil && archive.ClassOf(err).Stops() {
		s.distrust(err)
	}
	return o, err
}

// Get implements manifest.Publisher.
func (p publisher) Get(ctx context.Context, key string) (io.ReadCloser, archive.Object, error) {
	return p.source.Store.Get(ctx, key)
}

// List implements manifest.Publisher.
func (p publisher) List(ctx context.Context, prefix, startAfter string, fn func(archive.Object) error) error {
	return p.source.Store.List(ctx, prefix, startAfter, fn)
}

// unproven says why nothing is published to d.
func unproven(d breaker.Status) error {
	if d.Err == nil {
		return archive.Classified(archive.ClassTransient, "publish", manifest.ErrNotYet)
	}
	return archive.Classified(archive.ClassOf(d.Err), "publish", errors.Join(errUnproven, d.Err))
}
