package s3store

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"

	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

const (
	// DefaultCopyMax is the largest object that CopyObject takes.
	// https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html
	defaultCopyMax = 5 << 30
	// DefaultCopyPart is how much a server copies in one request of a larger one:
	// little enough that its answer comes within minutes.
	defaultCopyPart = 512 << 20
	maxCopyParts    = 9000 // of the 10,000 that S3 knows
	copyPartsAtOnce = 4
	abortLimit      = 30 * time.Second
)

// copier copies objects from themselves, on the server.
type copier struct {
	o       *Options
	conn    *s3conn.Conn
	dest    *destination
	prober  *prober
	uploads *uploads
	enc     *encryption
	marks   marks
}

// Copy is Store.Copy.
func (cp *copier) Copy(ctx context.Context, c archive.Copy) (archive.Object, error) {
	if err := cp.prober.ready(ctx, s3conn.OpCopy, c.Key, archive.Condition{ETag: c.ETag}); err != nil {
		return archive.Object{}, err
	}
	out, err := cp.conn.Client.HeadObject(ctx, &s3.HeadObjectInput{
		Bucket: aws.String(cp.o.Bucket), Key: aws.String(c.Key), ExpectedBucketOwner: cp.conn.Owner(),
	})
	if err != nil {
		_, why := cp.conn.Explain(ctx, c.Key, cp.conn.Fault(ctx, s3conn.OpHead, c.Key, err))
		return archive.Object{}, why // The next try asks again.
	}
	if etag(out.ETag) != c.ETag || aws.ToInt64(out.ContentLength) != c.Size {
		return archive.Object{}, &archive.Error{Class: archive.ClassTransient, Op: s3conn.OpCopy, Err: fmt.Errorf("%q: %w", c.Key, archive.ErrPrecondition)}
	}
	var o archive.Object
	if c.Size > cp.o.CopyMax {
		o, err = cp.copyParts(ctx, c, out)
	} else {
		o, err = cp.copyWhole(ctx, c, out)
	}
	if err != nil {
		return o, err
	}
	if o, err = cp.uploads.nameKey(ctx, o); err != nil {
		return o, err
	}
	o.Metadata = c.Metadata
	return o, cp.prober.confirm(ctx, s3conn.OpCopy, o)
}

// CopyParts is Store.CopyParts.
func (cp *copier) CopyParts(size int64) int64 {
	if size <= cp.o.CopyMax {
		return 1
	}
	part := cp.copyPartSize(size)
	return (size + part - 1) / part
}

func (cp *copier) copyPartSize(size int64) int64 {
	return max(cp.o.CopyPart, (size+maxCopyParts-1)/maxCopyParts)
}

// copySource names the object for a copy.
func (cp *copier) copySource(key string) *string {
	parts := strings.Split(key, "/")
	for i, p := range parts {
		parts[i] = url.QueryEscape(p)
	}
	return aws.String(cp.o.Bucket + "/" + strings.ReplaceAll(strings.Join(parts, "/"), "+", "%20"))
}

// copyWhole copies the object that h describes in one request.
func (cp *copier) copyWhole(ctx context.Context, c archive.Copy, h *s3.HeadObjectOutput) (archive.Object, error) {
	in := &s3.CopyObjectInput{
		Bucket: aws.String(cp.o.Bucket), Key: aws.String(c.Key), CopySource: cp.copySource(c.Key),
		ExpectedBucketOwner: cp.conn.Owner(), ExpectedSourceBucketOwner: cp.conn.Owner(),
		CopySourceIfMatch: aws.String(quoted(c.ETag)),
		MetadataDirective: types.MetadataDirectiveReplace, Metadata: c.Metadata,
		TaggingDirective: types.TaggingDirectiveCopy, ChecksumAlgorithm: types.ChecksumAlgorithmSha256,
		ContentType: h.ContentType, CacheControl: h.CacheControl, ContentDisposition: h.ContentDisposition,
		ContentEncoding: h.ContentEncoding, ContentLanguage: h.ContentLanguage, Expires: expires(h),
		WebsiteRedirectLocation: h.WebsiteRedirectLocation, StorageClass: h.StorageClass,
		ObjectLockMode: h.ObjectLockMode, ObjectLockRetainUntilDate: h.ObjectLockRetainUntilDate, ObjectLockLegalHoldStatus: h.ObjectLockLegalHoldStatus,
	}
	cp.enc.encrypt(sse{&in.ServerSideEncryption, &in.SSEKMSKeyId, &in.BucketKeyEnabled, &in.SSEKMSEncryptionContext})
	own := aws.ToInt32(h.TagCount) > 0 && len(cp.marks.tags) > 0 // Else the object's tags come over by themselves.
	replace, err := cp.markCopy(ctx, c.Key, own, &in.ACL, &in.Tagging)
	if err != nil {
		return archive.Object{}, err
	}
	if replace {
		in.TaggingDirective = types.TaggingDirectiveReplace
	}
	in.IfMatch, _ = conditions(cp.dest.supported(archive.Condition{ETag: c.ETag}))
	out, err := cp.conn.Client.CopyObject(ctx, in)
	if err != nil {
		return archive.Object{}, cp.conn.Fault(ctx, s3conn.OpCopy, c.Key, err)
	}
	if out.CopyObjectResult == nil {
		return archive.Object{}, &archive.Error{Class: archive.ClassTransient, Op: s3conn.OpCopy, Err: fmt.Errorf("the answer for %q is empty", c.Key)}
	}
	o := s3conn.Stamp(archive.Object{
		Key: c.Key, Size: c.Size, ETag: etag(out.CopyObjectResult.ETag), VersionID: aws.ToString(out.VersionId),
		SSE: string(out.ServerSideEncryption), KMSKeyID: aws.ToString(out.SSEKMSKeyId), BucketKey: aws.ToBool(out.BucketKeyEnabled),
	}, out.ResultMetadata)
	return o, sameSHA256(c, aws.ToString(out.CopyObjectResult.ChecksumSHA256))
}

