package localfile

import (
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/fstest"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

func TestFencesThatMayStayEqual(t *testing.T) {
	second := time.Date(2026, 12, 1, 10, 20, 30, 0, time.UTC)
	fine := second.Add(123_456_789)
	old := second.AddDate(-1, 0, 0)
	for name, row := range map[string]struct {
		mtime, ctime time.Time
		after        time.Duration // of the reading, since ctime
		want         bool
	}{
		"just modified":                             {fine, fine, time.Second, true},
		"modified some time ago":                    {fine, fine, 3 * time.Second, false},
		"mtime put back, within a tick":             {old, fine, time.Millisecond, true},
		"mtime put back, after a tick":              {old, fine, 20 * time.Millisecond, false},
		"whole seconds, in the same one":            {old, second, 900 * time.Millisecond, true},
		"whole seconds, in FAT's two":               {old, second, 1999 * time.Millisecond, true},
		"whole seconds, in another one":             {old, second, 2100 * time.Millisecond, false},
		"whole minutes, in the same one":            {old, second.Truncate(time.Minute), 59 * time.Second, true},
		"whole minutes, in the next":                {old, second.Truncate(time.Minute), 61 * time.Second, false},
		"whole seconds of mtime on a fine system":   {second.AddDate(0, 0, -1), fine, time.Second, false},
		"a ctime that is ahead by a part of a tick": {old, fine, -time.Millisecond, true},
	} {
		f := archive.Fence{MtimeNs: row.mtime.UnixNano(), CtimeNs: row.ctime.UnixNano()}
		if got := Racy(f, row.ctime.Add(row.after)); got != row.want {
			t.Errorf("%s: racy = %v, want %v", name, got, row.want)
		}
	}
}

// On a file system with times of whole seconds the second change within one,
// with the mtime put back, leaves the fence as it was.
func TestAnEqualFenceOfWholeSecondsIsRacy(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "src")
	fstest.NewDisk(t, dir, "-I", "128")
	root := safefs.NewRoot(dir, safefs.RootOptions{CrossMounts: true})
	old := time.Now().Add(-time.Hour).Truncate(time.Second)
	change := func(content string) (archive.Fence, time.Time) {
		t.Helper()
		path := filepath.Join(dir, "f")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
		o, err := root.Open("f")
		if err != nil {
			t.Fatal(err)
		}
		defer o.File.Close()
		if b, err := io.ReadAll(o.File); err != nil || string(b) != content {
			t.Fatalf("read %q, %v", b, err)
		}
		return FenceOf(o.Stat), time.Now()
	}
	for range 20 { // A second may end between two changes.
		first, read := change("1")
		if again, _ := change("2"); again == first {
			if !Racy(first, read) {
				t.Errorf("Racy(%+v, %v) = false, and the content changed with an equal fence", first, read)
			}
			return
		}
	}
	t.Error("no two changes left an equal fence")
}
