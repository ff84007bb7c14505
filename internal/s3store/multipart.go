package s3store

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// uploads are multipart uploads.
type uploads struct {
	o      *Options
	conn   *s3conn.Conn
	req    *requests
	dest   *destination
	prober *prober
	enc    *encryption
	marks  marks

	// The server's answers to CreateMultipartUpload do not name the key, so
	// those to UploadPart have to.
	silentCreate atomic.Bool
}

// Create begins a multipart upload under the configured key. When the server
// names another key or algorithm the upload is aborted again before any part
// is sent. A server that names none at all (MinIO) has to do so in its answer
// to each part. The returned object has Key, ServerTime and what was named.
func (u *uploads) Create(ctx context.Context, key string, metadata map[string]string) (uploadID string, o archive.Object, err error) {
	if err := u.prober.ready(ctx, s3conn.OpCreate, key, archive.Condition{}); err != nil {
		return "", archive.Object{}, err
	}
	in := &s3.CreateMultipartUploadInput{
		Bucket: aws.String(u.o.Bucket), Key: aws.String(key), ExpectedBucketOwner: u.conn.Owner(),
		ContentType: aws.String(contentBinary), Metadata: metadata, StorageClass: types.StorageClass(u.o.StorageClass),
		ChecksumAlgorithm: types.ChecksumAlgorithmCrc32, ChecksumType: types.ChecksumTypeFullObject,
	}
	u.enc.encrypt(sse{&in.ServerSideEncryption, &in.SSEKMSKeyId, &in.BucketKeyEnabled, &in.SSEKMSEncryptionContext})
	u.marks.mark(&in.ACL, &in.Tagging)
	out, err := u.conn.Client.CreateMultipartUpload(ctx, in)
	if err != nil {
		return "", archive.Object{}, u.conn.Fault(ctx, s3conn.OpCreate, key, err)
	}
	uploadID = aws.ToString(out.UploadId)
	o = s3conn.Stamp(archive.Object{
		Key: key, SSE: string(out.ServerSideEncryption), KMSKeyID: aws.ToString(out.SSEKMSKeyId),
		BucketKey: aws.ToBool(out.BucketKeyEnabled), Metadata: metadata,
	}, out.ResultMetadata)
	if o.SSE == "" && o.KMSKeyID == "" {
		u.silentCreate.Store(true)
		return uploadID, o, nil
	}
	if err := u.prober.confirm(ctx, s3conn.OpCreate, o); err != nil {
		return "", o, errors.Join(err, u.Abort(context.WithoutCancel(ctx), key, uploadID))
	}
	return uploadID, o, nil
}

// UploadPart sends one part, exactly size bytes of body from its start, whose
// CRC-32 (IEEE) is crc. The server refuses a part that differs (class changed).
// Parts may be sent at the same time, and sent again.
func (u *uploads) UploadPart(ctx context.Context, key, uploadID string, n int32, body io.ReadSeeker, size int64, crc uint32) (archive.Part, error) {
	b, err := s3conn.NewBody(body, size)
	if err != nil {
		return archive.Part{}, s3conn.Classify(s3conn.OpPart, key, err)
	}
	out, err := u.conn.Client.UploadPart(ctx, &s3.UploadPartInput{
		Bucket: aws.String(u.o.Bucket), Key: aws.String(key), ExpectedBucketOwner: u.conn.Owner(), UploadId: aws.String(uploadID),
		PartNumber: aws.Int32(n), Body: b, ContentLength: aws.Int64(size), ChecksumCRC32: aws.String(encodeCRC(crc)),
	}, unsignedPayload)
	if err != nil {
		return archive.Part{}, u.conn.Fault(ctx, s3conn.OpPart, key, err)
	}
	o := s3conn.Stamp(archive.Object{
		Key: key, SSE: string(out.ServerSideEncryption), KMSKeyID: aws.ToString(out.SSEKMSKeyId),
	}, out.ResultMetadata)
	if o.SSE != "" || o.KMSKeyID != "" || u.silentCreate.Load() {
		if err := u.prober.confirm(ctx, s3conn.OpPart, o); err != nil {
			return archive.Part{}, err
		}
	}
	return archive.Part{Number: n, Size: size, ETag: etag(out.ETag), CRC32: crc}, nil
}

