package preflight

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/pipeline"
	"github.com/s3syncd/s3syncd/internal/s3test"
)

// testConfig is a configuration of one source; source and extra are YAML.
func testConfig(t *testing.T, endpoint, bucket, key, source, extra string) *config.Config {
	t.Helper()
	base := t.TempDir()
	dir, file := filepath.Join(base, "data"), filepath.Join(base, "s3syncd.yaml")
	text := fmt.Sprintf("instance: test-01\nstate_dir: %s\ns3: {region: us-east-1, endpoint_url: %q}\n"+
		"sources:\n  - {name: app, path: %s, bucket: %s, prefix: backups/app, kms_key_id: %q, %s}\n%s\n",
		filepath.Join(base, "state"), endpoint, dir, bucket, key, source, extra)
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "a"), []byte("content"), 0o644), os.WriteFile(file, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func runPreflight(t *testing.T, c *config.Config) (Source, error) {
	t.Helper()
	r, err := Run(t.Context(), Options{Config: c, Stderr: os.Stderr})
	if len(r.Sources) != 1 {
		t.Fatalf("Preflight = %+v, %v, want one source", r, err)
	}
	return r.Sources[0], err
}

// check returns one check.
func (s *Source) check(t *testing.T, name string) Check {
	t.Helper()
	i := slices.IndexFunc(s.Checks, func(c Check) bool { return c.Check == name })
	if i < 0 {
		t.Fatalf("there is no check %q in %+v", name, s.Checks)
	}
	return s.Checks[i]
}

func TestPreflightOfADestinationThatWorks(t *testing.T) {
	srv := s3test.MinIO(t)
	srv.Setenv(t)
	bucket := srv.Bucket(t, s3test.BucketOptions{Versioning: true, ObjectLock: true})
	c := testConfig(t, srv.URL, bucket, s3test.KeyName, "deletes: mirror", "manifest: {object_lock: {mode: GOVERNANCE, days: 1}}")
	s, err := runPreflight(t, c)
	if err != nil || !s.ok() || s.Resolved != s3test.KeyARN {
		t.Errorf("Preflight = %+v, %v", s, err)
	}
	for _, k := range s.Checks {
		if k.Verdict != VerdictOK {
			t.Errorf("check %+v, want ok", k)
		}
	}
	if len(s.Checks) != 19 || len(s.Left) != 1 {
		t.Errorf("%d checks, left %q; want 19, and the document with a retention", len(s.Checks), s.Left)
	}
	if p := s.Plan; p == nil || p.Files != 1 || p.Bytes != 7 || p.Run.Put != 5 || p.Run.Head != 3 || p.Day.Trail != 24 || p.Day.List != 1 {
		t.Errorf("plan %+v, want that of one file", s.Plan)
	}
	if _, err := os.Stat(c.StateDir); err == nil {
		t.Error("the preflight made a state")
	}
}

// allow is a policy of all that the preflight tries but for without.
func allow(bucket, without string) string {
	object := []string{"s3:PutObject", "s3:GetObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts", "s3:DeleteObject", "s3:PutObjectRetention"}
	whole := []string{"s3:ListBucket", "s3:ListBucketMultipartUploads", "s3:ListBucketVersions"}
	not := func(a string) bool { return a == without }
	type statement struct {
		Effect           string
		Action, Resource []string
	}
	b, err := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": []statement{
		{"Allow", slices.DeleteFunc(object, not), []string{"arn:aws:s3:::" + bucket + "/*"}},
		{"Allow", slices.DeleteFunc(whole, not), []string{"arn:aws:s3:::" + bucket}},
	}})
	if err != nil {
		panic(err)
	}
	return string(b)
}

func TestPreflightNamesEachMissingPermission(t *testing.T) {
	srv := s3test.MinIO(t)
	for _, c := range []struct {
		action, check, resource string
		verdict                 Verdict
	}{
		{"s3:ListBucket", "list", "", VerdictMissing},
		{"s3:PutObject", "put", "/backups/app/*", VerdictMissing},
		{"s3:GetObject", "head", "/backups/app/*", VerdictMissing},
		{"s3:AbortMultipartUpload", "abort", "/backups/app/*", VerdictMissing},
		{"s3:ListMultipartUploadParts", "list-parts", "/backups/app/*", VerdictMissing},
		{"s3:DeleteObject", "delete", "/backups/app/*", VerdictMissing},
		{"s3:PutObjectRetention", "object-lock", "/backups/app/_manifests/*", VerdictMissing},
		{"s3:ListBucketMultipartUploads", "list-uploads", "", VerdictOptional},
	} {
		t.Run(c.action, func(t *testing.T) {
			bucket := srv.Bucket(t, s3test.BucketOptions{Versioning: true, ObjectLock: true})
			srv.User(t, allow(bucket, c.action)).Setenv(t)
			s, err := runPreflight(t, testConfig(t, srv.URL, bucket, s3test.KeyName, "deletes: mirror", "manifest: {object_lock: {mode: GOVERNANCE, days: 1}}"))
			if wantErr := c.verdict == VerdictMissing; errors.Is(err, pipeline.ErrSomeFailed) != wantErr || !wantErr && err != nil {
				t.Errorf("Preflight: %v", err)
			}
			got := s.check(t, c.check)
			if got.Verdict != c.verdict || !slices.Contains(got.Actions, c.action) || !strings.HasPrefix(got.Resource, "arn:aws:s3:::"+bucket+c.resource) || got.Feature == "" {
				t.Errorf("check %+v, want %s of %s", got, c.verdict, c.action)
			}
			for _, k := range s.Checks {
				if (k.Verdict == VerdictMissing || k.Verdict == VerdictOptional) && !slices.Contains(k.Actions, c.action) {
					t.Errorf("%s was granted, and check %+v says otherwise", k.Actions, k)
				}
			}
		})
	}
}

