package watcher

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/s3syncd/s3syncd/internal/mounts"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

func mirroring(maxDeletes int) func(*Options) {
	return func(o *Options) { o.Mirror, o.MaxDeletes = true, maxDeletes }
}

// deletions returns what was offered as gone, and fails for one that no scan
// has confirmed.
func (r *rig) deletions() []Change {
	r.tb.Helper()
	var out []Change
	for _, c := range r.sink.takeOffers() {
		if c.Kind != archive.Gone {
			continue
		}
		if !c.Confirmed {
			r.tb.Errorf("%s was offered as gone without a scan that confirms it", c.Path)
		}
		out = append(out, c)
	}
	return out
}

// mirrored starts a mirrored source of n archived files f0, f1, … and d/last.
func mirrored(t *testing.T, n int, o func(*Options)) *rig {
	t.Helper()
	r := newRig(t, o)
	for i := range n {
		r.write(fmt.Sprintf("f%d", i), "x")
	}
	r.write("d/last", "x")
	r.start()
	r.agrees()
	r.sink.takeOffers()
	return r
}

// removeAtOnce archives n files and moves them out in one step, so that no scan
// finds only some of them gone.
func (r *rig) removeAtOnce(n int) {
	r.tb.Helper()
	for i := range n {
		r.write(fmt.Sprintf("leaving/%d", i), "x")
	}
	r.agrees()
	r.sink.takeOffers()
	r.must(os.Rename(r.path("leaving"), filepath.Join(r.tb.TempDir(), "left")))
}

func TestMirrorDeletesWhatAScanConfirms(t *testing.T) {
	r := mirrored(t, 5, mirroring(3))
	r.must(os.Remove(r.path("f1")))
	r.must(os.RemoveAll(r.path("d")))
	r.agrees() // Without a rescan being asked for: the events ask for one.
	got := r.deletions()
	slices.SortFunc(got, func(a, b Change) int { return strings.Compare(a.Path, b.Path) }) // One scan or two.
	if len(got) != 2 || got[0].Path != "d/last" || got[1].Path != "f1" {
		t.Fatalf("deleted %+v, want d/last and f1", got)
	}
	for _, c := range got {
		if c.Trigger != archive.TriggerEvent {
			t.Errorf("%s has trigger %s, want event", c.Path, c.Trigger)
		}
	}
	if s := r.scanned(); s.Trigger != archive.TriggerRescan || s.Missed != 0 {
		t.Errorf("the scan that decided: %+v", s)
	}
	if got := r.metric("rescan_missed_files_total"); got != 0 {
		t.Errorf("rescan_missed_files_total = %v, want 0: events reported all", got)
	}
}

func TestMirrorHoldsBackMoreThanMaxDeletes(t *testing.T) {
	r := mirrored(t, 5, mirroring(3))
	r.removeAtOnce(4)
	for r.scanned().Held != 4 {
	}
	if s := r.rescan(); s.Held != 4 || s.Gone != 4 {
		t.Errorf("a later scan holds back %d of %d, want 4 of 4", s.Held, s.Gone)
	}
	if got := r.deletions(); len(got) != 0 {
		t.Fatalf("deleted beyond max_deletes: %+v", got)
	}
	if got := r.metric("skipped_files", "held_delete"); got != 4 || r.HeldDeletes() != 4 {
		t.Errorf("held: metric %v, HeldDeletes %d, want 4", got, r.HeldDeletes())
	}
	if r.logs.FilterMessageSnippet("confirm-deletes").Len() == 0 {
		t.Error("nothing was logged")
	}
	r.ConfirmDeletes()
	r.agrees()
	if got := r.deletions(); len(got) != 4 {
		t.Errorf("deleted after the confirmation: %+v, want 4", got)
	}
	r.eventually("nothing is held", func() bool { return r.HeldDeletes() == 0 && r.metric("skipped_files", "held_delete") == 0 })
	// The confirmation is spent.
	r.removeAtOnce(5)
	r.eventually("held again", func() bool { return r.HeldDeletes() >= 4 })
}

