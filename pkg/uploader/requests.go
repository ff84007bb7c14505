package uploader

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"

	"github.com/s3syncd/s3syncd/pkg/breaker"
	"github.com/s3syncd/s3syncd/pkg/localfile"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/remote"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// abortTimeout bounds a request that discards a multipart upload.
const abortTimeout = 30 * time.Second

// requests are the requests to one destination. Each waits for a slot, goes
// through the breaker, is watched while it is under way, and tells the breaker
// how it ended.
type requests struct {
	src     *Source
	log     *zap.Logger
	breaker *breaker.Breaker
	monitor breaker.Monitor
	all     *queue.Shares                    // Requests at once, of all destinations.
	lanes   [queue.Lanes]*semaphore.Weighted // And of this one from a lane on; nil: LaneTiny has all.
}

func newRequests(src *Source, log *zap.Logger, b *breaker.Breaker, all *queue.Shares) *requests {
	r := &requests{src: src, log: log, breaker: b, all: all}
	for l := queue.LaneSmall; l < queue.Lanes; l++ {
		r.lanes[l] = semaphore.NewWeighted(max(1, all.Most()-int64(min(l, queue.LaneWhole))))
	}
	return r
}

// call says how one request is sent.
type call struct {
	size     int64            // Of its body or of that of its answer.
	progress breaker.Progress // Of that body; nil: it has none.
	slotless bool             // The caller has a slot, or the request needs none.
	long     bool             // A server may need minutes for the answer: it is not watched.
	writes   bool
}

// send sends one request with do.
func send[T any](ctx context.Context, r *requests, c call, do func() (T, error)) (T, error) {
	leave, err := r.enter(ctx, c)
	if err != nil {
		var none T
		return none, err
	}
	defer leave()
	if !c.long {
		defer r.monitor.Begin(c.progress)()
	}
	v, err := do()
	if !isLocal(err) {
		r.breaker.Observe(err)
	}
	if err == nil && c.writes {
		r.breaker.Wrote()
	}
	return v, err
}

// enter waits until the request may be sent. One that had to wait is not sent
// to a destination that went out of service in the meantime.
func (r *requests) enter(ctx context.Context, c call) (leave func(), err error) {
	if c.slotless {
		return func() {}, r.breaker.Allow()
	}
	waited, own := false, r.lanes[laneOf(c.size, c.size)]
	if own != nil && !own.TryAcquire(1) {
		waited = true
		if err := own.Acquire(ctx, 1); err != nil {
			return nil, err
		}
	}
	leaveLane := func() {
		if own != nil {
			own.Release(1)
		}
	}
	if !r.all.Take(r.src.Name, 1) {
		waited = true
		if err := r.all.Acquire(ctx, r.src.Name, 1); err != nil {
			leaveLane()
			return nil, err
		}
	}
	leave = func() {
		r.all.Release(r.src.Name, 1)
		leaveLane()
	}
	allow := r.breaker.Allow
	if waited {
		allow = r.breaker.AllowLate
	}
	if err := allow(); err != nil {
		leave()
		return nil, err
	}
	return leave, nil
}

// head is Objects.Head.
func (r *requests) head(ctx context.Context, key string) (state.Object, error) {
	return send(ctx, r, call{}, func() (state.Object, error) { return r.src.Objects.Head(ctx, key) })
}

// put is Objects.Put, of body.
func (r *requests) put(ctx context.Context, p state.Put, body *localfile.Body) (state.Object, error) {
	p.Body, p.Size = body, body.Size()
	o, err := send(ctx, r, call{size: p.Size, progress: body, writes: true}, func() (state.Object, error) {
		return r.src.Objects.Put(ctx, p)
	})
	if ferr := body.Err(); err != nil && ferr != nil {
		err = ferr
	}
	return o, err
}

// remove is Objects.Delete.
func (r *requests) remove(ctx context.Context, key string, cond state.Condition) (state.Object, error) {
	return send(ctx, r, call{}, func() (state.Object, error) { return r.src.Objects.Delete(ctx, key, cond) })
}

