package e2e_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

// versioned gives the site a bucket that keeps versions.
func (s *site) versioned(t *testing.T) *site {
	t.Helper()
	s.bucket.bucket = s.server.Bucket(t, s3test.BucketOptions{Versioning: true})
	s.configure(t, "", "")
	return s
}

// restore runs one restore from the bucket alone, as another host would, and
// returns its exit code and output.
func (s *site) restore(t *testing.T, to string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return commandAs(t, s.uid, s.env, s.restoreArgs(to, args...)...)
}

func (s *site) restoreArgs(to string, args ...string) []string {
	return append([]string{
		"restore", "--bucket", s.bucket.bucket, "--prefix", s.bucket.prefix, "--endpoint-url", s.proxy.URL, "--region", "us-east-1", "--to", to,
	}, args...)
}

// mustRestore runs one restore whose summary must be as given.
func (s *site) mustRestore(t *testing.T, to string, restored, kept, failed int, args ...string) (stdout, stderr string) {
	t.Helper()
	code, out, errs := s.restore(t, to, args...)
	want := fmt.Sprintf("Restored: %d\nKept: %d (already there)\nFailed: %d\n", restored, kept, failed)
	if !strings.Contains(out, want) {
		t.Fatalf("restore said:\n%s%s\nwant:\n%s", tail(out, 2000), tail(errs, 4000), want)
	}
	if wantCode := map[bool]int{true: 0, false: 3}[failed == 0]; code != wantCode {
		t.Fatalf("restore exited with %d, want %d:\n%s", code, wantCode, tail(errs, 4000))
	}
	return out, errs
}

// snapshot has content and attributes of every regular file below dir.
func snapshot(t *testing.T, dir string, owners bool) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(p, &st); err != nil {
			return err
		}
		body, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(body)
		files[rel] = fmt.Sprintf("%s mode %o mtime %d.%09d", hex.EncodeToString(sum[:]), st.Mode, st.Mtim.Sec, st.Mtim.Nsec)
		if owners {
			files[rel] += fmt.Sprintf(" owner %d:%d", st.Uid, st.Gid)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("walk %s: %v", dir, err)
	}
	return files
}

// wantSame compares two snapshots.
func wantSame(t *testing.T, got, want map[string]string) {
	t.Helper()
	shown := 0
	for rel, w := range want {
		if g := got[rel]; g != w && shown < 10 {
			shown++
			t.Errorf("%q is\n  %s, want\n  %s", rel, g, w)
		}
	}
	for rel := range got {
		if _, ok := want[rel]; !ok && shown < 10 {
			shown++
			t.Errorf("%q was not there", rel)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d files, want %d", len(got), len(want))
	}
}

// oddNames are what file systems allow and shells fear.
func oddNames() []string {
	return []string{
		"with space", "new\nline", "esc\x1b[31mred", "back\\slash", "-rf", "%41", "100%", "not\xff\xfeutf8", "ünïcödé", "a'b\"c", "*?[x]",
		strings.Repeat("n", 255), "...", "..hidden", "日本/語", "%2E%2E/x", "trailing ", "\x01control",
	}
}

// odd writes files with odd names and attributes and returns their number.
func odd(t *testing.T, dir string) int {
	t.Helper()
	for i, name := range oddNames() {
		write(t, filepath.Join(dir, "odd", name), "odd "+strconv.Itoa(i))
	}
	return len(oddNames())
}

// dress gives the files of dir different modes, owners and times.
func dress(t *testing.T, dir string) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		n++
		if os.Getuid() == 0 {
			if err := os.Chown(p, 1000+n%5, 2000+n%3); err != nil {
				return err
			}
		}
		modes := []fs.FileMode{0o644, 0o600, 0o755, 0o640, 0o444, 0o4755, 0o2711 | fs.ModeSetgid, 0o755 | fs.ModeSetuid}
		mode := modes[n%len(modes)]
		if err := os.Chmod(p, mode&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid)); err != nil {
			return err
		}
		at := time.Unix(1_000_000_000+int64(n)*86_399, int64(n)*1_000_003%1_000_000_000)
		if n%50 == 0 {
			at = time.Unix(-1_000_000+int64(n), 123_456_789) // Before 1970.
		}
		return os.Chtimes(p, at, at)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// lose removes tree and state: the host is gone.
