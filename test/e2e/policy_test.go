package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

type policyDocument struct {
	Version   string           `json:"Version"`
	Statement []map[string]any `json:"Statement"`
}

// policy returns what iam-policy prints.
func (s *site) policy(t *testing.T, args ...string) policyDocument {
	t.Helper()
	code, out, errs := command(t, s.env, append([]string{"iam-policy", "-c", s.file}, args...)...)
	var p policyDocument
	if err := json.Unmarshal([]byte(out), &p); code != 0 || err != nil {
		t.Fatalf("iam-policy exited with %d, %v:\n%s%s", code, err, out, errs)
	}
	return p
}

// json renders p shortly: MinIO takes 2,048 characters for a session.
func (p policyDocument) json(t *testing.T) string {
	t.Helper()
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestTheRolePolicyIsEnough(t *testing.T) {
	s := newSite(t, "deletes: mirror", "upload: {single_put_max: 5MiB, part_size: 5MiB}\nmanifest: {object_lock: {mode: GOVERNANCE, days: 1}}")
	s.bucket.bucket = s.server.Bucket(t, s3test.BucketOptions{Versioning: true, ObjectLock: true})
	s.configure(t, "deletes: mirror", "upload: {single_put_max: 5MiB, part_size: 5MiB}\nmanifest: {object_lock: {mode: GOVERNANCE, days: 1}}")
	s.env = s.server.User(t, s.policy(t).json(t)).Environ()

	if code, out, errs := command(t, s.env, "preflight", "-c", s.file); code != 0 {
		t.Errorf("preflight exited with %d:\n%s%s", code, out, errs)
	}
	s.proxy.Forget() // It also tries what a daemon does not need.
	write(t, s.path("small"), "one")
	write(t, s.path("gone"), "two")
	random(t, s.path("large"), 11<<20, 1)
	hold := s.proxy.Hold(s3test.Match{Op: "UploadPart", Query: "partNumber", Skip: 2})
	d := spawn(t, s.env, "run", "-c", s.file)
	hold.Wait(t)
	d.kill(t) // It is taken up again: ListParts.
	hold.Release()

	d = s.daemon(t)
	eventually(t, "all files", func() bool { return len(s.bucket.keys(t, false)) == 3 })
	if err := os.Remove(s.path("gone")); err != nil {
		t.Fatal(err)
	}
	write(t, s.path("large"), "small now")
	if code, out, errs := command(t, s.env, "rescan", "-c", s.file, "--remote"); code != 0 {
		t.Errorf("rescan --remote exited with %d:\n%s%s", code, out, errs)
	}
	if code, out, errs := command(t, s.env, "flush", "-c", s.file); code != 0 {
		t.Errorf("flush exited with %d:\n%s%s", code, out, errs)
	}
	if code := d.stop(t); code != 0 {
		t.Errorf("the daemon exited with %d", code)
	}
	tr := s.bucket.readTrail(t)
	s.bucket.wantTree(t, s.dir, &tr)
	s.mustSync(t, 0, 2, 0)
	s.mustRekey(t, nil, "Right already: 2 of 2")
	for _, r := range s.proxy.Ledger() {
		if r.Status == http.StatusForbidden {
			t.Errorf("%s of %q was refused", r.Op, r.Key)
		}
	}
	for _, op := range []string{"PutObject", "HeadObject", "ListObjectsV2", "CreateMultipartUpload", "UploadPart", "ListParts", "CompleteMultipartUpload", "DeleteObject"} {
		if s.proxy.Count(s3test.Match{Op: op}) == 0 {
			t.Errorf("no %s was tried", op)
		}
	}
}

func TestTheRolePolicyAllowsNothingElse(t *testing.T) {
	s := newSite(t, "deletes: mirror", "")
	write(t, s.path("f"), "content")
	s.mustSync(t, 1, 0, 0)
	c := s.server.User(t, s.policy(t).json(t))
	client := s3.New(s3.Options{
		BaseEndpoint: aws.String(s.server.URL), Region: s3test.Region, UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(c.AccessKeyID, c.SecretAccessKey, c.SessionToken),
	})
	trail := s.bucket.keys(t, true)
	manifest := trail[slices.IndexFunc(trail, func(k string) bool { return strings.Contains(k, "/manifest_") })]
	elsewhere := aws.String("backups/app-2/f")
	for what, try := range map[string]func() error{
		"write outside the prefix": func() error {
			_, err := client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &s.bucket.bucket, Key: elsewhere, Body: strings.NewReader("x")})
			return err
		},
		"read outside the prefix": func() error {
			_, err := client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &s.bucket.bucket, Key: elsewhere})
			return err
		},
		"list outside the prefix": func() error {
			_, err := client.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: &s.bucket.bucket, Prefix: aws.String("backups/")})
			return err
		},
		"delete a manifest": func() error {
			_, err := client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &s.bucket.bucket, Key: &manifest})
			return err
		},
		"change the bucket's policy": func() error {
			_, err := client.DeleteBucketPolicy(t.Context(), &s3.DeleteBucketPolicyInput{Bucket: &s.bucket.bucket})
			return err
		},
	} {
		if err := try(); err == nil || !strings.Contains(err.Error(), "AccessDenied") {
			t.Errorf("%s: %v, want AccessDenied", what, err)
		}
	}
}

