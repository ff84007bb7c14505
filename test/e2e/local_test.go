package e2e_test

import (
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

	"golang.org/x/sys/unix"
)

// limit changes one soft limit of a running process.
func (p *process) limit(t *testing.T, resource int, soft uint64) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Prlimit(p.cmd.Process.Pid, resource, nil, &old); err != nil {
		t.Fatalf("prlimit: %v", err)
	}
	if err := unix.Prlimit(p.cmd.Process.Pid, resource, &unix.Rlimit{Cur: min(soft, old.Max), Max: old.Max}, nil); err != nil {
		t.Fatalf("prlimit: %v", err)
	}
}

// While nothing can be recorded nothing is uploaded: the daemon says so, keeps
// watching, and goes on by itself when its disk works again.
func TestAStateThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	for name, disk := range map[string]func(t *testing.T, s *site) (breakIt, mendIt func(t *testing.T, d *process)){
		"writes fail": func(*testing.T, *site) (breakIt, mendIt func(t *testing.T, d *process)) {
			return func(t *testing.T, d *process) { t.Helper(); d.limit(t, unix.RLIMIT_FSIZE, 0) },
				func(t *testing.T, d *process) { t.Helper(); d.limit(t, unix.RLIMIT_FSIZE, unix.RLIM_INFINITY) }
		},
		"the disk is full": fullDisk,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newFakeSite(t, "", "manifest: {flush_interval: 1s, digest_interval: 1s}")
			breakIt, mendIt := disk(t, s)
			d := s.daemon(t)
			for i := range 5 {
				write(t, s.path(fmt.Sprintf("before%d", i)), "before")
			}
			eventually(t, "the files of before", func() bool { return s.count(t, "before") == 5 })
			breakIt(t, d)
			for i := range 20 {
				write(t, s.path(fmt.Sprintf("during%02d", i)), "during")
			}
			eventually(t, "the trouble is said", func() bool {
				_, out, _ := command(t, s.env, "status", "-c", s.file)
				return strings.Contains(metricsOf(t, d), "s3syncd_state_writable 0") && strings.Contains(out, "state_dir cannot be written") &&
					onTheirWay(metricsOf(t, d)) >= 19
			})
			if n := strings.Count(d.stderr.String(), `"msg":"the state cannot be written`); n != 1 {
				t.Errorf("the log says %d times that the state cannot be written, want once", n)
			}
			// One write may have been under way: the server has it, and its record comes later.
			if n := s.count(t, "during"); n > 16 {
				t.Errorf("%d files were uploaded although nothing could be recorded", n)
			}
			stored := s.data("PutObject")
			write(t, s.path("during-late"), "during")
			eventually(t, "it is watched still", func() bool { return onTheirWay(metricsOf(t, d)) >= 20 })
			if n := s.data("PutObject") - stored; n != 0 {
				t.Errorf("%d more uploads while nothing can be recorded", n)
			}
			mendIt(t, d)
			eventually(t, "it goes on by itself", func() bool {
				return s.count(t, "during") == 21 && strings.Contains(metricsOf(t, d), "s3syncd_state_writable 1")
			})
			if code := d.stop(t); code != 0 {
				t.Errorf("exit code %d, want 0", code)
			}
			s.wantOnce(t)
		})
	}
}

