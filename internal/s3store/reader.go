package s3store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// Reader is one destination for a caller that only reads. It knows no key, and
// no method of it writes. It is safe for concurrent use.
type Reader struct{ s *Store }

// OpenReader prepares reading a destination, as Open does. Of the options only
// those that say where it is are needed: no key and no instance.
func OpenReader(ctx context.Context, o Options) (*Reader, error) {
	if o.Log == nil || o.Metrics == nil {
		return nil, errors.New("s3store: a logger and metrics are required")
	}
	if o.Bucket == "" {
		return nil, errors.New("s3store: a bucket is required")
	}
	if err := checkEndpoint(o.EndpointURL, o.AllowInsecure); err != nil {
		return nil, err
	}
	if o.StallLimit == 0 {
		o.StallLimit = defaultStallLimit
	}
	o.CompleteLimit = max(o.CompleteLimit, o.StallLimit)
	s := &Store{o: o, log: o.Log, clock: &clock{metrics: o.Metrics}, reask: &reasker{}}
	if err := s.connect(ctx); err != nil {
		return nil, err
	}
	s.caps = s.unknown()
	return &Reader{s: s}, nil
}

// CloseIdle closes the connections that no request is using.
func (r *Reader) CloseIdle() { r.s.CloseIdle() }

// Get is Store.Get.
func (r *Reader) Get(ctx context.Context, key string) (io.ReadCloser, state.Object, error) {
	return r.s.Get(ctx, key)
}

// Head is Store.Head.
func (r *Reader) Head(ctx context.Context, key string) (state.Object, error) {
	return r.s.Head(ctx, key)
}

// List is Store.List.
func (r *Reader) List(ctx context.Context, prefix, startAfter string, fn func(state.Object) error) error {
	return r.s.List(ctx, prefix, startAfter, fn)
}

// GetFrom reads an object from one of its bytes on: the version that version
// names, or the current one for "". With etag an object that has another one is
// state.ErrPrecondition. The Size of what it returns is that of the whole
// object. A version or object that is not there is io/fs.ErrNotExist.
func (r *Reader) GetFrom(ctx context.Context, key, version string, from int64, etag string) (io.ReadCloser, state.Object, error) {
	return r.s.GetFrom(ctx, key, version, from, etag)
}

// HeadVersion is Head for one version, or the current object for "".
func (r *Reader) HeadVersion(ctx context.Context, key, version string) (state.Object, error) {
	return r.s.headVersion(ctx, key, version)
}

// GetFrom is Reader.GetFrom.
func (s *Store) GetFrom(ctx context.Context, key, version string, from int64, ifMatch string) (io.ReadCloser, state.Object, error) {
	in := &s3.GetObjectInput{
		Bucket: aws.String(s.o.Bucket), Key: aws.String(key), VersionId: optional(version), ExpectedBucketOwner: s.owner(),
	}
	if from > 0 {
		in.Range = aws.String("bytes=" + strconv.FormatInt(from, 10) + "-")
	}
	if ifMatch != "" {
		in.IfMatch = aws.String(quoted(ifMatch))
	}
	out, err := s.client.GetObject(ctx, in)
	if err != nil {
		return nil, state.Object{}, s.fault(ctx, opGet, key, err)
	}
	size := aws.ToInt64(out.ContentLength)
	if from > 0 {
		if size, err = wholeSize(aws.ToString(out.ContentRange), from); err != nil {
			_ = out.Body.Close() // Its bytes are not the wanted ones.
			return nil, state.Object{}, &state.Error{Class: state.ClassTransient, Op: opGet, Err: err}
		}
	}
	return &download{ReadCloser: out.Body, key: key}, stamp(state.Object{
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
		return 0, fmt.Errorf("the server answered a range of %q", bounded(total))
	}
	return size, nil
}
