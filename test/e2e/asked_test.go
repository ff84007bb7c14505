package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

func TestHeldDeletionsGoWhenAPersonConfirmsThem(t *testing.T) {
	s, d := mirrorOf(t, 8, "max_deletes: 2")
	for i := range 5 {
		remove(t, s.path(fmt.Sprintf("f%d", i)))
	}
	eventually(t, "the hold", func() bool {
		code, out, errs := s.ask(t, "status")
		return code == 3 && strings.Contains(out+errs, "confirm-deletes")
	})
	if code, out, errs := s.ask(t, "flush"); code != 3 || !strings.Contains(out+errs, "held back") {
		t.Errorf("flush = %d, want 3 and that deletions are held back: %s", code, out+errs)
	}
	if n := len(s.bucket.keys(t, false)); n != 8 {
		t.Errorf("%d objects while deletions are held back, want all 8", n)
	}
	if code, out, errs := s.ask(t, "rescan", "app", "--confirm-deletes"); code != 0 {
		t.Fatalf("rescan --confirm-deletes = %d: %s", code, out+errs)
	}
	eventually(t, "the deletions", func() bool { return len(s.bucket.keys(t, false)) == 3 })
	eventually(t, "a current status", func() bool { code, _, _ := s.ask(t, "status"); return code == 0 })
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	tr := s.bucket.readTrail(t)
	s.bucket.wantTree(t, s.dir, &tr)
	if n := tr.count("deleted"); n != 5 {
		t.Errorf("%d deleted records, want 5", n)
	}
}

func TestFlushOfAMirrorIncludesItsDeletions(t *testing.T) {
	s, _ := mirrorOf(t, 4, "")
	for i := range 3 {
		remove(t, s.path(fmt.Sprintf("f%d", i)))
		if code, out, errs := s.ask(t, "flush"); code != 0 {
			t.Fatalf("flush = %d: %s", code, out+errs)
		}
		if n := len(s.bucket.keys(t, false)); n != 3-i {
			t.Errorf("%d objects when flush returned, want %d", n, 3-i)
		}
	}
	tr := s.bucket.readTrail(t)
	if n := tr.count("deleted"); n != 3 {
		t.Errorf("%d deleted records are published, want 3", n)
	}
}

func TestRescanRemotePutsBackWhatWasRemovedInTheBucket(t *testing.T) {
	s := newSite(t, "", "")
	for _, f := range []string{"a", "b", "c"} {
		write(t, s.path(f), "content of "+f)
	}
	d := s.daemon(t)
	eventually(t, "the files", func() bool { return len(s.bucket.keys(t, false)) == 3 })
	eventually(t, "their records", func() bool { return strings.Count(d.stderr.String(), `"msg":"uploaded"`) == 3 })
	_, err := s.bucket.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{
		Bucket: &s.bucket.bucket, Key: aws.String(s.bucket.prefix + "/b"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if code, out, errs := s.ask(t, "rescan", "--remote"); code != 0 {
		t.Fatalf("rescan --remote = %d: %s", code, out+errs)
	}
	eventually(t, "the object that was removed", func() bool { return s.inBucket(t, "b", "content of b") })
	if _, page := d.get(t, "/metrics"); !strings.Contains(page, `s3syncd_remote_repaired_files_total{source="app"} 1`+"\n") {
		t.Errorf("the repair is not counted")
	}
}
