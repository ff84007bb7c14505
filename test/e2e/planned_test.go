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

// copyState keeps a copy of what a backup would have of the host, with or without
// the copies of the trail.
func (s *site) copyState(t *testing.T) (putBack func()) {
	t.Helper()
	kept := filepath.Join(t.TempDir(), "state")
	if err := os.CopyFS(kept, os.DirFS(s.state)); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := os.RemoveAll(s.state); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(s.state, os.DirFS(kept)); err != nil {
			t.Fatal(err)
		}
	}
}

// wantWhole checks that the trail verifies, that no attempt number was used twice,
// and that a restore has every file.
func (s *site) wantWhole(t *testing.T) {
	t.Helper()
	tr := s.bucket.readTrail(t)
	drawn := map[string]string{}
	for _, r := range tr.records {
		if r.Attempt == 0 {
			continue
		}
		id := fmt.Sprintf("%s-%d", r.Chain, r.Attempt)
		if drawn[id] != "" {
			t.Errorf("%s and %s have the attempt %s", drawn[id], r.S3Key, id)
		}
		drawn[id] = r.S3Key
	}
	if code, out, errs := command(t, s.env, "verify", "-c", s.file, "--remote", "--source"); code != 0 {
		t.Errorf("verify = %d:\n%s%s", code, out, errs)
	}
	to := filepath.Join(t.TempDir(), "restored")
	if code, out, errs := s.restore(t, to); code != 0 {
		t.Errorf("restore = %d:\n%s%s", code, out, errs)
	}
	wantSame(t, snapshot(t, to, false), snapshot(t, s.dir, false))
}

// A backup of the state that is put back continues no chain, whatever the rights
// are, and whoever ran last.
func TestAnOldStateThatIsPutBack(t *testing.T) {
	for _, run := range []string{"sync", "daemon", "sync without the right to list"} {
		t.Run(run, func(t *testing.T) {
			s := newFakeSite(t, "", "")
			if strings.Contains(run, "list") {
				s.fake.Behave(func(b *s3test.Behavior) { b.ListDenied = true })
			}
			once := func(file, content string) {
				t.Helper()
				write(t, s.path(file), content)
				if run != "daemon" {
					if code, out, errs := s.sync(t); code != 0 {
						t.Fatalf("sync = %d:\n%s%s", code, out, errs)
					}
					return
				}
				d := s.daemon(t)
				d.isReady(t)
				eventually(t, file, func() bool { return s.inBucket(t, file, content) })
				if code := d.stop(t); code != 0 {
					t.Fatalf("exit code %d", code)
				}
			}
			once("a", "first")
			putBack := s.copyState(t)
			once("b", "second")
			once("a", "changed")
			putBack()
			once("c", "third")
			once("d", "fourth")
			s.fake.Behave(func(b *s3test.Behavior) { b.ListDenied = false })
			s.wantWhole(t)
			var begins []string
			for _, d := range s.bucket.readTrail(t).digests {
				if d.Sequence == 1 {
					begins = append(begins, d.Begins)
				}
			}
			slices.Sort(begins)
			first := "new"
			if strings.Contains(run, "list") {
				first = "unknown"
			}
			if !slices.Equal(begins, []string{"forked", first}) {
				t.Errorf("chains begin %v, want a %s one and a forked one", begins, first)
			}
		})
	}
}

// event returns the details of the events of one kind in a trail.
func (tr trail) event(kind string) (details []string) {
	for _, d := range tr.digests {
		for _, e := range d.Events {
			if e.Event == kind {
				details = append(details, e.Detail)
			}
		}
	}
	return details
}

