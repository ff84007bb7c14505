package state

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// guestModules are what a kernel may need for its disk. What is built in has no
// file.
var guestModules = []string{
	"drivers/virtio/virtio", "drivers/virtio/virtio_ring", "drivers/virtio/virtio_pci_legacy_dev",
	"drivers/virtio/virtio_pci_modern_dev", "drivers/virtio/virtio_pci", "drivers/block/virtio_blk", "fs/mbcache/mbcache", "fs/jbd2/jbd2", "fs/ext4/ext4",
}

// playGuest is the first process of a virtual machine: it mounts the disk and
// writes there until the power is cut.
func playGuest(string) error {
	for range guestModules { // One that needs another is loaded the next time round.
		for _, m := range guestModules {
			if f, err := os.Open("/" + filepath.Base(m) + ".ko"); err == nil {
				_ = unix.FinitModule(int(f.Fd()), "", 0) // Without the disk nothing is mounted below.
				_ = f.Close()
			}
		}
	}
	for _, dir := range []string{"/dev", "/mnt", "/tmp"} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if err := unix.Mount("devtmpfs", "/dev", "devtmpfs", 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount /dev: %w", err)
	}
	var err error
	for range 100 { // The disk is found a moment after its driver is there.
		if err = unix.Mount("/dev/vda", "/mnt", "ext4", 0, ""); !errors.Is(err, unix.ENOENT) {
			break
		}
		_ = unix.Nanosleep(&unix.Timespec{Nsec: 1e8}, nil)
	}
	if err != nil {
		return fmt.Errorf("mount the disk: %w", err)
	}
	return playWriter("/mnt")
}

// guestKernel finds a kernel and its modules, in / or in S3SYNCD_VM_ROOT.
func guestKernel(t *testing.T) (kernel, modules string) {
	t.Helper()
	root := os.Getenv("S3SYNCD_VM_ROOT")
	kernels := must(filepath.Glob(root + "/boot/vmlinuz-*"))(t)
	if len(kernels) == 0 {
		t.Skip("no kernel in /boot for a virtual machine: install linux-image-cloud-amd64, or name a directory with its boot and lib in S3SYNCD_VM_ROOT")
	}
	kernel = slices.Max(kernels)
	_, version, _ := strings.Cut(filepath.Base(kernel), "vmlinuz-")
	return kernel, filepath.Join(root+"/lib/modules", version, "kernel")
}

// A power cut of a whole machine: its kernel's memory is gone, and the disk has
// what was flushed.
func TestNothingAcknowledgedIsLostWhenAMachineLosesPower(t *testing.T) {
	if os.Getenv("S3SYNCD_E2E") == "" {
		t.Skip("a virtual machine takes minutes: S3SYNCD_E2E is not set")
	}
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("qemu-system-x86_64 is not installed: no machine loses its power")
	}
	if os.Getuid() != 0 {
		t.Skip("only root can mount the disk of a machine that is off")
	}
	kernel, modules := guestKernel(t)
	base := t.TempDir()
	initrd, disk := filepath.Join(base, "initrd"), filepath.Join(base, "disk")
	check(t, writeInitrd(initrd, guestProgram(t, base), modules))
	f := must(os.Create(disk))(t)
	check(t, f.Truncate(256<<20))
	check(t, f.Close())
	run(t, "mkfs.ext4", "-q", "-F", disk)

	acked := map[string]uint64{}
	for cut := range 5 {
		before := len(acked)
		n := powerCycle(t, acked, qemu, "-accel", "tcg", "-cpu", "max", "-m", "512", "-smp", "2", "-nodefaults", "-no-reboot", "-display", "none",
			"-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1 rdinit=/init STATE_TEST_ROLE=guest", "-serial", "stdio",
			"-drive", "file="+disk+",format=raw,if=virtio,cache=writeback")
		t.Logf("cut %d: %d commits acknowledged, of %d paths before and %d now", cut, n, before, len(acked))
		at := filepath.Join(base, "mnt")
		check(t, os.MkdirAll(at, 0o700))
		run(t, "mount", "-o", "loop", disk, at)
		checkAfterCrash(t, at, acked, cut)
		run(t, "umount", at)
		if t.Failed() {
			t.FailNow()
		}
	}
}

// powerCycle runs the machine until it has acknowledged some commits and cuts
// its power at a random moment after that.
func powerCycle(t *testing.T, acked map[string]uint64, qemu string, args ...string) (commits int) {
	t.Helper()
	ctx, cut := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cut()
	cmd := exec.CommandContext(ctx, qemu, args...)
	out := must(cmd.StdoutPipe())(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	check(t, cmd.Start())
	var console strings.Builder
	left := 50 + rand.IntN(300)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var path, id string
		var attempt uint64
		if n, _ := fmt.Sscanf(lines.Text(), "%s %d %s", &path, &attempt, &id); n != 3 || !strings.HasPrefix(id, testChain+"-") {
			console.WriteString(lines.Text() + "\n")
			continue // A line of the kernel, or one that was cut.
		}
		commits++
		acked[path] = max(acked[path], attempt)
		if left--; left == 0 {
			time.AfterFunc(time.Duration(rand.IntN(500))*time.Millisecond, cut)
		}
	}
	_ = cmd.Wait() // It is killed.
	if left > 0 {
		t.Fatalf("the machine acknowledged %d commits and ended:\n%s%s", commits, console.String(), stderr.String())
	}
	return commits
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// guestProgram builds these tests so that they run without any library.
func guestProgram(t *testing.T, dir string) string {
	t.Helper()
	program := filepath.Join(dir, "init")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return program
}

// writeInitrd writes a cpio archive with the program as /init and the modules
// beside it.
func writeInitrd(file, program, modules string) error {
	var b bytes.Buffer
	add := func(name string, mode, major, minor uint32, data []byte) {
		fmt.Fprintf(&b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
			b.Len()+1, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)
		pad(&b)
		b.Write(data)
		pad(&b)
	}
	add("dev", 0o040755, 0, 0, nil)
	add("dev/console", 0o020600, 5, 1, nil)
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	add("init", 0o100755, 0, 0, data)
	for _, m := range guestModules {
		data, err := os.ReadFile(filepath.Join(modules, m+".ko"))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		add(filepath.Base(m)+".ko", 0o100644, 0, 0, data)
	}
	add("TRAILER!!!", 0, 0, 0, nil)
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, &b)
	return errors.Join(err, f.Close())
}

// pad fills up to a multiple of four bytes.
func pad(b *bytes.Buffer) {
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
}
