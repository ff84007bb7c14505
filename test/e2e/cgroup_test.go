package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// group makes a control group that allows so much memory, and returns its
// directory.
func group(t *testing.T, limit int64) string {
	t.Helper()
	name := fmt.Sprintf("s3syncd-test-%d", os.Getpid())
	var reasons []error
	for dir, file := range map[string]string{
		"/sys/fs/cgroup/memory/" + name: "memory.limit_in_bytes", // version 1
		"/sys/fs/cgroup/" + name:        "memory.max",            // version 2
	} {
		if _, err := os.Stat(filepath.Join(filepath.Dir(dir), "cgroup.procs")); err != nil {
			reasons = append(reasons, err)
			continue
		}
		err := os.Mkdir(dir, 0o755)
		if err == nil {
			t.Cleanup(func() { _ = os.Remove(dir) })
			err = os.WriteFile(filepath.Join(dir, file), []byte(strconv.FormatInt(limit, 10)), 0o600)
		}
		if err == nil {
			return dir
		}
		reasons = append(reasons, err)
	}
	t.Skipf("no control group of memory can be made: %v", errors.Join(reasons...))
	return ""
}

// inGroup starts the program in a control group.
func inGroup(t *testing.T, s *site, dir string, args ...string) *process {
	t.Helper()
	script := fmt.Sprintf("echo $$ > %s/cgroup.procs && exec %s %s", dir, plain(t), strings.Join(args, " "))
	return spawnProgram(t, "/bin/sh", s.env, "-c", script)
}

func TestADaemonFitsItsControlGroup(t *testing.T) {
	dir := group(t, 96<<20)
	s := newSite(t, "", "")
	const small, large = 1000, 4
	for i := range small {
		write(t, s.path(fmt.Sprintf("small/%d/%d", i%50, i)), strings.Repeat("x", 1+i%5000))
	}
	for i := range 20 {
		random(t, s.path(fmt.Sprintf("mid%d", i)), 7<<20, uint64(i))
	}
	for i := range large {
		random(t, s.path(fmt.Sprintf("large%d", i)), 64<<20, uint64(100+i))
	}
	p := inGroup(t, s, dir, "run", "-c", s.file)
	peak := int64(0)
	deadline := time.After(5 * time.Minute)
	for n := 0; n < large; {
		select {
		case <-p.done:
			t.Fatalf("the daemon ended: %v", p.cmd.ProcessState)
		case <-time.After(20 * time.Millisecond):
		case <-deadline:
			t.Fatalf("%d of %d files uploaded", n, large)
		}
		peak = max(peak, anonymous(p.cmd.Process.Pid))
		n = strings.Count(p.stderr.String(), `"msg":"uploaded","source":"app","path":"large`)
	}
	t.Logf("RssAnon was at most %d MiB", peak>>20)
	if _, page := p.get(t, "/metrics"); strings.Contains(page, "\ns3syncd_upload_memory_limit_bytes 1.34217728e+08\n") {
		t.Error("the buffers are as large as without a limit")
	}
	if code := p.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

func TestAControlGroupThatIsTooSmallIsRefused(t *testing.T) {
	s := newFakeSite(t, "", "")
	p := inGroup(t, s, group(t, 48<<20), "run", "-c", s.file)
	if code := p.ended(t); code != 1 || !strings.Contains(p.stderr.String(), "allow it 48.0 MiB of memory") {
		t.Errorf("exit code %d, want 1 and the reason:\n%s", code, p.stderr)
	}
}
