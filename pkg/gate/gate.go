// Package gate sends the requests of one destination: each waits for a slot, goes
// through the circuit breaker, is watched while it is under way, and tells the
// breaker how it ended.
package gate

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/breaker"
	"github.com/s3syncd/s3syncd/pkg/localfile"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/remote"
)

// abortTimeout bounds a request that discards a multipart upload.
const abortTimeout = 30 * time.Second

// Objects is the object store of one source. Every write that it sends carries
// the configured key, and it checks every answer: an answer without that key is
// an *archive.Error of class encryption. Absence is io/fs.ErrNotExist, a refusal
// io/fs.ErrPermission. All methods may be called concurrently.
type Objects interface {
	// Head asks for one object.
	Head(ctx context.Context, key string) (archive.Object, error)
	// Put writes one object in one request.
	Put(ctx context.Context, p archive.Put) (archive.Object, error)
	// Delete removes the current version of key if cond holds.
	Delete(ctx context.Context, key string, cond archive.Condition) (archive.Object, error)
	// Ping is one cheap request. Nil means that the server answers at all.
	Ping(ctx context.Context) error
	// Probe is the canary. Nil means that this destination works and encrypts.
	Probe(ctx context.Context) error
}

// Multipart is the store's multipart half, under the same rules as Objects.
type Multipart interface {
	// Create opens an upload. Its answer's encryption is checked.
	Create(ctx context.Context, key string, metadata map[string]string) (uploadID string, o archive.Object, err error)
	// UploadPart sends part n, whose CRC-32 the server checks.
	UploadPart(ctx context.Context, key, uploadID string, n int32, body io.ReadSeeker, size int64, crc uint32) (archive.Part, error)
	// Complete joins the parts. The server checks the CRC-32 of the whole.
	Complete(ctx context.Context, c archive.Complete) (archive.Object, error)
	// Abort discards an upload; ErrNoUpload when it is not there.
	Abort(ctx context.Context, key, uploadID string) error
	// ListParts lists what the server holds of an upload.
	ListParts(ctx context.Context, key, uploadID string) ([]archive.Part, error)
}

// Store is where the requests go.
type Store struct {
	Objects   Objects
	Multipart Multipart
	// Copy, optional, writes an object onto itself under the configured KMS key,
	// under the same rules as Objects.
	Copy func(ctx context.Context, c archive.Copy) (archive.Object, error)
	// Fetch, optional, reads an object.
	Fetch remote.Fetch
}

// Gate sends the requests of one destination. Its methods may be called
// concurrently. They block until there is a slot, and fail with breaker.ErrHeld
// where the breaker does not let a request pass.
type Gate struct {
	Monitor breaker.Monitor // Of the requests under way.

	source  string
	store   *Store
	log     *zap.Logger
	breaker *breaker.Breaker
	all     *queue.Shares                    // Requests at once, of all destinations.
	lanes   [queue.Lanes]*semaphore.Weighted // And of this one from a lane on; nil: LaneTiny has all.
}

