package s3store

import (
	"context"
	"errors"
	"io"

	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// Reader is one destination for a caller that only reads. It knows no key, and
// no method of it writes. It is safe for concurrent use.
type Reader struct {
	conn *s3conn.Conn
	req  *requests
}

// OpenReader prepares reading a destination, as Open does. Of the options only
// those that say where it is are needed: no key and no instance.
func OpenReader(ctx context.Context, o Options) (*Reader, error) {
	if o.Log == nil || o.Metrics == nil {
		return nil, errors.New("s3store: a logger and metrics are required")
	}
	if o.Bucket == "" {
		return nil, errors.New("s3store: a bucket is required")
	}
	if err := s3conn.CheckEndpoint(o.EndpointURL, o.AllowInsecure); err != nil {
		return nil, err
	}
	if o.StallLimit == 0 {
		o.StallLimit = defaultStallLimit
	}
	o.CompleteLimit = max(o.CompleteLimit, o.StallLimit)
	c, err := s3conn.Dial(ctx, o.connection())
	if err != nil {
		return nil, err
	}
	return &Reader{conn: c, req: &requests{o: &o, conn: c}}, nil
}

// CloseIdle closes the connections that no request is using.
func (r *Reader) CloseIdle() { r.conn.CloseIdle() }

// Get is Store.Get.
func (r *Reader) Get(ctx context.Context, key string) (io.ReadCloser, archive.Object, error) {
	return r.req.Get(ctx, key)
}

// Head is Store.Head.
func (r *Reader) Head(ctx context.Context, key string) (archive.Object, error) {
	return r.req.Head(ctx, key)
}

// List is Store.List.
func (r *Reader) List(ctx context.Context, prefix, startAfter string, fn func(archive.Object) error) error {
	return r.req.List(ctx, prefix, startAfter, fn)
}

// GetFrom is Store.GetFrom.
func (r *Reader) GetFrom(ctx context.Context, key, version string, from int64, etag string) (io.ReadCloser, archive.Object, error) {
	return r.req.GetFrom(ctx, key, version, from, etag)
}

// HeadVersion is Head for one version, or the current object for "".
func (r *Reader) HeadVersion(ctx context.Context, key, version string) (archive.Object, error) {
	return r.req.HeadVersion(ctx, key, version)
}