func (s *site) lose(t *testing.T) {
	t.Helper()
	for _, dir := range []string{s.dir, s.state} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRestoreRebuildsALostHost(t *testing.T) {
	files := 2_000
	if thorough {
		files = 100_000
	}
	for _, versions := range []bool{true, false} {
		t.Run(fmt.Sprintf("versions=%v", versions), func(t *testing.T) {
			s := newSite(t, "", "")
			n := 200
			if versions {
				s.versioned(t)
				n = files
			}
			for i := range n {
				write(t, s.path(fmt.Sprintf("d%02d/e%d/f%05d", i%50, i%7, i)), strings.Repeat(strconv.Itoa(i), i%97))
			}
			random(t, s.path("large"), 9<<20, 5)
			n += 1 + odd(t, s.dir)
			dress(t, s.dir)
			s.mustSync(t, n, 0, 0)
			want := snapshot(t, s.dir, os.Getuid() == 0)
			s.lose(t)

			to := filepath.Join(t.TempDir(), "new", "target")
			_, errs := s.mustRestore(t, to, n, 0, 0)
			if says := strings.Contains(errs, "from the current object"); says == versions {
				t.Errorf("the note about current objects is there: %v, with versions %v:\n%s", says, versions, errs)
			}
			wantSame(t, snapshot(t, to, os.Getuid() == 0), want)

			s.proxy.Forget()
			s.mustRestore(t, to, 0, n, 0)
			if got := s.data("GetObject"); got != 0 {
				t.Errorf("a second run read %d objects, want 0", got)
			}
		})
	}
}

func TestRestoreByAUserWithoutRights(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can become another user")
	}
	s := newSite(t, "", "")
	write(t, s.path("a/program"), "runs as its owner")
	if err := os.Chmod(s.path("a/program"), 0o755|fs.ModeSetuid|fs.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	s.mustSync(t, 1, 0, 0)
	s.uid = nobody
	chmodUp(t, filepath.Dir(s.file))
	to := filepath.Join(t.TempDir(), "mine")
	chmodUp(t, filepath.Dir(to))
	if err := os.Mkdir(to, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(to, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	if _, errs := s.mustRestore(t, to, 1, 0, 0); !strings.Contains(errs, "owner was not restored: 1") {
		t.Errorf("nothing is said of the owner:\n%s", errs)
	}
	var st, dir syscall.Stat_t
	if err := syscall.Lstat(filepath.Join(to, "a", "program"), &st); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Lstat(filepath.Join(to, "a"), &dir); err != nil {
		t.Fatal(err)
	}
	if st.Mode&0o7777 != 0o755 || st.Uid != nobody {
		t.Errorf("the file has mode %o and owner %d, want 755 and %d: no setuid for another owner", st.Mode&0o7777, st.Uid, nobody)
	}
	if dir.Mode&0o777 != 0o700 {
		t.Errorf("the new directory has mode %o, want 700", dir.Mode&0o777)
	}
	// The state and the copies are root's: nothing vouches for the trail.
	code, out, errs := commandAs(t, s.uid, s.env, "restore", "-c", s.file, "--to", to, "--dry-run", "--temp-dir", to)
	if code != 0 || !strings.Contains(errs, "unanchored") {
		t.Errorf("restore -c = %d\n%s%s", code, out, errs)
	}
}

// nextSecond waits until the server's clock, which counts seconds, has moved on,
// and returns a time before whatever comes.
func nextSecond(t *testing.T) time.Time {
	t.Helper()
	begin := time.Now().Truncate(time.Second)
	eventually(t, "the next second", func() bool { return time.Now().Truncate(time.Second).After(begin) })
	at := time.Now().Truncate(time.Second)
	eventually(t, "the one after", func() bool { return time.Now().Truncate(time.Second).After(at) })
	return at
}

func TestRestoreAtATimeBetweenVersions(t *testing.T) {
	for _, versions := range []bool{true, false} {
		t.Run(fmt.Sprintf("versions=%v", versions), func(t *testing.T) {
			s := newSite(t, "", "")
			if versions {
				s.versioned(t)
			}
			write(t, s.path("same"), "same")
			write(t, s.path("changes"), "before")
			write(t, s.path("goes"), "goes")
			s.mustSync(t, 3, 0, 0)
			before := snapshot(t, s.dir, false)
			at := nextSecond(t)
			write(t, s.path("changes"), "after, and longer")
			write(t, s.path("comes/new"), "new")
			if err := os.Remove(s.path("goes")); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(s.path("same"), 0o600); err != nil {
				t.Fatal(err)
			}
			s.mustSync(t, 2, 1, 0)
			after := snapshot(t, s.dir, false)

			dir := t.TempDir()
			s.mustRestore(t, filepath.Join(dir, "now"), 3, 0, 0)
			wantSame(t, snapshot(t, filepath.Join(dir, "now"), false), after)

			then := "--at=" + at.Format(time.RFC3339)
			if versions {
				s.mustRestore(t, filepath.Join(dir, "then"), 3, 0, 0, then)
				wantSame(t, snapshot(t, filepath.Join(dir, "then"), false), before)
				return
			}
			_, errs := s.mustRestore(t, filepath.Join(dir, "then"), 2, 0, 1, then)
			if !strings.Contains(errs, `failed "changes": the object was written again since and the bucket keeps no versions`) {
				t.Errorf("the reason is missing:\n%s", errs)
			}
			delete(before, "changes")
			wantSame(t, snapshot(t, filepath.Join(dir, "then"), false), before)
			out, errs := s.mustRestore(t, filepath.Join(dir, "then"), 1, 2, 0, then, "--unverified")
			if !strings.Contains(out, "not proven by the trail") || !strings.Contains(errs, "NOT proven") {
				t.Errorf("nothing says that the file is not the one asked for:\n%s%s", out, errs)
			}
		})
	}
}

func TestRestoreChoosesFiles(t *testing.T) {
	s := newSite(t, "", "")
	for _, rel := range []string{"a/1.csv", "a/2.txt", "a/b/3.csv", "ab/4.csv", "c.csv", "a.txt"} {
		write(t, s.path(rel), rel)
	}
	s.mustSync(t, 6, 0, 0)
	cases := []struct {
		args []string
		want []string
	}{
		{[]string{"--path", "a"}, []string{"a/1.csv", "a/2.txt", "a/b/3.csv"}},
		{[]string{"--path", "./a/b/"}, []string{"a/b/3.csv"}},
		{[]string{"--path", "c.csv"}, []string{"c.csv"}},
		{[]string{"--include", "*.csv"}, []string{"a/1.csv", "a/b/3.csv", "ab/4.csv", "c.csv"}},
		{[]string{"--include", "*.csv", "--include", "!/a/"}, []string{"a/1.csv", "a/b/3.csv", "ab/4.csv", "c.csv"}},
		{[]string{"--include", "/a/*", "--include", "c.csv"}, []string{"a/1.csv", "a/2.txt", "a/b/3.csv", "c.csv"}},
		{[]string{"--path", "a", "--include", "*.txt"}, []string{"a/2.txt"}},
	}
	for _, c := range cases {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			to := filepath.Join(t.TempDir(), "to")
			s.proxy.Forget()
			s.mustRestore(t, to, len(c.want), 0, 0, c.args...)
			var got []string
			for rel := range snapshot(t, to, false) {
				got = append(got, rel)
			}
			slices.Sort(got)
			if !slices.Equal(got, slices.Sorted(slices.Values(c.want))) {
				t.Errorf("restored %q, want %q", got, c.want)
			}
			if n := s.data("GetObject"); n != len(c.want) {
				t.Errorf("%d objects were read for %d files", n, len(c.want))
			}
		})
	}
	t.Run("with the configuration", func(t *testing.T) {
		to := filepath.Join(t.TempDir(), "to")
		code, out, errs := command(t, s.env, "restore", "-c", s.file, "--to", to, "--path", s.path("a/b"))
		if code != 0 || !strings.Contains(out, "Restored: 1\n") {
			t.Errorf("restore = %d\n%s%s", code, out, errs)
		}
	})
	if code, _, errs := s.restore(t, filepath.Join(t.TempDir(), "to"), "--path", "none"); code != 1 || !strings.Contains(errs, "nothing to restore") {
		t.Errorf("a restore of nothing exited with %d: %s", code, errs)
	}
}

func TestDryRunOfARestoreWritesNothing(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("a"), "a")
	write(t, s.path("b"), "bb")
	s.mustSync(t, 2, 0, 0)
	to := filepath.Join(t.TempDir(), "to")
	s.proxy.Forget()
	code, out, _ := s.restore(t, to, "--dry-run")
	if code != 0 || !strings.Contains(out, "Would restore: 2\nWould keep: 0 (already there)\nWould fail: 0\n") || !strings.Contains(out, `would restore "b" (2 B)`) {
		t.Errorf("restore --dry-run = %d\n%s", code, out)
	}
	if _, err := os.Lstat(to); err == nil {
		t.Errorf("the dry run made %s", to)
	}
	write(t, filepath.Join(to, "a"), "a")
	write(t, filepath.Join(to, "b"), "other")
	before := snapshot(t, to, true)
	code, out, errs := s.restore(t, to, "--dry-run")
	if code != 3 || !strings.Contains(out, "Would restore: 0\nWould keep: 1 (already there)\nWould fail: 1\n") || !strings.Contains(errs, `failed "b": a file with other content stands there`) {
		t.Errorf("restore --dry-run = %d\n%s%s", code, out, errs)
	}
	code, out, _ = s.restore(t, to, "--dry-run", "--overwrite")
	if code != 0 || !strings.Contains(out, "Would restore: 1\nWould keep: 1 (already there)\nWould fail: 0\n") {
		t.Errorf("restore --dry-run --overwrite = %d\n%s", code, out)
	}
	wantSame(t, snapshot(t, to, true), before)
	if n := s.data("GetObject"); n != 0 {
		t.Errorf("the dry runs read %d objects", n)
	}
}

