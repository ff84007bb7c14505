package uploader

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/localfile"
)

// partsAtOnce is how many parts of one file are sent at the same time.
const partsAtOnce = 4

// transfer sends the content of an attempt's file as the multipart upload that
// in announces.
type transfer struct {
	a  *attempt
	in *archive.Intent
}

// send sends the parts and completes the upload. What an interrupted upload of
// the same content left at the server is not sent again. Parts come straight from
// the file, and each is compared with the first reading as it is sent: a page that
// was mapped and dirty can change without a new time, and a CRC-32, which is all
// that the server compares, can be matched on purpose.
func (t transfer) send(ctx context.Context, cond archive.Condition) (archive.Object, error) {
	have, err := t.open(ctx)
	if err != nil {
		return archive.Object{}, err
	}
	f := &t.a.file
	parts := make([]archive.Part, len(f.Reading.Parts))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(partsAtOnce)
	for i := range parts {
		if gctx.Err() != nil {
			break
		}
		n := int32(i) + 1
		if part, ok := have[n]; ok {
			parts[i] = part
			t.a.flight.sent.Add(part.Size)
			continue
		}
		group.Go(func() (err error) {
			parts[i], err = t.sendPart(gctx, i, n)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return archive.Object{}, err
	}
	if err := ctx.Err(); err != nil {
		return archive.Object{}, err
	}
	if err := f.Unchanged(); err != nil {
		return archive.Object{}, err
	}
	return t.a.d.gate.Complete(ctx, archive.Complete{
		Key: t.in.Key, UploadID: t.in.UploadID, Parts: parts, Size: f.Reading.Size, CRC32: f.Reading.CRC32, If: cond,
	})
}

// open opens the upload, durably before its first part, or returns the parts
// of an interrupted one that need not be sent again.
func (t transfer) open(ctx context.Context) (have map[int32]archive.Part, err error) {
	d, in := t.a.d, t.in
	if in.UploadID != "" {
		list, err := d.gate.ListParts(ctx, in)
		if err != nil {
			return nil, err
		}
		return t.matching(list), nil
	}
	id, err := d.gate.Create(ctx, in.Key, metadata(d.src, in))
	if err != nil {
		return nil, err
	}
	in.UploadID = id
	err = d.src.State.Attempt(context.WithoutCancel(ctx), in.Attempt, in.Key, func(i *archive.Intent) {
		i.UploadID, i.PartSize = id, in.PartSize
	})
	if err != nil {
		_, aborted := d.gate.Abort(context.WithoutCancel(ctx), in)
		return nil, errors.Join(localfile.Local(archive.ClassTransient, "note the upload", err), aborted)
	}
	return nil, nil
}

// matching returns those of the server's parts that are the file's.
func (t transfer) matching(list []archive.Part) map[int32]archive.Part {
	read := &t.a.file.Reading
	have := make(map[int32]archive.Part, len(list))
	for _, part := range list {
		i := int(part.Number) - 1
		if i < 0 || i >= len(read.Parts) || part.Size != read.PartLen(i) {
			continue
		}
		if part.CRC32 != 0 && part.CRC32 != read.Parts[i].CRC32 {
			continue
		}
		part.CRC32 = read.Parts[i].CRC32 // The checksum of the whole finds what the server did not tell.
		have[part.Number] = part
	}
	return have
}

// sendPart sends part n, the i-th. A file that has changed ends the upload early.
func (t transfer) sendPart(ctx context.Context, i int, n int32) (archive.Part, error) {
	a, f := t.a, &t.a.file
	if err := a.p.parts.Acquire(ctx, a.d.src.Name, 1); err != nil {
		return archive.Part{}, err
	}
	defer a.p.parts.Release(a.d.src.Name, 1)
	if err := f.Unchanged(); err != nil {
		return archive.Part{}, err
	}
	size, sum := f.Reading.PartLen(i), f.Reading.Parts[i]
	section := f.Reading.Section(f.Opened.File, int64(i)*f.Reading.PartSize, size)
	b := localfile.NewBody(ctx, section, size, a.p.limiter, &a.flight.sent).Comparing(sum.SHA256)
	return a.d.gate.UploadPart(ctx, t.in, n, b, sum.CRC32)
}
