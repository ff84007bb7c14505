package e2e_test

import (
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

// site is one host with one source and a bucket of its own behind a proxy that
// counts and breaks requests.
type site struct {
	dir    string // the source
	state  string
	file   string // the configuration
	env    []string
	proxy  *s3test.Proxy
	server *s3test.Server
	fake   *s3test.Fake // instead of server
	bucket bucketView
	key    string // of the KMS
	uid    int    // who runs sync
}

// newSite makes a site with an empty source; source and extra are more YAML
// for the source and for the whole file.
func newSite(t *testing.T, source, extra string) *site {
	t.Helper()
	srv := s3test.MinIO(t)
	base := t.TempDir()
	s := &site{
		dir: filepath.Join(base, "data"), state: filepath.Join(base, "state"), file: filepath.Join(base, "s3syncd.yaml"),
		env: srv.Root.Environ(), proxy: s3test.NewProxy(t, srv.URL), server: srv, key: s3test.KeyName,
		uid: os.Getuid(), bucket: bucketView{client: srv.Client(), bucket: srv.Bucket(t), prefix: "backups/app"},
	}
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.configure(t, source, extra)
	return s
}

// newFakeSite is newSite with a server in memory. It keeps objects by key, as
// AWS does, where MinIO does not list what is below the key of an object.
func newFakeSite(t *testing.T, source, extra string) *site {
	t.Helper()
	const bucket = "fake"
	f := s3test.NewFake(t, bucket)
	base := t.TempDir()
	s := &site{
		dir: filepath.Join(base, "data"), state: filepath.Join(base, "state"), file: filepath.Join(base, "s3syncd.yaml"),
		env: f.Credentials().Environ(), fake: f, proxy: s3test.NewProxy(t, f.URL), key: s3test.FakeKeyARN,
		uid: os.Getuid(), bucket: bucketView{client: f.Client(), bucket: bucket, prefix: "backups/app"},
	}
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.configure(t, source, extra)
	return s
}

// configure writes the configuration anew.
func (s *site) configure(t *testing.T, source, extra string) {
	t.Helper()
	src := fmt.Sprintf("- name: app\n  path: %s\n  bucket: %s\n  prefix: %s\n  kms_key_id: %s\n  %s",
		s.dir, s.bucket.bucket, s.bucket.prefix, s.key, indent(source, 2))
	write(t, s.file, yaml(s.proxy.URL, s.state, src, extra))
}

func (s *site) daemon(t *testing.T) *process {
	t.Helper()
	return startDaemon(t, s.file, s.env...)
}

// sync runs one sync and returns its exit code and output.
func (s *site) sync(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return commandAs(t, s.uid, s.env, append([]string{"sync", "-c", s.file}, args...)...)
}

// mustSync runs one sync whose summary must be as given.
func (s *site) mustSync(t *testing.T, uploaded, skipped, failed int) {
	t.Helper()
	code, out, errs := s.sync(t)
	want := fmt.Sprintf("Uploaded: %d\nSkipped: %d (unchanged)\nFailed: %d\n", uploaded, skipped, failed)
	if !strings.Contains(out, want) {
		t.Fatalf("sync said:\n%s%s\nwant:\n%s", tail(out, 2000), tail(errs, 4000), want)
	}
	if wantCode := map[bool]int{true: 0, false: 3}[failed == 0]; code != wantCode {
		t.Fatalf("sync exited with %d, want %d:\n%s", code, wantCode, tail(errs, 4000))
	}
}

func (s *site) path(rel string) string { return filepath.Join(s.dir, rel) }

// inBucket reports whether the object of rel has these bytes.
func (s *site) inBucket(t *testing.T, rel, content string) bool {
	t.Helper()
	for _, k := range s.bucket.keys(t, false) {
		if k == s.bucket.prefix+"/"+rel {
			body, _ := s.bucket.get(t, k)
			return string(body) == content
		}
	}
	return false
}

// data counts the requests for data, leaving out those for the trail.
func (s *site) data(op string) int {
	return s.proxy.Count(s3test.Match{Op: op}) - s.proxy.Count(s3test.Match{Op: op, Key: "/_manifests/"})
}

func md5Of(s string) string {
	sum := md5.Sum([]byte(s))
	return hex.EncodeToString(sum[:])
}

// unprivileged makes sync run as a user who may not read everything: root may.
func (s *site) unprivileged(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		return
	}
	s.uid = nobody
	chmodUp(t, filepath.Dir(s.file))
	if err := os.Mkdir(s.state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(s.state, nobody, nobody); err != nil {
		t.Fatal(err)
	}
}

// chmodUp lets others look into dir and the test's directories above it.
func chmodUp(t *testing.T, dir string) {
	t.Helper()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// metaMD5 returns the md5checksum of the object of rel, "" when there is none.
func (s *site) metaMD5(t *testing.T, rel string) string {
	t.Helper()
	out, err := s.bucket.client.HeadObject(t.Context(), &s3.HeadObjectInput{
		Bucket: &s.bucket.bucket, Key: aws.String(s.bucket.prefix + "/" + rel),
	})
	if err != nil {
		if _, ok := errors.AsType[*types.NotFound](err); ok {
			return ""
		}
		t.Fatal(err)
	}
	return out.Metadata["md5checksum"]
}
