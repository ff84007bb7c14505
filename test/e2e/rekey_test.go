package e2e_test

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

// rekey runs one rekey and returns its exit code and all that it said.
func (s *site) rekey(t *testing.T, args ...string) (code int, said string) {
	t.Helper()
	code, out, errs := command(t, s.env, append([]string{"rekey", "-c", s.file, "--rate", "0"}, args...)...)
	return code, out + errs
}

// mustRekey runs one rekey that must end with 0 and say all of wants.
func (s *site) mustRekey(t *testing.T, args []string, wants ...string) {
	t.Helper()
	code, said := s.rekey(t, args...)
	if code != 0 {
		t.Fatalf("rekey %q exited with %d:\n%s", args, code, tail(said, 4000))
	}
	for _, want := range wants {
		if !strings.Contains(said, want) {
			t.Errorf("rekey %q does not say %q:\n%s", args, want, tail(said, 4000))
		}
	}
}

// plain stores an object as another program would, without a key.
func (s *site) plain(t *testing.T, rel, content string, meta map[string]string) {
	t.Helper()
	_, err := s.bucket.client.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: &s.bucket.bucket, Key: aws.String(s.bucket.prefix + "/" + rel), Body: strings.NewReader(content),
		ContentType: aws.String("text/plain"), Tagging: aws.String("team=ops"), Metadata: meta,
	})
	if err != nil {
		t.Fatalf("put %s: %v", rel, err)
	}
}

// formerly archives files that are gone by now, and then puts their objects there
// without a key, as a bucket that was copied has them. It returns content by key.
func (s *site) formerly(t *testing.T, rels ...string) map[string]string {
	t.Helper()
	want := map[string]string{}
	for _, rel := range rels {
		write(t, s.path(rel), "content of "+rel)
	}
	write(t, s.path("stays"), "stays")
	s.mustSync(t, len(rels)+1, 0, 0)
	for _, rel := range rels {
		if err := os.Remove(s.path(rel)); err != nil {
			t.Fatal(err)
		}
	}
	s.mustSync(t, 0, 1, 0)
	for _, rel := range rels {
		want[s.bucket.prefix+"/"+rel] = "content of " + rel
		s.plain(t, rel, "content of "+rel, map[string]string{"theirs": "kept"})
	}
	return want
}

// versions returns the ETag of every object outside the trail.
func (b bucketView) versions(t *testing.T) map[string]string {
	t.Helper()
	etags := map[string]string{}
	for _, k := range b.keys(t, false) {
		_, out := b.get(t, k)
		etags[k] = aws.ToString(out.ETag)
	}
	return etags
}

// records counts the records of one status by key.
func (tr trail) byKey(status string) map[string]int {
	n := map[string]int{}
	for _, r := range tr.records {
		if r.Status == status {
			n[r.S3Key]++
		}
	}
	return n
}

