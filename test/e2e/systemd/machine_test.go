// Package systemd_test installs the package on machines with a real systemd,
// booted in systemd-nspawn, and takes the service through its life. It needs
// root and Debian's systemd-container and debootstrap; `make e2e` runs it.
package systemd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

// wait is how long anything that must happen may take before a test gives up.
// It is no expectation of speed.
const wait = 3 * time.Minute

// repository is the top of the source tree.
const repository = "../../.."

func TestMain(m *testing.M) { os.Exit(s3test.Main(m)) }

// needs skips the test where this machine cannot boot another one.
func needs(t *testing.T) {
	t.Helper()
	if os.Getenv("S3SYNCD_E2E") == "" {
		t.Skip("boots machines: `make e2e` runs it")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root to boot a machine with systemd-nspawn")
	}
	programs := []string{"systemd-nspawn", "nsenter", "mount", "dpkg-deb", "make"}
	if os.Getenv("S3SYNCD_TEST_ROOTS") == "" {
		programs = append(programs, "debootstrap")
	}
	for _, name := range programs {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs %s, which is not installed", name)
		}
	}
	if unified(t) == "" {
		t.Skip("needs a mounted cgroup2 hierarchy")
	}
}

// unified returns where the cgroup2 hierarchy is mounted, "" if nowhere.
func unified(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1]
		}
	}
	return ""
}

// root returns a Debian root of suite that must not be written to.
// S3SYNCD_TEST_ROOTS names a directory with one that was made before.
func root(t *testing.T, suite string) string {
	t.Helper()
	if dir := os.Getenv("S3SYNCD_TEST_ROOTS"); dir != "" {
		base := filepath.Join(dir, suite)
		if _, err := os.Stat(filepath.Join(base, "sbin", "init")); err != nil {
			t.Skipf("S3SYNCD_TEST_ROOTS has no %s: %v", suite, err)
		}
		return base
	}
	base := filepath.Join(t.TempDir(), suite)
	cmd := exec.CommandContext(t.Context(), "debootstrap", "--variant=minbase",
		"--include=systemd,systemd-sysv,dbus,procps,ca-certificates", suite, base)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("debootstrap %s: %v\n%s", suite, err, tail(string(out), 500))
	}
	return base
}

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}

// machine is a booted Debian that shares this one's network.
type machine struct {
	root    string
	leader  int // its PID 1, as this machine sees it
	nspawn  *exec.Cmd
	console *bytes.Buffer
	done    chan struct{}
}

// boot starts a machine on a throw-away copy of base and ends it with the test.
func boot(t *testing.T, base string) *machine {
	t.Helper()
	dir := t.TempDir()
	m := &machine{root: filepath.Join(dir, "root"), console: &bytes.Buffer{}, done: make(chan struct{})}
	for _, d := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	layers := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", base, dir, dir)
	if err := syscall.Mount("overlay", m.root, "overlay", 0, layers); err != nil {
		t.Skipf("overlay on %s: %v", dir, err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(m.root, syscall.MNT_DETACH) })
	for _, unit := range []string{"systemd-networkd", "systemd-resolved", "systemd-timesyncd", "systemd-logind", "console-getty", "getty@tty1"} {
		_ = os.Symlink("/dev/null", filepath.Join(m.root, "etc", "systemd", "system", unit+".service")) // It may be masked already.
	}
	m.start(t, filepath.Base(filepath.Dir(dir)))
	return m
}

