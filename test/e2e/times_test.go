package e2e_test

import (
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// setTime sets a file's modification time, and returns what the file system kept
// of it.
func setTime(t *testing.T, path string, at time.Time) time.Time {
	t.Helper()
	ts, err := unix.TimeToTimespec(at)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, 0); err != nil {
		t.Fatal(err)
	}
	return timeOf(t, path)
}

func timeOf(t *testing.T, path string) time.Time {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return time.Unix(st.Mtim.Unix())
}

// A file of another century has its own time in the trail, in the object and
// after a restore, and is unchanged in the next run.
func TestFilesOfOtherCenturies(t *testing.T) {
	s := newSite(t, "", "")
	times := map[string]time.Time{}
	for name, at := range map[string]time.Time{
		"2300": time.Date(2300, 2, 3, 4, 5, 6, 7, time.UTC), "2400": time.Date(2400, 1, 1, 0, 0, 0, 0, time.UTC),
		"2026": time.Date(2026, 1, 1, 0, 0, 0, 9, time.UTC), "1960": time.Date(1960, 1, 1, 0, 0, 0, 5e8, time.UTC),
	} {
		write(t, s.path(name), name)
		times[name] = setTime(t, s.path(name), at)
	}
	s.mustSync(t, len(times), 0, 0)
	s.mustSync(t, 0, len(times), 0)
	tr := s.bucket.readTrail(t)
	if n := len(tr.uploads()); n != len(times) {
		t.Errorf("%d uploads", n)
	}
	to := filepath.Join(t.TempDir(), "restored")
	if code, out, errs := s.restore(t, to); code != 0 {
		t.Fatalf("restore = %d\n%s%s", code, out, errs)
	}
	for name, at := range times {
		for _, r := range tr.records {
			if r.S3Key == s.bucket.prefix+"/"+name && r.MTime != "" && r.MTime != at.UTC().Format(time.RFC3339Nano) {
				t.Errorf("the record of %s says %s, the file has %v", name, r.MTime, at)
			}
		}
		if got := timeOf(t, filepath.Join(to, name)); !got.Equal(at) {
			t.Errorf("%s is restored with %v, want %v", name, got, at)
		}
	}
	s.wantFindings(t, s.verify(t, 0, "-c", s.file, "--remote", "--source"))
}
