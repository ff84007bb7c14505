package s3store

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

const (
	ifAbsent      = "*"
	metaInstance  = "s3syncd-instance"
	contentBinary = "application/octet-stream"
	day           = 24 * time.Hour
)

// requests are single requests, with nothing asked before and nothing judged
// after them.
type requests struct {
	o     *Options
	conn  *s3conn.Conn
	enc   *encryption // nil: for reading only
	marks marks
}

// Head asks for one object. An absent one is io/fs.ErrNotExist; so is any in a
// bucket that does not exist, because S3's answer is the same. A refused
// request is io/fs.ErrPermission.
func (r *requests) Head(ctx context.Context, key string) (archive.Object, error) {
	return r.HeadVersion(ctx, key, "")
}

// HeadVersion is Head for one version, or the current object for "".
func (r *requests) HeadVersion(ctx context.Context, key, version string) (archive.Object, error) {
	o, err := r.headOnce(ctx, key, version)
	if err == nil {
		return o, nil
	}
	again, err := r.conn.Explain(ctx, key, err)
	if !again {
		return o, err
	}
	return r.headOnce(ctx, key, version)
}

// headOnce is HeadVersion without a second question about a refusal.
func (r *requests) headOnce(ctx context.Context, key, version string) (archive.Object, error) {
	out, err := r.conn.Client.HeadObject(ctx, &s3.HeadObjectInput{
		Bucket: aws.String(r.o.Bucket), Key: aws.String(key), VersionId: s3conn.Optional(version), ExpectedBucketOwner: r.conn.Owner(),
	})
	if err != nil {
		return archive.Object{}, r.conn.Fault(ctx, s3conn.OpHead, key, err)
	}
	return s3conn.Stamp(archive.Object{
		Key: key, Size: aws.ToInt64(out.ContentLength), ETag: etag(out.ETag), VersionID: aws.ToString(out.VersionId),
		SSE: string(out.ServerSideEncryption), KMSKeyID: aws.ToString(out.SSEKMSKeyId), BucketKey: aws.ToBool(out.BucketKeyEnabled),
		Metadata: out.Metadata, LastModified: aws.ToTime(out.LastModified), Dressed: r.dressed(out),
	}, out.ResultMetadata), nil
}

// Put stores one object under the configured key, and returns only when the
// server has confirmed that key. The server refuses a body that does not match
// p.MD5 and p.SHA256 (class changed). The body is read once an attempt.
func (s *Store) Put(ctx context.Context, p archive.Put) (archive.Object, error) {
	in := &s3.PutObjectInput{
		ContentType: aws.String(contentBinary), Metadata: p.Metadata, StorageClass: types.StorageClass(s.o.StorageClass),
	}
	return s.put(ctx, in, p)
}

// CreateDoc stores one document of the trail under the configured key, and
// only where nothing stands: else state.ErrPrecondition. It carries the
// configured retention.
func (s *Store) CreateDoc(ctx context.Context, key string, body io.ReadSeeker, size int64, md5 [16]byte, sha [32]byte, contentType string) (archive.Object, error) {
	in := &s3.PutObjectInput{ContentType: aws.String(contentType), Metadata: map[string]string{metaInstance: s.o.Instance}}
	if s.o.ObjectLock.Mode != "" {
		in.ObjectLockMode = types.ObjectLockMode(s.o.ObjectLock.Mode)
		in.ObjectLockRetainUntilDate = aws.Time(s.conn.Now().Add(time.Duration(s.o.ObjectLock.Days) * day))
	}
	return s.put(ctx, in, archive.Put{Key: key, Body: body, Size: size, MD5: md5, SHA256: sha, If: archive.Condition{Absent: true}})
}

// put is the only caller of PutObject.
func (s *Store) put(ctx context.Context, in *s3.PutObjectInput, p archive.Put) (archive.Object, error) {
	if err := s.prober.ready(ctx, s3conn.OpPut, p.Key, p.If); err != nil {
		return archive.Object{}, err
	}
	p.If = s.dest.supported(p.If)
	o, err := s.putOnce(ctx, in, p)
	if err != nil {
		return o, err
	}
	return o, s.prober.confirm(ctx, s3conn.OpPut, o)
}

