package e2e_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

// removed counts the records of files that are gone, by key.
func (tr trail) removed() map[string]int {
	n := map[string]int{}
	for _, r := range tr.records {
		if r.Status == "deleted" {
			n[r.S3Key]++
		}
	}
	return n
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

// mirrorOf starts a daemon that mirrors n files f0, f1, … and waits for them.
func mirrorOf(t *testing.T, n int, options string) (*site, *process) {
	t.Helper()
	s := newSite(t, "deletes: mirror\n"+options, "")
	s.bucket.bucket = s.server.Bucket(t, s3test.BucketOptions{Versioning: true})
	s.configure(t, "deletes: mirror\n"+options, "")
	for i := range n {
		write(t, s.path(fmt.Sprintf("f%d", i)), fmt.Sprintf("content %d", i))
	}
	d := s.daemon(t)
	eventually(t, "all files", func() bool { return len(s.bucket.keys(t, false)) == n })
	eventually(t, "their records", func() bool { return strings.Count(d.stderr.String(), `"msg":"uploaded"`) == n })
	return s, d
}

// versions counts the versions of the object of rel, delete markers not among
// them.
func (s *site) versions(t *testing.T, rel string) int {
	t.Helper()
	out, err := s.bucket.client.ListObjectVersions(t.Context(), &s3.ListObjectVersionsInput{
		Bucket: &s.bucket.bucket, Prefix: aws.String(s.bucket.prefix + "/" + rel),
	})
	if err != nil {
		t.Fatal(err)
	}
	return len(out.Versions)
}

func TestAMirrorDeletesWhatAScanConfirms(t *testing.T) {
	s, d := mirrorOf(t, 5, "exclude: ['*.tmp']")
	write(t, s.path("d/e/deep"), "deep")
	eventually(t, "the deep file", func() bool { return s.inBucket(t, "d/e/deep", "deep") })
	remove(t, s.path("f1"))
	remove(t, s.path("d"))
	eventually(t, "the deletions", func() bool { return len(s.bucket.keys(t, false)) == 4 })
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	tr := s.bucket.readTrail(t)
	s.bucket.wantTree(t, s.dir, &tr)
	want := map[string]int{s.bucket.prefix + "/f1": 1, s.bucket.prefix + "/d/e/deep": 1}
	if got := tr.removed(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("deleted records: %v, want %v", got, want)
	}
	if n := s.versions(t, "f1"); n != 1 {
		t.Errorf("f1 has %d versions behind its delete marker, want 1", n)
	}
}

func TestAMassRemovalIsHeldBack(t *testing.T) {
	s, d := mirrorOf(t, 6, "max_deletes: 3")
	for i := range 5 {
		remove(t, s.path(fmt.Sprintf("f%d", i)))
	}
	eventually(t, "the refusal", func() bool {
		_, page := d.get(t, "/metrics")
		return strings.Contains(page, `s3syncd_skipped_files{reason="held_delete",source="app"} 5`+"\n")
	})
	d.hangup(t)
	if n := len(s.bucket.keys(t, false)); n != 6 {
		t.Errorf("%d objects are left, want all 6", n)
	}
	if !strings.Contains(d.stderr.String(), "more files are gone than max_deletes") {
		t.Error("the log does not say so")
	}
	// What comes back is not gone any more, and the rest is few enough.
	for i := range 3 {
		write(t, s.path(fmt.Sprintf("f%d", i)), "it is back")
	}
	eventually(t, "what came back", func() bool { return s.inBucket(t, "f2", "it is back") })
	d.hangup(t)
	eventually(t, "the rest", func() bool { return len(s.bucket.keys(t, false)) == 4 })
	d.stop(t)
	tr := s.bucket.readTrail(t)
	s.bucket.wantTree(t, s.dir, &tr)
	if got := tr.count("deleted"); got != 2 {
		t.Errorf("%d deleted records, want 2", got)
	}
	held := 0
	for _, dg := range tr.digests {
		for _, sc := range dg.Scans {
			held = max(held, sc.DeletesHeld)
		}
	}
	if held != 5 {
		t.Errorf("the digests tell of %d held deletions, want 5", held)
	}
}

func TestAMirrorOfASourceThatGoesOrIsEmptiedKeepsEverything(t *testing.T) {
	s, d := mirrorOf(t, 3, "")
	away := s.dir + "-away"
	for name, vanish := range map[string]func(){
		"moved away": func() {},
		"replaced by an empty directory": func() {
			if err := os.Mkdir(s.dir, 0o755); err != nil {
				t.Fatal(err)
			}
		},
	} {
		if err := os.Rename(s.dir, away); err != nil {
			t.Fatal(err)
		}
		vanish()
		eventually(t, name, func() bool {
			_, page := d.get(t, "/metrics")
			return strings.Contains(page, `s3syncd_source_available{source="app"} 0`+"\n")
		})
		_ = os.Remove(s.dir)
		if err := os.Rename(away, s.dir); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the source is back", func() bool {
			_, page := d.get(t, "/metrics")
			return strings.Contains(page, `s3syncd_source_available{source="app"} 1`+"\n")
		})
		d.hangup(t)
	}
	for i := range 3 {
		remove(t, s.path(fmt.Sprintf("f%d", i)))
	}
	d.hangup(t)
	eventually(t, "the refusal", func() bool { return strings.Contains(d.stderr.String(), "the source has no file left") })
	d.hangup(t)
	if n := s.data("DeleteObject"); n != 0 {
		t.Errorf("%d DELETE requests, want none", n)
	}
	d.stop(t)
	if got := s.bucket.keys(t, false); len(got) == 0 {
		t.Errorf("the bucket was emptied")
	}
	tr := s.bucket.readTrail(t)
	if got := tr.count("deleted"); got != 0 {
		t.Errorf("%d deleted records, want 0", got)
	}
}

