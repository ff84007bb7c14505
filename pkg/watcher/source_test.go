package watcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/s3syncd/s3syncd/internal/mounts"
	"github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

func TestRootThatGoesAndComesBack(t *testing.T) {
	r := newRig(t, nil)
	for i := range 10 {
		r.write(fmt.Sprintf("d/f%d", i), "x")
	}
	r.start()
	r.agrees()
	r.sink.takeOffers()
	away := r.dir + "-away"
	r.must(os.Rename(r.dir, away))
	r.eventually("unavailable", func() bool { return !r.Available() && r.metric("source_available") == 0 })
	// An empty directory, as below a mount that is not there yet.
	r.must(os.Mkdir(r.dir, 0o755))
	wait(context.Background(), 4*r.presence.unhealthy)
	if r.Available() {
		t.Error("an empty directory in the place of the source is used")
	}
	if got := r.sink.takeOffers(); len(got) != 0 {
		t.Errorf("offered while the source was away: %+v", got)
	}
	r.must(os.Remove(r.dir))
	write(t, away+"/d/new", "made while it was away")
	r.must(os.Remove(away + "/d/f0"))
	r.must(os.Rename(away, r.dir))
	r.eventually("available", r.Available)
	if s := r.scanned(); s.Gone != 1 || s.New != 1 || s.Replaced || s.Missed != 0 {
		t.Errorf("got gone %d, new %d, replaced %v, missed %d, want 1, 1, false, 0", s.Gone, s.New, s.Replaced, s.Missed)
	}
	r.agrees()
	r.write("d/later", "watched again")
	r.agrees()
}

func TestReplacedRootDeletesNothingUntilConfirmed(t *testing.T) {
	r := newRig(t, nil)
	for i := range 10 {
		r.write(fmt.Sprintf("f%d", i), "x")
	}
	r.start()
	r.agrees()
	r.must(os.Rename(r.dir, r.dir+"-away"))
	write(t, r.dir+"/f3", "another")
	write(t, r.dir+"/other", "another")
	r.eventually("the other directory is used", r.Available)
	s := r.scanned()
	if !s.Replaced || s.Withheld != 9 || s.Gone != 0 || s.New != 1 || s.Changed != 1 {
		t.Errorf("got replaced %v, withheld %d, gone %d, new %d, changed %d, want true, 9, 0, 1, 1", s.Replaced, s.Withheld, s.Gone, s.New, s.Changed)
	}
	r.must(os.Remove(r.path("f3")))
	r.eventually("settled", func() bool { return r.Dirty() == 0 })
	if got := len(r.sink.list()); got != 11 {
		t.Errorf("archived: got %d, want 11", got)
	}
	r.ConfirmDeletes()
	for s = r.scanned(); s.Replaced; s = r.scanned() {
	}
	if s.Gone < 9 || s.Withheld != 0 { // An event may have reported the removed one.
		t.Errorf("after the confirmation: got gone %d, withheld %d, want 9 or 10, 0", s.Gone, s.Withheld)
	}
	r.agrees()
}

func TestEmptyRootAtStart(t *testing.T) {
	r := newRig(t, nil)
	r.sink.put(scan.Known{Path: "a/f", Stored: true})
	r.run()
	<-r.Watching() // An absent source does not hold up the start.
	r.eventually("a reason is logged", func() bool { return r.logs.FilterMessageSnippet("not available").Len() > 0 })
	if r.Available() || len(r.sink.takeOffers()) != 0 {
		t.Error("an empty source whose files are archived is used")
	}
	if _, err := r.ScanOnce(context.Background(), archive.TriggerSync); err == nil {
		t.Error("ScanOnce of an empty source whose files are archived succeeded")
	}
	r.ConfirmDeletes()
	for r.scanned().Gone != 1 {
	}
	if got := r.sink.list(); len(got) != 0 {
		t.Errorf("archived after the confirmation: %v", got)
	}
}

func TestMissingRootAtStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	r := rigAt(t, dir, nil)
	r.run()
	<-r.Watching()
	r.must(os.Mkdir(dir, 0o755))
	r.scanned()
	r.write("f", "x")
	r.agrees()
}

func TestConsentDoesNotOutliveWhatItWasGivenFor(t *testing.T) {
	r := newRig(t, nil)
	r.write("a", "1")
	r.write("b", "2")
	r.start()
	r.agrees()
	aside := filepath.Join(filepath.Dir(r.dir), "aside")
	r.must(os.Rename(r.dir, aside))
	r.eventually("it is away", func() bool { return !r.Available() })
	r.ConfirmDeletes()
	r.must(os.Rename(aside, r.dir))
	r.eventually("it is back", r.Available)
	r.scanned()
	// Another directory comes much later; that one is not confirmed.
	r.must(os.Rename(r.dir, aside))
	r.eventually("it is away again", func() bool { return !r.Available() })
	r.must(os.Mkdir(r.dir, 0o755))
	r.write("c", "3")
	r.eventually("the new file is archived", func() bool { return strings.Contains(fmt.Sprint(r.sink.list()), "c") })
	if s := r.rescan(); s.Gone != 0 || s.Withheld != 2 {
		t.Errorf("in the other directory: gone %d, withheld %d, want 0 and 2", s.Gone, s.Withheld)
	}
}

