package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// traced is the program under strace, with an injection at the n-th call of a
// family that concerns the state directory; n 0 injects nothing. It runs a
// build without the race detector, whose own calls would be traced too.
func (s *site) traced(t *testing.T, program, calls, inject string, n int, args ...string) (trace string, code int, out string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "trace")
	argv := []string{"-f", "-qq", "-e", "signal=none", "-e", "trace=" + calls, "-o", file}
	if n > 0 {
		argv = append(argv, "-e", fmt.Sprintf("inject=%s:%s:when=%d", calls, inject, n))
	}
	if !strings.HasPrefix(inject, "signal=") {
		argv = append([]string{"--seccomp-bpf"}, argv...) // Faster; a signal is not sent with it.
	}
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	cmd := exec.CommandContext(ctx, "strace", append(append(argv, program), args...)...)
	cmd.Env = append(append(environ(), "GOMAXPROCS=1"), s.env...) // Few threads.
	var both bytes.Buffer
	cmd.Stdout, cmd.Stderr = &both, &both
	_ = cmd.Run() // It is killed, or fails, on purpose.
	if ctx.Err() != nil {
		t.Fatalf("%v did not end:\n%s", args, tail(both.String(), 3000))
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), cmd.ProcessState.ExitCode(), both.String()
}

// killPoint is one place where a run is cut off or a call fails.
type killPoint struct {
	call   string
	n      int
	inject string // what strace does there
	based  bool   // on a state that an earlier run left
}

func (k killPoint) String() string {
	return fmt.Sprintf("%s of %s %d, based=%v", strings.ReplaceAll(k.inject, "signal=", ""), k.call, k.n, k.based)
}

// workload is a source of its own below the site, with small files and one that
// is a multipart upload; with base an earlier run has archived other content.
func (s *site) workload(t *testing.T, name string, base bool) *site {
	t.Helper()
	w := *s
	dir := t.TempDir()
	w.dir, w.state, w.file = filepath.Join(dir, "data"), filepath.Join(dir, "state"), filepath.Join(dir, "s3syncd.yaml")
	w.bucket.prefix = "points/" + name
	w.configure(t, "", "upload: {part_size: 5MiB, single_put_max: 5MiB, workers: 4}")
	for i := range 3 {
		write(t, w.path(fmt.Sprintf("d%d/f", i)), "before")
	}
	if base {
		w.mustSync(t, 3, 0, 0)
		remove(t, w.path("d1"))
	}
	write(t, w.path("d0/f"), "now")
	write(t, w.path("new"), "content")
	random(t, w.path("big"), partSize+10, 4)
	return &w
}

// tracedSync runs a sync under strace.
func (s *site) tracedSync(t *testing.T, program string, k killPoint) (trace string, code int, out string) {
	t.Helper()
	return s.traced(t, program, k.call, k.inject, k.n, "sync", "-c", s.file, "--give-up", "1s")
}

// points lists every call of a run that makes something durable, or ends a
// request, with a kill before it, and an error of the disk in its place.
func (s *site) points(t *testing.T, program string, based bool) []killPoint {
	t.Helper()
	calls := []string{"fsync", "fdatasync", "pwrite64", "write", "openat", "renameat", "unlinkat", "mkdirat", "ftruncate", "flock"}
	trace, code, out := s.tracedSync(t, program, killPoint{call: strings.Join(calls, ",")})
	if code != 0 {
		t.Fatalf("sync = %d under strace:\n%s", code, out)
	}
	var list []killPoint
	for _, call := range calls {
		total, threads := 0, map[string]int{}
		for _, m := range regexp.MustCompile(`(?m)^(\d+) +`+call+`\(`).FindAllStringSubmatch(trace, -1) {
			threads[m[1]]++
			total++
		}
		// Strace counts the calls of each thread: this many are reached by one.
		count := (total + len(threads)) / max(1, len(threads))
		for n := 1; n <= count; n++ {
			list = append(list, killPoint{call, n, "signal=SIGKILL", based})
			if call != "write" && call != "flock" { // Those fail as the network does.
				list = append(list, killPoint{call, n, [...]string{"error=EIO", "error=ENOSPC"}[n%2], based})
			}
		}
	}
	return list
}

// cutOff plays one point, another kill somewhere in the recovery, and a last
// run that nothing disturbs. It reports whether the point was reached.
func (s *site) cutOff(t *testing.T, program, name string, k killPoint) (reached bool) {
	t.Helper()
	w := s.workload(t, name, k.based)
	trace, code, out := w.tracedSync(t, program, k)
	kill := strings.HasPrefix(k.inject, "signal=")
	if strings.Contains(out, "panic") || strings.Contains(out, "DATA RACE") || !kill && (code < 0 || code > 3) {
		t.Errorf("%v: exit code %d:\n%s", k, code, tail(out, 3000))
	}
	_, _, out = w.tracedSync(t, program, killPoint{call: "fdatasync,renameat", n: 1 + k.n%4, inject: "signal=SIGKILL"})
	if strings.Contains(out, "panic") {
		t.Errorf("%v: the run after it panicked:\n%s", k, tail(out, 3000))
	}
	if code, _, errs := w.sync(t); code != 0 {
		t.Errorf("%v: the last sync exited with %d:\n%s", k, code, tail(errs, 3000))
	}
	w.wantNothingLost(t)
	if kept, _ := filepath.Glob(filepath.Join(w.state, "state.db.damaged-*")); len(kept) > 0 {
		t.Errorf("%v: the state was set aside: %q", k, kept)
	}
	if t.Failed() {
		t.Fatalf("%v: first run:\n%s", k, tail(out, 3000))
	}
	return strings.Contains(trace, "(INJECTED)") || kill && code < 0
}

// fewPoints are some that every run has.
func fewPoints(based bool) []killPoint {
	if based {
		return []killPoint{{"write", 20, "signal=SIGKILL", true}, {"fdatasync", 2, "error=EIO", true}}
	}
	return []killPoint{{"fdatasync", 2, "signal=SIGKILL", false}, {"renameat", 1, "signal=SIGKILL", false}}
}

// Every system call of a run is a place where the process may end, or where the
// disk fails.
func TestCutOffAtAnySystemCall(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("strace is not installed: no run is cut off at its system calls")
	}
	const perKind = 150 // Of two kinds of run: some minutes.
	s := newPartSite(t)
	program := binary
	if thorough {
		program = plain(t)
	}
	reached, tried := 0, 0
	begin := time.Now()
	for _, based := range []bool{false, true} {
		list := fewPoints(based)
		if thorough {
			list = s.workload(t, fmt.Sprintf("all-%v", based), based).points(t, program, based)
		}
		step := max(1, len(list)/perKind)
		for i := rand.IntN(step); i < len(list); i += step {
			if !thorough && time.Since(begin) > 6*time.Second && tried > 0 {
				break // So many as this machine plays in the time there is.
			}
			tried++
			if s.cutOff(t, program, fmt.Sprintf("%d-%v", i, based), list[i]) {
				reached++
			}
		}
	}
	t.Logf("%d of %d points were reached, %v each", reached, tried, (time.Since(begin) / time.Duration(tried)).Round(time.Millisecond))
	if thorough && reached < tried/2 { // Which thread makes a call differs from run to run.
		t.Errorf("%d of %d points were reached, want most", reached, tried)
	}
}