// New returns the gate of source's destination, which shares all with the others.
func New(source string, s *Store, b *breaker.Breaker, all *queue.Shares, log *zap.Logger) *Gate {
	g := &Gate{source: source, store: s, log: log, breaker: b, all: all}
	for l := queue.LaneSmall; l < queue.Lanes; l++ {
		g.lanes[l] = semaphore.NewWeighted(max(1, all.Most()-int64(min(l, queue.LaneWhole))))
	}
	return g
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
func send[T any](ctx context.Context, g *Gate, c call, do func() (T, error)) (T, error) {
	leave, err := g.enter(ctx, c)
	if err != nil {
		var none T
		return none, err
	}
	defer leave()
	if !c.long {
		defer g.Monitor.Begin(c.progress)()
	}
	v, err := do()
	if !localfile.IsLocal(err) {
		g.breaker.Observe(err)
	}
	if err == nil && c.writes {
		g.breaker.Wrote()
	}
	return v, err
}

// enter waits until the request may be sent. One that had to wait is not sent
// to a destination that went out of service in the meantime.
func (g *Gate) enter(ctx context.Context, c call) (leave func(), err error) {
	if c.slotless {
		return func() {}, g.breaker.Allow()
	}
	waited, own := false, g.lanes[queue.LaneOf(c.size, c.size)]
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
	if !g.all.Take(g.source, 1) {
		waited = true
		if err := g.all.Acquire(ctx, g.source, 1); err != nil {
			leaveLane()
			return nil, err
		}
	}
	leave = func() {
		g.all.Release(g.source, 1)
		leaveLane()
	}
	allow := g.breaker.Allow
	if waited {
		allow = g.breaker.AllowLate
	}
	if err := allow(); err != nil {
		leave()
		return nil, err
	}
	return leave, nil
}

// Head is Objects.Head.
func (g *Gate) Head(ctx context.Context, key string) (archive.Object, error) {
	return send(ctx, g, call{}, func() (archive.Object, error) { return g.store.Objects.Head(ctx, key) })
}

// Put is Objects.Put, of body.
func (g *Gate) Put(ctx context.Context, p archive.Put, body *localfile.Body) (archive.Object, error) {
	p.Body, p.Size = body, body.Size()
	o, err := send(ctx, g, call{size: p.Size, progress: body, writes: true}, func() (archive.Object, error) {
		return g.store.Objects.Put(ctx, p)
	})
	if ferr := body.Err(); err != nil && ferr != nil {
		err = ferr
	}
	return o, err
}

// Delete is Objects.Delete.
func (g *Gate) Delete(ctx context.Context, key string, cond archive.Condition) (archive.Object, error) {
	return send(ctx, g, call{}, func() (archive.Object, error) { return g.store.Objects.Delete(ctx, key, cond) })
}

// Copy is Store.Copy.
func (g *Gate) Copy(ctx context.Context, c archive.Copy) (archive.Object, error) {
	return send(ctx, g, call{long: true, writes: true}, func() (archive.Object, error) {
		if g.store.Copy == nil {
			return archive.Object{}, localfile.Local(archive.ClassConfiguration, "copy", errors.ErrUnsupported)
		}
		return g.store.Copy(ctx, c)
	})
}

// Compare reads o and compares its bytes with c, as remote.Judge.Read has it.
func (g *Gate) Compare(ctx context.Context, o archive.Object, c localfile.Content) (remote.Bytes, error) {
	if !remote.Readable(g.store.Fetch, o, c) {
		return remote.BytesOther, nil
	}
	p := new(localfile.Progress)
	return send(ctx, g, call{size: o.Size, progress: p}, func() (remote.Bytes, error) {
		return remote.ReadObject(ctx, g.store.Fetch, o, c, p)
	})
}

// Create is Multipart.Create.
func (g *Gate) Create(ctx context.Context, key string, metadata map[string]string) (string, error) {
	return send(ctx, g, call{}, func() (string, error) {
		id, _, err := g.store.Multipart.Create(ctx, key, metadata)
		return id, err
	})
}

// UploadPart is Multipart.UploadPart. The caller has a share of the parts.
func (g *Gate) UploadPart(ctx context.Context, in *archive.Intent, n int32, b *localfile.Body, crc uint32) (archive.Part, error) {
	part, err := send(ctx, g, call{slotless: true, progress: b}, func() (archive.Part, error) {
		part, err := g.store.Multipart.UploadPart(ctx, in.Key, in.UploadID, n, b, b.Size(), crc)
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

// ListParts is Multipart.ListParts. Where the server does not let parts be
// listed, none are.
func (g *Gate) ListParts(ctx context.Context, in *archive.Intent) ([]archive.Part, error) {
	return send(ctx, g, call{slotless: true, long: true}, func() ([]archive.Part, error) {
		list, err := g.store.Multipart.ListParts(ctx, in.Key, in.UploadID)
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, archive.ErrUnsupported) {
			return nil, nil
		}
		return list, err
	})
}

// Complete is Multipart.Complete.
func (g *Gate) Complete(ctx context.Context, c archive.Complete) (archive.Object, error) {
	return send(ctx, g, call{long: true, writes: true}, func() (archive.Object, error) { return g.store.Multipart.Complete(ctx, c) })
}

// Abort discards the upload of in at the server, in whatever state the breaker
// is. Gone: the server does not know it, because it was aborted before or is an
// object by now. One that may not be aborted is left to the bucket's own rule for
// abandoned uploads.
func (g *Gate) Abort(ctx context.Context, in *archive.Intent) (gone bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, abortTimeout)
	defer cancel()
	err = g.store.Multipart.Abort(ctx, in.Key, in.UploadID)
	g.breaker.Observe(err)
	switch {
	case err == nil:
		return false, nil
	case errors.Is(err, archive.ErrNoUpload):
		return true, nil
	case errors.Is(err, fs.ErrPermission), errors.Is(err, archive.ErrUnsupported):
		g.log.Warn("multipart upload cannot be aborted, a lifecycle rule has to remove it",
			zap.String("key", in.Key), zap.String("upload_id", in.UploadID), zap.Error(err))
		return false, nil
	default:
		return false, err
	}
}