// copyOnto is Source.Copy.
func (r *requests) copyOnto(ctx context.Context, c state.Copy) (state.Object, error) {
	return send(ctx, r, call{long: true, writes: true}, func() (state.Object, error) {
		if r.src.Copy == nil {
			return state.Object{}, local(state.ClassConfiguration, "copy", errors.ErrUnsupported)
		}
		return r.src.Copy(ctx, c)
	})
}

// compare reads o and compares its bytes with c, as remote.Judge.Read has it.
func (r *requests) compare(ctx context.Context, o state.Object, c localfile.Content) (remote.Bytes, error) {
	if !remote.Readable(r.src.Fetch, o, c) {
		return remote.BytesOther, nil
	}
	p := new(localfile.Progress)
	return send(ctx, r, call{size: o.Size, progress: p}, func() (remote.Bytes, error) {
		b, err := remote.ReadObject(ctx, r.src.Fetch, o, c, p)
		if errors.Is(err, remote.ErrUnsteady) {
			err = &localError{err}
		}
		return b, err
	})
}

// create is Multipart.Create.
func (r *requests) create(ctx context.Context, key string, metadata map[string]string) (string, error) {
	return send(ctx, r, call{}, func() (string, error) {
		id, _, err := r.src.Multipart.Create(ctx, key, metadata)
		return id, err
	})
}

// uploadPart is Multipart.UploadPart. The caller has a share of the parts.
func (r *requests) uploadPart(ctx context.Context, in *state.Intent, n int32, b *localfile.Body, crc uint32) (state.Part, error) {
	part, err := send(ctx, r, call{slotless: true, progress: b}, func() (state.Part, error) {
		part, err := r.src.Multipart.UploadPart(ctx, in.Key, in.UploadID, n, b, b.Size(), crc)
		if ferr := b.Err(); err != nil && ferr != nil {
			err = ferr
		}
		return part, err
	})
	if err == nil {
		err = b.Err() // A server that answers before it has all of a part.
	}
	return part, err
}

// listParts is Multipart.ListParts. Where the server does not let parts be
// listed, none are.
func (r *requests) listParts(ctx context.Context, in *state.Intent) ([]state.Part, error) {
	return send(ctx, r, call{slotless: true, long: true}, func() ([]state.Part, error) {
		list, err := r.src.Multipart.ListParts(ctx, in.Key, in.UploadID)
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, state.ErrUnsupported) {
			return nil, nil
		}
		return list, err
	})
}

// complete is Multipart.Complete.
func (r *requests) complete(ctx context.Context, c state.Complete) (state.Object, error) {
	return send(ctx, r, call{long: true, writes: true}, func() (state.Object, error) { return r.src.Multipart.Complete(ctx, c) })
}

// abort discards the upload of in at the server, in whatever state the breaker
// is. Gone: the server does not know it, because it was aborted before or is an
// object by now. One that may not be aborted is left to the bucket's own rule for
// abandoned uploads.
func (r *requests) abort(ctx context.Context, in *state.Intent) (gone bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, abortTimeout)
	defer cancel()
	err = r.src.Multipart.Abort(ctx, in.Key, in.UploadID)
	r.breaker.Observe(err)
	switch {
	case err == nil:
		return false, nil
	case errors.Is(err, state.ErrNoUpload):
		return true, nil
	case errors.Is(err, fs.ErrPermission), errors.Is(err, state.ErrUnsupported):
		r.log.Warn("multipart upload cannot be aborted, a lifecycle rule has to remove it",
			zap.String("key", in.Key), zap.String("upload_id", in.UploadID), zap.Error(err))
		return false, nil
	default:
		return false, err
	}
}

// checks are the requests that probe the destination. They count answers that
// do not confirm the KMS key.
type checks struct {
	src     *Source
	metrics *sourceMetrics
}

// Ping is part of breaker.Checks.
func (c checks) Ping(ctx context.Context) error { return c.count(c.src.Objects.Ping(ctx)) }

// Probe is part of breaker.Checks.
func (c checks) Probe(ctx context.Context) error { return c.count(c.src.Objects.Probe(ctx)) }

func (c checks) count(err error) error {
	if state.ClassOf(err).Stops() {
		c.metrics.mismatches.Inc()
	}
	return err
}
