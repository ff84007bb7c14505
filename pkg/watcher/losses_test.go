package watcher

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

func TestDirectoriesThatLoseMostOfTheirFiles(t *testing.T) {
	a := newArchive(t.TempDir())
	for _, path := range []string{
		"a", "b", "c", "d/1", "d/2", "d/3", "d/sub/1", "d/sub/2", "d/sub/3", "d/sub/4", "e/1", "f!/1", "f/1", "f/2", "f/z/1", "f/z/2",
	} {
		a.put(scan.Known{Path: path, Stored: true})
	}
	a.put(scan.Known{Path: "d/failed"})
	changes := func(paths ...string) (list []Change) {
		for _, p := range paths {
			list = append(list, Change{Path: p})
		}
		return list
	}
	var l losses
	for _, step := range []struct {
		gone    []Change
		now     string
		waiting int64
	}{
		{changes("a", "d/1", "e/1", "f/1"), "a d/1 e/1 f/1", 0}, // One each.
		{changes("d/1", "d/2"), "", 2},
		{changes("d/sub/1", "d/sub/2"), "d/sub/1 d/sub/2", 0}, // Half.
		{changes("d/1", "d/2"), "", 2},                        // There again between.
		{changes("a", "b", "d/1", "d/2", "d/3"), "d/1 d/2 d/3", 2},
		{changes("a", "b", "c"), "a b c", 0},
	} {
		now, waiting, err := l.judge(a, step.gone)
		var paths []string
		for _, c := range now {
			paths = append(paths, c.Path)
		}
		if got := strings.Join(paths, " "); got != step.now || waiting != step.waiting || err != nil {
			t.Errorf("judge(%v) = %q, %d, %v, want %q, %d", step.gone, paths, waiting, err, step.now, step.waiting)
		}
	}
}

func TestAMirrorScansTwiceBeforeADirectoryIsTakenForEmptied(t *testing.T) {
	r := mirrored(t, 5, mirroring(100))
	for i := range 5 {
		r.write(fmt.Sprintf("home/%d", i), "x")
	}
	r.agrees()
	r.sink.takeOffers()
	away := filepath.Join(t.TempDir(), "away")
	r.must(os.Rename(r.path("home"), away))
	var first ScanResult
	for first.Waiting == 0 {
		first = r.scanned()
	}
	// The channel may lag the scans, of which the second deletes.
	r.eventually("a second scan", func() bool { return len(r.sink.list()) == 6 })
	if got := len(r.deletions()); first.Waiting != 5 || got != 5 {
		t.Errorf("waiting %d, deleted %d, want 5 and 5", first.Waiting, got)
	}
}

// What comes back between the two scans is kept.
func TestADirectoryThatComesBackKeepsItsObjects(t *testing.T) {
	r := newRig(t, mirroring(100))
	r.write("a", "x")
	for i := range 5 {
		r.write(fmt.Sprintf("home/%d", i), "x")
	}
	r.once()
	r.sink.takeOffers()
	id, ok := r.source.Root.Pinned()
	if !ok {
		t.Fatal("the source is not in use")
	}
	away := filepath.Join(t.TempDir(), "away")
	leave := func() { r.must(os.Rename(r.path("home"), away)) }
	whole := func(what string, waiting, deleted int) {
		t.Helper()
		d := r.scanner.direct(archive.TriggerSync, false)
		s := r.scanner.whole(context.Background(), id, archive.TriggerSync, &d.offerer, scan.Options{Found: d.found, Rest: context.Context.Err})
		if got := len(r.deletions()); !s.Complete || s.Waiting != int64(waiting) || got != deleted {
			t.Errorf("%s: waiting %d, deleted %d, want %d and %d", what, s.Waiting, got, waiting, deleted)
		}
	}
	leave()
	whole("away", 5, 0)
	r.must(os.Rename(away, r.path("home")))
	whole("back", 0, 0)
	leave()
	whole("away again", 5, 0)
	whole("and still", 0, 5)
}

func TestAMountThatGoesDuringAScanIsNoDeletion(t *testing.T) {
	for _, mode := range []string{goneMountChild, mirroredGoneMountChild} {
		succeeds(t, mountingChild(t, mode, filepath.Join(t.TempDir(), "src")))
	}
}

// mountGoneDuringScan unmounts vol when the scan has begun and has not come to
// it.
func mountGoneDuringScan(tb testing.TB, dir string, change func(*Options)) {
	tb.Helper()
	s := &runs{tb: tb, dir: dir, sink: newArchive(dir), change: change}
	vol := filepath.Join(dir, "vol")
	s.must(os.MkdirAll(vol, 0o755))
	s.must(unix.Mount("tmpfs", vol, "tmpfs", 0, ""))
	s.write("first")
	s.write("vol/1")
	s.scan()
	s.change = func(o *Options) {
		if change != nil {
			change(o)
		}
		o.OnSame = func(scan.Known, safefs.Stat, archive.Trigger) { _ = unix.Unmount(vol, unix.MNT_DETACH) }
	}
	if res := s.scan(); res.Gone != 0 || res.Withheld != 1 || res.Unchanged != 1 {
		tb.Errorf("gone %d, withheld %d, unchanged %d, want 0, 1, 1", res.Gone, res.Withheld, res.Unchanged)
	}
	if got := fmt.Sprint(s.sink.list()); got != "[first vol/1]" {
		tb.Errorf("the index has %s, want both", got)
	}
}
