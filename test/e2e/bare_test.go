package e2e_test

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// builds makes the program as `make build` does: static, for the architecture.
func builds(t *testing.T, arch string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "s3syncd")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", out, "github.com/s3syncd/s3syncd/cmd/s3syncd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build for %s: %v\n%s", arch, err, said)
	}
	return out
}

// onlyThorough skips what takes a build of its own.
func onlyThorough(t *testing.T) {
	t.Helper()
	if !thorough {
		t.Skip("builds the program anew: `make e2e` runs it")
	}
}

// TestAContainerNeedsNothingButTheBinary runs it as a container would: its root
// holds the binary, the configuration and nothing else, and is read-only; its
// user has no rights.
func TestAContainerNeedsNothingButTheBinary(t *testing.T) {
	onlyThorough(t)
	if os.Getuid() != 0 {
		t.Skip("needs root to change the root of a process")
	}
	s := newSite(t, "", "")
	root := filepath.Join(filepath.Dir(s.file), "root")
	for _, dir := range []string{"usr/bin", "etc/s3syncd", "var/lib/s3syncd", "srv/app"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	chmodUp(t, root)
	program, err := os.ReadFile(builds(t, runtime.GOARCH))
	if err == nil {
		err = os.WriteFile(filepath.Join(root, "usr", "bin", "s3syncd"), program, 0o755)
	}
	if err == nil {
		err = os.Chown(filepath.Join(root, "var", "lib", "s3syncd"), nobody, nobody)
	}
	if err == nil {
		err = os.Chmod(filepath.Join(root, "var", "lib", "s3syncd"), 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	src := "- {name: app, path: /srv/app, bucket: " + s.bucket.bucket + ", prefix: " + s.bucket.prefix + ", kms_key_id: " + s.key + "}"
	write(t, filepath.Join(root, "etc", "s3syncd", "s3syncd.yaml"), yaml(s.proxy.URL, "/var/lib/s3syncd", src, ""))
	write(t, filepath.Join(root, "srv", "app", "f"), "content")

	// A mount namespace whose root is read-only but for the state directory.
	script := `set -e
mount --make-rprivate /
mount --bind "$1" "$1"
mount --bind "$1/var/lib/s3syncd" "$1/var/lib/s3syncd"
mount -o remount,ro,bind "$1"
if touch "$1/probe" 2>/dev/null; then echo 'the root is writable' >&2; exit 9; fi
exec chroot --userspec=65534:65534 "$1" /usr/bin/s3syncd run -c /etc/s3syncd/s3syncd.yaml`
	d := newProcess(t, "unshare", s.env, "--mount", "sh", "-c", script, "sh", root)
	if !d.start(t) {
		t.Skipf("unshare: %v", d.err)
	}
	d.isReady(t)
	eventually(t, "the file", func() bool { return s.inBucket(t, "f", "content") })
	write(t, filepath.Join(root, "srv", "app", "g"), "more")
	eventually(t, "a file that came later", func() bool { return s.inBucket(t, "g", "more") })
	socket := filepath.Join(root, "var", "lib", "s3syncd", "control.sock")
	if code, out, errs := command(t, s.env, "flush", "--socket", socket); code != 0 {
		t.Errorf("flush = %d: %s%s", code, out, errs)
	}
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	s.bucket.readTrail(t)
}

// opened finds what a process opened to write, made, removed or renamed.
var opened = regexp.MustCompile(`^\d+ +(?:open|openat|creat|mkdir|mkdirat|unlink|unlinkat|rename|renameat|renameat2|link|linkat|symlinkat|mknodat|bind|truncate)\(.*`)

// TestNothingIsWrittenOutsideTheStateDirectory traces a whole life: start,
// uploads in one piece and in parts, a reload, a flush, the end.
func TestNothingIsWrittenOutsideTheStateDirectory(t *testing.T) {
	onlyThorough(t)
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("needs strace")
	}
	s := newSite(t, "", "upload: {single_put_max: 5MiB, part_size: 5MiB}")
	write(t, s.path("small"), "content")
	write(t, s.path("big"), strings.Repeat("0123456789abcdef", 1<<20))
	trace := filepath.Join(t.TempDir(), "trace")
	d := newProcess(t, strace, append(s.env, "TMPDIR=/nonexistent"), "-f", "-yy", "-qq", "-s", "4096", "-e", "signal=none",
		"-e", "trace=open,openat,creat,mkdir,mkdirat,unlink,unlinkat,rename,renameat,renameat2,link,linkat,symlinkat,mknodat,bind,truncate",
		"-o", trace, builds(t, runtime.GOARCH), "run", "-c", s.file)
	if !d.start(t) {
		t.Skipf("strace: %v", d.err)
	}
	d.isReady(t)
	eventually(t, "the file", func() bool { return s.inBucket(t, "small", "content") })
	s.configure(t, "exclude: ['*.tmp']", "upload: {single_put_max: 5MiB, part_size: 5MiB}")
	daemon := tracee(t, d.cmd.Process.Pid)
	if err := daemon.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the reload", func() bool { return strings.Count(d.stderr.String(), `"msg":"ready"`) == 2 })
	if code, out, errs := s.ask(t, "flush"); code != 0 {
		t.Errorf("flush = %d: %s%s", code, out, errs)
	}
	if err := daemon.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := d.ended(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	text, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	writes := 0
	for line := range strings.Lines(string(text)) {
		call, ok := writing(line)
		switch {
		case !ok:
		case strings.Contains(call, s.state+"/"), strings.Contains(call, `"`+s.state+`"`):
			writes++
		case strings.Contains(call, "/dev/null"), strings.Contains(call, "bind(") && !strings.Contains(call, "AF_UNIX"):
		default:
			t.Errorf("written outside %s: %s", s.state, line)
		}
	}
	if writes < 3 {
		t.Errorf("%d writes in the state directory are seen, want some: is the trace read right?", writes)
	}
}

// writing returns the call of a traced line that changes a file system.
func writing(line string) (call string, ok bool) {
	if !opened.MatchString(line) || strings.Contains(line, "= -1 ") {
		return "", false
	}
	_, call, _ = strings.Cut(line, " ")
	call = strings.TrimSpace(call)
	if strings.HasPrefix(call, "open") && !strings.Contains(call, "O_WRONLY") && !strings.Contains(call, "O_RDWR") && !strings.Contains(call, "O_CREAT") {
		return "", false
	}
	return call, true
}

// tracee is the process that strace started.
func tracee(t *testing.T, strace int) *os.Process {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // It ended.
		}
		_, rest, _ := strings.Cut(string(b), ") ") // The name may have blanks.
		if f := strings.Fields(rest); len(f) > 1 && f[1] == strconv.Itoa(strace) {
			pid, err := strconv.Atoi(strings.Split(file, "/")[2])
			if err != nil {
				t.Fatal(err)
			}
			p, err := os.FindProcess(pid)
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
	}
	t.Fatalf("strace has no child")
	return nil
}

// TestTheProgramIsStaticAndRunsOnARM64 runs it by emulation where that is
// installed.
func TestTheProgramIsStaticAndRunsOnARM64(t *testing.T) {
	onlyThorough(t)
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		t.Run(arch, func(t *testing.T) {
			program := builds(t, arch)
			f, err := elf.Open(program)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			libraries, err := f.ImportedLibraries()
			if err != nil || len(libraries) > 0 || f.Machine != machine {
				t.Errorf("a program for %v that needs %q, %v; want %v and nothing", f.Machine, libraries, err, machine)
			}
			command := []string{program}
			if arch != runtime.GOARCH {
				emulator, err := exec.LookPath("qemu-" + strings.ReplaceAll(strings.ReplaceAll(arch, "arm64", "aarch64"), "amd64", "x86_64") + "-static")
				if err != nil {
					t.Skip("needs qemu-user-static to run it")
				}
				command = []string{emulator, program}
			}
			for _, args := range [][]string{{"version"}, {"check", "-c", "../../deploy/s3syncd.example.yaml"}} {
				cmd := exec.CommandContext(t.Context(), command[0], append(command[1:], args...)...)
				cmd.Env = environ()
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%v: %v\n%s", args, err, out)
				}
			}
		})
	}
}
