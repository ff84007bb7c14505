package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/s3test"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// plain builds the program without the race detector, whose own cost would
// drown what is measured.
func plain(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "s3syncd")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", file, "github.com/s3syncd/s3syncd/cmd/s3syncd")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return file
}

const perDirectory = 50

// fill makes so many empty files, and an index that says they are archived: to
// upload them would take longer than all that is measured.
func (s *site) fill(t *testing.T, files int) {
	t.Helper()
	db, err := state.Open(s.state, state.Options{Instance: "test-01", MachineID: machineID(), Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	src, err := db.Source(t.Context(), state.SourceKey{Bucket: s.bucket.bucket, Prefix: s.bucket.prefix, RealPath: s.dir})
	if err != nil {
		t.Fatal(err)
	}
	const workers = 500 // They share the transactions.
	var wg sync.WaitGroup
	errs := make([]error, workers)
	for w := range workers {
		wg.Go(func() {
			for dir := w; dir < files/perDirectory; dir += workers {
				errs[w] = errors.Join(errs[w], s.fillDir(t.Context(), src, fmt.Sprintf("department-%02d/project-%05d", dir%20, dir)))
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errors.Join(errs...), db.Close()); err != nil {
		t.Fatal(err)
	}
}

func (s *site) fillDir(ctx context.Context, src *state.Source, rel string) error {
	dir := filepath.Join(s.dir, rel)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root := safefs.NewRoot(s.dir, safefs.RootOptions{CrossMounts: true})
	old := time.Now().Add(-time.Hour)
	for i := range perDirectory {
		name := fmt.Sprintf("report-%04d-final.pdf", i)
		file := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(file, nil, 0o644), os.Chtimes(file, old, old)); err != nil {
			return err
		}
		st, err := root.Lstat(rel + "/" + name)
		if err != nil {
			return err
		}
		e := archive.Entry{
			Fence:      archive.Fence{Dev: st.Dev, Ino: st.Ino, Size: st.Size, MtimeNs: st.MtimeNs, CtimeNs: st.CtimeNs},
			Attributes: archive.Attributes{Mode: st.Mode, UID: st.UID, GID: st.GID},
			Stored:     true, MD5: [16]byte{1}, SHA256: [32]byte{2}, ETag: "0123456789abcdef0123456789abcdef",
			SSE: "aws:kms", KMSKeyID: s3test.FakeKeyARN, Attempt: 1,
		}
		if _, err := src.Commit(ctx, archive.Outcome{Path: rel + "/" + name, Entry: &e}); err != nil {
			return err
		}
	}
	return nil
}

func machineID() string {
	b, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		return ""
	}
	return string(b)
}

// find is the time that find(1) takes to say of each file what a scan compares.
func find(t *testing.T, dir string) time.Duration {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "find", dir, "-printf", `%s %T@ %C@ %i %p\n`)
	cmd.Stdout = io.Discard
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		t.Fatalf("find: %v", err)
	}
	return time.Since(begin)
}

// peakDuring returns the highest RssAnon of p while f runs.
func (p *process) peakDuring(t *testing.T, f func()) int64 {
	t.Helper()
	done := make(chan struct{})
	peak := make(chan int64)
	go func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		var most int64
		for {
			most = max(most, anonymous(p.cmd.Process.Pid))
			select {
			case <-tick.C:
			case <-done:
				peak <- most
				return
			}
		}
	}()
	f()
	close(done)
	return <-peak
}

