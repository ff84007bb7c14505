package app

import (
	"context"
	"errors"
	"io"

	"github.com/s3syncd/s3syncd/internal/s3store"
	"github.com/s3syncd/s3syncd/pkg/breaker"
	"github.com/s3syncd/s3syncd/pkg/manifest"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// publisher sends the documents of one source's trail where its files go, and
// only while they would: nothing is sent to a destination whose canary has not
// passed, or that did not confirm the key since.
type publisher struct {
	*s3store.Store

	source *source
}

// errUnproven: the destination's canary has not passed.
var errUnproven = errors.New("the destination has not proven that it encrypts")

// CreateDoc implements manifest.Publisher.
func (p publisher) CreateDoc(ctx context.Context, key string, body io.ReadSeeker, size int64, md5 [16]byte, sha [32]byte, contentType string) (state.Object, error) {
	pool := p.source.pool.Load()
	if pool == nil {
		return state.Object{}, state.Classified(state.ClassTransient, "publish", manifest.ErrNotYet)
	}
	name := p.source.cfg.Name
	if d := pool.Destination(name); !d.Proven {
		return state.Object{}, unproven(d)
	}
	if !p.source.runsOnce { // Such a run publishes before it writes files only when it claims to.
		if err := p.source.prove(ctx); err != nil {
			return state.Object{}, err
		}
	}
	o, err := p.Store.CreateDoc(ctx, key, body, size, md5, sha, contentType)
	if err != nil && state.ClassOf(err).Stops() {
		pool.Distrust(name, err)
	}
	return o, err
}

// unproven says why nothing is published to d.
func unproven(d breaker.Status) error {
	if d.Err == nil {
		return state.Classified(state.ClassTransient, "publish", manifest.ErrNotYet)
	}
	return state.Classified(state.ClassOf(d.Err), "publish", errors.Join(errUnproven, d.Err))
}
