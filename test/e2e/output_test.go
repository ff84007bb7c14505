package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stuckPipe returns a pipe that is full and of which nobody reads.
func stuckPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w = os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	if err := unix.SetNonblock(fds[1], true); err != nil {
		t.Fatal(err)
	}
	for junk := []byte(strings.Repeat("j", 4095) + "\n"); ; {
		if _, err := unix.Write(fds[1], junk); errors.Is(err, unix.EAGAIN) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.SetNonblock(fds[1], false); err != nil {
		t.Fatal(err)
	}
	return r, w
}

// brokenPipe returns the end of a pipe whose reader has gone.
func brokenPipe(t *testing.T) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return w
}

// freeAddress returns an address that nobody listens at.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// unlogged is a daemon whose log goes to w. The process that is returned knows
// where its admin listener is.
func unlogged(t *testing.T, s *site, w *os.File) *process {
	t.Helper()
	address := freeAddress(t)
	content, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.file, strings.Replace(string(content), "127.0.0.1:0", address, 1))
	p := newProcess(t, binary, s.env, "run", "-c", s.file)
	p.cmd.Stderr, p.cmd.Stdout = w, w
	if !p.start(t) {
		t.Fatal(p.err)
	}
	_, _ = fmt.Fprintf(p.stderr, `"msg":"admin listener","address":"%s"`, address) // For get.
	return p
}

var lostLines = regexp.MustCompile(`(?m)^s3syncd_log_lines_lost_total (\d+)$`)

func (p *process) lostLines(t *testing.T) int {
	t.Helper()
	_, page := p.get(t, "/metrics")
	m := lostLines.FindStringSubmatch(page)
	if m == nil {
		t.Fatal("no s3syncd_log_lines_lost_total")
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestALogWithoutAReaderChangesNothing(t *testing.T) {
	s := newFakeSite(t, "", "")
	write(t, s.path("f"), "content")
	p := unlogged(t, s, brokenPipe(t))
	eventually(t, "the file", func() bool { return s.inBucket(t, "f", "content") })
	write(t, s.path("g"), "more")
	eventually(t, "a second file", func() bool { return s.inBucket(t, "g", "more") })
	if n := p.lostLines(t); n == 0 {
		t.Errorf("no line counts as lost")
	}
	if code := p.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

func TestALogThatIsStuckChangesNothing(t *testing.T) {
	s := newFakeSite(t, "", "log: {level: debug}")
	r, w := stuckPipe(t)
	p := unlogged(t, s, w)
	write(t, s.path("f"), "content")
	eventually(t, "the file", func() bool { return s.inBucket(t, "f", "content") })
	long := strings.Repeat("d", 200)
	eventually(t, "lost lines", func() bool { // Each hang-up logs a rescan, each file a line.
		for range 200 {
			write(t, s.path(fmt.Sprintf("%s/%d", long, time.Now().UnixNano())), "x")
		}
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		return p.lostLines(t) > 0
	})
	if code, body := p.get(t, "/-/healthy"); code != 200 {
		t.Errorf("healthy: %d %s, want 200: the pipeline works", code, body)
	}
	var log lockedBuffer
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := r.Read(buf)
			if err != nil {
				return
			}
			_, _ = log.Write(buf[:n])
		}
	}()
	eventually(t, "the loss is told", func() bool { return strings.Contains(log.String(), `"lines":`) })
	if code := p.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

func TestAStuckLogDoesNotHoldUpTheEnd(t *testing.T) {
	s := newFakeSite(t, "", "")
	_, w := stuckPipe(t)
	p := unlogged(t, s, w)
	write(t, s.path("f"), "content")
	eventually(t, "the file", func() bool { return s.inBucket(t, "f", "content") })
	begin := time.Now()
	if code := p.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if took := time.Since(begin); took > time.Minute {
		t.Errorf("the end took %v", took)
	}
}

// runTo runs a command to its end with standard output at out.
func runTo(t *testing.T, s *site, out *os.File, args ...string) (code int, stderr string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.Env = append(environ(), s.env...)
	var errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // The exit code says it.
	return cmd.ProcessState.ExitCode(), errs.String()
}

func TestWhoeverClosesAPipeHasReadWhatTheyWanted(t *testing.T) {
	s := newFakeSite(t, "", "")
	for i := range 100 {
		write(t, s.path(fmt.Sprintf("f%d", i)), "content")
	}
	if code, errs := runTo(t, s, brokenPipe(t), "sync", "-c", s.file); code != 0 {
		t.Errorf("sync: exit code %d, want 0: %s", code, errs)
	}
	if n := len(s.bucket.keys(t, false)); n != 100 {
		t.Errorf("%d files are archived, want 100", n)
	}
	for _, args := range [][]string{
		{"verify", "-c", s.file},
		{"check", "-c", s.file},
		{"history", s.path("f1"), "-c", s.file},
		{"version"},
		{"help"},
		{"iam-policy", "-c", s.file},
		{"sync", "--dry-run", "-c", s.file},
		{"restore", "-c", s.file, "--source", "app", "--to", t.TempDir()},
	} {
		if code, errs := runTo(t, s, brokenPipe(t), args...); code != 0 || strings.Contains(errs, "pipe") {
			t.Errorf("%v: exit code %d, want 0 and no word of it: %s", args, code, errs)
		}
	}
	if code, _ := runTo(t, s, brokenPipe(t), "status", "-c", s.file); code != 1 { // No daemon: its verdict stays.
		t.Errorf("status without a daemon: exit code %d, want 1", code)
	}
}

func TestAFullDiskBehindStandardOutputIsAnError(t *testing.T) {
	s := newFakeSite(t, "", "")
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer func() { _ = full.Close() }()
	if code, errs := runTo(t, s, full, "check", "-c", s.file); code != 1 || !strings.Contains(errs, "no space") {
		t.Errorf("check: exit code %d, %q, want 1 and why", code, errs)
	}
}

func TestASyncDoesNotWaitForWhoReadsItsLines(t *testing.T) {
	s := newFakeSite(t, "", "")
	for i := range 30 {
		write(t, s.path(fmt.Sprintf("f%d", i)), "content")
	}
	_, w := stuckPipe(t)
	p := newProcess(t, binary, s.env, "sync", "-c", s.file)
	p.cmd.Stdout = w
	if !p.start(t) {
		t.Fatal(p.err)
	}
	eventually(t, "all files", func() bool { return len(s.bucket.keys(t, false)) == 30 })
	eventually(t, "the trail", func() bool { return len(s.bucket.keys(t, true)) > 0 })
	if code := p.stop(t); code != 130 && code != 1 { // Its summary is not printed.
		t.Errorf("exit code %d", code)
	}
}
