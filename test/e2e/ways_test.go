package e2e_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// appender opens a file as a program does that logs to it.
func appender(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func appendTo(t *testing.T, f *os.File, s string) {
	t.Helper()
	if _, err := f.WriteString(s); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// writeSynced writes a file and makes it durable, as what renames it then does.
func writeSynced(t *testing.T, path, content string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// stopAndCompare ends the daemon and compares tree, bucket and trail.
func (s *site) stopAndCompare(t *testing.T, d *process) trail {
	t.Helper()
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	tr := s.bucket.readTrail(t)
	s.bucket.wantTree(t, s.dir, &tr)
	return tr
}

// holds waits until the object of rel has these bytes.
func (s *site) holds(t *testing.T, rel, content string) {
	t.Helper()
	eventually(t, rel, func() bool { return s.inBucket(t, rel, content) })
}

func TestARotatedLogLosesNoLine(t *testing.T) {
	s := newSite(t, "", "")
	d := s.daemon(t)
	moved, copied := appender(t, s.path("moved.log")), appender(t, s.path("copied.log"))
	appendTo(t, moved, "first\n")
	appendTo(t, copied, "first\n")
	s.holds(t, "moved.log", "first\n")
	s.holds(t, "copied.log", "first\n")

	// Rename and create: the program goes on with the old file for a while.
	rename(t, s.path("moved.log"), s.path("moved.log.1"))
	reopened := appender(t, s.path("moved.log"))
	appendTo(t, reopened, "third\n")
	s.holds(t, "moved.log", "third\n")
	s.holds(t, "moved.log.1", "first\n")
	appendTo(t, moved, "second\n")
	s.holds(t, "moved.log.1", "first\nsecond\n")

	// Copy and truncate: the program never notices.
	write(t, s.path("copied.log.1"), "first\n")
	truncate(t, s.path("copied.log"), 0)
	s.holds(t, "copied.log", "")
	s.holds(t, "copied.log.1", "first\n")
	appendTo(t, copied, "FIRST\n") // As long as what was there.
	s.holds(t, "copied.log", "FIRST\n")
	d.nothingMissed(t)
	s.stopAndCompare(t, d)
}

func TestAFileThatNeverRestsIsUploadedAtMaxDelay(t *testing.T) {
	s := newSite(t, "settle: 900ms\nmax_delay: 1s", "")
	d := s.daemon(t)
	f := appender(t, s.path("busy.log"))
	var content strings.Builder
	uploads := func() int { return strings.Count(d.stderr.String(), `"msg":"uploaded"`) }
	eventually(t, "two uploads of a file that is written all the time", func() bool { // Faster than settle.
		appendTo(t, f, "line\n")
		content.WriteString("line\n")
		return uploads() >= 2
	})
	s.holds(t, "busy.log", content.String())
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	tr := s.stopAndCompare(t, d)
	if n := tr.count("failed"); n != 0 {
		t.Errorf("%d failed records, want none", n)
	}
}

func TestAWriteThroughAMappingIsFoundByTheNextRescan(t *testing.T) {
	s := newSite(t, "", "")
	var fs unix.Statfs_t
	if err := unix.Statfs(s.dir, &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Type == unix.TMPFS_MAGIC {
		t.Skip("tmpfs does not change a file's times for writes through a mapping")
	}
	before := strings.Repeat("a", 8192)
	write(t, s.path("mapped"), before)
	d := s.daemon(t)
	s.holds(t, "mapped", before)

	f, err := os.OpenFile(s.path("mapped"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, len(before), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil { // The last event: none tells of what follows.
		t.Fatal(err)
	}
	await(t, time.Second)
	s.mustFlush(t)
	copy(mem[4096:], "stored")
	if err := unix.Msync(mem, unix.MS_SYNC); err != nil {
		t.Fatal(err)
	}
	if err := unix.Munmap(mem); err != nil {
		t.Fatal(err)
	}
	d.hangup(t)
	s.holds(t, "mapped", before[:4096]+"stored"+before[4102:])
	s.stopAndCompare(t, d)
}

func TestANewModeIsRecordedAndNothingIsUploaded(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("f"), "content")
	d := s.daemon(t)
	s.holds(t, "f", "content")
	s.mustFlush(t)
	s.proxy.Forget()
	if err := os.Chmod(s.path("f"), 0o600); err != nil {
		t.Fatal(err)
	}
	skips := func() bool {
		s.mustFlush(t)
		tr := s.bucket.readTrail(t)
		return slices.ContainsFunc(tr.records, func(r record) bool { return r.Status == "skipped" && r.Basis == "attributes" })
	}
	eventually(t, "a record of the new mode", skips)
	if n := s.data("PutObject") + s.data("CreateMultipartUpload"); n != 0 {
		t.Errorf("%d uploads for a new mode, want none", n)
	}
	tr := s.stopAndCompare(t, d)
	if n := tr.count("skipped"); n != 1 {
		t.Errorf("%d skipped records, want 1", n)
	}
	if n := tr.count("uploaded"); n != 1 {
		t.Errorf("%d uploaded records, want 1", n)
	}
}

func TestAFileTruncatedInPlaceIsUploadedAgain(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("f"), "long content")
	d := s.daemon(t)
	s.holds(t, "f", "long content")
	truncate(t, s.path("f"), 4)
	s.holds(t, "f", "long")
	truncate(t, s.path("f"), 6) // A hole.
	s.holds(t, "f", "long\x00\x00")
	truncate(t, s.path("f"), 0)
	s.holds(t, "f", "")
	d.nothingMissed(t)
	s.stopAndCompare(t, d)
}

func TestADirectoryBecomesAFileAndADirectoryAgain(t *testing.T) {
	s := newFakeSite(t, "", "") // MinIO has no object below the key of another.
	write(t, s.path("d/a"), "a1")
	write(t, s.path("d/sub/b"), "b1")
	d := s.daemon(t)
	s.holds(t, "d/a", "a1")
	s.holds(t, "d/sub/b", "b1")
	deletions := func() int { return strings.Count(d.stderr.String(), `"msg":"deleted"`) }

	remove(t, s.path("d"))
	write(t, s.path("d"), "a file")
	s.holds(t, "d", "a file")
	eventually(t, "the records of two removals", func() bool { return deletions() == 2 })

	remove(t, s.path("d"))
	write(t, s.path("d/a"), "a2")
	write(t, s.path("d/sub"), "a file, too")
	s.holds(t, "d/a", "a2")
	s.holds(t, "d/sub", "a file, too")
	eventually(t, "the record of the third removal", func() bool { return deletions() == 3 })

	for _, content := range []string{"x", "y", "last"} { // Faster than settle.
		remove(t, s.path("d"))
		write(t, s.path("d/a"), content)
		write(t, s.path("d/sub/deep/er"), content)
	}
	s.holds(t, "d/a", "last")
	s.holds(t, "d/sub/deep/er", "last")
	write(t, s.path("d/sub/deep/later"), "watched") // The last of the directories of that name is watched.
	s.holds(t, "d/sub/deep/later", "watched")
	eventually(t, "the record of the fourth removal", func() bool { return deletions() == 4 })
	d.nothingMissed(t)
	s.stopAndCompare(t, d)
}

func TestAChangeThroughOneNameReachesTheKeysOfAll(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("one"), "1")
	write(t, s.path("d/other"), "other")
	d := s.daemon(t)
	s.holds(t, "one", "1")
	s.holds(t, "d/other", "other")
	if err := os.Link(s.path("one"), s.path("d/two")); err != nil {
		t.Fatal(err)
	}
	s.holds(t, "d/two", "1")
	write(t, s.path("one"), "through one")
	s.holds(t, "one", "through one")
	s.holds(t, "d/two", "through one")
	write(t, s.path("d/two"), "through two")
	s.holds(t, "d/two", "through two")
	s.holds(t, "one", "through two")
	remove(t, s.path("one"))
	write(t, s.path("d/two"), "one name left")
	s.holds(t, "d/two", "one name left")
	d.nothingMissed(t)
	s.stopAndCompare(t, d)
	if !s.inBucket(t, "one", "through two") {
		t.Error("the object of the removed name changed")
	}
}

func TestTemporaryFilesOfEditorsLeaveNothingUnexplained(t *testing.T) {
	s := newSite(t, "", "")
	for _, f := range []string{"rsync", "vim", "slow"} {
		write(t, s.path(f), "old")
	}
	d := s.daemon(t)
	for _, f := range []string{"rsync", "vim", "slow"} {
		s.holds(t, f, "old")
	}
	for _, content := range []string{"1", "22", "new"} {
		writeSynced(t, s.path(".rsync.Xy12ab"), content)
		rename(t, s.path(".rsync.Xy12ab"), s.path("rsync"))

		rename(t, s.path("vim"), s.path("vim~"))
		writeSynced(t, s.path("vim"), content)
		remove(t, s.path("vim~"))
	}
	writeSynced(t, s.path(".slow.tmp"), "slow") // It rests long enough to be a file like any other.
	s.holds(t, ".slow.tmp", "slow")
	rename(t, s.path(".slow.tmp"), s.path("slow"))
	s.holds(t, "rsync", "new")
	s.holds(t, "vim", "new")
	s.holds(t, "slow", "slow")
	d.nothingMissed(t)

	tr := s.stopAndCompare(t, d)
	for _, k := range s.bucket.keys(t, false) {
		rel := strings.TrimPrefix(k, s.bucket.prefix+"/")
		if _, err := os.Lstat(s.path(rel)); err == nil {
			continue
		}
		if !slices.ContainsFunc(tr.records, func(r record) bool { return r.S3Key == k && r.Status == "deleted" }) {
			t.Errorf("%s has no file, and the trail does not say that it went", k)
		}
	}
}

func TestTheTrailTellsThatASourceWentAndCameBack(t *testing.T) {
	s := newSite(t, "", "")
	write(t, s.path("a"), "a")
	write(t, s.path("d/b"), "b")
	d := s.daemon(t)
	s.holds(t, "a", "a")
	s.holds(t, "d/b", "b")
	available := func(v float64) func() bool {
		return func() bool { return d.metric(t, `s3syncd_source_available{source="app"}`) == v }
	}
	away := filepath.Join(filepath.Dir(s.dir), "away")
	rename(t, s.dir, away)
	eventually(t, "the source is away", available(0))
	rename(t, away, s.dir)
	eventually(t, "the source is back", available(1))
	write(t, s.path("d/later"), "later")
	s.holds(t, "d/later", "later")

	tr := s.stopAndCompare(t, d)
	var events []string
	for _, dg := range tr.digests {
		for _, e := range dg.Events {
			if strings.HasPrefix(e.Event, "source-") {
				events = append(events, e.Event)
			}
		}
	}
	if want := []string{"source-gone", "source-back"}; !slices.Equal(events, want) {
		t.Errorf("the digests tell of %q, want %q", events, want)
	}
	if n := tr.count("deleted"); n != 0 {
		t.Errorf("%d deleted records, want none", n)
	}
	if n := tr.count("uploaded"); n != 3 {
		t.Errorf("%d uploaded records, want 3", n)
	}
}

func TestRescanRemoteWorksWithoutARegularCheck(t *testing.T) {
	s := newSite(t, "", "")
	b, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.file, strings.Replace(string(b), "poll_interval: 1s}", "poll_interval: 1s, remote_check_interval: 0}", 1))
	write(t, s.path("f"), "content")
	d := s.daemon(t)
	s.holds(t, "f", "content")
	s.mustFlush(t)
	s.removeByHand(t, "f")
	d.hangup(t)
	s.mustFlush(t)
	if n := d.checks(); n != 0 || s.inBucket(t, "f", "content") {
		t.Fatalf("%d remote checks that nobody asked for", n)
	}
	if code, out, errs := s.ask(t, "rescan", "--remote"); code != 0 {
		t.Fatalf("rescan --remote = %d: %s", code, out+errs)
	}
	s.holds(t, "f", "content")
	tr := s.stopAndCompare(t, d)
	if n := tr.count("uploaded"); n != 2 {
		t.Errorf("%d uploaded records, want 2", n)
	}
}

// A store through a mapping moves the times of a file at the first fault of a
// page alone: the next one, before the page is written back, leaves them.
func TestALateStoreThroughAMappingIsFoundByReadingAgain(t *testing.T) {
	s := newSite(t, "", "")
	b, err := os.ReadFile(s.file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.file, strings.Replace(string(b), "poll_interval: 1s}", "poll_interval: 1s, reread: 1s}", 1))
	f, err := os.OpenFile(s.path("mapped"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	truncate(t, s.path("mapped"), 3)
	m, err := unix.Mmap(int(f.Fd()), 0, 3, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(m) }()
	copy(m, "one")
	d := s.daemon(t)
	s.holds(t, "mapped", "one")
	s.mustFlush(t)
	before, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	copy(m, "two")
	after, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	s.holds(t, "mapped", "two")
	tr := s.stopAndCompare(t, d)
	if !after.ModTime().Equal(before.ModTime()) {
		t.Skip("this file system tells of each store through a mapping")
	}
	for _, r := range tr.records {
		if r.Status == "uploaded" && r.Basis == "reread" {
			return
		}
	}
	t.Errorf("no upload with the basis reread in %+v", tr.records)
}