// sameSHA256 compares the checksum that the server computed of a copy, where
// both are known.
func sameSHA256(c archive.Copy, got string) error {
	want := base64.StdEncoding.EncodeToString(c.SHA256[:])
	if c.SHA256 == [32]byte{} || got == "" || got == want || strings.Contains(got, "-") {
		return nil
	}
	return &archive.Error{
		Class: archive.ClassFile, Op: s3conn.OpCopy,
		Err: fmt.Errorf("the copy of %q has the SHA-256 %s, its metadata says %s", c.Key, got, want),
	}
}

// copyParts copies the object that h describes in several requests. What it
// opened it aborts when it fails.
func (cp *copier) copyParts(ctx context.Context, c archive.Copy, h *s3.HeadObjectOutput) (archive.Object, error) {
	id, err := cp.createCopy(ctx, c, h)
	if err != nil {
		return archive.Object{}, err
	}
	o, err := cp.fillCopy(ctx, c, id)
	if err != nil && !ambiguousComplete(err) {
		actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortLimit)
		defer cancel()
		err = errors.Join(err, ignoreGone(cp.uploads.Abort(actx, c.Key, id)))
	}
	return o, err
}

// completeError marks what went wrong with the request that ends a copy: the
// server may have taken it.
type completeError struct{ error }

// Unwrap returns the server's error.
func (e completeError) Unwrap() error { return e.error }

func ambiguousComplete(err error) bool {
	_, is := errors.AsType[completeError](err)
	return is && !errors.Is(err, archive.ErrPrecondition)
}

func ignoreGone(err error) error {
	if errors.Is(err, archive.ErrNoUpload) {
		return nil
	}
	return err
}

// createCopy opens the multipart upload of a copy, with all that does not come
// over by itself.
func (cp *copier) createCopy(ctx context.Context, c archive.Copy, h *s3.HeadObjectOutput) (uploadID string, err error) {
	in := &s3.CreateMultipartUploadInput{
		Bucket: aws.String(cp.o.Bucket), Key: aws.String(c.Key), ExpectedBucketOwner: cp.conn.Owner(), Metadata: c.Metadata,
		ContentType: h.ContentType, CacheControl: h.CacheControl, ContentDisposition: h.ContentDisposition,
		ContentEncoding: h.ContentEncoding, ContentLanguage: h.ContentLanguage, Expires: expires(h),
		WebsiteRedirectLocation: h.WebsiteRedirectLocation, StorageClass: h.StorageClass,
		ObjectLockMode: h.ObjectLockMode, ObjectLockRetainUntilDate: h.ObjectLockRetainUntilDate, ObjectLockLegalHoldStatus: h.ObjectLockLegalHoldStatus,
	}
	if _, err := cp.markCopy(ctx, c.Key, aws.ToInt32(h.TagCount) > 0, &in.ACL, &in.Tagging); err != nil {
		return "", err
	}
	cp.enc.encrypt(sse{&in.ServerSideEncryption, &in.SSEKMSKeyId, &in.BucketKeyEnabled, &in.SSEKMSEncryptionContext})
	out, err := cp.conn.Client.CreateMultipartUpload(ctx, in)
	if err != nil {
		return "", cp.conn.Fault(ctx, s3conn.OpCreate, c.Key, err)
	}
	uploadID = aws.ToString(out.UploadId)
	o := s3conn.Stamp(archive.Object{Key: c.Key, SSE: string(out.ServerSideEncryption), KMSKeyID: aws.ToString(out.SSEKMSKeyId)}, out.ResultMetadata)
	if o.SSE != "" || o.KMSKeyID != "" { // Some servers say so only of the finished object.
		err = cp.prober.confirm(ctx, s3conn.OpCreate, o)
	}
	if err == nil && c.Opened != nil {
		err = c.Opened(uploadID)
	}
	if err != nil {
		return "", errors.Join(err, cp.uploads.Abort(context.WithoutCancel(ctx), c.Key, uploadID))
	}
	return uploadID, nil
}