func TestRekeyBringsPlaintextUnderTheKey(t *testing.T) {
	s := newSite(t, "", "")
	s.formerly(t, "gone/a & b.txt")
	write(t, s.path("ours"), "ours")
	write(t, s.path("replaced"), "replaced")
	write(t, s.path("forged"), "forged")
	s.mustSync(t, 3, 1, 0)
	s.plain(t, "replaced", "replaced", map[string]string{"md5checksum": md5Of("replaced")})
	_, genuine := s.bucket.get(t, s.bucket.prefix+"/forged")
	s.plain(t, "forged", "FORGED", genuine.Metadata)
	s.plain(t, "unknown", "before us", map[string]string{"md5checksum": md5Of("before us")})
	s.plain(t, "other", "x", map[string]string{"s3syncd-id": "test-02/0badcafe/1"})
	s.plain(t, "b/_manifests/manifest_1.json", "[]", map[string]string{"s3syncd-instance": "test-02"})

	was := s.bucket.versions(t)
	code, said := s.rekey(t, "--dry-run")
	if want := "Would rekey: 2 objects, 33 B (without a KMS key: 2, under another key: 0)\nRight already: 3 of 8\nLeft to others, or not known to index and trail: 3\n"; code != 0 || !strings.Contains(said, want) {
		t.Errorf("the dry run exited with %d and said:\n%s\nwant:\n%s", code, said, want)
	}
	if now := s.bucket.versions(t); !maps.Equal(now, was) {
		t.Errorf("the dry run changed objects: %v, then %v", was, now)
	}
	if code, said := s.rekey(t); code != 3 || !strings.Contains(said, "Rekeyed: 2 (33 B)\nRight already: 3 of 8\nFailed: 3\n") {
		t.Errorf("rekey exited with %d, want 3 for what nobody archived, and said:\n%s", code, said)
	}
	if _, out := s.bucket.get(t, s.bucket.prefix+"/gone/a & b.txt"); aws.ToString(out.ContentType) != "text/plain" || aws.ToInt32(out.TagCount) != 1 || out.Metadata["theirs"] != "kept" {
		t.Errorf("the object of the file that is gone has %q, %d tags, %v; want what it had", aws.ToString(out.ContentType), aws.ToInt32(out.TagCount), out.Metadata)
	}
	for k, etag := range s.bucket.versions(t) {
		foreign := strings.HasSuffix(k, "/other") || strings.HasSuffix(k, "/unknown") || strings.HasSuffix(k, "/forged") || strings.Contains(k, "/b/_manifests/")
		if _, out := s.bucket.get(t, k); foreign != (etag == was[k] && out.ServerSideEncryption == "") && !strings.HasSuffix(k, "/ours") && !strings.HasSuffix(k, "/stays") {
			t.Errorf("%s has encryption %q, ETag %s, had %s", k, out.ServerSideEncryption, etag, was[k])
		}
	}
	if n := s.bucket.readTrail(t).byKey("rekeyed"); len(n) != 2 {
		t.Errorf("rekeyed records %v, want one of each of 2", n)
	}
	s.mustSync(t, 0, 4, 0)
	if code, said := s.rekey(t); code != 3 || !strings.Contains(said, "Rekeyed: 0 ") {
		t.Errorf("again, rekey exited with %d and said:\n%s", code, said)
	}
}

func TestRekeyFromOneKeyToAnother(t *testing.T) {
	s := newFakeSite(t, "", "")
	target := s.key
	s.key = s3test.FakeOtherARN
	s.configure(t, "", "")
	const files = 12
	for i := range files {
		write(t, s.path(fmt.Sprintf("d/f%02d", i)), fmt.Sprintf("content %d", i))
	}
	s.mustSync(t, files, 0, 0)
	write(t, s.path("d/f00"), "edited")
	if err := os.Remove(s.path("d/f01")); err != nil {
		t.Fatal(err)
	}

	s.key = target
	s.configure(t, "", "")
	s.mustSync(t, 1, files-2, 0) // What is unchanged stays where it is.
	s.wantWrongKeys(t, files-2)
	s.mustRekey(t, []string{"--dry-run"}, fmt.Sprintf("under another key: %d)", files-1))
	s.mustRekey(t, nil, fmt.Sprintf("Rekeyed: %d ", files-1), "Right already: 1 of 12", "Failed: 0", "noncurrent versions")
	for _, k := range s.bucket.keys(t, false) {
		if _, out := s.bucket.get(t, k); aws.ToString(out.SSEKMSKeyId) != target {
			t.Errorf("%s is under %s", k, aws.ToString(out.SSEKMSKeyId))
		}
	}
	s.wantWrongKeys(t, 0)
	s.mustSync(t, 0, files-1, 0)
	s.mustRekey(t, nil, "Rekeyed: 0 ", "Right already: 12 of 12")
}

