package e2e_test

import (
	"crypto/ed25519"
	crand "crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/s3syncd/s3syncd/internal/bundle"
	"github.com/s3syncd/s3syncd/internal/s3test"
	trailpkg "github.com/s3syncd/s3syncd/pkg/trail"
)

// history runs one history from the bucket alone.
func (s *site) history(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return command(t, s.env, append([]string{
		"history", "--bucket", s.bucket.bucket, "--prefix", s.bucket.prefix, "--endpoint-url", s.proxy.URL, "--region", "us-east-1",
	}, args...)...)
}

// signingKey makes an Ed25519 key, configures it, and returns its public half.
func (s *site) signingKey(t *testing.T) *trailpkg.PublicKey {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(filepath.Dir(s.file), "sign.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	s.configure(t, "", "manifest: {sign: 'ed25519:"+file+"'}")
	if der, err = x509.MarshalPKIXPublicKey(pub); err != nil {
		t.Fatal(err)
	}
	public, err := trailpkg.ParsePublicKey(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	return public
}

func TestHistoryTellsEveryRecordOfOneFile(t *testing.T) {
	s := newSite(t, "", "").versioned(t)
	write(t, s.path("a/report.csv"), "first")
	write(t, s.path("a/other"), "other")
	s.mustSync(t, 2, 0, 0)
	write(t, s.path("a/report.csv"), "the second")
	s.mustSync(t, 1, 1, 0)
	if err := os.Remove(s.path("a/report.csv")); err != nil {
		t.Fatal(err)
	}
	s.mustSync(t, 0, 1, 0)

	var want string
	for i, file := range []string{
		"a/report.csv", "./a/report.csv", "backups/app/a/report.csv", "s3://" + s.bucket.bucket + "/backups/app/a/report.csv", s.path("a/report.csv"),
	} {
		code, out, errs := s.history(t, file)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if code != 0 || len(lines) != 3 || !strings.Contains(lines[0], "uploaded") || !strings.Contains(lines[1], "uploaded") || !strings.Contains(lines[2], "deleted") {
			t.Errorf("history %s = %d\n%s%s", file, code, out, errs)
		}
		if i > 0 && out != want {
			t.Errorf("history %s says\n%s, want\n%s", file, out, want)
		}
		want = out
	}
	code, out, _ := s.history(t, "a/report.csv", "--json")
	for line := range strings.Lines(out) {
		var l struct {
			Record   record `json:"record"`
			Manifest string `json:"manifest"`
			Digest   string `json:"digest"`
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil || l.Record.S3Key != "backups/app/a/report.csv" || l.Manifest == "" || l.Digest == "" {
			t.Errorf("history --json says %s: %v", line, err)
		}
	}
	if code != 0 || strings.Count(out, "\n") != 3 {
		t.Errorf("history --json = %d\n%s", code, out)
	}
	if code, _, errs := s.history(t, "a/none"); code != 1 || !strings.Contains(errs, `no record of "a/none"`) {
		t.Errorf("history of an unknown file = %d\n%s", code, errs)
	}
	code, out, errs := command(t, s.env, "history", "-c", s.file, s.path("a/other"))
	if code != 0 || strings.Count(out, "uploaded") != 1 {
		t.Errorf("history -c = %d\n%s%s", code, out, errs)
	}
}

func TestABundleProvesARecordWithoutTheBucket(t *testing.T) {
	s := newSite(t, "", "").versioned(t)
	public := s.signingKey(t)
	write(t, s.path("contract.pdf"), "what was signed")
	s.mustSync(t, 1, 0, 0)
	write(t, s.path("contract.pdf"), "what was changed")
	s.mustSync(t, 1, 0, 0)
	file := filepath.Join(t.TempDir(), "bundle.json")
	code, _, errs := s.history(t, "contract.pdf", "--bundle", file)
	if code != 0 || !strings.Contains(errs, "proves the record") {
		t.Fatalf("history --bundle = %d\n%s", code, errs)
	}
	check := func(c bundle.Check) bundle.Report {
		t.Helper()
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		r, err := bundle.Verify(f, c)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := check(bundle.Check{Trusted: []*trailpkg.PublicKey{public}})
	if len(r.Faults) > 0 || !r.Anchored || r.SignedBy != public.Fingerprint() || r.Record.MD5 != md5Of("what was changed") {
		t.Errorf("the bundle says %+v", r)
	}
	if len(r.Notes) > 0 {
		t.Errorf("the object is not as recorded: %v", r.Notes)
	}
	// The version before, up to the newest digest by its hash.
	keys := slices.DeleteFunc(s.bucket.keys(t, true), func(k string) bool { return !strings.Contains(k, "/digest_") || !strings.HasSuffix(k, ".json") })
	newest, _ := s.bucket.get(t, keys[len(keys)-1])
	first := s.bucket.readTrail(t).records[0]
	code, _, errs = s.history(t, "contract.pdf", "--at", first.Timestamp, "--bundle", file, "--head", sha256Of(newest))
	if code != 0 {
		t.Fatalf("history --at --bundle = %d\n%s", code, errs)
	}
	r = check(bundle.Check{ExpectHead: sha256Of(newest)})
	if len(r.Faults) > 0 || !r.Anchored || r.Digests != 3 || r.Record.ID != first.ID {
		t.Errorf("the bundle says %+v", r)
	}
	if code, _, errs := s.history(t, "contract.pdf", "--bundle", file, "--head", strings.Repeat("0", 64)); code != 1 || !strings.Contains(errs, "no digest of chain") {
		t.Errorf("history with a foreign head = %d\n%s", code, errs)
	}
}

func sha256Of(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

// finals returns the reasons of the digests under a prefix, in order, and how
// the chains begin.
func (b bucketView) reasons(t *testing.T) (reasons, begins []string) {
	t.Helper()
	for _, d := range b.readTrail(t).digests {
		reasons = append(reasons, d.Reason)
		if d.Begins != "" {
			begins = append(begins, d.Begins)
		}
	}
	return reasons, begins
}

func TestRetireEndsTheTrail(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("a"), "a")
	s.mustSync(t, 1, 0, 0)
	write(t, s.path("b"), "the last change")
	code, out, errs := command(t, s.env, "retire", "-c", s.file)
	if code != 0 || !strings.Contains(out, "Uploaded: 1\n") || !strings.Contains(out, "Retired:") {
		t.Fatalf("retire = %d\n%s%s", code, out, errs)
	}
	reasons, begins := s.bucket.reasons(t)
	if reasons[len(reasons)-1] != "final" || len(begins) != 1 {
		t.Errorf("the digests have the reasons %v and begin %v", reasons, begins)
	}
	s.mustSync(t, 0, 2, 0)
	reasons, begins = s.bucket.reasons(t)
	if !slices.Equal(slices.Sorted(slices.Values(begins)), []string{"new", "reconfigured"}) || !slices.Contains(reasons, "final") {
		t.Errorf("after a later sync the digests have the reasons %v and begin %v", reasons, begins)
	}
}

func TestRetireRefuses(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("a"), "a")
	d := s.daemon(t)
	code, _, errs := command(t, s.env, "retire", "-c", s.file)
	if code != 1 || !strings.Contains(errs, "stop the daemon first") {
		t.Errorf("retire beside a daemon = %d\n%s", code, errs)
	}
	if code := d.stop(t); code != 0 {
		t.Fatalf("the daemon ended with %d", code)
	}
	write(t, s.path("_manifests/reserved"), "not archived: a failed record")
	code, out, errs := command(t, s.env, "retire", "-c", s.file)
	if reasons, _ := s.bucket.reasons(t); code != 3 || !strings.Contains(out, "Not retired") || slices.Contains(reasons, "final") {
		t.Errorf("retire with a failed file = %d, digests %v\n%s%s", code, reasons, out, errs)
	}
	code, out, errs = command(t, s.env, "retire", "-c", s.file, "--force")
	if reasons, _ := s.bucket.reasons(t); code != 3 || !slices.Contains(reasons, "final") {
		t.Errorf("retire --force with a failed file = %d, digests %v\n%s%s", code, reasons, out, errs)
	}
}

func TestASourceThatLeftWhileTheDaemonWasDownIsClosed(t *testing.T) {
	s := newSite(t, "", "")
	base := filepath.Dir(s.dir)
	other := filepath.Join(base, "other")
	write(t, s.path("a"), "a")
	write(t, filepath.Join(other, "b"), "b")
	gone := bucketView{client: s.bucket.client, bucket: s.bucket.bucket, prefix: "backups/other"}
	source := func(name, dir, prefix string) string {
		return fmt.Sprintf("- name: %s\n  path: %s\n  bucket: %s\n  prefix: %s\n  kms_key_id: %s\n", name, dir, s.bucket.bucket, prefix, s3test.KeyName)
	}
	one, two := source("app", s.dir, s.bucket.prefix), source("other", other, gone.prefix)
	write(t, s.file, yaml(s.proxy.URL, s.state, one+two, ""))
	d := s.daemon(t)
	eventually(t, "both are uploaded", func() bool { return len(gone.keys(t, false)) == 1 && len(s.bucket.keys(t, false)) == 1 })
	if code := d.stop(t); code != 0 {
		t.Fatalf("the daemon ended with %d", code)
	}
	write(t, filepath.Join(other, "c"), "written when nobody watched: the source is gone")
	write(t, s.file, yaml(s.proxy.URL, s.state, one, ""))
	d = s.daemon(t)
	eventually(t, "the source that left has a final digest", func() bool {
		reasons, _ := gone.reasons(t)
		return reasons[len(reasons)-1] == "final"
	})
	if code := d.stop(t); code != 0 {
		t.Fatalf("the daemon ended with %d", code)
	}
	if keys := gone.keys(t, false); len(keys) != 1 {
		t.Errorf("a source that is not configured was archived: %v", keys)
	}
	reasons, _ := gone.reasons(t)

	// It is closed once.
	s.proxy.Forget()
	d = s.daemon(t)
	if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the hang-up is done", func() bool { return strings.Contains(d.stderr.String(), "every source is rescanned") })
	if code := d.stop(t); code != 0 {
		t.Fatalf("the daemon ended with %d", code)
	}
	if n := s.proxy.Count(s3test.Match{Key: gone.prefix}); n != 0 {
		t.Errorf("the closed source cost %d requests", n)
	}
	if again, _ := gone.reasons(t); !slices.Equal(again, reasons) {
		t.Errorf("the digests are %v, were %v", again, reasons)
	}

	// When it comes back, another chain begins.
	write(t, s.file, yaml(s.proxy.URL, s.state, one+two, ""))
	d = s.daemon(t)
	eventually(t, "what was written meanwhile is uploaded", func() bool { return len(gone.keys(t, false)) == 2 })
	if code := d.stop(t); code != 0 {
		t.Fatalf("the daemon ended with %d", code)
	}
	if _, begins := gone.reasons(t); !slices.Equal(slices.Sorted(slices.Values(begins)), []string{"new", "reconfigured"}) {
		t.Errorf("the chains begin %v", begins)
	}
}
