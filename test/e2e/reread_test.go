package e2e_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// rereading is a site that reads every file again within a second.
func rereading(t *testing.T) *site {
	t.Helper()
	s := newFakeSite(t, "", "")
	replaceIn(t, s.file, "poll_interval: 1s}", "poll_interval: 1s, reread: 1s}")
	return s
}

func replaceIn(t *testing.T, file, old, now string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(b), old, now, 1)
	if changed == string(b) {
		t.Fatalf("%s lacks %q:\n%s", file, old, b)
	}
	write(t, file, changed)
}

// rounds waits until every file was read again in n more turns, from their begin
// on.
func (p *process) rounds(t *testing.T, n int) {
	t.Helper()
	const line = `"msg":"every file was read again"`
	before := strings.Count(p.stderr.String(), line)
	eventually(t, "every file was read again", func() bool { return strings.Count(p.stderr.String(), line) > before+n })
}

func TestAFileThatWasExcludedIsNotReadAgain(t *testing.T) {
	s := rereading(t)
	write(t, s.path("secret.env"), "first")
	write(t, s.path("mapped.env"), "first")
	write(t, s.path("plain"), "first")
	store := mapped(t, s.path("mapped.env"))
	d := s.daemon(t)
	eventually(t, "the files", func() bool { return s.inBucket(t, "mapped.env", "first") && s.inBucket(t, "plain", "first") })
	replaceIn(t, s.file, "  kms_key_id:", "  exclude: ['*.env']\n    kms_key_id:")
	d.reload(t, `"msg":"ready"`)
	write(t, s.path("secret.env"), "second")
	copy(store, "other")
	if err := os.Remove(s.path("plain")); err != nil {
		t.Fatal(err)
	}
	write(t, s.path("more"), "more")
	d.rounds(t, 2)
	if !s.inBucket(t, "secret.env", "first") || !s.inBucket(t, "mapped.env", "first") {
		t.Error("a file was uploaded that is excluded")
	}
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

func TestRereadingTakesNoFileOfAMissingMountForDeleted(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a file system")
	}
	s := rereading(t)
	inner := s.path("inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", inner, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("mount: %v", err)
	}
	mounted := true
	umount := func() {
		if mounted {
			mounted = false
			if err := unix.Unmount(inner, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(umount)
	write(t, s.path("top"), "top")
	for _, name := range []string{"a", "b", "c"} {
		write(t, s.path("inner/"+name), "content")
	}
	d := s.daemon(t)
	eventually(t, "the files", func() bool { return s.inBucket(t, "inner/c", "content") && s.inBucket(t, "top", "top") })
	umount()
	eventually(t, "the missing mount is seen", func() bool {
		_, out, _ := command(t, s.env, "status", "-c", s.file)
		return strings.Contains(out, "nothing counts as deleted")
	})
	d.rounds(t, 2)
	if strings.Contains(d.stderr.String(), `"msg":"deleted"`) {
		t.Errorf("files count as deleted that are out of sight:\n%s", d.stderr)
	}
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

// mapped returns the content of a file. A store into it changes the file's times
// late, if at all.
func mapped(t *testing.T, file string) []byte {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(m) })
	copy(m, bytes.Clone(m)) // The page is dirty from here on.
	return m
}