// A million indexed files: a rescan asks nothing, reads nothing, and needs
// little memory. How long it takes beside find is logged.
func TestAMillionFiles(t *testing.T) {
	if !thorough {
		t.Skip("part of make e2e: it makes a million files")
	}
	const files = 1_000_000
	s := newFakeSite(t, "", "")
	s.fill(t, files)
	find(t, s.dir)
	beside := []time.Duration{find(t, s.dir), find(t, s.dir), find(t, s.dir)}
	slices.Sort(beside)

	program := plain(t)
	begin := time.Now()
	d := spawnProgram(t, program, s.env, "run", "-c", s.file)
	var ready time.Duration
	peak := d.peakDuring(t, func() {
		d.isReady(t)
		ready = time.Since(begin)
		eventually(t, "the first scan", func() bool { return strings.Contains(d.stderr.String(), `"msg":"scanned"`) })
	})
	d.wantUntouched(t, s, files)
	t.Logf("find %v; ready after %v (%.2f of find); RssAnon was at most %d MiB until the first scan's end",
		beside[1], ready, ready.Seconds()/beside[1].Seconds(), peak>>20)
	wantBelow(t, "RssAnon until the first scan's end", peak, 200)

	await(t, 15*time.Second) // The heap of the start goes back to the system.
	idle := anonymous(d.cmd.Process.Pid)
	var took []time.Duration
	s.proxy.Forget()
	high := d.peakDuring(t, func() {
		for range 3 {
			l := d.hangup(t)
			beside = append(beside, find(t, s.dir))
			each, err := time.ParseDuration(l.Took)
			if err != nil || l.Unchanged != files || l.New+l.Changed+l.Gone != 0 {
				t.Errorf("the rescan found %+v (%v), want %d unchanged files", l, err, files)
			}
			took = append(took, each)
		}
	})
	slices.Sort(took)
	slices.Sort(beside)
	f := beside[len(beside)/2]
	t.Logf("rescan %v, find %v: ratio %.2f; RssAnon idle %d MiB, at most %d MiB during rescans",
		took[1], f, took[1].Seconds()/f.Seconds(), idle>>20, high>>20)
	d.wantUntouched(t, s, files)
	wantBelow(t, "growth of RssAnon by rescans", high-idle, 32)
	wantBelow(t, "RssAnon during rescans", high, 200)
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

// wantUntouched checks that no file was read and none asked for.
func (p *process) wantUntouched(t *testing.T, s *site, files int) {
	t.Helper()
	for _, r := range s.proxy.Ledger() {
		if !strings.Contains(r.Key, "/_manifests/") && !strings.Contains(r.Query.Get("prefix"), "/_manifests/") {
			t.Errorf("a request for data: %s %s", r.Op, r.Key)
		}
	}
	if n := p.metric(t, `s3syncd_hash_bytes_total{source="app"}`); n != 0 {
		t.Errorf("%v bytes were read", n)
	}
	if n := p.metric(t, `s3syncd_indexed_files{source="app"}`); n != float64(files) {
		t.Errorf("%v files are indexed, want %d", n, files)
	}
}

func wantBelow(t *testing.T, what string, bytes, mib int64) {
	t.Helper()
	if bytes >= mib<<20 {
		t.Errorf("%s: %d MiB, want less than %d", what, bytes>>20, mib)
	}
}

// anonymous returns the anonymous resident memory of a process, see proc(5), 0
// for one that is gone.
func anonymous(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kib << 10
		}
	}
	return 0
}

// cpu returns the processor time that a process has used.
func cpu(t *testing.T, pid int) time.Duration {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(tasks) == 0 {
		t.Skipf("no schedstat here: %v", err)
	}
	var total time.Duration
	for _, f := range tasks {
		if b, err := os.ReadFile(f); err == nil {
			ns, _ := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
			total += time.Duration(ns)
		}
	}
	return total
}

// An idle daemon asks S3 for nothing but its trail and costs next to nothing.
func TestIdle(t *testing.T) {
	if !thorough {
		t.Skip("part of make e2e: it waits for five minutes")
	}
	s := newSite(t, "settle: 2s", "")
	for i := range 1000 {
		write(t, s.path(fmt.Sprintf("d%02d/f%d", i%50, i)), strconv.Itoa(i))
	}
	b, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	// The intervals that a host has, not those of the tests.
	write(t, s.file, strings.Replace(string(b), "rescan_interval: 0, poll_interval: 1s", "rescan_interval: 1h", 1))
	d := spawnProgram(t, plain(t), s.env, "run", "-c", s.file)
	d.isReady(t)
	s.converges(t, d)
	await(t, 10*time.Second)
	s.proxy.Forget()
	before, begin := cpu(t, d.cmd.Process.Pid), time.Now()
	await(t, 5*time.Minute)
	used, passed := cpu(t, d.cmd.Process.Pid)-before, time.Since(begin)
	t.Logf("%v of processor time in %v: %.4f%% of a core; %d requests", used, passed, 100*used.Seconds()/passed.Seconds(), len(s.proxy.Ledger()))
	for _, r := range s.proxy.Ledger() {
		if !strings.Contains(r.Key, "/_manifests/") {
			t.Errorf("an idle daemon sent %s %s", r.Op, r.Key)
		}
	}
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}