func TestAKilledRestoreGoesOn(t *testing.T) {
	s := newSite(t, "", "").versioned(t)
	for i := range 300 {
		write(t, s.path(fmt.Sprintf("d%d/f%03d", i%10, i)), "content "+strconv.Itoa(i))
	}
	random(t, s.path("zz/large"), 3<<20, 7)
	s.mustSync(t, 301, 0, 0)
	want := snapshot(t, s.dir, false)
	to := filepath.Join(t.TempDir(), "to")

	held := s.proxy.Hold(s3test.Match{Op: "GetObject", Key: "/f299"})
	p := spawn(t, s.env, s.restoreArgs(to)...)
	held.Wait(t)
	eventually(t, "some files are there and one is being written", func() bool {
		return strings.Count(p.stderr.String(), "restored ") >= 250 && len(leftovers(t, to)) > 0
	})
	p.kill(t)
	held.Release()
	if len(leftovers(t, to)) == 0 {
		t.Fatal("the killed restore left nothing behind: the test tests nothing")
	}
	there := len(snapshot(t, to, false)) - len(leftovers(t, to))

	s.proxy.Forget()
	code, out, errs := s.restore(t, to)
	if code != 0 || !strings.Contains(out, "Failed: 0\n") {
		t.Fatalf("restore = %d\n%s", code, tail(errs, 2000))
	}
	wantSame(t, snapshot(t, to, false), want)
	if n := s.data("GetObject"); n != 301-there {
		t.Errorf("the second run read %d objects, want the %d that were missing", n, 301-there)
	}
}

