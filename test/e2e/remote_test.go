package e2e_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

const everySecond = "S3SYNCD_WATCH_REMOTE_CHECK_INTERVAL=1s"

// checks counts the remote checks that completed.
func (p *process) checks() int { return strings.Count(p.stderr.String(), `"msg":"remote check done"`) }

// checkedAgain waits for a comparison that begins from now on.
func (p *process) checkedAgain(t *testing.T) {
	t.Helper()
	n := p.checks()
	eventually(t, "a remote check", func() bool { return p.checks() >= n+2 })
}

// byHand writes an object of rel as a person would, without the product.
func (s *site) byHand(t *testing.T, rel, content string, meta map[string]string) {
	t.Helper()
	_, err := s.bucket.client.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: &s.bucket.bucket, Key: aws.String(s.bucket.prefix + "/" + rel), Body: strings.NewReader(content), Metadata: meta,
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (s *site) removeByHand(t *testing.T, key string) {
	t.Helper()
	_, err := s.bucket.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &s.bucket.bucket, Key: aws.String(s.bucket.prefix + "/" + key)})
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsRemovedOrReplacedInTheBucketIsPutBack(t *testing.T) {
	s := newSite(t, "", "upload: {single_put_max: 5MiB, part_size: 5MiB}")
	s.env = append(s.env, everySecond)
	content := map[string]string{"a": "a", "b/replaced": "right size", "b/other": "other", "odd/\xff\xfe": "odd", "odd/x%41": "escaped", "z": "z"}
	for rel, c := range content {
		write(t, s.path(rel), c)
	}
	random(t, s.path("large"), 12<<20, 4)
	d := s.daemon(t)
	eventually(t, "all files", func() bool { return len(s.bucket.keys(t, false)) == len(content)+1 })
	eventually(t, "their records", func() bool { return strings.Count(d.stderr.String(), `"msg":"uploaded"`) == len(content)+1 })

	// As long as nobody touches the bucket, nothing is asked about it.
	s.proxy.Forget()
	d.checkedAgain(t)
	d.checkedAgain(t)
	if h, p := s.data("HeadObject"), s.data("PutObject"); h+p != 0 {
		t.Errorf("%d HEAD and %d PUT requests without need", h, p)
	}

	s.removeByHand(t, "a")
	s.removeByHand(t, "odd/%FF%FE")
	s.removeByHand(t, "odd/x%2541")
	s.removeByHand(t, "large")
	s.byHand(t, "b/replaced", "wrong size, too", nil)
	s.byHand(t, "b/other", "OTHER", nil) // Of the same size.
	s.byHand(t, "unknown", "nobody's business", nil)
	eventually(t, "everything is put back", func() bool {
		_, page := d.get(t, "/metrics")
		return strings.Contains(page, `s3syncd_remote_repaired_files_total{source="app"} 6`+"\n")
	})
	d.checkedAgain(t)
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if !s.inBucket(t, "unknown", "nobody's business") {
		t.Error("an object that is not in the index was touched")
	}
	s.removeByHand(t, "unknown")
	tr := s.bucket.readTrail(t)
	for rel, key := range map[string]string{"odd/\xff\xfe": "odd/%FF%FE", "odd/x%41": "odd/x%2541", "a": "a", "b/replaced": "b/replaced", "b/other": "b/other"} {
		if !s.inBucket(t, key, content[rel]) {
			t.Errorf("%s does not hold what the file holds", key)
		}
	}
	replaced, noted := 0, false
	for _, r := range tr.records {
		if r.Trigger == "rescan" && r.Status == "uploaded" && r.Replaced != "" {
			replaced++
		}
	}
	for _, dg := range tr.digests {
		for _, e := range dg.Events {
			noted = noted || e.Event == "remote-check" && strings.Contains(e.Detail, "missing 4, replaced 2")
		}
	}
	if replaced != 2 {
		t.Errorf("%d records say what they replaced, want 2", replaced)
	}
	if !noted && tr.count("uploaded") != len(content)+1+6 {
		t.Errorf("%d uploads in the trail, want %d", tr.count("uploaded"), len(content)+1+6)
	}
}

func TestAnotherInstancesReplacementStays(t *testing.T) {
	s := newSite(t, "", "")
	s.env = append(s.env, everySecond)
	write(t, s.path("f"), "ours")
	d := s.daemon(t)
	eventually(t, "the file", func() bool { return strings.Contains(d.stderr.String(), `"msg":"uploaded"`) })
	s.byHand(t, "f", "theirs", map[string]string{"s3syncd-id": "other-host/0a1b2c3d/7"})
	eventually(t, "the conflict", func() bool {
		_, page := d.get(t, "/metrics")
		return strings.Contains(page, `s3syncd_conflicts_total{source="app"} 1`+"\n")
	})
	d.checkedAgain(t)
	d.stop(t)
	if !s.inBucket(t, "f", "theirs") {
		t.Error("the other instance's object was overwritten")
	}
	tr := s.bucket.readTrail(t)
	if n := tr.count("failed"); n != 1 {
		t.Errorf("%d failed records, want 1", n)
	}
}