// What an operator changes is an event of the same chain, or ends one chain and
// begins another, and both say so.
func TestPlannedChangesAreEvents(t *testing.T) {
	s := newFakeSite(t, "", "")
	write(t, s.path("f"), "content")
	write(t, s.path("g"), "more")
	s.mustSync(t, 2, 0, 0)

	// Another directory: the data moved behind a link.
	moved := filepath.Join(filepath.Dir(s.dir), "releases")
	if err := os.Rename(s.dir, moved); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(moved, s.dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.path("g")); err != nil {
		t.Fatal(err)
	}
	s.mustSync(t, 0, 1, 0)
	// And another name for the source.
	config, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.file, strings.Replace(string(config), "name: app", "name: renamed", 1))
	s.mustSync(t, 0, 1, 0)
	first := s.bucket.readTrail(t)
	for _, d := range first.digests {
		if d.Chain != first.digests[0].Chain {
			t.Errorf("chain %s begins %s, want one chain", d.Chain, d.Begins)
		}
	}
	if got := first.event("path-changed"); len(got) != 1 || !strings.Contains(got[0], moved) {
		t.Errorf("path-changed = %q, want one that names %s", got, moved)
	}
	s.verify(t, 0, "-c", s.file, "--remote", "--source")
	if deleted := slices.ContainsFunc(first.records, func(r record) bool { return r.Status == "deleted" && strings.HasSuffix(r.S3Key, "/g") }); !deleted {
		t.Error("the file that was deleted with the move has no record")
	}

	// Another prefix: the old chain ends and says where to, the new one where from.
	before := s.bucket.prefix
	s.bucket.prefix = "elsewhere/app"
	s.configure(t, "", "")
	s.mustSync(t, 1, 0, 0)
	s.verify(t, 0, "-c", s.file, "--remote", "--source")
	second := s.bucket.readTrail(t)
	if got := second.event("destination-changed"); len(got) != 1 || !strings.Contains(got[0], before) || second.digests[0].Begins != "reconfigured" {
		t.Errorf("the new chain begins %s with %q, want it to name %s", second.digests[0].Begins, got, before)
	}
	old := s.bucket
	old.prefix = before
	ended := old.readTrail(t)
	if got := ended.event("destination-changed"); len(got) != 1 || !strings.Contains(got[0], s.bucket.prefix) {
		t.Errorf("the old chain says of the change %q, want it to name %s", got, s.bucket.prefix)
	}
	if last := ended.digests[len(ended.digests)-1]; last.Reason != "final" {
		t.Errorf("the old chain ends with %q, want final", last.Reason)
	}
}

// A start says when its next digest is due before the first file is sent.
func TestAStartIsInTheTrailBeforeItsFirstFile(t *testing.T) {
	s := newFakeSite(t, "", "")
	write(t, s.path("f"), "content")
	s.mustSync(t, 1, 0, 0)
	write(t, s.path("g"), "content")
	d := s.daemon(t)
	eventually(t, "the file", func() bool { return s.inBucket(t, "g", "content") })
	d.kill(t)
	tr := s.bucket.readTrail(t)
	last := tr.digests[len(tr.digests)-1]
	if last.Reason != "start" || last.Due == nil || !last.has("start") {
		t.Errorf("the last digest is %+v, want one of the start that says when the next is due", last)
	}
	asked := s.fake.Ledger()
	digest := slices.IndexFunc(asked, func(q s3test.Request) bool {
		return q.Op == "PutObject" && strings.Contains(q.Key, fmt.Sprintf("%s_%08d.json", last.Chain, last.Sequence))
	})
	file := slices.IndexFunc(asked, func(q s3test.Request) bool { return q.Op == "PutObject" && strings.HasSuffix(q.Key, "/g") })
	if digest < 0 || file < digest {
		t.Errorf("the file was sent as request %d, the digest of the start as %d", file, digest)
	}
}