func TestMirrorOfAnEmptiedSourceKeepsEverything(t *testing.T) {
	r := mirrored(t, 2, mirroring(100))
	r.must(os.RemoveAll(r.path("d")))
	r.must(os.Remove(r.path("f0")))
	r.must(os.Remove(r.path("f1")))
	// A scan at that time may have deleted some, or left some to their
	// events; consent covers what is held when it is used.
	r.eventually("all that is left is held", func() bool {
		held := r.HeldDeletes()
		return held > 0 && held == int64(len(r.sink.list()))
	})
	if s := r.rescan(); s.Held == 0 || !s.Complete {
		t.Errorf("got %+v", s)
	}
	if n := len(r.sink.list()); n == 0 {
		t.Error("the last files of an emptied source were deleted")
	}
	r.ConfirmDeletes()
	r.agrees()
}

func TestMirrorLeavesWhatIsExcludedWithheldOrNotStored(t *testing.T) {
	r := newRig(t, func(o *Options) {
		mirroring(100)(o)
		o.Exclude = []string{"*.tmp", "/cache/"}
		o.Memory = Memory{Mounts: []mounts.Mount{{Path: "lost"}}} // Which is not there now.
	})
	r.write("f", "x")
	st, err := r.source.Root.Lstat("f")
	r.must(err)
	r.sink.put(knownOf("f", st))
	for _, p := range []string{"a.tmp", "cache/y", "_manifests/m", "lost/z", "gone"} {
		r.sink.put(scan.Known{Path: p, Stored: true})
	}
	r.sink.put(scan.Known{Path: "failed"}) // Nothing of it is in S3.
	s := r.once()
	if s.Gone != 2 || s.Withheld != 1 {
		t.Errorf("gone %d, withheld %d, want 2 and 1", s.Gone, s.Withheld)
	}
	if got, want := fmt.Sprint(r.sink.list()), "[_manifests/m a.tmp cache/y f lost/z]"; got != want {
		t.Errorf("the index has %s, want %s", got, want)
	}
}

func TestMirrorDeletesNothingAfterAScanThatDidNotEnd(t *testing.T) {
	var r *rig
	away := false
	r = newRig(t, func(o *Options) {
		mirroring(100)(o)
		o.OnSame = func(scan.Known, safefs.Stat, archive.Trigger) {
			if !away {
				away = true
				r.must(os.Rename(r.dir, r.dir+"-away"))
			}
		}
	})
	r.write("z", "x")
	st, err := r.source.Root.Lstat("z")
	r.must(err)
	r.sink.put(knownOf("z", st))
	r.sink.put(scan.Known{Path: "a", Stored: true})
	s, err := r.ScanOnce(context.Background(), archive.TriggerSync)
	if err == nil || s.Complete || s.Gone == 0 {
		t.Fatalf("got %+v, %v, want a scan that found something gone and did not end", s, err)
	}
	if got := r.deletions(); len(got) != 0 {
		t.Errorf("deleted: %+v", got)
	}
}

// What vanished while there was no index is not in it, so it is never gone.
func TestMirrorAfterALostIndexDeletesNothing(t *testing.T) {
	r := newRig(t, mirroring(100))
	r.write("there", "x")
	if s := r.once(); s.Gone != 0 || s.New != 1 {
		t.Errorf("got %+v", s)
	}
	if got := r.deletions(); len(got) != 0 {
		t.Errorf("deleted: %+v", got)
	}
}

func TestConfirmedDeletionsGoOnInBatches(t *testing.T) {
	r := mirrored(t, 1, mirroring(0))
	r.sink.mu.Lock()
	for i := range 2*deleteBatch + 10 {
		r.sink.put(scan.Known{Path: fmt.Sprintf("m/%05d", i), Stored: true})
	}
	r.sink.mu.Unlock()
	if s := r.rescan(); s.Held != 2*deleteBatch+10 {
		t.Fatalf("held %d, want %d", s.Held, 2*deleteBatch+10)
	}
	r.ConfirmDeletes()
	r.agrees()
	if got := len(r.deletions()); got != 2*deleteBatch+10 {
		t.Errorf("deleted %d, want %d", got, 2*deleteBatch+10)
	}
	if left := r.mirror.consent.remaining(); left != 0 {
		t.Errorf("consent for %d more deletions is left", left)
	}
}

