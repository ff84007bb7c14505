package oneshot

import (
	"context"
	"errors"

	"github.com/s3syncd/s3syncd/internal/pipeline"
)

// RetireOptions are what retiring a host needs from outside.
type RetireOptions struct {
	SyncOptions

	Force bool // close the trails although files failed or a source could not be read
}

// Retire is a last sync run, after which the chain of each source ends with a
// final digest: what follows is silence, and meant to be. It blocks until the
// digests are acknowledged. Without Force nothing is closed unless every file of
// every source is in S3; the error is ErrSomeFailed then. A later run begins new
// chains. It does not run beside a daemon that holds the state.
func Retire(ctx context.Context, o RetireOptions) (Summary, error) {
	at, log, err := pipeline.Prepare(o.Config, o.Stderr)
	if err != nil {
		return Summary{}, err
	}
	r, err := newSyncRun(ctx, o.SyncOptions, at, log)
	if busy, ok := errors.AsType[*pipeline.BusyError](err); ok {
		return Summary{}, busy.Advise("stop the daemon first (systemctl disable --now s3syncd), then retire")
	}
	if err != nil {
		return Summary{}, err
	}
	err = r.run(ctx)
	if err == nil || (o.Force && ctx.Err() == nil) {
		err = errors.Join(err, r.closeChains(ctx))
	}
	return r.sum, errors.Join(pipeline.Interrupted(ctx, err), r.Close())
}

// closeChains ends the chains of all sources, side by side.
func (r *syncRun) closeChains(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.Grace.Publish)
	defer cancel()
	return r.Each(func(s *pipeline.Source) error { return s.CloseChain(ctx) })
}