// leftovers are the files that a restore had not finished.
func leftovers(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	_ = filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error { // What vanishes while it is walked is none.
		if err == nil && strings.HasPrefix(filepath.Base(p), ".s3syncd-restore-") {
			found = append(found, p)
		}
		return nil
	})
	return found
}

func TestAnInterruptedRestoreSaysSo(t *testing.T) {
	s := newSite(t, "", "")
	for i := range 20 {
		write(t, s.path(fmt.Sprintf("f%02d", i)), "x")
	}
	s.mustSync(t, 20, 0, 0)
	to := filepath.Join(t.TempDir(), "to")
	held := s.proxy.Hold(s3test.Match{Op: "GetObject", Key: "/f07"})
	p := spawn(t, s.env, s.restoreArgs(to)...)
	held.Wait(t)
	eventually(t, "a restored file", func() bool { _, err := os.Stat(filepath.Join(to, "f00")); return err == nil })
	if code := p.stop(t); code != 130 {
		t.Errorf("an interrupted restore exited with %d, want 130:\n%s", code, p.stderr)
	}
	if !strings.Contains(p.stderr.String(), "interrupted") || !strings.Contains(p.stderr.String(), "Restored: ") {
		t.Errorf("it does not say what it did:\n%s", p.stderr)
	}
	if left := leftovers(t, to); len(left) > 0 {
		t.Errorf("it left %q behind", left)
	}
}