// putOnce sends a PutObject with the configured encryption and leaves judging
// the answer to the caller.
func (r *requests) putOnce(ctx context.Context, in *s3.PutObjectInput, p archive.Put) (archive.Object, error) {
	body, err := s3conn.NewBody(p.Body, p.Size)
	if err != nil {
		return archive.Object{}, s3conn.Classify(s3conn.OpPut, p.Key, err)
	}
	in.Bucket, in.Key, in.ExpectedBucketOwner = aws.String(r.o.Bucket), aws.String(p.Key), r.conn.Owner()
	in.Body, in.ContentLength = body, aws.Int64(p.Size)
	in.ContentMD5 = aws.String(base64.StdEncoding.EncodeToString(p.MD5[:]))
	in.ChecksumSHA256 = aws.String(base64.StdEncoding.EncodeToString(p.SHA256[:]))
	r.enc.encrypt(sse{&in.ServerSideEncryption, &in.SSEKMSKeyId, &in.BucketKeyEnabled, &in.SSEKMSEncryptionContext})
	r.marks.mark(&in.ACL, &in.Tagging)
	in.IfMatch, in.IfNoneMatch = conditions(p.If)
	out, h, err := r.conn.Wire.Put(ctx, in, body)
	if err != nil {
		return archive.Object{}, r.conn.Fault(ctx, s3conn.OpPut, p.Key, err)
	}
	return h.Stamp(archive.Object{
		Key: p.Key, Size: p.Size, ETag: etag(out.ETag), VersionID: aws.ToString(out.VersionId),
		SSE: string(out.ServerSideEncryption), KMSKeyID: aws.ToString(out.SSEKMSKeyId), BucketKey: aws.ToBool(out.BucketKeyEnabled),
		Metadata: p.Metadata,
	}), nil
}

// Delete removes one object; on a versioned bucket it becomes a noncurrent
// version behind a delete marker, whose version is returned. An absent object
// is no error where the server treats it so. Only If-Match can be asked for; it
// costs a HEAD, because some servers ignore it for deletions.
func (s *Store) Delete(ctx context.Context, key string, c archive.Condition) (archive.Object, error) {
	if c.Absent {
		return archive.Object{}, &archive.Error{Class: archive.ClassConfiguration, Op: s3conn.OpDelete, Err: errors.New("a deletion cannot ask for absence")}
	}
	if c.ETag != "" {
		// MinIO honors If-Match on writes and ignores it here.
		if err := s.prober.compare(ctx, s3conn.OpDelete, key, c); err != nil {
			return archive.Object{}, err
		}
	}
	ifMatch, _ := conditions(s.dest.supported(c))
	out, err := s.conn.Client.DeleteObject(ctx, &s3.DeleteObjectInput{
		Bucket: aws.String(s.o.Bucket), Key: aws.String(key), ExpectedBucketOwner: s.conn.Owner(), IfMatch: ifMatch,
	})
	if err != nil {
		return archive.Object{}, s.conn.Fault(ctx, s3conn.OpDelete, key, err)
	}
	return s3conn.Stamp(archive.Object{Key: key, VersionID: aws.ToString(out.VersionId)}, out.ResultMetadata), nil
}

// Get reads one object. The caller closes the reader, whose errors are
// classified like all others.
func (r *requests) Get(ctx context.Context, key string) (io.ReadCloser, archive.Object, error) {
	out, err := r.conn.Client.GetObject(ctx, &s3.GetObjectInput{
		Bucket: aws.String(r.o.Bucket), Key: aws.String(key), ExpectedBucketOwner: r.conn.Owner(),
	})
	if err != nil {
		return nil, archive.Object{}, r.conn.Fault(ctx, s3conn.OpGet, key, err)
	}
	return &download{ReadCloser: out.Body, key: key}, s3conn.Stamp(archive.Object{
		Key: key, Size: aws.ToInt64(out.ContentLength), ETag: etag(out.ETag), VersionID: aws.ToString(out.VersionId),
		SSE: string(out.ServerSideEncryption), KMSKeyID: aws.ToString(out.SSEKMSKeyId), BucketKey: aws.ToBool(out.BucketKeyEnabled),
		Metadata: out.Metadata, LastModified: aws.ToTime(out.LastModified),
	}, out.ResultMetadata), nil
}

// download classifies what goes wrong after an answer began.
type download struct {
	io.ReadCloser

	key string
}

func (d *download) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = s3conn.Classify(s3conn.OpGet, d.key, err)
	}
	return n, err
}

// List calls fn for every object whose key begins with prefix and comes after
// startAfter ("" for all), in the order of the keys' bytes. It holds one page
// in memory, and ends with the first error of fn, which it returns as it is.
func (r *requests) List(ctx context.Context, prefix, startAfter string, fn func(archive.Object) error) error {
	in := &s3.ListObjectsV2Input{
		Bucket: aws.String(r.o.Bucket), Prefix: aws.String(prefix), ExpectedBucketOwner: r.conn.Owner(),
		EncodingType: types.EncodingTypeUrl, // Else a control character in one key makes its page unreadable.
	}
	if startAfter != "" {
		in.StartAfter = aws.String(startAfter)
	}
	for pages := s3.NewListObjectsV2Paginator(r.conn.Client, in); pages.HasMorePages(); {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return r.conn.Fault(ctx, s3conn.OpList, prefix, err)
		}
		for _, c := range page.Contents {
			o := archive.Object{Size: aws.ToInt64(c.Size), ETag: etag(c.ETag), LastModified: aws.ToTime(c.LastModified)}
			if o.Key, err = listedKey(aws.ToString(c.Key), page.EncodingType); err != nil {
				return &archive.Error{Class: archive.ClassTransient, Op: s3conn.OpList, Err: err}
			}
			if err := fn(s3conn.Stamp(o, page.ResultMetadata)); err != nil {
				return err
			}
		}
	}
	return nil
}