func TestPreflightNamesWhatKMSDenies(t *testing.T) {
	key := s3test.FakeKeyARN
	for _, c := range []struct {
		name, check string
		plan        func(f *s3test.Fake)
		actions     []string
		verdict     Verdict
		says        string
	}{
		{
			"no right to encrypt", "put",
			func(f *s3test.Fake) { f.Deny(s3test.Match{Op: "PutObject", Times: -1}, "kms:GenerateDataKey", key) },
			[]string{"kms:GenerateDataKey"},
			VerdictMissing, key,
		},
		{
			"no right to decrypt", "part",
			func(f *s3test.Fake) { f.Deny(s3test.Match{Op: "UploadPart", Times: -1}, "kms:Decrypt", key) },
			[]string{"kms:Decrypt"},
			VerdictMissing, key,
		},
		{
			"a refusal that says no more", "put",
			func(f *s3test.Fake) { f.Answer(s3test.Match{Op: "PutObject", Times: -1}, 403, "AccessDenied") },
			[]string{"s3:PutObject", "kms:GenerateDataKey"},
			VerdictMissing, key,
		},
		{
			"a HEAD that is refused", "head",
			func(f *s3test.Fake) { f.Answer(s3test.Match{Op: "HeadObject", Times: -1}, 403, "") },
			[]string{"s3:GetObject"},
			VerdictMissing, "",
		},
		{
			"no right to list versions", "versions",
			func(f *s3test.Fake) {
				f.Deny(s3test.Match{Op: "ListObjectVersions"}, "s3:ListBucketVersions", "arn:aws:s3:::bucket")
			},
			[]string{"s3:ListBucketVersions"},
			VerdictOptional, "arn:aws:s3:::bucket",
		},
		{
			"a disabled key", "put",
			func(f *s3test.Fake) {
				f.Behave(func(b *s3test.Behavior) { b.KMSError = "KMS.DisabledException" })
			},
			nil, VerdictFault, "KMS.DisabledException",
		},
		{
			"a server that does not encrypt", "encryption",
			func(f *s3test.Fake) {
				f.Behave(func(b *s3test.Behavior) { b.IgnoreEncryption, b.EchoEncryption = true, true })
			},
			nil, VerdictFault, "did not confirm",
		},
		{
			"a server that ignores conditions", "conditions",
			func(f *s3test.Fake) { f.Behave(func(b *s3test.Behavior) { b.IgnoreConditions = true }) },
			nil, VerdictNote, "HEAD before each write",
		},
		{
			"a server that ignores Content-MD5", "content-md5",
			func(f *s3test.Fake) { f.Behave(func(b *s3test.Behavior) { b.IgnoreMD5 = true }) },
			nil, VerdictNote, "SHA-256",
		},
		{
			"a clock that is hours off", "clock",
			func(f *s3test.Fake) { f.Behave(func(b *s3test.Behavior) { b.Clock = 3 * time.Hour }) },
			nil, VerdictFault, "clock is",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := s3test.NewFake(t, "bucket")
			f.Setenv(t)
			f.Behave(func(b *s3test.Behavior) { b.Versioned = true })
			c.plan(f)
			s, err := runPreflight(t, testConfig(t, f.URL, "bucket", key, "", ""))
			if good := c.verdict == VerdictNote || c.verdict == VerdictOptional; (err == nil) != good || !good && !errors.Is(err, pipeline.ErrSomeFailed) {
				t.Errorf("Preflight: %v", err)
			}
			got := s.check(t, c.check)
			if got.Verdict != c.verdict || !slices.Equal(got.Actions, c.actions) || !strings.Contains(got.Resource+got.Detail, c.says) {
				t.Errorf("check %+v, want %s of %q that says %q", got, c.verdict, c.actions, c.says)
			}
			if c.check == "encryption" && f.Count(s3test.Match{Op: "CreateMultipartUpload"}) != 0 {
				t.Error("more was sent to a server that does not encrypt")
			}
		})
	}
}