// start runs systemd-nspawn in a cgroup of its own until the machine answers.
func (m *machine) start(t *testing.T, label string) {
	t.Helper()
	name := fmt.Sprintf("s3syncd-e2e-%d-%s", os.Getpid(), strings.ToLower(label[max(0, len(label)-8):]))
	group := filepath.Join(unified(t), name)
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Skipf("a cgroup for the machine: %v", err)
	}
	t.Cleanup(func() { removeGroup(group) })
	fd, err := syscall.Open(group, syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Close(fd) }()
	m.nspawn = exec.CommandContext(context.WithoutCancel(t.Context()), "systemd-nspawn", "-D", m.root, "-b", "-M", name,
		"--register=no", "--keep-unit", "--console=pipe", "--link-journal=no", "--resolv-conf=off")
	m.nspawn.Env = append(os.Environ(), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
	m.nspawn.Stdout, m.nspawn.Stderr = m.console, m.console
	m.nspawn.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL, UseCgroupFD: true, CgroupFD: fd}
	if err := m.nspawn.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(m.done)
		_ = m.nspawn.Wait()
	}()
	t.Cleanup(func() { m.stop(t) })
	eventually(t, "boot", func() bool {
		select {
		case <-m.done:
			t.Fatalf("the machine ended:\n%s", m.console)
		default:
		}
		m.leader = childOf(m.nspawn.Process.Pid)
		if m.leader == 0 {
			return false
		}
		state, code := m.try("systemctl", "is-system-running")
		return code == 0 || strings.TrimSpace(state) == "degraded"
	})
}

// stop powers the machine off.
func (m *machine) stop(t *testing.T) {
	t.Helper()
	const powerOff = syscall.Signal(34 + 4) // SIGRTMIN+4, systemd(1)
	_ = syscall.Kill(m.leader, powerOff)
	select {
	case <-m.done:
	case <-time.After(wait):
		_ = syscall.Kill(m.leader, syscall.SIGKILL)
		<-m.done
	}
	if t.Failed() {
		t.Logf("end of the console:\n%s", tail(m.console.String(), 1500))
	}
}

// removeGroup removes a cgroup with those below it.
func removeGroup(group string) {
	entries, _ := os.ReadDir(group)
	for _, e := range entries {
		if e.IsDir() {
			removeGroup(filepath.Join(group, e.Name()))
		}
	}
	_ = os.Remove(group)
}

// childOf returns a process whose parent is pid, 0 if there is none.
func childOf(pid int) int {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(b), ") ") // The name may have blanks.
		if f := strings.Fields(rest); len(f) > 1 && f[1] == strconv.Itoa(pid) {
			child, _ := strconv.Atoi(strings.Split(file, "/")[2])
			return child
		}
	}
	return 0
}

// try runs a command in the machine and returns its output and exit code.
func (m *machine) try(args ...string) (out string, code int) {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	enter := []string{
		"-t", strconv.Itoa(m.leader), "-a", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TERM=dumb", "LC_ALL=C",
		"DEBIAN_FRONTEND=noninteractive",
	}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	b, err := cmd.CombinedOutput()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		return err.Error(), -1
	}
	return string(b), cmd.ProcessState.ExitCode()
}

// must runs a command that has to succeed.
func (m *machine) must(t *testing.T, args ...string) string {
	t.Helper()
	out, code := m.try(args...)
	if code != 0 {
		t.Fatalf("%q exited with %d:\n%s\njournal:\n%s", args, code, out, tail(m.journal(), 3000))
	}
	return strings.TrimSpace(out)
}

// show returns a property of the service.
func (m *machine) show(t *testing.T, property string) string {
	t.Helper()
	return m.must(t, "systemctl", "show", "-p", property, "--value", "s3syncd")
}

// journal is what the service and systemd said about it.
func (m *machine) journal() string {
	out, _ := m.try("journalctl", "-u", "s3syncd", "-o", "cat", "--no-pager")
	return out
}

// write makes a file in the machine, owned by root.
func (m *machine) write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	file := filepath.Join(m.root, path)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), mode); err != nil { // In place: owner and mode of an old one stay.
		t.Fatal(err)
	}
}

// dropIn writes a drop-in for the service; an empty text removes it.
func (m *machine) dropIn(t *testing.T, name, text string) {
	t.Helper()
	path := "etc/systemd/system/s3syncd.service.d/" + name + ".conf"
	if text == "" {
		if err := os.Remove(filepath.Join(m.root, path)); err != nil {
			t.Fatal(err)
		}
	} else {
		m.write(t, path, text, 0o644)
	}
	m.must(t, "systemctl", "daemon-reload")
}

// eventually polls ok until it is true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within %v", what, wait)
		}
	}
}
