package scan

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"github.com/s3syncd/s3syncd/internal/ignore"
	"github.com/s3syncd/s3syncd/internal/safefs"
)

// rig is a source in a temporary directory, and what a scan of it found.
type rig struct {
	*Source
	tb       testing.TB
	archived entries
	found    []Finding
}

func newRig(tb testing.TB, o safefs.RootOptions) *rig {
	tb.Helper()
	rules, err := ignore.New(nil, nil, false)
	if err != nil {
		tb.Fatal(err)
	}
	o.CrossMounts = true
	r := &rig{tb: tb}
	r.Source = &Source{
		Scope: &Scope{
			Root: safefs.NewRoot(tb.TempDir(), o), Rules: rules, Reserved: "_manifests", Hardlinks: safefs.LinksAllow,
			TooDeep: func(string) error { return nil },
		},
		Index: &r.archived, Log: zaptest.NewLogger(tb),
		MountPoint: func(string) bool { return false },
		Linked:     func(string, safefs.Stat) {},
	}
	return r
}

func (r *rig) path(rel string) string { return filepath.Join(r.Root.Path(), rel) }

func (r *rig) must(err error) {
	r.tb.Helper()
	if err != nil {
		r.tb.Fatal(err)
	}
}

func (r *rig) write(rel string) {
	r.tb.Helper()
	r.must(os.MkdirAll(filepath.Dir(r.path(rel)), 0o755))
	r.must(os.WriteFile(r.path(rel), []byte("x"), 0o644))
}

// scan scans the whole source within budget, as a walk that has ended.
func (r *rig) scan(budget int) *walk {
	r.tb.Helper()
	r.found = nil
	o := Options{
		Found: func(_ context.Context, f Finding) error {
			r.found = append(r.found, f)
			return nil
		},
		Rest: context.Context.Err,
	}
	w := newWalk(r.Source, &o, &Result{})
	w.budget = budget
	r.OverLinked.Begin()
	r.must(w.run(context.Background()))
	r.OverLinked.End()
	return w
}

// archive enters in the index what the last scan found new.
func (r *rig) archive() {
	for _, f := range r.found {
		if f.Kind == Differs {
			st := f.Stat
			r.archived.add(Known{Path: f.Path, Size: st.Size, MtimeNs: st.MtimeNs, CtimeNs: st.CtimeNs, Ino: st.Ino, Stored: true})
		}
	}
}

// paths returns the paths of what the last scan found of a kind.
func (r *rig) paths(kind Kind) (paths []string) {
	for _, f := range r.found {
		if f.Kind == kind {
			paths = append(paths, f.Path)
		}
	}
	return paths
}

func TestLinksThatMultiplyPathsAreLimited(t *testing.T) {
	r := newRig(t, safefs.RootOptions{Follow: true})
	const levels = 14
	for i := range levels {
		r.write(fmt.Sprintf("%02d/f", i))
		if i > 0 {
			r.must(os.Symlink(fmt.Sprintf("../%02d", i), r.path(fmt.Sprintf("%02d/a", i-1))))
			r.must(os.Symlink(fmt.Sprintf("../%02d", i), r.path(fmt.Sprintf("%02d/b", i-1))))
		}
	}
	r.write("zz") // After the links.
	for range 2 {
		res := r.scan(listBudget).res
		paths, refused := r.paths(Differs), r.paths(Refused)
		if most := levels * (maxLinksTo + 1); len(paths) > most || len(paths) < maxLinksTo || res.Limited == 0 {
			t.Errorf("%d paths, %d links left out, want at most %d paths", len(paths), res.Limited, most)
		}
		if n := len(refused); n == 0 || n > levels {
			t.Errorf("%d are refused, want one for each directory at most: %q", n, refused)
		}
		for _, path := range refused {
			if !r.StillRefused(path) {
				t.Errorf("%q is not refused any more", path)
			}
		}
		if last := paths[len(paths)-1]; last != "zz" {
			t.Errorf("the last file is %q", last)
		}
	}
}

func TestDirectoriesThatAreReadInPartsAreScannedAlike(t *testing.T) {
	r := newRig(t, safefs.RootOptions{})
	long := strings.Repeat("n", 200)
	for i := range 1500 {
		r.write(fmt.Sprintf("%04d%s", i, long))
		if i%100 == 0 {
			r.write(fmt.Sprintf("%04d%s-dir/f", i, long))
		}
	}
	for depth := 1; depth < 30; depth++ {
		r.write(strings.Repeat("d/", depth) + "f")
	}
	r.scan(listBudget)
	r.archive()
	for i := range 1500 {
		if i%7 == 0 {
			r.must(os.Remove(r.path(fmt.Sprintf("%04d%s", i, long))))
		}
	}
	w := r.scan(1)
	if gone := len(r.paths(Missing)); gone != 215 || len(r.found) != gone || w.res.Unchanged != 1500-215+15+29 {
		t.Errorf("%d findings, %d of them gone: %+v", len(r.found), gone, w.res)
	}
	if w.held != 0 {
		t.Errorf("%d bytes of entries are held after the scan", w.held)
	}
}

func TestAHugeDirectoryTakesBoundedMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("it makes 60,000 files")
	}
	r := newRig(t, safefs.RootOptions{})
	long := strings.Repeat("n", 240)
	fd, err := unix.Open(r.Root.Path(), unix.O_PATH|unix.O_DIRECTORY, 0)
	r.must(err)
	defer unix.Close(fd)
	for i := range 60_000 {
		r.must(unix.Mknodat(fd, fmt.Sprintf("%05d%s", i, long), unix.S_IFREG|0o644, 0))
	}
	most, paths := 0, 0
	var w *walk
	o := Options{
		Found: func(context.Context, Finding) error {
			most = max(most, w.held)
			paths++
			return nil
		},
		Rest: context.Context.Err,
	}
	w = newWalk(r.Source, &o, &Result{})
	w.budget = 4 << 20
	r.must(w.run(context.Background()))
	if paths != 60_000 {
		t.Errorf("%d files, want 60,000", paths)
	}
	if most > 6<<20 { // All names are 17 MiB.
		t.Errorf("the scan held %d bytes", most)
	}
}