func TestPreflightWithoutAnAnswer(t *testing.T) {
	f := s3test.NewFake(t, "bucket")
	f.Setenv(t)
	f.Cut(s3test.Match{Times: -1})
	s, err := runPreflight(t, testConfig(t, f.URL, "bucket", s3test.FakeKeyARN, "", ""))
	if err == nil || errors.Is(err, pipeline.ErrSomeFailed) || s.Answered || len(f.Ledger()) > 3 {
		t.Errorf("Preflight = %+v, %v after %d requests; want no answer, after one try", s, err, len(f.Ledger()))
	}
}

func TestPreflightResolvesAnAlias(t *testing.T) {
	f := s3test.NewFake(t, "bucket")
	f.Setenv(t)
	s, err := runPreflight(t, testConfig(t, f.URL, "bucket", s3test.FakeAlias, "", ""))
	if err != nil || s.Resolved != s3test.FakeKeyARN {
		t.Errorf("Preflight = %+v, %v, want the key behind the alias", s, err)
	}
	if keys := f.Keys("bucket", ""); len(keys) != 0 || f.Uploads() != 0 || len(s.Left) != 0 {
		t.Errorf("it left %q and %d uploads", keys, f.Uploads())
	}
	if got := s.check(t, "versions"); got.Verdict != VerdictNote || !strings.Contains(got.Detail, "no versions") {
		t.Errorf("check %+v, want a note that the bucket keeps no versions", got)
	}
}

// A proxy that limits bodies is found by a body of the size that the files here
// need, and no larger one is sent; what is too large to try is said.
func TestPreflightSendsABodyAsLargeAsTheFilesNeed(t *testing.T) {
	for _, c := range []struct {
		name    string
		size    int64 // of a file
		upload  string
		verdict Verdict
		body    int64 // the largest that is sent
	}{
		{"small files", 1 << 20, "", VerdictOK, 5 << 20},
		{"below the limit", 7 << 20, "", VerdictOK, 7 << 20},
		{"beyond the limit in one request", 9 << 20, "", VerdictFault, 9 << 20},
		{"beyond the limit in parts", 100 << 20, "", VerdictFault, 16 << 20},
		{"parts below the limit", 100 << 20, "upload: {part_size: 6MiB, single_put_max: 6MiB}", VerdictOK, 6 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := s3test.NewFake(t, "bucket")
			f.Setenv(t)
			f.Behave(func(b *s3test.Behavior) { b.Versioned = true })
			var largest atomic.Int64
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				largest.Store(max(largest.Load(), r.ContentLength))
				if r.ContentLength > 8<<20 {
					w.WriteHeader(http.StatusRequestEntityTooLarge)
					return
				}
				f.ServeHTTP(w, r)
			}))
			t.Cleanup(srv.Close)
			cfg := testConfig(t, srv.URL, "bucket", s3test.FakeKeyARN, "", c.upload)
			if err := os.Truncate(filepath.Join(cfg.Sources[0].Path, "a"), c.size); err != nil {
				t.Fatal(err)
			}
			s, err := runPreflight(t, cfg)
			part := s.check(t, "part")
			if part.Verdict != c.verdict || (err == nil) != (c.verdict == VerdictOK) {
				t.Errorf("part = %+v, Preflight = %v, want %s", part, err, c.verdict)
			}
			if !strings.Contains(part.Detail, strconv.FormatInt(c.body, 10)) {
				t.Errorf("part = %+v, want it to name a body of %d bytes", part, c.body)
			}
			if n := largest.Load(); n != c.body {
				t.Errorf("the largest body had %d bytes, want %d", n, c.body)
			}
		})
	}
	t.Run("too large to try", func(t *testing.T) {
		f := s3test.NewFake(t, "bucket")
		f.Setenv(t)
		f.Behave(func(b *s3test.Behavior) { b.Versioned = true })
		cfg := testConfig(t, f.URL, "bucket", s3test.FakeKeyARN, "", "upload: {part_size: 512MiB, memory_limit: 1GiB}")
		if err := os.Truncate(filepath.Join(cfg.Sources[0].Path, "a"), 4<<30); err != nil {
			t.Fatal(err)
		}
		s, err := runPreflight(t, cfg)
		if part := s.check(t, "part"); err != nil || part.Verdict != VerdictNote || !strings.Contains(part.Detail, strconv.Itoa(512<<20)) {
			t.Errorf("part = %+v, Preflight = %v, want a note that names the size of the parts", part, err)
		}
	})
}

// A plan counts as many parts as a run sends, and a file that no object can hold
// as one that fails.
