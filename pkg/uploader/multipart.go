package uploader

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/s3syncd/s3syncd/pkg/state"
)

const (
	// PartsAtOnce is how many parts of one file are sent at the same time.
	partsAtOnce  = 4
	abortTimeout = 30 * time.Second
)

// continues reports whether in is an upload of exactly what was read.
func (l *look) continues(in *state.Intent) bool {
	return in.Op == state.OpMultipart && in.UploadID != "" && in.PartSize > 0 && in.PartSize == l.read.partSize &&
		in.Fence.SameContent(l.fence) && in.MD5 == l.read.md5 && in.SHA256 == l.read.sha256
}

// sendParts sends the content as a multipart upload: what an interrupted one
// of the same content left at the server is not sent again. Parts come straight
// from the file, and each is compared with the first reading as it is sent: a page
// that was mapped and dirty can change without a new time, and a CRC-32, which is
// all that the server compares, can be matched on purpose.
func (l *look) sendParts(ctx context.Context, in *state.Intent, cond state.Condition) (state.Object, error) {
	have, err := l.openUpload(ctx, in)
	if err != nil {
		return state.Object{}, err
	}
	parts, err := l.missingParts(ctx, in, have)
	if err != nil {
		return state.Object{}, err
	}
	if err := sameFence(l.file.File, l.fence); err != nil {
		return state.Object{}, err
	}
	return l.complete(ctx, state.Complete{
		Key: l.key, UploadID: in.UploadID, Parts: parts, Size: l.read.size, CRC32: l.read.crc, If: cond,
	})
}

// openUpload opens the upload, durably before its first part, or lists what
// the server holds of it.
func (l *look) openUpload(ctx context.Context, in *state.Intent) (map[int32]state.Part, error) {
	if in.UploadID != "" {
		return l.listParts(ctx, in)
	}
	id, err := l.create(ctx, l.key, l.metadata(in))
	if err != nil {
		return nil, err
	}
	in.UploadID = id
	err = l.State.Attempt(context.WithoutCancel(ctx), in.Attempt, in.Key, func(i *state.Intent) {
		i.UploadID, i.PartSize = id, in.PartSize
	})
	if err != nil {
		_, aborted := l.abort(context.WithoutCancel(ctx), in)
		return nil, errors.Join(local(state.ClassTransient, "note the upload", err), aborted)
	}
	return nil, nil
}

// listParts returns the parts that need not be sent again. Where the server
// does not let them be listed, that is none.
func (l *look) listParts(ctx context.Context, in *state.Intent) (map[int32]state.Part, error) {
	if err := l.gate(); err != nil {
		return nil, err
	}
	list, err := l.Multipart.ListParts(ctx, in.Key, in.UploadID)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, state.ErrUnsupported) {
		l.observe(nil)
		return nil, nil
	}
	l.observe(err)
	if err != nil {
		return nil, err
	}
	have := make(map[int32]state.Part, len(list))
	for _, part := range list {
		i := int(part.Number) - 1
		if i < 0 || i >= len(l.read.parts) || part.Size != l.partLen(i) {
			continue
		}
		if part.CRC32 != 0 && part.CRC32 != l.read.parts[i].crc {
			continue
		}
		part.CRC32 = l.read.parts[i].crc // The checksum of the whole finds what the server did not tell.
		have[part.Number] = part
	}
	return have, nil
}

// missingParts sends every part that is not in have, several at once, and
// returns all of them in order.
func (l *look) missingParts(ctx context.Context, in *state.Intent, have map[int32]state.Part) ([]state.Part, error) {
	parts := make([]state.Part, len(l.read.parts))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(partsAtOnce)
	for i := range parts {
		if gctx.Err() != nil {
			break
		}
		n := int32(i) + 1
		if part, ok := have[n]; ok {
			parts[i] = part
			l.f.sent.Add(part.Size)
			continue
		}
		group.Go(func() (err error) {
			parts[i], err = l.sendPart(gctx, in, i, n)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return parts, ctx.Err()
}

// sendPart sends part n, the i-th. A file that has moved ends the upload early.
func (l *look) sendPart(ctx context.Context, in *state.Intent, i int, n int32) (state.Part, error) {
	if err := l.p.parts.Acquire(ctx, l.Name, 1); err != nil {
		return state.Part{}, err
	}
	defer l.p.parts.Release(l.Name, 1)
	if err := sameFence(l.file.File, l.fence); err != nil {
		return state.Part{}, err
	}
	r := l.read.section(l.file.File, int64(i)*l.read.partSize, l.partLen(i))
	sum := l.read.parts[i]
	b := newBody(ctx, r, l.partLen(i), l.p.limiter, &l.f.sent).comparing(sum.sha256)
	part, err := l.uploadPart(ctx, in, n, b, sum.crc)
	if err == nil {
		err = b.err() // A server that answers before it has all of a part.
	}
	return part, err
}

// partLen is the size of the i-th part.
func (l *look) partLen(i int) int64 {
	return min(l.read.partSize, l.read.size-int64(i)*l.read.partSize)
}

// abort discards the upload of in at the server. Gone: the server does not know
// it, because it was aborted before or is an object by now. One that may not be
// aborted is left to the bucket's own rule for abandoned uploads.
func (l *look) abort(ctx context.Context, in *state.Intent) (gone bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, abortTimeout)
	defer cancel()
	err = l.Multipart.Abort(ctx, in.Key, in.UploadID)
	l.observe(err)
	switch {
	case err == nil:
		return false, nil
	case errors.Is(err, state.ErrNoUpload):
		return true, nil
	case errors.Is(err, fs.ErrPermission), errors.Is(err, state.ErrUnsupported):
		l.log.Warn("multipart upload cannot be aborted, a lifecycle rule has to remove it",
			zap.String("key", in.Key), zap.String("upload_id", in.UploadID), zap.Error(err))
		return false, nil
	default:
		return false, err
	}
}
