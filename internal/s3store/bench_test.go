package s3store

import (
	"bytes"
	"net/http"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/s3test"
	"github.com/s3syncd/s3syncd/pkg/state"
)

func benchStore(b *testing.B) *Store {
	b.Helper()
	f := s3test.NewFake(b, "bucket")
	b.Setenv("AWS_ACCESS_KEY_ID", "a")
	b.Setenv("AWS_SECRET_ACCESS_KEY", "b")
	o := options(f.URL, "bucket", s3test.FakeKeyARN)
	o.Log, o.Metrics = zap.NewNop(), NewMetrics(prometheus.NewRegistry())
	s, err := Open(b.Context(), o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(s.CloseIdle)
	return s
}

// BenchmarkPut includes the server.
func BenchmarkPut(b *testing.B) {
	s, p := benchStore(b), put("data/a", bytes.Repeat([]byte("x"), 16<<10), state.Condition{})
	b.SetBytes(p.Size)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Put(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPutRequest is what a PUT costs this process before it goes to the
// connection: headers and signature.
func BenchmarkPutRequest(b *testing.B) {
	w := wireTo(nil)
	in := &s3.PutObjectInput{
		Key: aws.String("data/2026/11/some file.log"), ContentLength: aws.Int64(4096), ContentType: aws.String(contentBinary),
		ContentMD5: aws.String("1B2M2Y8AsgTpgAmY7PhCfg=="), ChecksumSHA256: aws.String("47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="),
		SSEKMSKeyId: aws.String(s3test.FakeKeyARN), ServerSideEncryption: "aws:kms", BucketKeyEnabled: aws.Bool(true),
		Metadata: map[string]string{state.MetaMD5: "d41d8cd98f00b204e9800998ecf8427e", state.MetaID: "host-1/0badcafe/7", state.MetaOwner: "0"},
	}
	c := aws.Credentials{AccessKeyID: "AKID", SecretAccessKey: "secret", SessionToken: "token"}
	b.ReportAllocs()
	for b.Loop() {
		if r := w.request(in, c, time.Now()); r.Method != http.MethodPut {
			b.Fatal(r.Method)
		}
	}
}

// BenchmarkHead includes the server.
func BenchmarkHead(b *testing.B) {
	s, p := benchStore(b), put("data/a", []byte("x"), state.Condition{})
	if _, err := s.Put(b.Context(), p); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Head(b.Context(), "data/a"); err != nil {
			b.Fatal(err)
		}
	}
}
