package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

// of returns the kinds of what is said of one key.
func of(list []finding, key string) (kinds []string) {
	for _, f := range list {
		if f.Key == key {
			kinds = append(kinds, f.Kind)
		}
	}
	return kinds
}

// What cannot be read is named, and the rest is checked: by verify, and by
// history.
func TestReadersReportOnAllThatCanBeRead(t *testing.T) {
	s := newSite(t, "", "")
	for _, name := range []string{"a", "b", "c"} {
		write(t, s.path(name), "content of "+name)
	}
	s.mustSync(t, 3, 0, 0)
	key := func(name string) string { return s.bucket.prefix + "/" + name }

	// Bodies that break off and then do not.
	for _, part := range []string{"/digest_", "/manifest_", "/c"} {
		s.proxy.Truncate(s3test.Match{Op: "GetObject", Key: part, Times: 2})
	}
	s.wantFindings(t, s.verify(t, 0, "-c", s.file, "--remote", "--deep", "all"))
	s.proxy.Truncate(s3test.Match{Op: "GetObject", Key: "/digest_", Times: 2})
	if code, out, errs := command(t, s.env, "history", "-c", s.file, "a"); code != 0 || !strings.Contains(out, "uploaded") {
		t.Errorf("history behind a broken body: %d\n%s%s", code, out, errs)
	}

	// One object is refused: the others are compared and hashed.
	refused := s.proxy.Answer(s3test.Match{Op: "HeadObject", Key: key("b"), Times: -1}, 403, "AccessDenied")
	v := s.verify(t, 3, "-c", s.file, "--remote", "--deep", "all", "--source")
	s.wantFindings(t, v, "unchecked")
	if o := v.Trails[0].Objects; fmt.Sprint(of(v.Trails[0].Findings, key("b"))) != "[unchecked]" || o.Downloaded != 2 || v.Trails[0].Directory.Files != 3 || v.Trails[0].Unchecked != 1 {
		t.Errorf("with one object refused: %+v", v.Trails[0])
	}
	code, out, _ := command(t, s.env, "verify", "-c", s.file, "--remote")
	if code != 3 || !strings.Contains(out, "Unchecked: 1\n") || !strings.Contains(out, key("b")) {
		t.Errorf("as text: %d\n%s", code, out)
	}
	s.proxy.Lift(refused)

	// One document is refused.
	manifest := s.trailKey(t, "/manifest_")
	refused = s.proxy.Answer(s3test.Match{Op: "GetObject", Key: manifest, Times: -1}, 403, "AccessDenied")
	v = s.verify(t, 3, "-c", s.file, "--remote")
	s.wantFindings(t, v, "unchecked")
	if fmt.Sprint(of(v.Trails[0].Findings, manifest)) != "[unchecked unchecked]" {
		t.Errorf("with one document refused: %+v", v.Trails[0].Findings)
	}
	write(t, s.path("d"), "later")
	s.mustSync(t, 1, 3, 0)
	code, out, errs := command(t, s.env, "history", "-c", s.file, "d")
	if code != 3 || !strings.Contains(out, "uploaded") || !strings.Contains(errs, "not read: "+manifest) {
		t.Errorf("history with one document refused: %d\n%s%s", code, out, errs)
	}
	s.proxy.Lift(refused)

	// Another source cannot be read at all, and then none can.
	both := fmt.Sprintf("- {name: app, path: %s, bucket: %s, prefix: %s, kms_key_id: %s}\n- {name: gone, path: %s, bucket: no-such-bucket, prefix: x, kms_key_id: %s}",
		s.dir, s.bucket.bucket, s.bucket.prefix, s.key, t.TempDir(), s.key)
	write(t, s.file, yaml(s.proxy.URL, s.state, both, ""))
	v = s.verify(t, 3, "-c", s.file)
	if len(v.Trails) != 2 || len(v.Trails[0].Findings) != 0 || !slices.Equal(kinds(v.Trails[1].Findings), []string{"unchecked"}) {
		t.Errorf("with a bucket that is not there: %+v", v.Trails)
	}
	s.proxy.Answer(s3test.Match{Op: "GetObject", Times: -1}, 403, "AccessDenied")
	s.verify(t, 1, "-c", s.file)
}

// Objects that were replaced after their host had ended are found, whatever they
// say of themselves, and however they came to be there.
func TestReplacedObjectsOfAHostThatEnded(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("a"), "content")
	write(t, s.path("b"), "content")
	s.mustSync(t, 2, 0, 0)
	key := func(name string) string { return s.bucket.prefix + "/" + name }
	_, got := s.bucket.get(t, key("a"))
	chain := strings.Split(got.Metadata["s3syncd-id"], "/")[1]
	forged := func(attempt int) map[string]string {
		return map[string]string{"s3syncd-id": fmt.Sprintf("test-01/%s/%d", chain, attempt), "md5checksum": strings.Repeat("0", 32)}
	}
	s.put(t, key("a"), []byte("other bytes"), forged(3))
	s.put(t, key("new"), []byte("other bytes"), forged(4))
	for _, args := range [][]string{{"--remote"}, {"--deep", "all"}} {
		v := s.verify(t, 3, s.fromBucket(args...)...)
		s.wantFindings(t, v, "object-content", "object-unlisted")
	}
	// The same while the host lives, and before its next digest is due.
	d := s.daemon(t)
	write(t, s.path("c"), "content")
	eventually(t, "the upload", func() bool { return s.inBucket(t, "c", "content") })
	if code, out, errs := command(t, s.env, "flush", "-c", s.file); code != 0 {
		t.Fatalf("flush: %d\n%s%s", code, out, errs)
	}
	s.put(t, key("late"), []byte("other bytes"), forged(50))
	v := s.verify(t, 3, s.fromBucket("--remote")...)
	if got := fmt.Sprint(of(v.Trails[0].Notes, key("late"))); got != "[changed-since]" {
		t.Errorf("of an object since the digest: %s, %+v", got, v.Trails[0])
	}
	code, out, _ := command(t, s.env, append([]string{"verify"}, s.fromBucket("--remote")...)...)
	if code != 3 || !strings.Contains(out, " written since the trail was published") {
		t.Errorf("as text: %d\n%s", code, out)
	}
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	v = s.verify(t, 3, s.fromBucket("--remote")...)
	if got := fmt.Sprint(of(v.Trails[0].Findings, key("late"))); got != "[object-unlisted]" {
		t.Errorf("of the same object behind the end: %s", got)
	}
}

// A file that was gone before a rekey stays gone.
func TestARekeyBringsNoFileBack(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("stays"), "content")
	write(t, s.path("goes"), "content")
	s.mustSync(t, 2, 0, 0)
	if err := os.Remove(s.path("goes")); err != nil {
		t.Fatal(err)
	}
	s.mustSync(t, 0, 1, 0)
	_, got := s.bucket.get(t, s.bucket.prefix+"/goes")
	s.plain(t, "goes", "content", got.Metadata)
	if code, said := s.rekey(t); code != 0 && code != 3 {
		t.Fatalf("rekey: %d\n%s", code, said)
	}
	if v := s.verify(t, 0, "-c", s.file, "--source"); v.Trails[0].Directory.Files != 1 {
		t.Errorf("verify --source compares %d files, want 1", v.Trails[0].Directory.Files)
	}
	to := filepath.Join(t.TempDir(), "restored")
	if code, out, errs := s.restore(t, to); code != 0 || !strings.Contains(out, "Restored: 1\n") {
		t.Errorf("restore = %d\n%s%s", code, out, errs)
	}
}
