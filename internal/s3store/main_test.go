package s3store

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap/zaptest"

	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/internal/s3test"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

func TestMain(m *testing.M) { os.Exit(s3test.Main(m)) }

// server is one of the S3 servers that the suite runs against, with the test
// that runs there.
type server struct {
	*testing.T
	*Store
}

func eachServer(t *testing.T, test func(on server)) {
	t.Helper()
	t.Run("minio", func(t *testing.T) {
		s := s3test.MinIO(t)
		s.Setenv(t)
		test(server{t, openStore(t, options(s.URL, s.Bucket(t), s3test.KeyName))})
	})
	t.Run("minio with TLS", func(t *testing.T) {
		s := s3test.MinIOTLS(t)
		s.Setenv(t)
		test(server{t, openStore(t, options(s.URL, s.Bucket(t), s3test.KeyName))})
	})
	t.Run("fake", func(t *testing.T) {
		f := s3test.NewFake(t, "bucket")
		f.Setenv(t)
		test(server{t, openStore(t, options(f.URL, "bucket", s3test.FakeKeyARN))})
	})
}

func options(url, bucket, key string) Options {
	return Options{
		Region: s3test.Region, EndpointURL: url, PathStyle: true, Bucket: bucket, Prefix: "data", Instance: "host-1",
		KMSKeyID: key, SSE: "aws:kms", BucketKey: true, Workers: 4,
	}
}

func openStore(t *testing.T, o Options) *Store {
	t.Helper()
	if o.Log == nil {
		o.Log = zaptest.NewLogger(t)
	}
	if o.Metrics == nil {
		o.Metrics = s3conn.NewMetrics(prometheus.NewPedanticRegistry())
	}
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(s.CloseIdle)
	return s
}

func fakeStore(t *testing.T, change func(o *Options)) (*s3test.Fake, *Store) {
	t.Helper()
	f := s3test.NewFake(t, "bucket")
	f.Setenv(t)
	o := options(f.URL, "bucket", s3test.FakeKeyARN)
	if change != nil {
		change(&o)
	}
	return f, openStore(t, o)
}

func put(key string, body []byte, c archive.Condition) archive.Put {
	sum := md5.Sum(body)
	return archive.Put{
		Key: key, Body: bytes.NewReader(body), Size: int64(len(body)), MD5: sum, SHA256: sha256.Sum256(body), If: c,
		Metadata: map[string]string{archive.MetaMD5: hex.EncodeToString(sum[:]), archive.MetaID: "host-1/0badcafe/7"},
	}
}
