package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

func TestEveryWayInWhichATreeChangesReachesTheBucket(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("old.txt"), "old")
	d := s.daemon(t)
	eventually(t, "the file that was there", func() bool { return s.inBucket(t, "old.txt", "old") })

	write(t, s.path("created.txt"), "created")
	write(t, s.path("old.txt"), "changed")
	write(t, s.path("replaced.txt.tmp"), "replaced")
	if err := os.Rename(s.path("replaced.txt.tmp"), s.path("replaced.txt")); err != nil {
		t.Fatal(err)
	}
	write(t, s.path("a/b/c/deep.txt"), "deep")
	outside := filepath.Join(filepath.Dir(s.dir), "moved")
	for i := range 50 {
		write(t, filepath.Join(outside, fmt.Sprintf("sub%d/f%d", i%5, i)), fmt.Sprintf("moved %d", i))
	}
	if err := os.Rename(outside, s.path("moved")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the created file", func() bool { return s.inBucket(t, "created.txt", "created") })
	eventually(t, "the changed file", func() bool { return s.inBucket(t, "old.txt", "changed") })
	eventually(t, "the replaced file", func() bool { return s.inBucket(t, "replaced.txt", "replaced") })
	eventually(t, "the deep file", func() bool { return s.inBucket(t, "a/b/c/deep.txt", "deep") })
	eventually(t, "the moved directory", func() bool { return len(s.bucket.keys(t, false)) == 54 })
	write(t, s.path("moved/sub1/later.txt"), "later") // The moved directory is watched.
	eventually(t, "a file in the moved directory", func() bool { return s.inBucket(t, "moved/sub1/later.txt", "later") })

	if code := d.stop(t); code != 0 {
		t.Fatalf("exit code %d, want 0", code)
	}
	tr := s.bucket.readTrail(t)
	s.bucket.wantTree(t, s.dir, &tr)
	for _, r := range tr.records {
		if r.Trigger != "startup" && r.Trigger != "event" {
			t.Errorf("%s was found by a %s, not by an event", r.S3Key, r.Trigger)
		}
	}
	last := tr.digests[len(tr.digests)-1]
	if last.Reason != "stop" || !last.has("clean-stop") {
		t.Errorf("the last digest has reason %q and events %v, want a clean stop", last.Reason, last.Events)
	}
}

func TestARemovedFileKeepsItsObjectAndLeavesARecord(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("f"), "content")
	d := s.daemon(t)
	eventually(t, "the file", func() bool { return s.inBucket(t, "f", "content") })
	if err := os.Remove(s.path("f")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removal", func() bool { return strings.Contains(d.stderr.String(), `"msg":"deleted"`) })
	d.stop(t)
	tr := s.bucket.readTrail(t)
	if n := tr.count("deleted"); n != 1 {
		t.Errorf("%d deleted records, want 1", n)
	}
	if !s.inBucket(t, "f", "content") {
		t.Errorf("the object is gone")
	}
}

func TestHangUpRescansAndABadConfigurationIsRefused(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("f"), "content")
	d := s.daemon(t)
	eventually(t, "the file", func() bool { return s.inBucket(t, "f", "content") })
	scans := func() int {
		return strings.Count(d.stderr.String(), `"msg":"scanned","source":"app","trigger":"hangup"`)
	}

	hangup := func() {
		if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	hangup()
	eventually(t, "a rescan", func() bool { return scans() == 1 })

	good, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.file, string(good)+"\nno_such_key: 1\n")
	hangup()
	eventually(t, "the refusal", func() bool { return strings.Contains(d.stderr.String(), "no_such_key") })
	eventually(t, "a rescan all the same", func() bool { return scans() == 2 })
	if _, m := d.get(t, "/metrics"); !strings.Contains(m, "\ns3syncd_config_last_reload_successful 0\n") {
		t.Errorf("the metrics do not say that the reload failed")
	}

	s.configure(t, "exclude: ['*.tmp']", "")
	hangup()
	eventually(t, "the new configuration", func() bool { return strings.Contains(d.stderr.String(), "the pipeline is rebuilt") })
	eventually(t, "the new pipeline", func() bool { return strings.Count(d.stderr.String(), `"msg":"ready"`) == 2 })
	write(t, s.path("left-out.tmp"), "excluded")
	write(t, s.path("kept.txt"), "kept")
	eventually(t, "the kept file", func() bool { return s.inBucket(t, "kept.txt", "kept") })
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if got := s.bucket.keys(t, false); slices.Contains(got, s.bucket.prefix+"/left-out.tmp") {
		t.Errorf("an excluded file is in the bucket: %q", got)
	}
	s.bucket.readTrail(t)
}

