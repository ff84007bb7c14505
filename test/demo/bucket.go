package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awscreds "github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

const (
	bucketName = "my-company-data"
	prefix     = "backups/demo-host/app-data/"
	trail      = prefix + "_manifests/"
)

// bucket looks at the server as a person with the AWS CLI would.
type bucket struct {
	endpoint string
	s3       *s3.Client
}

func openBucket(endpoint string, c credentials) *bucket {
	return &bucket{endpoint: endpoint, s3: s3.New(s3.Options{
		Region:       "us-east-1",
		BaseEndpoint: aws.String("http://" + endpoint),
		UsePathStyle: true,
		Credentials:  awscreds.NewStaticCredentialsProvider(c.id, c.secret, ""),
	})}
}

// create makes the bucket, with versions. It may be called again.
func (b *bucket) create(ctx context.Context) error {
	_, err := b.s3.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String(bucketName)})
	if _, ours := errors.AsType[*types.BucketAlreadyOwnedByYou](err); err != nil && !ours {
		return fmt.Errorf("create bucket: %w", err)
	}
	_, err = b.s3.PutBucketVersioning(ctx, &s3.PutBucketVersioningInput{
		Bucket:                  aws.String(bucketName),
		VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled},
	})
	if err != nil {
		return fmt.Errorf("turn versioning on: %w", err)
	}
	return nil
}

// keys lists the files' objects, without the trail.
func (b *bucket) keys(ctx context.Context) ([]string, error) {
	all, err := b.list(ctx, prefix)
	var files []string
	for _, key := range all {
		if !strings.HasPrefix(key, trail) {
			files = append(files, key)
		}
	}
	return files, err
}

// manifests lists the published manifests, oldest first.
func (b *bucket) manifests(ctx context.Context) ([]string, error) {
	return b.list(ctx, trail+"manifest_")
}

func (b *bucket) list(ctx context.Context, under string) ([]string, error) {
	var keys []string
	pages := s3.NewListObjectsV2Paginator(b.s3, &s3.ListObjectsV2Input{
		Bucket: aws.String(bucketName), Prefix: aws.String(under),
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", under, err)
		}
		for _, o := range page.Contents {
			keys = append(keys, aws.ToString(o.Key))
		}
	}
	return keys, nil
}

func (b *bucket) head(ctx context.Context, key string) (*s3.HeadObjectOutput, error) {
	o, err := b.s3.HeadObject(ctx, &s3.HeadObjectInput{Bucket: aws.String(bucketName), Key: aws.String(key)})
	if err != nil {
		return nil, fmt.Errorf("head %s: %w", key, err)
	}
	return o, nil
}

func (b *bucket) get(ctx context.Context, key string) (data []byte, err error) {
	o, err := b.s3.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(bucketName), Key: aws.String(key)})
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", key, err)
	}
	defer func() { err = errors.Join(err, o.Body.Close()) }()
	return io.ReadAll(o.Body)
}