// tags returns the tags of an object.
func (cp *copier) tags(ctx context.Context, key string) (url.Values, error) {
	out, err := cp.conn.Client.GetObjectTagging(ctx, &s3.GetObjectTaggingInput{
		Bucket: aws.String(cp.o.Bucket), Key: aws.String(key), ExpectedBucketOwner: cp.conn.Owner(),
	})
	if err != nil {
		return nil, cp.conn.Fault(ctx, s3conn.OpTags, key, err)
	}
	v := url.Values{}
	for _, t := range out.TagSet {
		v.Add(aws.ToString(t.Key), aws.ToString(t.Value))
	}
	return v, nil
}

// fillCopy copies the parts, several at once, and joins them.
func (cp *copier) fillCopy(ctx context.Context, c archive.Copy, uploadID string) (archive.Object, error) {
	size := cp.copyPartSize(c.Size)
	parts := make([]types.CompletedPart, (c.Size+size-1)/size)
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(copyPartsAtOnce)
	for i := range parts {
		group.Go(func() (err error) {
			first := int64(i) * size
			parts[i], err = cp.copyPart(gctx, c, uploadID, int32(i)+1, first, min(first+size, c.Size)-1)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return archive.Object{}, err
	}
	in := &s3.CompleteMultipartUploadInput{
		Bucket: aws.String(cp.o.Bucket), Key: aws.String(c.Key), ExpectedBucketOwner: cp.conn.Owner(), UploadId: aws.String(uploadID),
		MpuObjectSize: aws.Int64(c.Size), MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
	}
	in.IfMatch, _ = conditions(cp.dest.supported(archive.Condition{ETag: c.ETag}))
	out, err := cp.conn.Client.CompleteMultipartUpload(ctx, in)
	if err != nil {
		return archive.Object{}, completeError{cp.conn.Fault(ctx, s3conn.OpComplete, c.Key, err)}
	}
	return s3conn.Stamp(archive.Object{
		Key: c.Key, Size: c.Size, ETag: etag(out.ETag), VersionID: aws.ToString(out.VersionId),
		SSE: string(out.ServerSideEncryption), KMSKeyID: aws.ToString(out.SSEKMSKeyId), BucketKey: aws.ToBool(out.BucketKeyEnabled),
	}, out.ResultMetadata), nil
}

// copyPart copies the bytes from first to last as part n.
func (cp *copier) copyPart(ctx context.Context, c archive.Copy, uploadID string, n int32, first, last int64) (types.CompletedPart, error) {
	out, err := cp.conn.Client.UploadPartCopy(ctx, &s3.UploadPartCopyInput{
		Bucket: aws.String(cp.o.Bucket), Key: aws.String(c.Key), UploadId: aws.String(uploadID), PartNumber: aws.Int32(n),
		CopySource: cp.copySource(c.Key), CopySourceRange: aws.String(fmt.Sprintf("bytes=%d-%d", first, last)),
		CopySourceIfMatch: aws.String(quoted(c.ETag)), ExpectedBucketOwner: cp.conn.Owner(), ExpectedSourceBucketOwner: cp.conn.Owner(),
	})
	switch {
	case err != nil:
		return types.CompletedPart{}, cp.conn.Fault(ctx, s3conn.OpPartCopy, c.Key, err)
	case out.CopyPartResult == nil:
		return types.CompletedPart{}, &archive.Error{Class: archive.ClassTransient, Op: s3conn.OpPartCopy, Err: fmt.Errorf("the answer for %q is empty", c.Key)}
	}
	return types.CompletedPart{PartNumber: aws.Int32(n), ETag: out.CopyPartResult.ETag}, nil
}

// expires returns the object's Expires header, nil for none or one that is no
// time.
func expires(h *s3.HeadObjectOutput) *time.Time {
	t, err := http.ParseTime(aws.ToString(h.ExpiresString))
	if err != nil {
		return nil
	}
	return aws.Time(t)
}
