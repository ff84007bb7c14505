package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// replace puts another directory with other files in the place of the source.
func (s *site) replace(t *testing.T, files ...string) {
	t.Helper()
	if err := os.Rename(s.dir, s.dir+"-away"); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		write(t, s.path(f), f)
	}
}

// said checks what one sync says.
func (s *site) said(t *testing.T, code int, wants []string, args ...string) {
	t.Helper()
	got, out, errs := s.sync(t, args...)
	if got != code {
		t.Errorf("sync %v: exit code %d, want %d:\n%s%s", args, got, code, out, errs)
	}
	for _, want := range wants {
		if !strings.Contains(out, want) {
			t.Errorf("sync %v does not say %q:\n%s%s", args, want, out, errs)
		}
	}
}

func TestASyncSaysThatItWithheldDeletionsAndConfirmsThem(t *testing.T) {
	s := newFakeSite(t, "", "")
	for _, f := range []string{"a", "b"} {
		write(t, s.path(f), f)
	}
	s.mustSync(t, 2, 0, 0)
	s.replace(t, "c")
	s.said(t, 3, []string{"Uploaded: 1\n", "Withheld: 2 (missing", "--confirm-deletes"})
	s.said(t, 0, []string{"Deleted: 2 (gone here)"}, "--confirm-deletes")
	s.said(t, 0, []string{"Uploaded: 0\nSkipped: 1"})
	if tr := s.bucket.readTrail(t); tr.count("deleted") != 2 {
		t.Errorf("%d deleted records, want 2", tr.count("deleted"))
	}
}

func TestASyncOfAMirrorConfirmsDeletions(t *testing.T) {
	s := newFakeSite(t, "deletes: mirror\nmax_deletes: 1", "")
	for _, f := range []string{"a", "b", "c", "d"} {
		write(t, s.path(f), f)
	}
	s.mustSync(t, 4, 0, 0)
	for _, f := range []string{"a", "b", "c"} {
		if err := os.Remove(s.path(f)); err != nil {
			t.Fatal(err)
		}
	}
	s.said(t, 3, []string{"Held back: 3 (", "--confirm-deletes"})
	if n := len(s.bucket.keys(t, false)); n != 4 {
		t.Errorf("%d objects, want 4", n)
	}
	s.said(t, 0, []string{"Deleted: 3 (gone here)", "deleted \"a\" (gone here)\n"}, "--confirm-deletes")
	if n := len(s.bucket.keys(t, false)); n != 1 {
		t.Errorf("%d objects, want 1", n)
	}
}

func TestASyncOfAnEmptiedSourceConfirmsDeletions(t *testing.T) {
	s := newFakeSite(t, "", "")
	write(t, s.path("a"), "a")
	s.mustSync(t, 1, 0, 0)
	s.replace(t)
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.said(t, 1, []string{"Not read: 1 of 1"})
	s.said(t, 0, []string{"Deleted: 1"}, "--confirm-deletes")
}

func TestASyncReportsOnTheOthersWhenOneSourceIsMissing(t *testing.T) {
	s := newFakeSite(t, "", "")
	more := filepath.Join(filepath.Dir(s.dir), "more")
	sources := fmt.Sprintf("- {name: app, path: %s, bucket: %s, prefix: backups/app, kms_key_id: %s}\n- {name: more, path: %s, bucket: %s, prefix: more, kms_key_id: %s}\n",
		s.dir, s.bucket.bucket, s.key, more, s.bucket.bucket, s.key)
	write(t, s.file, yaml(s.proxy.URL, s.state, sources, ""))
	write(t, s.path("f"), "content")
	code, out, errs := s.sync(t)
	if want := "Uploaded: 1\nSkipped: 0 (unchanged)\nFailed: 0\nNot read: 1 of 2"; code != 3 || !strings.Contains(out, want) {
		t.Errorf("exit code %d, want 3, with %q:\n%s", code, want, out)
	}
	if !strings.Contains(errs, "source more: ") || !strings.Contains(errs, "no such file") {
		t.Errorf("stderr does not say why: %s", errs)
	}
	if !s.inBucket(t, "f", "content") || s.bucket.readTrail(t).count("uploaded") != 1 {
		t.Error("the other source is not archived, or not in its trail")
	}
	if err := os.Rename(s.dir, s.dir+"-away"); err != nil {
		t.Fatal(err)
	}
	if code, out, _ = s.sync(t); code != 1 || !strings.Contains(out, "Not read: 2 of 2") {
		t.Errorf("without any source: exit code %d, want 1, and a summary:\n%s", code, out)
	}
}

func TestASyncGivesAHungSourceUp(t *testing.T) {
	s := newFakeSite(t, "", "")
	more := filepath.Join(filepath.Dir(s.dir), "more")
	if err := os.Mkdir(more, 0o755); err != nil {
		t.Fatal(err)
	}
	sources := fmt.Sprintf("- {name: more, path: %s, bucket: %s, prefix: more, kms_key_id: %s}\n- {name: app, path: %s, bucket: %s, prefix: backups/app, kms_key_id: %s}\n",
		more, s.bucket.bucket, s.key, s.dir, s.bucket.bucket, s.key)
	write(t, s.file, yaml(s.proxy.URL, s.state, sources, ""))
	write(t, s.path("f"), "content")
	hangs(t, more)
	code, out, errs := s.sync(t)
	if code != 3 || !strings.Contains(out, "Uploaded: 1\n") || !strings.Contains(out, "Not read: 1 of 2") || !strings.Contains(errs, "does not answer") {
		t.Errorf("exit code %d, want 3:\n%s%s", code, out, errs)
	}
}