func TestAnOutageDuringTheCheckDeclaresNothingMissing(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("f"), "content")
	s.proxy.Answer(s3test.Match{Op: "ListObjectsV2", Times: -1}, 503, "SlowDown")
	s.env = append(s.env, everySecond)
	d := s.daemon(t)
	eventually(t, "the check is given up", func() bool { return strings.Contains(d.stderr.String(), "the remote check did not complete") })
	eventually(t, "the file", func() bool { return s.inBucket(t, "f", "content") })
	d.stop(t)
	tr := s.bucket.readTrail(t)
	if n := tr.count("uploaded"); n != 1 {
		t.Errorf("%d uploads, want 1: nothing was missing", n)
	}
}

func TestWithoutTheRightToListTheFarSideIsNotChecked(t *testing.T) {
	fake := s3test.NewFake(t, "limited")
	fake.Behave(func(b *s3test.Behavior) { b.ListDenied = true })
	s := newSite(t, "", "")
	src := fmt.Sprintf("- {name: app, path: %s, bucket: limited, prefix: p, kms_key_id: %s}", s.dir, s3test.FakeAlias)
	write(t, s.file, yaml(fake.URL, s.state, src, ""))
	write(t, s.path("f"), "content")
	d := startDaemon(t, s.file, append(fake.Credentials().Environ(), everySecond)...)
	eventually(t, "the warning", func() bool { return strings.Contains(d.stderr.String(), "remote checks are not possible") })
	eventually(t, "the file", func() bool { _, ok := fake.Object("limited", "p/f"); return ok })
	d.hangup(t)
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if n := strings.Count(d.stderr.String(), "remote checks are not possible"); n != 1 {
		t.Errorf("%d warnings, want 1", n)
	}
}

// forgeObject puts other bytes of the same size under the key, with all the metadata of
// the object that stands there, and returns the forged object's ETag.
func (s *site) forgeObject(t *testing.T, rel string, without ...string) string {
	t.Helper()
	body, was := s.bucket.get(t, s.bucket.prefix+"/"+rel)
	for _, name := range without {
		delete(was.Metadata, name)
	}
	out, err := s.bucket.client.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: &s.bucket.bucket, Key: aws.String(s.bucket.prefix + "/" + rel), Body: strings.NewReader(strings.Repeat("!", len(body))), Metadata: was.Metadata,
		ServerSideEncryption: types.ServerSideEncryptionAwsKms, SSEKMSKeyId: aws.String(s3test.KeyName),
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Trim(aws.ToString(out.ETag), `"`)
}

// wantUnbelieved fails where a record other than that of its replacement names a
// forged object.
func (s *site) wantUnbelieved(t *testing.T, forged map[string]string, content string) {
	t.Helper()
	for _, r := range s.bucket.readTrail(t).records {
		for rel, etag := range forged {
			if r.ETag == etag {
				t.Errorf("the trail says that the forged %s is ours: %+v", rel, r)
			}
		}
	}
	for rel := range forged {
		if !s.inBucket(t, rel, content) {
			t.Errorf("%s does not hold what the file holds", rel)
		}
	}
}

func TestAForgedObjectIsPutBackAndNeverRecorded(t *testing.T) {
	s := newSite(t, "", "")
	s.env = append(s.env, everySecond)
	for _, rel := range []string{"a", "b"} {
		write(t, s.path(rel), "content")
	}
	d := s.daemon(t)
	eventually(t, "the files", func() bool { return strings.Count(d.stderr.String(), `"msg":"uploaded"`) == 2 })
	forged := map[string]string{"a": s.forgeObject(t, "a"), "b": s.forgeObject(t, "b", "s3syncd-id", "s3syncd-host")}
	eventually(t, "both are put back", func() bool { return s.inBucket(t, "a", "content") && s.inBucket(t, "b", "content") })
	d.stop(t)
	s.wantUnbelieved(t, forged, "content")
}

func TestAForgedObjectIsNotAdoptedByALostState(t *testing.T) {
	s := newSite(t, "", "")
	for _, rel := range []string{"a", "b", "real"} {
		write(t, s.path(rel), "content")
	}
	s.mustSync(t, 3, 0, 0)
	forged := map[string]string{"a": s.forgeObject(t, "a"), "b": s.forgeObject(t, "b", "s3syncd-id", "s3syncd-host")}
	if err := os.RemoveAll(s.state); err != nil {
		t.Fatal(err)
	}
	s.mustSync(t, 2, 1, 0)
	s.wantUnbelieved(t, forged, "content")
}