// Complete makes an object of the parts. The server compares c.CRC32 with what
// it received and refuses when they differ (class changed, no object). Where
// its answer does not name the key, a HEAD finds it out. An error with class
// transient may hide a success: a HEAD tells.
func (u *uploads) Complete(ctx context.Context, c archive.Complete) (archive.Object, error) {
	if err := checkParts(c); err != nil {
		return archive.Object{}, &archive.Error{Class: archive.ClassChanged, Op: s3conn.OpComplete, Err: err}
	}
	if err := u.prober.ready(ctx, s3conn.OpComplete, c.Key, c.If); err != nil {
		return archive.Object{}, err
	}
	in := &s3.CompleteMultipartUploadInput{
		Bucket: aws.String(u.o.Bucket), Key: aws.String(c.Key), ExpectedBucketOwner: u.conn.Owner(), UploadId: aws.String(c.UploadID),
		ChecksumCRC32: aws.String(encodeCRC(c.CRC32)), ChecksumType: types.ChecksumTypeFullObject, MpuObjectSize: aws.Int64(c.Size),
		MultipartUpload: &types.CompletedMultipartUpload{Parts: completedParts(c.Parts)},
	}
	in.IfMatch, in.IfNoneMatch = conditions(u.dest.supported(c.If))
	out, err := u.conn.Client.CompleteMultipartUpload(ctx, in)
	if err != nil {
		return archive.Object{}, u.conn.Fault(ctx, s3conn.OpComplete, c.Key, err)
	}
	o := s3conn.Stamp(archive.Object{
		Key: c.Key, Size: c.Size, ETag: etag(out.ETag), VersionID: aws.ToString(out.VersionId),
		SSE: string(out.ServerSideEncryption), KMSKeyID: aws.ToString(out.SSEKMSKeyId), BucketKey: aws.ToBool(out.BucketKeyEnabled),
	}, out.ResultMetadata)
	if o, err = u.nameKey(ctx, o); err != nil {
		return o, err
	}
	return o, u.prober.confirm(ctx, s3conn.OpComplete, o)
}

// nameKey asks for the encryption of an object whose answer to Complete did
// not tell. If another write has taken its place the answer to Create, which
// was checked, has to do, and the caller's condition shows the rest.
func (u *uploads) nameKey(ctx context.Context, o archive.Object) (archive.Object, error) {
	if o.SSE != "" && o.KMSKeyID != "" {
		return o, nil
	}
	h, err := u.req.Head(ctx, o.Key)
	if err != nil {
		return o, fmt.Errorf("after %s: %w", s3conn.OpComplete, err)
	}
	if h.ETag != o.ETag {
		return o, &archive.Error{Class: archive.ClassTransient, Op: s3conn.OpComplete, Err: fmt.Errorf("%q was replaced before its encryption could be checked", o.Key)}
	}
	o.SSE, o.KMSKeyID, o.BucketKey, o.Metadata = h.SSE, h.KMSKeyID, h.BucketKey, h.Metadata
	return o, nil
}

// checkParts finds what the server need not be asked about.
func checkParts(c archive.Complete) error {
	var size int64
	for i, p := range c.Parts {
		if int(p.Number) != i+1 {
			return fmt.Errorf("part %d stands in the place of part %d", p.Number, i+1)
		}
		size += p.Size
	}
	if size != c.Size {
		return fmt.Errorf("the parts have %d bytes, the object has %d", size, c.Size)
	}
	return nil
}

// Abort gives up a multipart upload and what was sent of it. One that is not
// known is state.ErrNoUpload.
func (u *uploads) Abort(ctx context.Context, key, uploadID string) error {
	_, err := u.conn.Client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{
		Bucket: aws.String(u.o.Bucket), Key: aws.String(key), ExpectedBucketOwner: u.conn.Owner(), UploadId: aws.String(uploadID),
	})
	if err != nil {
		return u.conn.Fault(ctx, s3conn.OpAbort, key, err)
	}
	return nil
}

// ListParts returns all parts that a multipart upload has received, in order.
// A part whose CRC-32 the server does not tell has 0.
func (u *uploads) ListParts(ctx context.Context, key, uploadID string) ([]archive.Part, error) {
	var parts []archive.Part
	pages := s3.NewListPartsPaginator(u.conn.Client, &s3.ListPartsInput{
		Bucket: aws.String(u.o.Bucket), Key: aws.String(key), ExpectedBucketOwner: u.conn.Owner(), UploadId: aws.String(uploadID),
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, u.conn.Fault(ctx, s3conn.OpParts, key, err)
		}
		for _, p := range page.Parts {
			parts = append(parts, archive.Part{
				Number: aws.ToInt32(p.PartNumber), Size: aws.ToInt64(p.Size), ETag: etag(p.ETag), CRC32: decodeCRC(p.ChecksumCRC32),
			})
		}
	}
	return parts, nil
}

func completedParts(parts []archive.Part) []types.CompletedPart {
	out := make([]types.CompletedPart, len(parts))
	for i, p := range parts {
		out[i] = types.CompletedPart{
			PartNumber: aws.Int32(p.Number), ETag: aws.String(quoted(p.ETag)), ChecksumCRC32: aws.String(encodeCRC(p.CRC32)),
		}
	}
	return out
}

func encodeCRC(crc uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc))
}

func decodeCRC(s *string) uint32 {
	b, err := base64.StdEncoding.DecodeString(aws.ToString(s))
	if err != nil || len(b) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}
