package oneshot

import (
	"context"
	"errors"
	"sync"

	"github.com/s3syncd/s3syncd/internal/fscheck"
	"github.com/s3syncd/s3syncd/internal/host"
	"github.com/s3syncd/s3syncd/internal/logsink"
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
	if err := host.Supported(o.Config); err != nil {
		return Summary{}, err
	}
	at, err := new(fscheck.Checker).Placed(o.Config)
	if err != nil {
		return Summary{}, err
	}
	log, err := logsink.NewConsole(o.Config.Log, o.Stderr)
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
	errs := make([]error, len(r.Sources))
	var wg sync.WaitGroup
	for i, s := range r.Sources {
		wg.Go(func() { errs[i] = s.CloseChain(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
