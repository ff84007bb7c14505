package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// wait is how long anything that must happen may take before a test gives up.
// It is no expectation of speed.
const wait = 2 * time.Minute

// eventually polls ok until it is true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	within(t, wait, what, ok)
}

// within is eventually with a limit of its own.
func within(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within %v", what, limit)
		}
	}
}

// lockedBuffer is what a process wrote so far.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// process is one running s3syncd.
type process struct {
	cmd    *exec.Cmd
	stderr *lockedBuffer
	done   chan struct{} // closed when it has ended
	err    error         // why it did not start
}

var adminAddress = regexp.MustCompile(`"msg":"admin listener","address":"([^"]+)"`)

// startDaemon starts `run -c file` and waits until it is ready.
func startDaemon(t *testing.T, file string, env ...string) *process {
	t.Helper()
	p := spawn(t, env, "run", "-c", file)
	p.isReady(t)
	return p
}

// isReady waits until the daemon says so.
func (p *process) isReady(t *testing.T) {
	t.Helper()
	eventually(t, "ready", func() bool {
		select {
		case <-p.done:
			t.Fatalf("the daemon ended: %v\n%s", p.cmd.ProcessState, p.stderr)
		default:
		}
		return strings.Contains(p.stderr.String(), `"msg":"ready"`)
	})
}

// spawn starts the program and ends it with the test.
func spawn(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	return spawnProgram(t, binary, env, args...)
}

func spawnProgram(t *testing.T, program string, env []string, args ...string) *process {
	t.Helper()
	p := newProcess(t, program, env, args...)
	if !p.start(t) {
		t.Fatalf("start: %v", p.err)
	}
	return p
}

// newProcess prepares a process, which start starts.
func newProcess(t *testing.T, program string, env []string, args ...string) *process {
	t.Helper()
	p := &process{stderr: &lockedBuffer{}, done: make(chan struct{})}
	p.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), program, args...)
	p.cmd.Env = append(environ(), env...)
	p.cmd.Stderr, p.cmd.Stdout = p.stderr, p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return p
}

// start starts the process and ends it with the test. It returns false, with
// p.err set, when there is none.
func (p *process) start(t *testing.T) bool {
	t.Helper()
	if p.err = p.cmd.Start(); p.err != nil {
		return false
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
		if t.Failed() {
			log := p.stderr.String()
			if _, race, ok := strings.Cut(log, "WARNING: DATA RACE"); ok {
				t.Logf("a data race of %v:%s", p.cmd.Args[1:], race[:min(len(race), 3000)])
			}
			t.Logf("end of the log of %v:\n%s", p.cmd.Args[1:], tail(log, 1500))
		}
	})
	return true
}

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}

// stop sends SIGTERM and returns the exit code.
func (p *process) stop(t *testing.T) int {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatalf("SIGTERM: %v", err)
	}
	return p.ended(t)
}

// ended waits for the end and returns the exit code.
func (p *process) ended(t *testing.T) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(wait):
		t.Fatalf("the process did not end within %v", wait)
	}
	return p.cmd.ProcessState.ExitCode()
}

// kill ends it as a power cut would, as far as the process goes.
func (p *process) kill(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatalf("SIGKILL: %v", err)
	}
	<-p.done
}

// get asks the admin listener.
func (p *process) get(t *testing.T, path string) (int, string) {
	t.Helper()
	m := adminAddress.FindStringSubmatch(p.stderr.String())
	if m == nil {
		t.Fatalf("no admin listener in the log:\n%s", p.stderr)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+m[1]+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	return resp.StatusCode, string(body)
}

// command runs the program to its end and returns its exit code, stdout and
// stderr.
func command(t *testing.T, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return commandAs(t, os.Getuid(), env, args...)
}

// nobody is a user without rights.
const nobody = 65534

// commandAs is command as another user, which only root can do.
func commandAs(t *testing.T, uid int, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = append(environ(), env...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if uid != os.Getuid() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatalf("%v: %v", args, err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// environ is the environment without what would change a run.
func environ() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "AWS_") && !strings.HasPrefix(kv, "S3SYNCD_") && !strings.HasPrefix(kv, "NOTIFY_SOCKET=") {
			env = append(env, kv)
		}
	}
	// The binary is built to find races, and would wait a second before it exits.
	return append(env, "GORACE=atexit_sleep_ms=50", "AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE=/nonexistent", "AWS_SHARED_CREDENTIALS_FILE=/nonexistent")
}

// write makes a file with its directories.
func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func indent(s string, by int) string {
	return strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n"+strings.Repeat(" ", by))
}

// yaml is a configuration with fast intervals; sources and extra are YAML.
func yaml(endpoint, stateDir, sources, extra string) string {
	return fmt.Sprintf(`instance: test-01
state_dir: %s
s3:
  region: us-east-1
  endpoint_url: %s
sources:
  %s
watch: {settle: 200ms, rescan_interval: 0, poll_interval: 1s}
admin: {listen: "127.0.0.1:0"}
%s
`, stateDir, endpoint, indent(sources, 2), extra)
}
