package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

// An alias that moves leaves what is there under the older key, counts it, and
// goes on under the new one.
func TestAnAliasThatMoves(t *testing.T) {
	fake := s3test.NewFake(t, "archive")
	base := t.TempDir()
	dir, file := filepath.Join(base, "data"), filepath.Join(base, "s3syncd.yaml")
	write(t, file, yaml(fake.URL, filepath.Join(base, "state"),
		fmt.Sprintf("- {name: app, path: %s, bucket: archive, prefix: p, kms_key_id: %s}", dir, s3test.FakeAlias), ""))
	write(t, filepath.Join(dir, "a"), "one")
	write(t, filepath.Join(dir, "b"), "two")
	env := fake.Credentials().Environ()
	key := func(name string) string { o, _ := fake.Object("archive", "p/"+name); return o.KMSKeyID }
	gauge := func(d *process, n int) {
		t.Helper()
		want := fmt.Sprintf("\ns3syncd_wrong_key_objects{source=\"app\"} %d\n", n)
		eventually(t, want, func() bool { _, m := d.get(t, "/metrics"); return strings.Contains(m, want) })
	}
	d := startDaemon(t, file, env...)
	eventually(t, "the files", func() bool { return key("a") == s3test.FakeKeyARN && key("b") == s3test.FakeKeyARN })
	gauge(d, 0)
	fake.Alias(s3test.FakeAlias, s3test.FakeOtherARN)
	write(t, filepath.Join(dir, "c"), "three")
	eventually(t, "a file under the new key", func() bool { return key("c") == s3test.FakeOtherARN })
	gauge(d, 2)
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if key("a") != s3test.FakeKeyARN {
		t.Errorf("a is under %s: what is unchanged has to stay", key("a"))
	}
	code, out, errs := command(t, env, "rekey", "-c", file)
	if code != 0 || !strings.Contains(out, "Rekeyed: 2 ") || key("a") != s3test.FakeOtherARN || key("b") != s3test.FakeOtherARN {
		t.Errorf("rekey exited with %d and said:\n%s%s", code, out, errs)
	}
}

// Region, owner and profile of a source are those of its requests, all of them.
func TestEachSourceHasItsOwnRegionOwnerAndProfile(t *testing.T) {
	fake := s3test.NewFake(t, "first", "second")
	base := t.TempDir()
	dirs, file := filepath.Join(base, "data"), filepath.Join(base, "s3syncd.yaml")
	aws := filepath.Join(base, "aws")
	write(t, aws, "[profile archive]\naws_access_key_id = ARCHIVE\naws_secret_access_key = x\n")
	write(t, file, yaml(fake.URL, filepath.Join(base, "state"), fmt.Sprintf(
		"- {name: a, path: %s/a, bucket: first, prefix: p, kms_key_id: %s}\n"+
			"- {name: b, path: %s/b, bucket: replaced, prefix: p, kms_key_id: %s, region: eu-west-1, expected_bucket_owner: \"111122223333\", profile: archive, accept_kms_keys: [\"%s\"]}",
		dirs, s3test.FakeKeyARN, dirs, s3test.FakeKeyARN, s3test.FakeOtherARN), "upload: {single_put_max: 5MiB, part_size: 5MiB}"))
	for _, rel := range []string{"a/f", "b/f", "b/accepted", "b/other"} {
		write(t, filepath.Join(dirs, rel), rel)
	}
	random(t, filepath.Join(dirs, "b", "large"), 6<<20, 1)
	store := func(rel, key string) {
		fake.Store("second", s3test.FakeObject{
			Key: "p/" + rel, Body: []byte("b/" + rel), SSE: "aws:kms", KMSKeyID: key, Metadata: map[string]string{"md5checksum": md5Of("b/" + rel)},
		})
	}
	store("accepted", s3test.FakeOtherARN)
	store("other", "arn:aws:kms:us-east-1:123456789012:key/nobody")
	env := append(fake.Credentials().Environ(), "AWS_CONFIG_FILE="+aws, "S3SYNCD_SOURCES_1_BUCKET=second")
	manifest := filepath.Join(base, "run.json")
	code, out, errs := command(t, env, "sync", "-c", file, "--manifest-out", manifest)
	if code != 0 || !strings.Contains(out, "Uploaded: 4\nSkipped: 1 (unchanged)\n") {
		t.Fatalf("sync exited with %d:\n%s%s", code, out, errs)
	}
	if code, out, errs := command(t, env, "rekey", "-c", file, "--source", "b", "--ask-all"); code != 0 || !strings.Contains(out, "Rekeyed: 0 ") {
		t.Errorf("rekey exited with %d:\n%s%s", code, out, errs)
	}
	credential := regexp.MustCompile(`Credential=([^/]+)/\d+/([^/]+)/s3/`)
	for _, r := range fake.Ledger() {
		m := credential.FindStringSubmatch(r.Header.Get("Authorization"))
		if m == nil {
			t.Fatalf("%s of %s/%s is not signed", r.Op, r.Bucket, r.Key)
		}
		got := m[1] + " " + m[2] + " " + r.Header.Get("X-Amz-Expected-Bucket-Owner")
		want := map[string]string{"first": "fake us-east-1 ", "second": "ARCHIVE eu-west-1 111122223333"}[r.Bucket]
		if got != want {
			t.Errorf("%s of %s/%s went out with %q, want %q", r.Op, r.Bucket, r.Key, got, want)
		}
	}
	body, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range parseManifest(t, manifest, body) {
		switch {
		case r.S3Key == "p/accepted" && (r.Status != "skipped" || r.KMSKeyID != s3test.FakeOtherARN):
			t.Errorf("an object under an accepted key: %+v, want it skipped", r)
		case r.S3Key == "p/other" && (r.Status != "uploaded" || r.Replaced == "" || r.KMSKeyID != s3test.FakeKeyARN):
			t.Errorf("an object under another key: %+v, want it replaced", r)
		}
	}
}