// A source that leaves the configuration in the middle of a multipart upload leaves
// no upload behind, and the others go on.
func TestASourceThatLeavesDuringAnUploadLeavesNoUploadOpen(t *testing.T) {
	for _, change := range []string{"removed", "another prefix"} {
		t.Run(change, func(t *testing.T) {
			s := newTwoSources(t)
			upload := "upload: {part_size: 5MiB, single_put_max: 5MiB}"
			write(t, s.path("f"), "content")
			write(t, s.file, yaml(s.proxy.URL, s.state, s.source("app", "")+s.source("more", ""), upload))
			d := spawn(t, s.env, "run", "-c", s.file)
			eventually(t, "the file", func() bool { return s.inBucket(t, "f", "content") })
			key := s.bucket.prefix + "/big"
			fault := s.proxy.Stall(s3test.Match{Op: "UploadPart", Key: key, Times: -1})
			random(t, s.path("big"), 12<<20, 1)
			fault.Wait(t)
			if open := s.bucket.uploadsOf(t, key); len(open) != 1 {
				t.Fatalf("%d uploads are open, want the one under way", len(open))
			}
			old := s.bucket
			app := ""
			if change == "another prefix" {
				s.bucket.prefix = "elsewhere/app"
				app = s.source("app", "")
			}
			write(t, s.file, yaml(s.proxy.URL, s.state, app+s.source("more", ""), upload))
			d.reload(t, `"msg":"ready"`)
			write(t, filepath.Join(s.more, "g"), "more")
			eventually(t, "a file of the other source", func() bool { return slices.Contains(s.other.keys(t, false), s.other.prefix+"/g") })
			eventually(t, "the end of the upload", func() bool { return len(old.uploadsOf(t, key)) == 0 })
			event := map[string]string{"removed": "source-removed", "another prefix": "destination-changed"}[change]
			eventually(t, "the final digest", func() bool {
				return slices.ContainsFunc(old.keys(t, true), func(k string) bool {
					body, _ := old.get(t, k)
					return strings.Contains(string(body), `"reason": "final"`) && strings.Contains(string(body), event)
				})
			})
			if code := d.stop(t); code != 0 {
				t.Errorf("exit code %d, want 0", code)
			}
		})
	}
}

// Digests that cannot be signed make a host that is otherwise current one that is
// not, until they are signed.
func TestATrailThatIsNotSignedIsSeen(t *testing.T) {
	s := newFakeSite(t, "", "manifest: {sign: 'kms:alias/trail'}")
	f := s3test.NewFakeKMS(t)
	f.Key(t, "first", "alias/trail")
	s.env = append(slices.Clone(s.env), "AWS_ENDPOINT_URL_KMS="+f.URL)
	f.Fail(func(op string) (int, string) { return 400, "AccessDeniedException" })
	d := s.daemon(t)
	d.isReady(t)
	eventually(t, "an unsigned digest", func() bool {
		code, out, _ := s.ask(t, "status")
		return code == 3 && strings.Contains(out, "trail unsigned since ") && strings.Contains(out, "1 digest")
	})
	st := s.status(t)
	if trail := st.Sources[0].Trail; trail.UnsignedDigests != 1 || trail.UnsignedSince == nil || trail.SigningError == "" || trail.Error != "" {
		t.Errorf("trail = %+v, want one unsigned digest, since when and why", trail)
	}
	if _, page := d.get(t, "/metrics"); !strings.Contains(page, `s3syncd_unsigned_digests{source="app"} 1`+"\n") || strings.Contains(page, `s3syncd_oldest_unsigned_digest_timestamp_seconds{source="app"} 0`+"\n") {
		t.Error("/metrics does not show the unsigned digest and its age")
	}
	if log := d.stderr.String(); strings.Contains(log, "publishing works again") || !strings.Contains(log, "published unsigned") {
		t.Errorf("the log says:\n%s", tail(log, 3000))
	}
	f.Fail(nil)
	eventually(t, "a current status", func() bool { code, _, _ := s.ask(t, "status"); return code == 0 })
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

// A host whose chain was left by another state of its instance is not current.
func TestAHostWhoseChainWasLeftIsNotCurrent(t *testing.T) {
	a := newFakeSite(t, "", "manifest: {digest_interval: 1s, flush_interval: 1s}")
	write(t, a.path("f"), "content")
	d := a.daemon(t)
	eventually(t, "a current status", func() bool { code, _, _ := a.ask(t, "status"); return code == 0 })
	b := a.second(t, "test-01", t.TempDir())
	if code, out, errs := b.sync(t); code != 0 {
		t.Fatalf("sync = %d:\n%s%s", code, out, errs)
	}
	eventually(t, "the twin in the status", func() bool {
		code, out, _ := a.ask(t, "status")
		return code == 3 && strings.Contains(out, "of this instance has left the chain of this host")
	})
	if _, page := d.get(t, "/metrics"); !strings.Contains(page, `s3syncd_chain_abandoned{source="app"} 1`+"\n") {
		t.Error("/metrics does not show that the chain was left")
	}
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}
