package s3store

import (
	"context"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// ListVersions calls fn for every version and delete marker under prefix,
// noncurrent ones included, behind those of the key after ("" for all). Within
// a page versions come before markers. It holds one page in memory and ends with
// the first error of fn, which it returns as it is.
func (r *Reader) ListVersions(ctx context.Context, prefix, after string, fn func(archive.ObjectVersion) error) error {
	in := &s3.ListObjectVersionsInput{
		Bucket: aws.String(r.req.o.Bucket), Prefix: aws.String(prefix), ExpectedBucketOwner: r.conn.Owner(),
		EncodingType: types.EncodingTypeUrl,
	}
	if after != "" {
		in.KeyMarker = aws.String(after)
	}
	for pages := s3.NewListObjectVersionsPaginator(r.conn.Client, in); pages.HasMorePages(); {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return r.conn.Fault(ctx, s3conn.OpVersions, prefix, err)
		}
		list := make([]archive.ObjectVersion, 0, len(page.Versions)+len(page.DeleteMarkers))
		for _, v := range page.Versions {
			list = append(list, archive.ObjectVersion{
				Key: aws.ToString(v.Key), VersionID: aws.ToString(v.VersionId), Current: aws.ToBool(v.IsLatest), LastModified: aws.ToTime(v.LastModified),
			})
		}
		for _, m := range page.DeleteMarkers {
			list = append(list, archive.ObjectVersion{
				Key: aws.ToString(m.Key), VersionID: aws.ToString(m.VersionId), Current: aws.ToBool(m.IsLatest), DeleteMarker: true, LastModified: aws.ToTime(m.LastModified),
			})
		}
		for _, v := range list {
			if v.Key, err = listedKey(v.Key, page.EncodingType); err != nil {
				return &archive.Error{Class: archive.ClassTransient, Op: s3conn.OpVersions, Err: err}
			}
			if err := fn(v); err != nil {
				return err
			}
		}
	}
	return nil
}

// Now returns this host's time corrected by the answers so far, as Store.Now.
func (r *Reader) Now() time.Time { return r.conn.Now() }