// MinIO asks bucket policies for anonymous requests only: their statements are
// tried as those of a user who may do everything else.
func TestTheBucketPolicyRefusesOtherKeysAndNothingElse(t *testing.T) {
	s := newSite(t, "", "upload: {single_put_max: 5MiB, part_size: 5MiB}")
	p := s.policy(t, "--kind", "bucket")
	everything := map[string]any{"Effect": "Allow", "Action": "s3:*", "Resource": []string{"arn:aws:s3:::*"}}
	user := func(keep func(sid any) bool) s3test.Credentials {
		statements := []map[string]any{everything}
		for _, st := range p.Statement {
			if keep(st["Sid"]) {
				st = maps.Clone(st)
				delete(st, "Principal")
				statements = append(statements, st)
			}
		}
		return s.server.User(t, policyDocument{p.Version, statements}.json(t))
	}
	c := user(func(sid any) bool { return sid != "OnlyTLS" }) // The server of this test has none.
	s.env = c.Environ()
	write(t, s.path("small"), "one")
	random(t, s.path("large"), 6<<20, 1)
	s.mustSync(t, 2, 0, 0)
	s.mustSync(t, 0, 2, 0)
	tr := s.bucket.readTrail(t)
	s.bucket.wantTree(t, s.dir, &tr)

	put := func(c s3test.Credentials, sse types.ServerSideEncryption, key string) error {
		client := s3.New(s3.Options{
			BaseEndpoint: aws.String(s.server.URL), Region: s3test.Region, UsePathStyle: true,
			Credentials: credentials.NewStaticCredentialsProvider(c.AccessKeyID, c.SecretAccessKey, c.SessionToken),
		})
		in := &s3.PutObjectInput{Bucket: &s.bucket.bucket, Key: aws.String(s.bucket.prefix + "/x"), Body: bytes.NewReader([]byte("x")), ServerSideEncryption: sse}
		if key != "" {
			in.SSEKMSKeyId = &key
		}
		_, err := client.PutObject(t.Context(), in)
		return err
	}
	for _, w := range []struct {
		sse    types.ServerSideEncryption
		key    string
		denied bool
	}{
		{types.ServerSideEncryptionAwsKms, s3test.KeyName, false},
		{types.ServerSideEncryptionAwsKms, "another-key", true},
		{types.ServerSideEncryptionAes256, "", true},
		{"", "", false}, // The bucket's default decides.
	} {
		if err := put(c, w.sse, w.key); w.denied != (err != nil && strings.Contains(err.Error(), "AccessDenied")) || !w.denied && err != nil {
			t.Errorf("a write with %q and key %q: %v, want it denied: %v", w.sse, w.key, err, w.denied)
		}
	}
	if err := put(user(func(any) bool { return true }), types.ServerSideEncryptionAwsKms, s3test.KeyName); err == nil || !strings.Contains(err.Error(), "AccessDenied") {
		t.Errorf("a write without TLS: %v, want AccessDenied", err)
	}
}

func TestIAMPolicyCommandLine(t *testing.T) {
	s := newSite(t, "", "")
	for _, args := range [][]string{
		{"iam-policy"},
		{"iam-policy", "-c", s.file, "--kind", "user"},
		{"iam-policy", "-c", s.file, "--with", "sync"},
		{"iam-policy", "-c", s.file, "--source", "nobody"},
	} {
		if code, out, errs := command(t, s.env, args...); code != 2 || out != "" || errs == "" {
			t.Errorf("%q exited with %d: %s%s", args, code, out, errs)
		}
	}
	code, _, errs := command(t, s.env, "iam-policy", "-c", s.file)
	if want := "s3syncd: note: s3.endpoint_url is no endpoint of AWS"; code != 0 || !strings.Contains(errs, want) {
		t.Errorf("iam-policy exited with %d and said:\n%s\nwant %q", code, errs, want)
	}
}

func TestPreflightCommand(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("f"), "content")
	code, out, errs := command(t, s.env, "preflight", "-c", s.file)
	for _, want := range []string{
		"app: s3://" + s.bucket.bucket + "/backups/app in us-east-1 under " + s3test.KeyName, "\n  ok        put", "the bucket keeps no versions",
		"next run  1 files, 7 B", "All that this configuration needs works.",
	} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("preflight exited with %d and does not say %q:\n%s%s", code, want, out, errs)
		}
	}
	if keys := append(s.bucket.keys(t, true), s.bucket.keys(t, false)...); len(keys) != 0 {
		t.Errorf("it left %q", keys)
	}
	s.env = s.server.User(t, fmt.Sprintf(`{"Version":"2012-10-17","Statement":[
		{"Effect":"Allow","Action":["s3:GetObject"],"Resource":"arn:aws:s3:::%s/*"}]}`, s.bucket.bucket)).Environ()
	code, out, _ = command(t, s.env, "preflight", "-c", s.file, "--json")
	var report struct {
		OK      bool `json:"ok"`
		Sources []struct {
			Checks []json.RawMessage `json:"checks"`
		} `json:"sources"`
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != 3 || report.OK || len(report.Sources) != 1 || len(report.Sources[0].Checks) < 15 {
		t.Errorf("preflight exited with %d, %v:\n%s", code, err, out)
	}
	write(t, s.file, yaml("http://127.0.0.1:1", s.state, "- {name: app, path: "+s.dir+", bucket: data, kms_key_id: k}", ""))
	if code, _, errs := command(t, s.env, "preflight", "-c", s.file); code != 1 || !strings.Contains(errs, "no destination answered") {
		t.Errorf("without a server, preflight exited with %d: %s", code, errs)
	}
	if code, _, _ := command(t, s.env, "preflight"); code != 2 {
		t.Errorf("without a configuration, preflight exited with %d", code)
	}
}
