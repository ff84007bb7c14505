package audit

import (
	"errors"
	"testing"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/s3conn"
)

// What check accepts, a store can be opened with; what it refuses, no store is
// opened with.
func TestTheCheckAndTheStoreAgreeAboutEndpoints(t *testing.T) {
	for _, env := range []string{"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"} {
		t.Setenv(env, "")
	}
	for _, endpoint := range []string{
		"http://localhost:9000", "http://minio.localhost:9000", "http://MINIO.LOCALHOST.:9000", "http://127.1.2.3", "http://[::1]:9000",
		"http://minio.example.com", "http://10.0.0.1:9000", "http://0.0.0.0:9000", "http://localhost.example.com", "https://minio.example.com",
		"https://user@minio.example.com", "ftp://minio.example.com", "https://",
	} {
		_, checked := config.Parse("f", []byte("instance: i\ns3: {region: us-east-1, endpoint_url: \""+endpoint+"\"}\n"+
			"sources: [{path: /no/such/data, bucket: my-bucket, kms_key_id: k}]\n"), nil)
		_, opened := Origin{Bucket: "my-bucket", EndpointURL: endpoint, Region: "us-east-1"}.open(t.Context(), 1, zap.NewNop())
		if (checked == nil) != (opened == nil) {
			t.Errorf("%s: the check says %v, the store %v", endpoint, checked, opened)
		}
		if opened != nil && !errors.Is(opened, ErrRefused) {
			t.Errorf("%s: %v is not ErrRefused", endpoint, opened)
		}
	}
}

func TestAnEnvironmentWithoutARegionIsRefused(t *testing.T) {
	for _, env := range []string{"AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"} {
		t.Setenv(env, "")
	}
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	if _, err := (Origin{Bucket: "my-bucket"}).open(t.Context(), 1, zap.NewNop()); !errors.Is(err, s3conn.ErrOptions) {
		t.Errorf("open = %v, want ErrOptions", err)
	}
}