func TestAMirrorWithoutItsStateDeletesNothing(t *testing.T) {
	s, d := mirrorOf(t, 4, "")
	d.stop(t)
	remove(t, s.state)
	remove(t, s.path("f0"))
	s.proxy.Forget()
	d = s.daemon(t)
	eventually(t, "the index is rebuilt", func() bool {
		_, page := d.get(t, "/metrics")
		return strings.Contains(page, `s3syncd_indexed_files{source="app"} 3`+"\n")
	})
	d.hangup(t)
	d.stop(t)
	if n := s.data("DeleteObject"); n != 0 || !s.inBucket(t, "f0", "content 0") {
		t.Errorf("%d DELETE requests, want none: what vanished while there was no index is kept", n)
	}
}

func TestAKillBetweenADeletionAndItsRecord(t *testing.T) {
	s, d := mirrorOf(t, 3, "")
	hold := s.proxy.Hold(s3test.Match{Op: "DeleteObject"})
	remove(t, s.path("f1"))
	hold.Wait(t) // The server has deleted, the client waits for the answer.
	d.kill(t)
	hold.Release()
	d = s.daemon(t)
	eventually(t, "the record", func() bool { return strings.Contains(d.stderr.String(), `"msg":"deleted"`) })
	d.hangup(t)
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	tr := s.bucket.readTrail(t)
	s.bucket.wantTree(t, s.dir, &tr)
	if got := tr.removed(); got[s.bucket.prefix+"/f1"] != 1 || len(got) != 1 {
		t.Errorf("deleted records: %v, want one of f1", got)
	}
	if n := s.data("DeleteObject"); n != 1 {
		t.Errorf("%d DELETE requests, want 1", n)
	}
}

