package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

// newOwnSite is newSite with a MinIO of its own, which the test may stop.
func newOwnSite(t *testing.T, extra string) *site {
	t.Helper()
	srv := s3test.OwnMinIO(t)
	base := t.TempDir()
	s := &site{
		dir: filepath.Join(base, "data"), state: filepath.Join(base, "state"), file: filepath.Join(base, "s3syncd.yaml"),
		env: srv.Root.Environ(), proxy: s3test.NewProxy(t, srv.URL), server: srv, key: s3test.KeyName,
		uid: os.Getuid(), bucket: bucketView{client: srv.Client(), bucket: srv.Bucket(t), prefix: "backups/app"},
	}
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.configure(t, "", extra)
	return s
}

// The server is killed and started again while files are written, and the daemon
// is restarted while it is away: nothing is lost, the trail's documents wait on
// disk, and one probe at a time is all that the outage costs.
func TestAServerThatDiesAndComesBack(t *testing.T) {
	t.Parallel()
	rounds := 1
	if thorough {
		rounds = 8
	}
	s := newOwnSite(t, "manifest: {flush_interval: 1s, digest_interval: 1s}")
	d := s.daemon(t)
	for round := range rounds {
		for i := range 30 {
			if i == 10 {
				s.server.Kill(t)
			}
			write(t, s.path(fmt.Sprintf("round%d/f%02d", round, i)), fmt.Sprintf("%d of %d", i, round))
		}
		random(t, s.path(fmt.Sprintf("round%d/large", round)), 70<<20, uint64(round))
		eventually(t, "the outage is noticed", func() bool {
			return strings.Contains(metricsOf(t, d), `s3syncd_destination_state{source="app",state="waiting"} 1`)
		})
		if round%2 == 1 { // Stop and start during the outage: that is no reason not to be ready.
			if code := d.stop(t); code != 0 {
				t.Errorf("exit code %d in an outage, want 0", code)
			}
			d = s.daemon(t)
			write(t, s.path(fmt.Sprintf("round%d/after", round)), "written after the restart")
		}
		s.proxy.Forget()
		eventually(t, "a few probes", func() bool { return len(s.proxy.Ledger()) >= 4 })
		if n := s.data("PutObject") + s.data("CreateMultipartUpload"); n > 16 {
			t.Errorf("%d writes of data were tried in the outage, want probes only", n)
		}
		s.server.Restart(t)
		s.hasten(t, "everything is there", func() bool {
			return strings.Contains(metricsOf(t, d), `s3syncd_oldest_pending_timestamp_seconds{source="app"} 0`) &&
				s.metaMD5(t, fmt.Sprintf("round%d/large", round)) != "" && s.metaMD5(t, fmt.Sprintf("round%d/f29", round)) != ""
		})
	}
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	tr := s.wantOnce(t)
	for _, r := range tr.records {
		if r.Status == "failed" {
			t.Errorf("the outage left a failure: %+v", r)
		}
	}
}

// A hundred thousand paths wait in an outage: the memory is bounded by their
// number, also while they all go when it is over.
func TestAHundredThousandPathsWaitInAnOutage(t *testing.T) {
	if !thorough {
		t.Skip("part of make e2e: it writes 100,000 files")
	}
	const files, limit = 100_000, 100 << 20
	s := newFakeSite(t, "", "watch: {settle: 200ms, rescan_interval: 1m, poll_interval: 1s}")
	b, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.file, strings.Replace(string(b), "watch: {settle: 200ms, rescan_interval: 0, poll_interval: 1s}\n", "", 1))
	out := s.proxy.Cut(s3test.Match{Times: -1})
	d := spawnProgram(t, plain(t), s.env, "run", "-c", s.file)
	d.isReady(t)
	peak := d.peakDuring(t, func() {
		for i := range files {
			write(t, s.path(fmt.Sprintf("department-%02d/project-%03d/report-%05d-final.pdf", i%20, i%1000, i)), "x")
		}
		eventually(t, "they all wait", func() bool {
			return onTheirWay(metricsOf(t, d)) >= files
		})
		await(t, 90*time.Second) // With a rescan in between, which finds them all again.
	})
	t.Logf("RssAnon with %d waiting paths was at most %d MiB", files, peak>>20)
	if peak > limit {
		t.Errorf("RssAnon rose to %d MiB, want at most %d", peak>>20, limit>>20)
	}
	s.proxy.Lift(out)
	after := d.peakDuring(t, func() {
		for begin := time.Now(); onTheirWay(metricsOf(t, d)) > 0; {
			if time.Since(begin) > 20*time.Minute {
				t.Fatal("they do not all go")
			}
			await(t, time.Second)
		}
	})
	t.Logf("RssAnon while they went was at most %d MiB", after>>20)
	if after > limit {
		t.Errorf("RssAnon rose to %d MiB while they went, want at most %d", after>>20, limit>>20)
	}
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if n := len(s.bucket.keys(t, false)); n != files {
		t.Errorf("%d objects, want %d", n, files)
	}
}

// onTheirWay is how many paths a page of metrics says are on their way.
func onTheirWay(page string) int {
	total := 0
	for line := range strings.Lines(page) {
		if rest, ok := strings.CutPrefix(line, `s3syncd_queue_depth{source="app",state="`); ok {
			_, n, _ := strings.Cut(rest, `"} `)
			v := 0.0
			_, _ = fmt.Sscan(n, &v)
			total += int(v)
		}
	}
	return total
}