// listedKey decodes a key of a listing, unless the server ignored that a
// decodable form was asked for.
func listedKey(key string, encoding types.EncodingType) (string, error) {
	if encoding != types.EncodingTypeUrl {
		return key, nil
	}
	k, err := url.QueryUnescape(key)
	if err != nil {
		return "", fmt.Errorf("decode listed key: %w", err)
	}
	return k, nil
}

// unsignedPayload spares reading the body a second time to sign it: the server
// checks it by the checksums that every body goes out with.
func unsignedPayload(o *s3.Options) {
	o.APIOptions = append(o.APIOptions, v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware)
}

func etag(e *string) string { return strings.Trim(aws.ToString(e), `"`) }

func quoted(etag string) string { return `"` + etag + `"` }

// dressed reports whether the object carries what a new upload would not.
func (r *requests) dressed(h *s3.HeadObjectOutput) bool {
	for _, p := range []*string{
		h.CacheControl, h.ContentDisposition, h.ContentEncoding, h.ContentLanguage, h.ExpiresString, h.WebsiteRedirectLocation,
	} {
		if aws.ToString(p) != "" {
			return true
		}
	}
	kept := h.ObjectLockMode != "" || h.ObjectLockLegalHoldStatus == types.ObjectLockLegalHoldStatusOn
	plain := []string{"", contentBinary, "binary/octet-stream"}
	if kept || aws.ToInt32(h.TagCount) > 0 || !slices.Contains(plain, aws.ToString(h.ContentType)) {
		return true
	}
	if class(string(h.StorageClass)) != class(r.o.StorageClass) {
		return true
	}
	own := []string{
		archive.MetaMD5, archive.MetaSHA256, archive.MetaMtime, archive.MetaPermissions, archive.MetaOwner, archive.MetaGroup, archive.MetaID,
		archive.MetaHost,
	}
	for name := range maps.Keys(h.Metadata) {
		if !slices.Contains(own, name) {
			return true
		}
	}
	return false
}

// class names a storage class; a server leaves the usual one out.
func class(c string) string {
	if c == "" {
		return string(types.StorageClassStandard)
	}
	return c
}

// GetFrom reads an object from one of its bytes on: the version that version
// names, or the current one for "". With ifMatch an object that has another ETag
// is state.ErrPrecondition. The Size of what it returns is that of the whole
// object. A version or object that is not there is io/fs.ErrNotExist.
func (r *requests) GetFrom(ctx context.Context, key, version string, from int64, ifMatch string) (io.ReadCloser, archive.Object, error) {
	in := &s3.GetObjectInput{
		Bucket: aws.String(r.o.Bucket), Key: aws.String(key), VersionId: s3conn.Optional(version), ExpectedBucketOwner: r.conn.Owner(),
	}
	if from > 0 {
		in.Range = aws.String("bytes=" + strconv.FormatInt(from, 10) + "-")
	}
	if ifMatch != "" {
		in.IfMatch = aws.String(quoted(ifMatch))
	}
	out, err := r.conn.Client.GetObject(ctx, in)
	if err != nil {
		return nil, archive.Object{}, r.conn.Fault(ctx, s3conn.OpGet, key, err)
	}
	size := aws.ToInt64(out.ContentLength)
	if from > 0 {
		if size, err = wholeSize(aws.ToString(out.ContentRange), from); err != nil {
			_ = out.Body.Close() // Its bytes are not the wanted ones.
			return nil, archive.Object{}, &archive.Error{Class: archive.ClassTransient, Op: s3conn.OpGet, Err: err}
		}
	}
	return &download{ReadCloser: out.Body, key: key}, s3conn.Stamp(archive.Object{
		Key: key, Size: size, ETag: etag(out.ETag), VersionID: aws.ToString(out.VersionId),
		SSE: string(out.ServerSideEncryption), KMSKeyID: aws.ToString(out.SSEKMSKeyId), BucketKey: aws.ToBool(out.BucketKeyEnabled),
		Metadata: out.Metadata, LastModified: aws.ToTime(out.LastModified),
	}, out.ResultMetadata), nil
}

// wholeSize reads the size of the object from the Content-Range of an answer
// that must begin at from.
func wholeSize(contentRange string, from int64) (int64, error) {
	span, total, ok := strings.Cut(strings.TrimPrefix(contentRange, "bytes "), "/")
	first, _, _ := strings.Cut(span, "-")
	if !ok || first != strconv.FormatInt(from, 10) {
		return 0, fmt.Errorf("the server answered %q (%d) to a request for the bytes from %d on", contentRange, http.StatusPartialContent, from)
	}
	size, err := strconv.ParseInt(total, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("the server answered a range of %q", s3conn.Bounded(total))
	}
	return size, nil
}

// conditions renders c for a request.
func conditions(c archive.Condition) (ifMatch, ifNoneMatch *string) {
	if c.ETag != "" {
		ifMatch = aws.String(quoted(c.ETag))
	}
	if c.Absent {
		ifNoneMatch = aws.String(ifAbsent)
	}
	return ifMatch, ifNoneMatch
}