func TestRestoreFollowsNoLinkInItsTarget(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("dir/f"), "archived")
	write(t, s.path("file"), "archived")
	write(t, s.path("blocked/f"), "archived")
	write(t, s.path("isdir"), "archived")
	s.mustSync(t, 4, 0, 0)
	base := t.TempDir()
	outside, to := filepath.Join(base, "outside"), filepath.Join(base, "to")
	write(t, filepath.Join(outside, "f"), "precious")
	write(t, filepath.Join(outside, "file"), "precious")
	write(t, filepath.Join(to, "isdir", "child"), "precious")
	write(t, filepath.Join(to, "blocked"), "a file where a directory belongs")
	for link, target := range map[string]string{"dir": outside, "file": filepath.Join(outside, "file")} {
		if err := os.Symlink(target, filepath.Join(to, link)); err != nil {
			t.Fatal(err)
		}
	}
	_, errs := s.mustRestore(t, to, 0, 0, 4)
	for _, want := range []string{`failed "dir/f": create dir/f: a parent is not a directory`, `failed "file": something that is not a regular file`, `failed "blocked/f":`, `failed "isdir": open isdir: a directory stands there`} {
		if !strings.Contains(errs, want) && !strings.Contains(errs, strings.Replace(want, "create", "open", 1)) {
			t.Errorf("%q is missing in\n%s", want, errs)
		}
	}
	s.mustRestore(t, to, 1, 0, 3, "--overwrite")
	if got, err := os.ReadFile(filepath.Join(to, "file")); err != nil || string(got) != "archived" {
		t.Errorf("the link was not replaced by the file: %q, %v", got, err)
	}
	for path, want := range map[string]string{
		filepath.Join(outside, "f"): "precious", filepath.Join(outside, "file"): "precious", filepath.Join(to, "isdir", "child"): "precious",
		filepath.Join(to, "blocked"): "a file where a directory belongs",
	} {
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v; want %q", path, got, err, want)
		}
	}
}

// put stores an object as somebody else would.
func (b bucketView) put(t *testing.T, key, content string) {
	t.Helper()
	_, err := b.client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &b.bucket, Key: &key, Body: strings.NewReader(content)})
	if err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
}

func TestRestoreBelievesNoChangedManifest(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("first"), "first")
	s.mustSync(t, 1, 0, 0)
	write(t, s.path("second"), "second")
	s.mustSync(t, 1, 1, 0)
	keys := s.bucket.keys(t, true)
	i := slices.IndexFunc(keys, func(k string) bool {
		if !strings.Contains(k, "/manifest_") {
			return false
		}
		body, _ := s.bucket.get(t, k)
		return bytes.Contains(body, []byte("app/second"))
	})
	body, _ := s.bucket.get(t, keys[i])
	s.bucket.put(t, keys[i], strings.Replace(string(body), "app/second", "app/SECOND", 1))
	to := filepath.Join(t.TempDir(), "to")
	code, out, errs := s.restore(t, to)
	if code != 3 || !strings.Contains(out, "Restored: 1\n") || !strings.Contains(errs, "not believed: "+keys[i]) || !strings.Contains(errs, "SHA-256") {
		t.Errorf("restore = %d, want 3 and the manifest's name\n%s%s", code, out, errs)
	}
}

// newest returns the key of the newest document of a kind, by its name.
func (s *site) newest(t *testing.T, kind string) string {
	t.Helper()
	keys := slices.DeleteFunc(s.bucket.keys(t, true), func(k string) bool {
		return !strings.Contains(k, "/"+kind+"_") || !strings.HasSuffix(k, ".json")
	})
	if len(keys) == 0 {
		t.Fatalf("there is no %s", kind)
	}
	return slices.Max(keys)
}

// forge adds a digest with one record behind the newest one, as somebody who can
// write the bucket could, and the object that it names.
func (s *site) forge(t *testing.T, rel string) {
	t.Helper()
	last := s.newest(t, "digest")
	head, _ := s.bucket.get(t, last)
	body, _ := s.bucket.get(t, s.newest(t, "manifest"))
	var records []map[string]any
	var digest map[string]any
	if err := errors.Join(json.Unmarshal(body, &records), json.Unmarshal(head, &digest)); err != nil {
		t.Fatal(err)
	}
	s.bucket.put(t, s.bucket.prefix+"/"+rel, "evil")
	r := records[0]
	for _, k := range []string{"version_id", "md5", "etag"} {
		delete(r, k)
	}
	r["s3_key"], r["size_bytes"], r["sha256"] = s.bucket.prefix+"/"+rel, 4, sha256Of([]byte("evil"))
	r["mode"], r["uid"], r["gid"], r["id"] = "4755", 0, 0, fmt.Sprintf("%s-1000", digest["chain"])
	body, err := json.Marshal([]any{r})
	if err != nil {
		t.Fatal(err)
	}
	sequence, _ := digest["sequence"].(float64)
	key := strings.Replace(last, fmt.Sprintf("_%08.0f", sequence), fmt.Sprintf("_%08.0f", sequence+1), 1)
	name := strings.Replace(key, "/digest_", "/manifest_", 1)
	s.bucket.put(t, name, string(body))
	digest["sequence"], digest["previous_digest_s3_key"], digest["previous_digest_sha256"] = sequence+1, last, sha256Of(head)
	delete(digest, "begins")
	digest["manifests"] = []any{map[string]any{"s3_key": name, "sha256": sha256Of(body), "size_bytes": len(body), "records": 1}}
	body, err = json.Marshal(digest)
	if err != nil {
		t.Fatal(err)
	}
	s.bucket.put(t, key, string(body))
}

