package s3store

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/s3syncd/s3syncd/pkg/state"
)

const (
	ifAbsent      = "*"
	metaInstance  = "s3syncd-instance"
	contentBinary = "application/octet-stream"
	day           = 24 * time.Hour
)

// Head asks for one object. An absent one is io/fs.ErrNotExist; so is any in a
// bucket that does not exist, because S3's answer is the same. A refused
// request is io/fs.ErrPermission.
func (s *Store) Head(ctx context.Context, key string) (state.Object, error) {
	return s.headVersion(ctx, key, "")
}

// headVersion is Head for one version, or the current object for "".
func (s *Store) headVersion(ctx context.Context, key, version string) (state.Object, error) {
	o, err := s.headOnce(ctx, key, version)
	if err == nil {
		return o, nil
	}
	again, err := s.explain(ctx, key, err)
	if !again {
		return o, err
	}
	return s.headOnce(ctx, key, version)
}

// headOnce is headVersion without a second question about a refusal.
func (s *Store) headOnce(ctx context.Context, key, version string) (state.Object, error) {
	out, err := s.client.HeadObject(ctx, &s3.HeadObjectInput{
		Bucket: aws.String(s.o.Bucket), Key: aws.String(key), VersionId: optional(version), ExpectedBucketOwner: s.owner(),
	})
	if err != nil {
		return state.Object{}, s.fault(ctx, opHead, key, err)
	}
	return stamp(state.Object{
		Key: key, Size: aws.ToInt64(out.ContentLength), ETag: etag(out.ETag), VersionID: aws.ToString(out.VersionId),
		SSE: string(out.ServerSideEncryption), KMSKeyID: aws.ToString(out.SSEKMSKeyId), BucketKey: aws.ToBool(out.BucketKeyEnabled),
		Metadata: out.Metadata, LastModified: aws.ToTime(out.LastModified), Dressed: s.dressed(out),
	}, out.ResultMetadata), nil
}

// Put stores one object under the configured key, and returns only when the
// server has confirmed that key. The server refuses a body that does not match
// p.MD5 and p.SHA256 (class changed). The body is read once an attempt.
func (s *Store) Put(ctx context.Context, p state.Put) (state.Object, error) {
	in := &s3.PutObjectInput{
		ContentType: aws.String(contentBinary), Metadata: p.Metadata, StorageClass: types.StorageClass(s.o.StorageClass),
	}
	return s.put(ctx, in, p)
}

// CreateDoc stores one document of the trail under the configured key, and
// only where nothing stands: else state.ErrPrecondition. It carries the
// configured retention.
func (s *Store) CreateDoc(ctx context.Context, key string, body io.ReadSeeker, size int64, md5 [16]byte, sha [32]byte, contentType string) (state.Object, error) {
	in := &s3.PutObjectInput{ContentType: aws.String(contentType), Metadata: map[string]string{metaInstance: s.o.Instance}}
	if s.o.ObjectLock.Mode != "" {
		in.ObjectLockMode = types.ObjectLockMode(s.o.ObjectLock.Mode)
		in.ObjectLockRetainUntilDate = aws.Time(s.Now().Add(time.Duration(s.o.ObjectLock.Days) * day))
	}
	return s.put(ctx, in, state.Put{Key: key, Body: body, Size: size, MD5: md5, SHA256: sha, If: state.Condition{Absent: true}})
}

// put is the only caller of PutObject.
func (s *Store) put(ctx context.Context, in *s3.PutObjectInput, p state.Put) (state.Object, error) {
	if err := s.ready(ctx, opPut, p.Key, p.If); err != nil {
		return state.Object{}, err
	}
	p.If = s.supported(p.If)
	o, err := s.putOnce(ctx, in, p)
	if err != nil {
		return o, err
	}
	return o, s.confirm(ctx, opPut, o)
}

// putOnce sends a PutObject with the configured encryption and leaves judging
// the answer to the caller.
func (s *Store) putOnce(ctx context.Context, in *s3.PutObjectInput, p state.Put) (state.Object, error) {
	body, err := newBody(p.Body, p.Size)
	if err != nil {
		return state.Object{}, classify(opPut, p.Key, err)
	}
	in.Bucket, in.Key, in.ExpectedBucketOwner = aws.String(s.o.Bucket), aws.String(p.Key), s.owner()
	in.Body, in.ContentLength = body, aws.Int64(p.Size)
	in.ContentMD5 = aws.String(base64.StdEncoding.EncodeToString(p.MD5[:]))
	in.ChecksumSHA256 = aws.String(base64.StdEncoding.EncodeToString(p.SHA256[:]))
	s.enc.encrypt(sse{&in.ServerSideEncryption, &in.SSEKMSKeyId, &in.BucketKeyEnabled, &in.SSEKMSEncryptionContext})
	s.marks.mark(&in.ACL, &in.Tagging)
	in.IfMatch, in.IfNoneMatch = conditions(p.If)
	out, h, err := s.wire.put(ctx, in, body)
	if err != nil {
		return state.Object{}, s.fault(ctx, opPut, p.Key, err)
	}
	return h.stamp(state.Object{
		Key: p.Key, Size: p.Size, ETag: etag(out.ETag), VersionID: aws.ToString(out.VersionId),
		SSE: string(out.ServerSideEncryption), KMSKeyID: aws.ToString(out.SSEKMSKeyId), BucketKey: aws.ToBool(out.BucketKeyEnabled),
		Metadata: p.Metadata,
	}), nil
}

