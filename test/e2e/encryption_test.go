package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

// plaintext lists the keys below prefix that the fake holds unencrypted, but for
// canaries.
func plaintext(fake *s3test.Fake, bucket, prefix string) []string {
	var keys []string
	for _, k := range fake.Keys(bucket, prefix) {
		if o, _ := fake.Object(bucket, k); o.SSE == "" && !strings.Contains(k, "/.canary/") {
			keys = append(keys, k)
		}
	}
	return keys
}

func TestAServerThatStopsEncryptingGetsNothingMore(t *testing.T) {
	const workers = 4
	fake := s3test.NewFake(t, "archive")
	base := t.TempDir()
	dir, file := filepath.Join(base, "data"), filepath.Join(base, "s3syncd.yaml")
	write(t, file, yaml(fake.URL, filepath.Join(base, "state"),
		fmt.Sprintf("- {name: app, path: %s, bucket: archive, prefix: p, kms_key_id: %s}", dir, s3test.FakeKeyARN),
		fmt.Sprintf("upload: {workers: %d}", workers)))
	run := func() (int, string) {
		code, out, errs := command(t, fake.Credentials().Environ(), "sync", "-c", file, "--give-up", "2s")
		return code, out + errs
	}
	write(t, filepath.Join(dir, "good"), "good")
	if code, out := run(); code != 0 {
		t.Fatalf("exit code %d:\n%s", code, out)
	}
	fake.Behave(func(b *s3test.Behavior) { b.IgnoreEncryption = true })
	for i := range 40 {
		write(t, filepath.Join(dir, fmt.Sprintf("secret%02d", i)), "secret")
	}
	code, out := run()
	first := plaintext(fake, "archive", "p/")
	if code == 0 || len(first) != 0 {
		t.Errorf("exit code %d, stored in the clear: %q; want an error and nothing but the canary:\n%s", code, first, out)
	}
	if code, out = run(); code == 0 {
		t.Errorf("the next run succeeded:\n%s", out)
	}
	if again := plaintext(fake, "archive", "p/"); len(again) != len(first) {
		t.Errorf("the next run stored more in the clear: %q, then %q", first, again)
	}
	fake.Behave(func(b *s3test.Behavior) { b.IgnoreEncryption = false })
	if code, out = run(); code != 0 {
		t.Errorf("after the server was mended, exit code %d:\n%s", code, out)
	}
	if left := plaintext(fake, "archive", "p/"); len(left) != 0 {
		t.Errorf("still in the clear: %q", left)
	}
}

func TestAReloadThatCannotWorkLeavesTheOldConfiguration(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("f"), "content")
	d := s.daemon(t)
	eventually(t, "the file", func() bool { return s.inBucket(t, "f", "content") })
	s.configure(t, "profile: no-such-profile", "")
	if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the refusal", func() bool { return strings.Contains(d.stderr.String(), "no-such-profile") })
	eventually(t, "the old pipeline", func() bool { return strings.Contains(d.stderr.String(), "the old one stays") })
	write(t, s.path("g"), "more")
	eventually(t, "a file after the reload", func() bool { return s.inBucket(t, "g", "more") })
	if _, m := d.get(t, "/metrics"); !strings.Contains(m, "\ns3syncd_config_last_reload_successful 0\n") {
		t.Errorf("the metrics do not say that the reload failed")
	}
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

func TestTheTrailKeepsTheServersTimeWhenTheHostsClockIsWrong(t *testing.T) {
	const ahead = 3 * time.Hour
	fake := s3test.NewFake(t, "archive")
	fake.Behave(func(b *s3test.Behavior) { b.Clock = ahead })
	dir, state, out := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "run.json")
	for i := range 5 {
		write(t, filepath.Join(dir, fmt.Sprintf("f%d", i)), "content")
	}
	code, stdout, stderr := command(t, fake.Credentials().Environ(), "sync", "--dir", dir, "--bucket", "archive", "--prefix", "p",
		"--kms-key-id", s3test.FakeKeyARN, "--endpoint-url", fake.URL, "--region", s3test.Region, "--state-dir", state, "--manifest-out", out)
	if code != 0 {
		t.Fatalf("exit code %d:\n%s%s", code, stdout, stderr)
	}
	body, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range parseManifest(t, out, body) {
		at, err := time.Parse(time.RFC3339, r.Timestamp)
		if off := at.Sub(time.Now().Add(ahead)).Abs(); err != nil || off > wait {
			t.Errorf("record %s has the time %s, %v off the server's", r.ID, r.Timestamp, off)
		}
	}
}