// fullDisk puts the state on a small file system of its own, to be filled.
func fullDisk(t *testing.T, s *site) (breakIt, mendIt func(t *testing.T, d *process)) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can mount a file system")
	}
	if err := os.Mkdir(s.state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", s.state, "tmpfs", 0, "size=24m,mode=0700"); err != nil {
		t.Skipf("no file system can be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(s.state, unix.MNT_DETACH) })
	filler := filepath.Join(s.state, "filler")
	breakIt = func(t *testing.T, _ *process) {
		t.Helper()
		f, err := os.OpenFile(filler, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for err == nil {
			_, err = f.Write(make([]byte, 64<<10))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("fill the disk: %v", err)
		}
	}
	mendIt = func(t *testing.T, _ *process) {
		t.Helper()
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
	}
	return breakIt, mendIt
}

// Without a descriptor left nothing can be opened: it waits without turning in
// circles, and loses nothing.
func TestWithoutDescriptorsNothingIsLost(t *testing.T) {
	t.Parallel()
	s := newFakeSite(t, "", "")
	d := s.daemon(t)
	write(t, s.path("before"), "before")
	eventually(t, "the first file", func() bool { return s.count(t, "before") == 1 })
	logged := len(d.stderr.String())
	d.limit(t, unix.RLIMIT_NOFILE, 3)
	for i := range 200 {
		write(t, s.path(fmt.Sprintf("d%02d/f%03d", i%20, i)), strconv.Itoa(i))
	}
	eventually(t, "something cannot be opened", func() bool {
		return strings.Contains(d.stderr.String()[logged:], "too many open files")
	})
	used, begin := cpu(t, d.cmd.Process.Pid), time.Now()
	await(t, 2*time.Second)
	if busy := cpu(t, d.cmd.Process.Pid) - used; busy > time.Since(begin)*2/3 {
		t.Errorf("%v of processor time in %v without descriptors: it turns in circles", busy, time.Since(begin))
	}
	if n := strings.Count(d.stderr.String()[logged:], "\n"); n > 2000 {
		t.Errorf("%d lines in the log without descriptors", n)
	}
	d.limit(t, unix.RLIMIT_NOFILE, 1024)
	eventually(t, "everything", func() bool { return s.count(t, "d") == 200 })
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	s.wantOnce(t)
}

// However many workers there are, they send together no more than the limit.
func TestTheBandwidthLimitHolds(t *testing.T) {
	t.Parallel()
	const rate, total = 2 << 20, 6 << 20
	s := newFakeSite(t, "", "upload: {bandwidth_limit: 2MiB, single_put_max: 5MiB, part_size: 5MiB}")
	for i := range 12 {
		random(t, s.path(fmt.Sprintf("f%02d", i)), total/12, uint64(i))
	}
	begin := time.Now()
	d := s.daemon(t)
	eventually(t, "everything", func() bool { return s.count(t, "f") == 12 })
	took := time.Since(begin)
	sent := int64(0)
	for _, r := range s.proxy.Ledger() {
		if r.Op == "PutObject" && !strings.Contains(r.Key, "_manifests") {
			n, _ := strconv.ParseInt(r.Header.Get("Content-Length"), 10, 64)
			sent += n
		}
	}
	if sent < total {
		t.Fatalf("the proxy saw %d bytes of %d", sent, total)
	}
	// What a second allows may go at once, and a busy machine only makes it slower.
	if least := time.Duration(float64(sent-rate)/rate*float64(time.Second)) * 8 / 10; took < least {
		t.Errorf("%d bytes went in %v at %d bytes a second, want %v at least", sent, took, rate, least)
	}
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	s.wantOnce(t)
}

// A file that cannot be read to its end, for its disk is broken there, holds up
// nobody, is never stored in part, and goes when it can be read.
func TestAReadErrorInTheMiddleOfAFile(t *testing.T) {
	if !thorough {
		t.Skip("part of make e2e: it makes a file system")
	}
	t.Parallel()
	s := newFakeSite(t, "", "")
	image := filepath.Join(filepath.Dir(s.dir), "image")
	brokenDisk(t, image, s.dir)
	d := s.daemon(t)
	write(t, s.path("good"), "good")
	eventually(t, "the others go on", func() bool { return s.inBucket(t, "good", "good") })
	eventually(t, "the error is met", func() bool { return strings.Contains(d.stderr.String(), "input/output error") })
	if n := s.count(t, "broken"); n != 0 {
		t.Errorf("%d objects of a file that cannot be read", n)
	}
	if err := os.Truncate(image, imageSize); err != nil { // The disk is there again, the file reads as zeros.
		t.Fatal(err)
	}
	dropCaches(t, s.path("broken"))
	s.hasten(t, "the file goes", func() bool { return s.count(t, "broken") == 1 })
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	tr := s.bucket.readTrail(t)
	s.bucket.wantTreeBut(t, s.dir, &tr, "lost+found")
}

const imageSize = 64 << 20

// brokenDisk mounts a file system at dir with a file "broken", whose second half
// gives an error when it is read.
func brokenDisk(t *testing.T, image, dir string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can mount a file system")
	}
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
			t.Skipf("no disk can be made here: %s: %v\n%s", name, err, out)
		}
	}
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(imageSize), f.Close()); err != nil {
		t.Fatal(err)
	}
	run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", image)
	run("mount", "-o", "loop", image, dir)
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	random(t, filepath.Join(dir, "broken"), 40<<20, 3)
	unix.Sync()
	dropCaches(t, filepath.Join(dir, "broken"))
	if err := os.Truncate(image, imageSize/2); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "broken"))
	if err == nil {
		t.Skipf("this kernel reads %d bytes of a disk that is gone", len(b))
	}
}

// dropCaches makes the next reading of a file ask its disk.
func dropCaches(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatalf("fadvise: %v", err)
	}
}