func TestWhatHoldsDeletionsBack(t *testing.T) {
	r := newRig(t, mirroring(10))
	scanned := func(files, unreadable int64) ScanResult {
		return ScanResult{Result: scan.Result{Files: files, Unreadable: unreadable}}
	}
	for name, row := range map[string]struct {
		count     int64
		consented bool
		left      int64
		res       ScanResult
		held      bool
	}{
		"nothing is gone":                  {res: scanned(0, 0)},
		"a few are gone":                   {count: 10, res: scanned(1, 0)},
		"too many are gone":                {count: 11, res: scanned(1, 0), held: true},
		"too many, and an operator agreed": {count: 11, consented: true, res: scanned(0, 1)},
		"the rest of what was allowed":     {count: 11, left: 11, res: scanned(1, 0)},
		"more than what was allowed":       {count: 12, left: 11, res: scanned(1, 0), held: true},
		"a part was unreadable":            {count: 1, res: scanned(1, 1), held: true},
		"no file is left":                  {count: 1, held: true},
	} {
		r.mirror.consent.left = row.left
		if got := r.mirror.holds(row.count, row.consented, &row.res); (got != "") != row.held {
			t.Errorf("%s: holds = %q, want held %v", name, got, row.held)
		}
	}
}

func TestScansBecauseOfRemovalsKeepTheirDistance(t *testing.T) {
	r := newRequests()
	r.removals()
	if trigger, _ := r.take(false); trigger != "" || !r.wantsRemovals() {
		t.Errorf("take before it is due = %q, still wanted %v, want none and true", trigger, r.wantsRemovals())
	}
	if trigger, _ := r.take(true); trigger != triggerRemoval || r.wantsRemovals() {
		t.Errorf("take when due = %q, still wanted %v", trigger, r.wantsRemovals())
	}
	r.removals()
	r.scan(archive.TriggerHangup)
	if trigger, _ := r.take(false); trigger != archive.TriggerHangup || r.wantsRemovals() {
		t.Errorf("another scan = %q, still wanted %v, want hangup to do for both", trigger, r.wantsRemovals())
	}
}

func TestReportedRemovalsAreBounded(t *testing.T) {
	var s reportedSet
	for i := range maxReported + 10 {
		s.add(strconv.Itoa(i), true)
	}
	if len(s.paths) != maxReported || !s.covers("never reported") {
		t.Errorf("%d paths are kept, covers %v, want %d and true", len(s.paths), s.covers("never reported"), maxReported)
	}
	if s.byEvent("never reported") {
		t.Error("byEvent of a path that was never reported")
	}
}

func TestMirrorDeletesNothingWhileAPartIsUnreadable(t *testing.T) {
	asAnotherUser(t, mirroredUnreadableChild)
}

func mirroredUnreadableSource(r *rig) {
	r.write("gone", "x")
	r.write("kept", "x")
	r.start()
	r.agrees()
	r.must(os.Chmod(r.path("d"), 0))
	r.must(os.Remove(r.path("gone")))
	r.eventually("held", func() bool { return r.HeldDeletes() == 1 })
	if got := fmt.Sprint(r.sink.list()); got != "[d/f gone kept]" {
		r.tb.Errorf("the index has %s, want everything", got)
	}
	r.ConfirmDeletes() // Of what is gone, not of what cannot be seen.
	r.eventually("confirmed", func() bool { return fmt.Sprint(r.sink.list()) == "[d/f kept]" })
	r.must(os.Chmod(r.path("d"), 0o755))
	r.agrees()
}

func TestMirrorOfAReplacedSourceWaitsForAnOperator(t *testing.T) {
	r := mirrored(t, 9, mirroring(3))
	r.must(os.Rename(r.dir, r.dir+"-away"))
	write(t, r.dir+"/other", "another")
	r.eventually("the other directory is used", r.Available)
	for s := r.scanned(); !s.Replaced; s = r.scanned() {
	}
	if got := r.deletions(); len(got) != 0 {
		t.Fatalf("deleted: %+v", got)
	}
	r.ConfirmDeletes()
	r.agrees()
	if got := r.deletions(); len(got) != 10 {
		t.Errorf("deleted %d after the confirmation, want 10", len(got))
	}
}