// Delete removes one object; on a versioned bucket it becomes a noncurrent
// version behind a delete marker, whose version is returned. An absent object
// is no error where the server treats it so. Only If-Match can be asked for; it
// costs a HEAD, because some servers ignore it for deletions.
func (s *Store) Delete(ctx context.Context, key string, c state.Condition) (state.Object, error) {
	if c.Absent {
		return state.Object{}, &state.Error{Class: state.ClassConfiguration, Op: opDelete, Err: errors.New("a deletion cannot ask for absence")}
	}
	if c.ETag != "" {
		// MinIO honors If-Match on writes and ignores it here.
		if err := s.compare(ctx, opDelete, key, c); err != nil {
			return state.Object{}, err
		}
	}
	ifMatch, _ := conditions(s.supported(c))
	out, err := s.client.DeleteObject(ctx, &s3.DeleteObjectInput{
		Bucket: aws.String(s.o.Bucket), Key: aws.String(key), ExpectedBucketOwner: s.owner(), IfMatch: ifMatch,
	})
	if err != nil {
		return state.Object{}, s.fault(ctx, opDelete, key, err)
	}
	return stamp(state.Object{Key: key, VersionID: aws.ToString(out.VersionId)}, out.ResultMetadata), nil
}

// Get reads one object. The caller closes the reader, whose errors are
// classified like all others.
func (s *Store) Get(ctx context.Context, key string) (io.ReadCloser, state.Object, error) {
	out, err := s.client.GetObject(ctx, &s3.GetObjectInput{
		Bucket: aws.String(s.o.Bucket), Key: aws.String(key), ExpectedBucketOwner: s.owner(),
	})
	if err != nil {
		return nil, state.Object{}, s.fault(ctx, opGet, key, err)
	}
	return &download{ReadCloser: out.Body, key: key}, stamp(state.Object{
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
		err = classify(opGet, d.key, err)
	}
	return n, err
}

// List calls fn for every object whose key begins with prefix and comes after
// startAfter ("" for all), in the order of the keys' bytes. It holds one page
// in memory, and ends with the first error of fn, which it returns as it is.
func (s *Store) List(ctx context.Context, prefix, startAfter string, fn func(state.Object) error) error {
	in := &s3.ListObjectsV2Input{
		Bucket: aws.String(s.o.Bucket), Prefix: aws.String(prefix), ExpectedBucketOwner: s.owner(),
		EncodingType: types.EncodingTypeUrl, // Else a control character in one key makes its page unreadable.
	}
	if startAfter != "" {
		in.StartAfter = aws.String(startAfter)
	}
	for pages := s3.NewListObjectsV2Paginator(s.client, in); pages.HasMorePages(); {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return s.fault(ctx, opList, prefix, err)
		}
		for _, c := range page.Contents {
			o := state.Object{Size: aws.ToInt64(c.Size), ETag: etag(c.ETag), LastModified: aws.ToTime(c.LastModified)}
			if o.Key, err = listedKey(aws.ToString(c.Key), page.EncodingType); err != nil {
				return &state.Error{Class: state.ClassTransient, Op: opList, Err: err}
			}
			if err := fn(stamp(o, page.ResultMetadata)); err != nil {
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

// fault classifies err, and has refused credentials looked up again for the
// next request.
func (s *Store) fault(ctx context.Context, op, key string, err error) error {
	err = classify(op, key, err)
	if state.ClassOf(err).Meaning().EveryRequest {
		if rerr := s.creds.renew(ctx, time.Now()); rerr != nil {
			return &state.Error{Class: state.ClassCredentials, Op: op, Err: errors.Join(err, rerr)}
		}
	}
	return err
}

func (s *Store) owner() *string { return optional(s.o.ExpectedBucketOwner) }

// optional returns nil for "", which leaves a field out of a request.
func optional(v string) *string {
	if v == "" {
		return nil
	}
	return aws.String(v)
}

// unsignedPayload spares reading the body a second time to sign it: the server
// checks it by the checksums that every body goes out with.
func unsignedPayload(o *s3.Options) {
	o.APIOptions = append(o.APIOptions, v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware)
}

func etag(e *string) string { return strings.Trim(aws.ToString(e), `"`) }

func quoted(etag string) string { return `"` + etag + `"` }