// wantWrongKeys starts a daemon and reads its gauge.
func (s *site) wantWrongKeys(t *testing.T, n int) {
	t.Helper()
	d := s.daemon(t)
	want := fmt.Sprintf("\ns3syncd_wrong_key_objects{source=\"app\"} %d\n", n)
	eventually(t, want, func() bool {
		_, m := d.get(t, "/metrics")
		return strings.Contains(m, want)
	})
	if code, said := s.rekey(t); n > 0 && (code != 1 || !strings.Contains(said, "stop the daemon first")) {
		t.Errorf("beside a daemon, rekey exited with %d and said:\n%s", code, said)
	}
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

func TestRekeySurvivesKills(t *testing.T) {
	s := newSite(t, "", "upload: {workers: 2}")
	const objects = 30
	var rels []string
	for i := range objects {
		rels = append(rels, fmt.Sprintf("old/%02d", i))
	}
	want := s.formerly(t, rels...)
	s.proxy.Forget()
	for _, held := range []s3test.Match{
		{Op: "CopyObject", Skip: 2}, {Op: "CopyObject", Skip: 8}, {Op: "PutObject", Key: "/manifest_"},
	} {
		held.Skip += s.proxy.Count(s3test.Match{Op: held.Op, Key: held.Key})
		f := s.proxy.Hold(held) // The server has done it, nobody knows.
		p := spawn(t, s.env, "rekey", "-c", s.file, "--rate", "0")
		select {
		case <-f.Arrived():
			p.kill(t)
		case <-p.done:
			t.Fatalf("rekey ended before it was killed: %s", p.stderr)
		}
		f.Release()
	}
	s.mustRekey(t, nil, "Failed: 0")
	for k, content := range want {
		body, out := s.bucket.get(t, k)
		s.bucket.wantEncrypted(t, k, string(out.ServerSideEncryption), aws.ToString(out.SSEKMSKeyId))
		if !bytes.Equal(body, []byte(content)) {
			t.Errorf("%s holds %q", k, body)
		}
	}
	for k, n := range s.bucket.readTrail(t).byKey("rekeyed") {
		if n != 1 {
			t.Errorf("%d rekeyed records of %s, want 1", n, k)
		}
		delete(want, k)
	}
	if len(want) > 0 {
		t.Errorf("no rekeyed record of %q", slices.Collect(maps.Keys(want)))
	}
}

func TestRekeyRecordsWhatIsRefused(t *testing.T) {
	s := newSite(t, "", "")
	s.formerly(t, "a", "b", "c")
	before := len(s.bucket.readTrail(t).records)
	s.proxy.Answer(s3test.Match{Op: "CopyObject", Key: "/b", Times: -1}, 403, "AccessDenied")
	code, said := s.rekey(t, "--give-up", "30s")
	if code != 3 || !strings.Contains(said, "Rekeyed: 2 ") || !strings.Contains(said, "Failed: 1\n") || !strings.Contains(said, "AccessDenied") {
		t.Errorf("rekey exited with %d, want 3 and one failure:\n%s", code, said)
	}
	for _, r := range s.bucket.readTrail(t).records[before:] {
		if failed := r.S3Key == s.bucket.prefix+"/b"; failed != (r.Status == "failed" && strings.Contains(r.Error, "AccessDenied")) {
			t.Errorf("record %+v", r)
		}
	}
}

func TestRekeyStopsAtAServerThatIgnoresTheKey(t *testing.T) {
	s := newSite(t, "", "")
	var rels []string
	for i := range 40 {
		rels = append(rels, fmt.Sprintf("f%02d", i))
	}
	s.formerly(t, rels...)
	s.proxy.Strip(s3test.Match{Op: "CopyObject", Times: -1}, "X-Amz-Server-Side-Encryption")
	s.proxy.Strip(s3test.Match{Op: "HeadObject", Key: "/f", Times: -1}, "X-Amz-Server-Side-Encryption")
	code, said := s.rekey(t)
	if code != 1 || !strings.Contains(said, "stopped at once") || !strings.Contains(said, "did not confirm") {
		t.Errorf("rekey exited with %d:\n%s", code, tail(said, 3000))
	}
	// As many as there are workers, and two more that are kept for small requests.
	if n := s.proxy.Count(s3test.Match{Op: "CopyObject"}); n > 16+2 {
		t.Errorf("%d copies were asked for, want at most those under way", n)
	}
}

func TestRekeyWithoutTheRightToList(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("a"), "a")
	s.mustSync(t, 1, 0, 0)
	s.env = s.server.User(t, fmt.Sprintf(`{"Version":"2012-10-17","Statement":[
		{"Effect":"Allow","Action":["s3:PutObject","s3:GetObject"],"Resource":"arn:aws:s3:::%s/*"}]}`, s.bucket.bucket)).Environ()
	s.mustRekey(t, nil, "Not looked at", "Right already: 1 of 1")
}

func TestRekeyCommandLine(t *testing.T) {
	s := newSite(t, "", "")
	for _, args := range [][]string{{"rekey"}, {"rekey", "-c", s.file, "--rate", "fast"}, {"rekey", "-c", s.file, "--rate", "-1"}, {"rekey", "-c", s.file, "--source", "nobody"}} {
		if code, _, errs := command(t, s.env, args...); code != 2 || errs == "" {
			t.Errorf("%q exited with %d: %s", args, code, errs)
		}
	}
	if _, err := os.Stat(filepath.Join(s.state, "state.db")); err == nil {
		t.Error("a wrong command line made a state")
	}
	s.mustRekey(t, []string{"--dry-run"}, "Would rekey: 0 objects")
	if _, err := os.Stat(s.state); err == nil {
		t.Error("a dry run made a state")
	}
}