func TestAMountInsideThatComesBackLaterThanItsSource(t *testing.T) {
	succeeds(t, mountingChild(t, lateMountChild, filepath.Join(t.TempDir(), "src")))
}

// lateMount takes a source away with a mount inside, and brings back the source
// alone.
func lateMount(r *rig) {
	outer := r.dir + "-disk"
	r.must(os.MkdirAll(outer+"/vol", 0o755))
	r.must(os.MkdirAll(r.dir, 0o755))
	r.must(unix.Mount(outer, r.dir, "", unix.MS_BIND, ""))
	r.write("f", "1")
	r.must(unix.Mount("tmpfs", r.path("vol"), "tmpfs", 0, ""))
	r.write("vol/a", "2")
	r.start()
	r.agrees()
	r.must(unix.Unmount(r.path("vol"), unix.MNT_DETACH))
	r.must(unix.Unmount(r.dir, unix.MNT_DETACH))
	r.eventually("it is away", func() bool { return !r.Available() })
	r.must(unix.Mount(outer, r.dir, "", unix.MS_BIND, ""))
	r.eventually("it is back", r.Available)
	s := r.scanned()
	for s.Withheld == 0 && s.Gone == 0 {
		s = r.rescan()
	}
	if s.Gone != 0 || s.Withheld != 1 {
		r.tb.Errorf("without its inner mount: gone %d, withheld %d, want 0 and 1", s.Gone, s.Withheld)
	}
}

func TestMountsInsideTheSource(t *testing.T) {
	for _, mode := range []string{mountsChild, mirroredMountsChild} {
		dir := filepath.Join(t.TempDir(), "src")
		write(t, dir+"/f", "x")
		write(t, dir+"/m/below", "hidden by the mount")
		succeeds(t, mountingChild(t, mode, dir))
	}
}

func TestAnotherFileSystemOnTheSameDeviceIsNoDeletion(t *testing.T) {
	succeeds(t, mountingChild(t, swappedChild, filepath.Join(t.TempDir(), "src")))
}

func TestABindMountInsideTheSource(t *testing.T) {
	base := t.TempDir()
	write(t, base+"/elsewhere/f", "1")
	write(t, base+"/src/inside/f", "1")
	for _, mountPoint := range []string{"far", "near"} {
		write(t, base+"/src/"+mountPoint+"/hidden", "by the mount")
	}
	succeeds(t, mountingChild(t, boundChild, filepath.Join(base, "src")))
}

// boundSource binds a directory from outside and one from inside into the
// source. The latter has two paths and one inode: events tell of one path.
func boundSource(r *rig) {
	r.must(unix.Mount(filepath.Join(filepath.Dir(r.dir), "elsewhere"), r.path("far"), "", unix.MS_BIND, ""))
	r.must(unix.Mount(r.path("inside"), r.path("near"), "", unix.MS_BIND, ""))
	r.start()
	r.agrees()
	if got, want := fmt.Sprint(r.sink.list()), "[far/f inside/f near/f]"; got != want {
		r.tb.Errorf("archived: got %s, want %s", got, want)
	}
	write(r.tb, filepath.Join(filepath.Dir(r.dir), "elsewhere", "told"), "through the other path")
	r.eventually("a change of what is mounted", func() bool { return slices.Contains(r.sink.list(), "far/told") })
	r.write("inside/a", "1")
	r.write("near/b", "2")
	r.write("inside/f", "changed")
	r.agrees() // The path that has no watch is polled.
	if got, want := fmt.Sprint(r.sink.list()), "[far/f far/told inside/a inside/b inside/f near/a near/b near/f]"; got != want {
		r.tb.Errorf("archived: got %s, want %s", got, want)
	}
	r.must(unix.Unmount(r.path("near"), unix.MNT_DETACH))
	r.must(unix.Unmount(r.path("far"), unix.MNT_DETACH))
	s := r.scanned()
	for s.Withheld < 5 {
		s = r.rescan()
	}
	if s.Gone != 0 || s.Withheld != 5 {
		r.tb.Errorf("after the unmount: gone %d, withheld %d, want 0 and 5", s.Gone, s.Withheld)
	}
	r.write("inside/after", "3")
	r.eventually("the other path is watched still", func() bool { return slices.Contains(r.sink.list(), "inside/after") })
}

// mountingChild is a child that may mount file systems.
func mountingChild(t *testing.T, mode, dir string) *exec.Cmd {
	t.Helper()
	c := child(t, mode, dir)
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	return c
}