func TestAdminListener(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("f"), "content")
	d := s.daemon(t)
	eventually(t, "the file", func() bool { return s.inBucket(t, "f", "content") })
	for path, want := range map[string]int{"/-/healthy": 200, "/-/ready": 200, "/metrics": 200, "/debug/pprof/": 404, "/": 404} {
		if got, body := d.get(t, path); got != want {
			t.Errorf("GET %s = %d %q, want %d", path, got, body, want)
		}
	}
	_, page := d.get(t, "/metrics")
	for _, want := range []string{
		`s3syncd_files_total{source="app",status="uploaded"} 1`,
		`s3syncd_files_total{source="app",status="failed"} 0`,
		`s3syncd_bytes_uploaded_total{source="app"} 7`,
		`s3syncd_indexed_files{source="app"} 1`,
		`s3syncd_source_available{source="app"} 1`,
		`s3syncd_encryption_mismatches_total{source="app"} 0`,
		`s3syncd_destination_state{source="app",state="ok"} 1`,
		`s3syncd_failures_total{class="encryption",source="app"} 0`,
		`s3syncd_rescans_total{source="app",trigger="startup"} 1`,
		`s3syncd_wrong_key_objects{source="app"} 0`,
	} {
		if !strings.Contains(page, want+"\n") {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	problems, err := promlint.New(strings.NewReader(page)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("promlint: %s: %s", p.Metric, p.Text)
	}
	series, own := 0, 0
	for line := range strings.Lines(page) {
		if strings.HasPrefix(line, "s3syncd_") {
			if series++; strings.Contains(line, `source="`) {
				own++
			}
		}
	}
	if own > 150 || series-own > 250 {
		t.Errorf("%d series of the source, %d of the process; the limits are 150 and 250", own, series-own)
	}
	t.Logf("%d series of the source, %d of the process", own, series-own)
}

func TestOneBrokenSourceDoesNotHoldUpTheOthers(t *testing.T) {
	s := newSite(t, "", "")
	base := filepath.Dir(s.dir)
	src := fmt.Sprintf("- {name: good, path: %s, bucket: %s, prefix: good, kms_key_id: %s}\n"+
		"- {name: no-bucket, path: %s, bucket: no-such-bucket, prefix: p, kms_key_id: %s}\n"+
		"- {name: no-key, path: %s, bucket: %s, prefix: no-key, kms_key_id: no-such-key}\n"+
		"- {name: no-dir, path: %s, bucket: %s, prefix: no-dir, kms_key_id: %s}",
		s.dir, s.bucket.bucket, testKey(), filepath.Join(base, "b"), testKey(),
		filepath.Join(base, "c"), s.bucket.bucket, filepath.Join(base, "absent"), s.bucket.bucket, testKey())
	write(t, s.file, yaml(s.proxy.URL, s.state, src, ""))
	s.bucket.prefix = "good"
	for _, dir := range []string{s.dir, filepath.Join(base, "b"), filepath.Join(base, "c")} {
		write(t, filepath.Join(dir, "f"), "content")
	}
	d := s.daemon(t)
	eventually(t, "the good source", func() bool { return s.inBucket(t, "f", "content") })
	eventually(t, "the others' states", func() bool {
		_, page := d.get(t, "/metrics")
		return strings.Contains(page, `s3syncd_destination_state{source="no-bucket",state="parked"} 1`) &&
			strings.Contains(page, `s3syncd_destination_state{source="no-key",state="parked"} 1`) &&
			strings.Contains(page, `s3syncd_failures_total{class="configuration",source="no-bucket"} 1`) &&
			strings.Contains(page, `s3syncd_parked_files{class="configuration",source="no-key"} 1`) &&
			strings.Contains(page, `s3syncd_source_available{source="no-dir"} 0`)
	})
	if err := os.Mkdir(filepath.Join(base, "absent"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(base, "absent", "late"), "late")
	late := bucketView{client: s.bucket.client, bucket: s.bucket.bucket, prefix: "no-dir"}
	eventually(t, "the source that came late", func() bool { return len(late.keys(t, false)) == 1 })
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

func TestAnOutageLosesNothing(t *testing.T) {
	srv := s3test.MinIO(t)
	net := s3test.NewNetwork(t, srv.URL)
	s := newSite(t, "", "")
	b, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.file, strings.ReplaceAll(string(b), s.proxy.URL, net.URL))
	net.Down()
	write(t, s.path("before"), "before the start")
	d := s.daemon(t) // An outage is no reason not to be ready.
	for i := range 100 {
		write(t, s.path(fmt.Sprintf("during/f%d", i)), fmt.Sprintf("during %d", i))
	}
	eventually(t, "the queue", func() bool {
		_, page := d.get(t, "/metrics")
		return strings.Contains(page, `s3syncd_destination_state{source="app",state="waiting"} 1`)
	})
	net.Up()
	eventually(t, "everything", func() bool { return len(s.bucket.keys(t, false)) == 101 })
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	tr := s.bucket.readTrail(t)
	s.bucket.wantTree(t, s.dir, &tr)
	for k, n := range tr.uploads() {
		if n != 1 {
			t.Errorf("%s is recorded %d times", k, n)
		}
	}
}
