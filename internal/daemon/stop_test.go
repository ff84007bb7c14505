package daemon

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/pipeline"
	"github.com/s3syncd/s3syncd/internal/s3test"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// within is how long something may take that must happen. It is no expectation
// of speed.
const within = time.Minute

// logBuffer is a log that is read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) has(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), s)
}

// await polls ok until it is true.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	end := time.After(within)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%s: not within %v", what, within)
		}
	}
}

// daemonFor writes a configuration for one source and returns the options of a
// daemon that gives up quickly at its end.
func daemonFor(t *testing.T, fake *s3test.Fake, extra string) (o Options, dir string) {
	t.Helper()
	fake.Setenv(t)
	base := t.TempDir()
	dir = filepath.Join(base, "data")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(base, "s3syncd.yaml")
	text := fmt.Sprintf(`instance: test-01
state_dir: %s
s3: {region: us-east-1, endpoint_url: %q}
sources: [{name: app, path: %s, bucket: bucket, prefix: p, kms_key_id: %s}]
watch: {settle: 10ms, rescan_interval: 0}
admin: {listen: ""}
%s
`, filepath.Join(base, "state"), fake.URL, dir, s3test.FakeKeyARN, extra)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Options{
		Load:   func() (*config.Config, error) { return config.Load(file, nil) },
		Stderr: &logBuffer{}, Version: "test", Grace: pipeline.Grace{Drain: 200 * time.Millisecond, Publish: 200 * time.Millisecond},
	}, dir
}

// start runs a daemon and returns what stops it and checks that it ended well.
func start(t *testing.T, o Options) (log *logBuffer, stop func()) {
	t.Helper()
	log = &logBuffer{}
	o.Stderr = log
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		err := Run(ctx, o)
		if err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
		ended <- err
	}()
	return log, func() {
		t.Helper()
		cancel()
		select {
		case <-ended:
		case <-time.After(within):
			t.Fatalf("the daemon did not end within %v:\n%s", within, log.b.String())
		}
	}
}

// openIntents returns what the state in dir holds of writes under way, and how
// many records are stored.
func openIntents(t *testing.T, o Options) []archive.Intent {
	t.Helper()
	cfg, err := o.Load()
	if err != nil {
		t.Fatal(err)
	}
	db, err := state.Open(cfg.StateDir, state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	keys, err := db.Sources()
	if err != nil || len(keys) != 1 {
		t.Fatalf("Sources = %v, %v, want one", keys, err)
	}
	src, err := db.Source(t.Context(), keys[0])
	if err != nil {
		t.Fatal(err)
	}
	intents, err := src.Intents()
	if err != nil {
		t.Fatal(err)
	}
	return intents
}

// A server that takes requests and never answers must not hold up the end.
// What it took meanwhile is found out by the next start.
func TestAStalledServerDoesNotHoldUpTheEnd(t *testing.T) {
	for name, tt := range map[string]struct {
		match s3test.Match
		taken bool // The server has done what it was asked when the end comes.
	}{
		"a PUT without an answer":      {s3test.Match{Op: "PutObject", Key: "p/f"}, true},
		"a part that was not read":     {s3test.Match{Op: "UploadPart", Skip: 1}, false},
		"a manifest that was not read": {s3test.Match{Op: "PutObject", Key: "/manifest_", Times: -1}, false},
		"nothing is answered any more": {s3test.Match{Key: "p/", Times: -1}, false},
	} {
		t.Run(name, func(t *testing.T) {
			fake := s3test.NewFake(t, "bucket")
			fake.Behave(func(b *s3test.Behavior) { b.Versioned = true })
			o, dir := daemonFor(t, fake, "upload: {part_size: 5MiB, single_put_max: 5MiB}\nmanifest: {flush_interval: 1s, digest_interval: 1s}")
			log, stop := start(t, o)
			await(t, "ready", func() bool { return log.has(`"msg":"ready"`) })
			await(t, "the canary", func() bool { return log.has(`"msg":"destination works"`) })
			plan := fake.Stall
			if tt.taken {
				plan = fake.Hold
			}
			fault := plan(tt.match)
			content := bytes.Repeat([]byte("0123456789abcdef"), 6<<16) // 6 MiB: two parts
			if tt.match.Op != "CompleteMultipartUpload" && tt.match.Op != "UploadPart" {
				content = content[:100]
			}
			whole := filepath.Join(filepath.Dir(dir), "f") // It appears in one piece.
			if err := os.WriteFile(whole, content, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(whole, filepath.Join(dir, "f")); err != nil {
				t.Fatal(err)
			}
			fault.Wait(t)
			stop()
			fake.Lift(fault)

			log, stop = start(t, o)
			await(t, "the file", func() bool {
				obj, ok := fake.Object("bucket", "p/f")
				return ok && bytes.Equal(obj.Body, content)
			})
			await(t, "its record", func() bool { return len(published(fake)) == 1 })
			stop()
			if left := openIntents(t, o); len(left) != 0 {
				t.Errorf("writes are still open: %+v", left)
			}
			if n := published(fake); len(n) != 1 {
				t.Errorf("uploads in the trail: %q, want one", n)
			}
		})
	}
}

// published returns the lines of all manifests that tell of an upload.
func published(fake *s3test.Fake) []string {
	var lines []string
	seen := map[string]bool{}
	for _, q := range fake.Ledger() {
		if q.Op != "PutObject" || !strings.Contains(q.Key, "/manifest_") || seen[q.Key] {
			continue
		}
		seen[q.Key] = true
		obj, ok := fake.Object("bucket", q.Key)
		if !ok {
			continue
		}
		for line := range strings.Lines(string(obj.Body)) {
			if strings.Contains(line, `"status":"uploaded"`) {
				lines = append(lines, line)
			}
		}
	}
	return lines
}

// What check accepts at the ends of each range, the stages can be built with.
func TestADaemonStartsWithTheLeastAndTheMostOfEverySetting(t *testing.T) {
	for name, settings := range map[string]string{
		"least": `upload: {workers: 1, part_size: 5MiB, single_put_max: 1, memory_limit: 13MiB, bandwidth_limit: 0}
manifest: {flush_interval: 1s, digest_interval: 0, max_unpublished: 1, max_records: 1, keep_local: 0, keep_local_size: 0, list_skipped: none}
`,
		"most": `upload: {workers: 256, part_size: 5GiB, single_put_max: 5GiB, memory_limit: 6GiB, bandwidth_limit: 1GiB}
manifest: {flush_interval: 3650d, max_unpublished: 1000000000, max_records: 10000000, layout: hive, list_skipped: all, keep_local: 3650d}
`,
	} {
		o, _ := daemonFor(t, s3test.NewFake(t), settings)
		log, stop := start(t, o)
		await(t, name+": ready", func() bool { return log.has(`"msg":"ready"`) })
		stop()
	}
}