// swappedSource replaces the source's file system by an empty one that numbers
// its inodes alike, as a new disk in the place of the old one does.
func swappedSource(r *rig) {
	r.must(os.MkdirAll(r.dir, 0o755))
	r.must(unix.Mount("tmpfs", r.dir, "tmpfs", 0, ""))
	r.write("a", "1")
	r.write("b", "2")
	r.start()
	r.agrees()
	r.must(unix.Unmount(r.dir, unix.MNT_DETACH))
	r.must(unix.Mount("tmpfs", r.dir, "tmpfs", 0, ""))
	r.eventually("the empty file system is noticed", func() bool { return !r.Available() })
	r.write("c", "3")
	r.eventually("the new file is archived", func() bool { return strings.Contains(fmt.Sprint(r.sink.list()), "c") })
	if s := r.rescan(); s.Gone != 0 || s.Withheld != 2 {
		r.tb.Errorf("in the new file system: gone %d, withheld %d, want 0 and 2", s.Gone, s.Withheld)
	}
	if got, want := fmt.Sprint(r.sink.list()), "[a b c]"; got != want {
		r.tb.Errorf("archived: got %s, want %s", got, want)
	}
}

func mountedSource(r *rig) {
	r.start()
	r.agrees()
	r.must(unix.Mount("tmpfs", r.path("m"), "tmpfs", 0, ""))
	r.write("m/on", "on the mount")
	r.scanned()
	r.eventually("the mount's file is archived", func() bool { return strings.Contains(fmt.Sprint(r.sink.list()), "m/on") })
	r.write("m/told", "by an event")
	r.eventually("the mount is watched", func() bool { return strings.Contains(fmt.Sprint(r.sink.list()), "m/told") })
	r.eventually("the unmount of m", func() bool { return unix.Unmount(r.path("m"), 0) == nil })
	s := r.scanned()
	for s.Withheld < 2 { // What is hidden by the mount is withheld too.
		s = r.rescan()
	}
	if s.Gone != 0 || s.Withheld != 2 {
		r.tb.Errorf("after the unmount: gone %d, withheld %d, want 0 and 2", s.Gone, s.Withheld)
	}
	if got, want := fmt.Sprint(r.sink.list()), "[f m/below m/on m/told]"; got != want {
		r.tb.Errorf("archived: got %s, want %s", got, want)
	}
	// The whole source, too.
	r.must(unix.Mount("tmpfs", r.dir, "tmpfs", 0, ""))
	r.eventually("an empty mount over the source", func() bool { return !r.Available() })
	r.eventually("the unmount", func() bool { return unix.Unmount(r.dir, 0) == nil }) // A check keeps it busy for a moment.
	r.eventually("back", r.Available)
	r.scanned()
	if got := len(r.sink.list()); got != 4 {
		r.tb.Errorf("archived after the source came back: %d, want 4", got)
	}
}

func TestScanOnceTakesAReplacedRootWithoutGone(t *testing.T) {
	r := newRig(t, nil)
	r.write("new", "x")
	r.sink.put(scan.Known{Path: "old", Ino: 1, Stored: true})
	s, err := r.ScanOnce(context.Background(), archive.TriggerSync)
	if err != nil || !s.Complete || !s.Replaced || s.Gone != 0 || s.Withheld != 1 || s.New != 1 {
		t.Errorf("got %+v, %v", s, err)
	}
	if got := r.metric("rescans_total", string(archive.TriggerSync)); got != 1 {
		t.Errorf("rescans_total: got %v, want 1", got)
	}
}

func TestAMountThatIsLateAfterARestartIsNoDeletion(t *testing.T) {
	var kept []Memory
	r := newRig(t, func(o *Options) {
		o.Memory = Memory{Mounts: []mounts.Mount{{Path: "vol"}}} // As an older release left it.
		o.OnMemory = func(m Memory) { kept = append(kept, m) }
	})
	r.write("f", "x")
	st, err := r.source.Root.Stat("f")
	r.must(err)
	r.sink.put(scan.Known{Path: "f", Size: st.Size, MtimeNs: st.MtimeNs, CtimeNs: st.CtimeNs, Ino: st.Ino, Stored: true})
	r.sink.put(scan.Known{Path: "vol/a", Ino: 1, Stored: true})
	s, err := r.ScanOnce(context.Background(), archive.TriggerSync)
	if err != nil || s.Replaced || s.Gone != 0 || s.Withheld != 1 {
		t.Errorf("without its mount: %+v, %v, want vol/a withheld", s, err)
	}
	for _, m := range kept {
		if len(m.Mounts) != 1 {
			t.Errorf("the mount that is missed was forgotten: kept %+v", m)
		}
	}
	r.ConfirmDeletes()
	if s, err = r.ScanOnce(context.Background(), archive.TriggerSync); err != nil || s.Gone != 1 || s.Withheld != 0 {
		t.Errorf("after the confirmation: %+v, %v, want vol/a gone", s, err)
	}
	if last := kept[len(kept)-1]; len(last.Mounts) != 0 {
		t.Errorf("kept %+v after the confirmation, want no mount", last)
	}
}

func TestScanOnceOfAMissingRoot(t *testing.T) {
	r := rigAt(t, filepath.Join(t.TempDir(), "none"), nil)
	if s, err := r.ScanOnce(context.Background(), archive.TriggerSync); err == nil || s.Complete || !errors.Is(s.Err, err) {
		t.Errorf("got %+v, %v", s, err)
	}
}