func TestASyncOfAMirrorDeletesUpToItsLimit(t *testing.T) {
	s := newSite(t, "deletes: mirror\nmax_deletes: 2", "")
	for i := range 6 {
		write(t, s.path(fmt.Sprintf("f%d", i)), "content")
	}
	s.mustSync(t, 6, 0, 0)
	remove(t, s.path("f0"))
	remove(t, s.path("f1"))
	if code, out, errs := s.sync(t); code != 0 || !strings.Contains(out, "Deleted: 2 ") {
		t.Errorf("exit code %d:\n%s%s", code, out, errs)
	}
	for i := range 3 {
		remove(t, s.path(fmt.Sprintf("f%d", 2+i)))
	}
	if code, out, errs := s.sync(t); code != 3 || !strings.Contains(out, "Held back: 3 ") || !strings.Contains(errs, "max_deletes") {
		t.Errorf("exit code %d:\n%s%s", code, out, errs)
	}
	if got, want := len(s.bucket.keys(t, false)), 4; got != want {
		t.Errorf("%d objects are left, want %d", got, want)
	}
}

func TestTheDaemonListsItsSkipsAndItsIgnoreFiles(t *testing.T) {
	s := newSite(t, "ignore_files: true", "manifest: {list_skipped: all}")
	write(t, s.path("f"), "content")
	write(t, s.path("d/.s3syncignore"), "*.log\n")
	write(t, s.path("d/x.log"), "ignored")
	d := s.daemon(t)
	eventually(t, "both files", func() bool { return strings.Count(d.stderr.String(), `"msg":"uploaded"`) == 2 })
	eventually(t, "a scan that finds them unchanged", func() bool {
		d.hangup(t) // A file that was uploaded too soon after it was written is looked at once more.
		return strings.Contains(d.stderr.String(), `"unchanged":2`)
	})
	d.stop(t)
	tr := s.bucket.readTrail(t)
	listed := map[string]bool{}
	for _, r := range tr.records {
		if r.Status == "skipped" && r.Basis == "index" && r.Trigger == "hangup" {
			listed[r.S3Key] = true
		}
	}
	if len(listed) != 2 {
		t.Errorf("skips of %v are listed, want of both files", listed)
	}
	named := false
	for _, dg := range tr.digests {
		if dg.Unlisted != 0 {
			t.Errorf("digest %d counts %d skips that no record lists", dg.Sequence, dg.Unlisted)
		}
		for _, sc := range dg.Scans {
			named = named || len(sc.IgnoreFiles) == 1 && sc.IgnoreFiles[0].Path == "d/.s3syncignore" && len(sc.IgnoreFiles[0].SHA256) == 64
		}
	}
	if !named {
		t.Error("no digest names the ignore file")
	}
	if slices.Contains(s.bucket.keys(t, false), s.bucket.prefix+"/d/x.log") {
		t.Error("an ignored file is in the bucket")
	}
}

func TestAnotherDirectoryInTheSourcesPlaceIsShownUntilItIsConfirmed(t *testing.T) {
	s, d := mirrorOf(t, 3, "")
	withheld := func(v float64) func() bool {
		return func() bool { return d.metric(t, `s3syncd_deletes_withheld{source="app"}`) == v }
	}
	eventually(t, "nothing withheld", withheld(0))
	if err := os.Rename(s.dir, s.dir+"-away"); err != nil {
		t.Fatal(err)
	}
	write(t, s.path("other"), "of another directory")
	eventually(t, "deletions are withheld", withheld(1))
	eventually(t, "the other directory's file", func() bool { return s.inBucket(t, "other", "of another directory") })
	if n := s.data("DeleteObject"); n != 0 {
		t.Errorf("%d DELETE requests before the confirmation, want none", n)
	}
	if code, out, errs := s.ask(t, "rescan", "app", "--confirm-deletes"); code != 0 {
		t.Fatalf("rescan --confirm-deletes = %d: %s", code, out+errs)
	}
	eventually(t, "the confirmation", withheld(0))
	eventually(t, "the deletions", func() bool { return len(s.bucket.keys(t, false)) == 1 })
}