func TestRestoreBelievesOnlyWhatIsVouchedFor(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("good"), "good")
	s.mustSync(t, 1, 0, 0)
	head, _ := s.bucket.get(t, s.newest(t, "digest"))
	anchor := filepath.Join(t.TempDir(), "anchor")
	s.verify(t, 0, s.fromBucket("--anchor", anchor)...)
	s.forge(t, "evil")
	for _, c := range []struct {
		name  string
		args  []string
		code  int
		first string // line, in part
		files []string
	}{
		{"nothing", s.fromBucket(), 3, "unanchored", []string{"evil", "good"}},
		{"the host's own copies", []string{"-c", s.file}, 3, "vouched", []string{"good"}},
		{"--expect-head", s.fromBucket("--expect-head", sha256Of(head)), 3, "vouched", []string{"good"}},
		{"--anchor", s.fromBucket("--anchor", anchor), 3, "vouched", []string{"good"}},
		{"a head that is not there", s.fromBucket("--expect-head", strings.Repeat("0", 64)), 3, "vouched", nil},
		{"no head in the file", s.fromBucket("--anchor", anchor+"-none"), 1, "has no head", nil},
	} {
		to := filepath.Join(t.TempDir(), "to")
		code, out, errs := command(t, s.env, append([]string{"restore", "--to", to}, c.args...)...)
		if first, _, _ := strings.Cut(errs, "\n"); code != c.code || !strings.Contains(first, c.first) {
			t.Errorf("%s: restore = %d, its first line is %q; want %d and %q\n%s%s", c.name, code, first, c.code, c.first, out, errs)
		}
		if code == 3 && !strings.Contains(errs, "not believed: ") {
			t.Errorf("%s: nothing is said of what is not believed:\n%s", c.name, errs)
		}
		var files []string
		if _, err := os.Stat(to); err == nil {
			files = slices.Sorted(maps.Keys(snapshot(t, to, false)))
		}
		if !slices.Equal(files, c.files) {
			t.Errorf("%s: there is %q, want %q", c.name, files, c.files)
		}
	}
}

func TestRestoreBelievesOnlyWhatTheKeyCovers(t *testing.T) {
	s := newSite(t, "", "")
	key := s.signingKey(t)
	write(t, s.path("good"), "good")
	s.mustSync(t, 1, 0, 0)
	pem, _ := s.bucket.get(t, s.bucket.prefix+"/_manifests/keys/"+key.Fingerprint()+".pem")
	file := filepath.Join(t.TempDir(), "key.pem")
	write(t, file, string(pem))
	if _, errs := s.mustRestore(t, filepath.Join(t.TempDir(), "clean"), 1, 0, 0, "--public-key", file); !strings.Contains(errs, "public keys given: 1") {
		t.Errorf("the key is not named:\n%s", errs)
	}
	s.forge(t, "evil")
	s.forge(t, "evil2") // Behind the forged one.
	to := filepath.Join(t.TempDir(), "to")
	code, out, errs := s.restore(t, to, "--public-key", file)
	if got := slices.Collect(maps.Keys(snapshot(t, to, false))); code != 3 || !slices.Equal(got, []string{"good"}) || !strings.Contains(errs, "not believed: ") {
		t.Errorf("restore = %d, there is %q\n%s%s", code, got, out, errs)
	}
	// Without state and copies the key that the configuration signs with is used.
	if err := os.RemoveAll(s.state); err != nil {
		t.Fatal(err)
	}
	to = filepath.Join(t.TempDir(), "to")
	code, out, errs = command(t, s.env, "restore", "-c", s.file, "--to", to)
	if got := slices.Collect(maps.Keys(snapshot(t, to, false))); code != 3 || !slices.Equal(got, []string{"good"}) {
		t.Errorf("restore -c = %d, there is %q\n%s%s", code, got, out, errs)
	}
}

func TestRestoreOfMissingAndDamagedObjects(t *testing.T) {
	s := newSite(t, "", "").versioned(t)
	for _, rel := range []string{"fine", "expired", "copied", "deleted"} {
		write(t, s.path(rel), "content of "+rel)
	}
	s.mustSync(t, 4, 0, 0)
	remove := func(rel string) {
		key := s.bucket.prefix + "/" + rel
		head, err := s.bucket.client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &s.bucket.bucket, Key: &key})
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.bucket.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &s.bucket.bucket, Key: &key, VersionId: head.VersionId})
		if err != nil {
			t.Fatal(err)
		}
	}
	remove("expired")
	remove("copied")
	s.bucket.put(t, s.bucket.prefix+"/copied", "content of copied") // Another version with the same bytes.
	// A delete marker hides the object and leaves its version.
	if _, err := s.bucket.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &s.bucket.bucket, Key: aws.String(s.bucket.prefix + "/deleted")}); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "to")
	_, errs := s.mustRestore(t, to, 3, 0, 1)
	if !strings.Contains(errs, `failed "expired": the object is not in the bucket`) {
		t.Errorf("the reason is missing:\n%s", errs)
	}

	// Without versions, bytes of the same length that are not the recorded ones.
	u := newSite(t, "", "")
	write(t, u.path("f"), "genuine")
	u.mustSync(t, 1, 0, 0)
	u.bucket.put(t, u.bucket.prefix+"/f", "forged!")
	to = filepath.Join(t.TempDir(), "to")
	_, errs = u.mustRestore(t, to, 0, 0, 1)
	if !strings.Contains(errs, "not those of the record") {
		t.Errorf("the reason is missing:\n%s", errs)
	}
	if left := snapshot(t, to, false); len(left) > 0 {
		t.Errorf("bytes that are not the recorded ones are there: %v", left)
	}
}

func TestRestoreWithoutPermission(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("open/f"), "x")
	write(t, s.path("secret/f"), "x")
	s.mustSync(t, 2, 0, 0)
	policy := func(get string) string {
		return fmt.Sprintf(`{"Version":"2012-10-17","Statement":[
			{"Effect":"Allow","Action":["s3:ListBucket"],"Resource":["arn:aws:s3:::%[1]s"]},
			{"Effect":"Allow","Action":["s3:GetObject"],"Resource":[%[2]s]}]}`, s.bucket.bucket, get)
	}
	resource := func(below string) string {
		return strconv.Quote("arn:aws:s3:::" + s.bucket.bucket + "/" + s.bucket.prefix + below)
	}
	s.env = s.server.User(t, policy(resource("/_manifests/*")+","+resource("/open/*"))).Environ()
	_, errs := s.mustRestore(t, filepath.Join(t.TempDir(), "to"), 1, 0, 1)
	if !strings.Contains(errs, `failed "secret/f": GetObject: AccessDenied`) {
		t.Errorf("the refusal is not named:\n%s", errs)
	}
	s.env = s.server.User(t, policy(resource("/open/*"))).Environ()
	if code, _, errs := s.restore(t, filepath.Join(t.TempDir(), "to")); code != 1 || !strings.Contains(errs, "AccessDenied") {
		t.Errorf("restore without the right to read the trail = %d, want 1\n%s", code, errs)
	}
}

func TestRestoreWaitsOutFaults(t *testing.T) {
	s := newSite(t, "", "")
	random(t, s.path("large"), 5<<20, 3)
	write(t, s.path("small"), "x")
	s.mustSync(t, 2, 0, 0)
	want := snapshot(t, s.dir, false)
	s.proxy.Truncate(s3test.Match{Op: "GetObject", Key: "app/large"})
	s.proxy.Answer(s3test.Match{Op: "GetObject", Key: "app/small", Times: 4}, 503, "SlowDown")
	s.proxy.Answer(s3test.Match{Op: "GetObject", Key: "_manifests/manifest", Times: 4}, 500, "InternalError")
	to := filepath.Join(t.TempDir(), "to")
	s.mustRestore(t, to, 2, 0, 0)
	wantSame(t, snapshot(t, to, false), want)
	ranged := 0
	for _, r := range s.proxy.Ledger() {
		if r.Op == "GetObject" && r.Header.Get("Range") != "" {
			ranged++
		}
	}
	if ranged != 1 {
		t.Errorf("%d requests went on in the middle of an object, want 1", ranged)
	}
}

func TestRestoreAsksWhichInstance(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("f"), "of the first")
	s.mustSync(t, 1, 0, 0)
	other := &site{}
	*other = *s
	base := t.TempDir()
	other.dir, other.state, other.file = filepath.Join(base, "data"), filepath.Join(base, "state"), filepath.Join(base, "s3syncd.yaml")
	write(t, other.path("g"), "of the second")
	other.configure(t, "", "")
	text, err := os.ReadFile(other.file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, other.file, strings.Replace(string(text), "instance: test-01", "instance: test-02", 1))
	other.mustSync(t, 1, 0, 0)

	to := filepath.Join(t.TempDir(), "to")
	code, _, errs := s.restore(t, to)
	if code != 2 || !strings.Contains(errs, "--instance is needed") || !strings.Contains(errs, "test-01, test-02") {
		t.Errorf("restore = %d, want 2 and the names\n%s", code, errs)
	}
	s.mustRestore(t, to, 1, 0, 0, "--instance", "test-02")
	if _, err := os.Stat(filepath.Join(to, "g")); err != nil {
		t.Error(err)
	}
	code, _, errs = s.restore(t, to, "--instance", "test-03")
	if code != 2 || !strings.Contains(errs, `"test-03" has no trail`) {
		t.Errorf("restore = %d, want 2\n%s", code, errs)
	}
	s.bucket.prefix = "backups/none"
	code, _, errs = s.restore(t, to)
	if code != 1 || !strings.Contains(errs, "no audit trail stands under s3://"+s.bucket.bucket+"/backups/none/_manifests/") {
		t.Errorf("restore = %d, want 1\n%s", code, errs)
	}
}

func TestRestoreOfObjectsOfTheFirstScript(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("report.csv"), "written by the script")
	if err := os.Chmod(s.path("report.csv"), 0o640); err != nil {
		t.Fatal(err)
	}
	s.asTheScript(t, "report.csv", "written by the script")
	s.mustSync(t, 0, 1, 0)
	want := snapshot(t, s.dir, os.Getuid() == 0)
	s.lose(t)
	to := filepath.Join(t.TempDir(), "to")
	s.mustRestore(t, to, 1, 0, 0)
	wantSame(t, snapshot(t, to, os.Getuid() == 0), want)
}

func TestRestoreAsJSON(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("good"), "x")
	write(t, s.path("bad\x1bname"), "y")
	s.mustSync(t, 2, 0, 0)
	to := filepath.Join(t.TempDir(), "to")
	write(t, to+"/bad\x1bname", "other")
	code, out, errs := s.restore(t, to, "--json")
	var got struct {
		Restored int `json:"restored"`
		Failed   int `json:"failed"`
		Failures []struct {
			Path string `json:"path"`
		} `json:"failures"`
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	if code != 3 || got.Restored != 1 || got.Failed != 1 || len(got.Failures) != 1 || got.Failures[0].Path != "bad\x1bname" {
		t.Errorf("restore --json = %d %+v", code, got)
	}
	if strings.Contains(out+errs, "\x1b") {
		t.Errorf("an escape sequence reaches the terminal: %q", out+errs)
	}
}

func TestTwoRestoresIntoOneDirectory(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("f"), "x")
	s.mustSync(t, 1, 0, 0)
	to := filepath.Join(t.TempDir(), "to")
	held := s.proxy.Hold(s3test.Match{Op: "GetObject", Key: "app/f"})
	p := spawn(t, s.env, s.restoreArgs(to)...)
	held.Wait(t)
	if code, _, errs := s.restore(t, to); code != 1 || !strings.Contains(errs, "another restore writes there") {
		t.Errorf("a second restore = %d, want 1\n%s", code, errs)
	}
	held.Release()
	if code := p.ended(t); code != 0 {
		t.Errorf("the first restore = %d\n%s", code, p.stderr)
	}
}

// A restore survives any moment of its death: it is killed again and again,
// until it ends by itself, and the tree is whole.
func TestARestoreThatIsKilledAtRandom(t *testing.T) {
	if !thorough {
		t.Skip("make e2e runs it")
	}
	s := newSite(t, "", "").versioned(t)
	const files = 3_000
	for i := range files {
		write(t, s.path(fmt.Sprintf("d%d/f%04d", i%20, i)), strings.Repeat(strconv.Itoa(i), 1+i%1000))
	}
	s.mustSync(t, files, 0, 0)
	want := snapshot(t, s.dir, false)
	to := filepath.Join(t.TempDir(), "to")
	draw := rand.New(rand.NewPCG(1, uint64(os.Getpid())))
	for range 20 {
		p := spawn(t, s.env, s.restoreArgs(to)...)
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(draw.IntN(1500))*time.Millisecond)
		select {
		case <-p.done:
		case <-ctx.Done():
			p.kill(t)
		}
		cancel()
	}
	if code, _, errs := s.restore(t, to); code != 0 {
		t.Fatalf("the last restore = %d\n%s", code, tail(errs, 2000))
	}
	wantSame(t, snapshot(t, to, false), want)
}
