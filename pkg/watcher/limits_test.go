package watcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/s3syncd/s3syncd/internal/safefs"
	scanpkg "github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// nest makes depth directories of the given name in each other, which no path
// reaches. The end of the test takes them away.
func nest(t *testing.T, dir, name string, depth int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	for i := 0; i < depth && err == nil; i++ {
		if err = unix.Mkdirat(fd, name, 0o755); err != nil {
			break
		}
		var sub int
		sub, err = unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY, 0)
		unix.Close(fd)
		fd = sub
	}
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	t.Cleanup(func() {
		for range depth { // What is in the first one takes its place.
			first := filepath.Join(dir, name)
			if os.Rename(filepath.Join(first, name), first+"-next") != nil {
				return
			}
			os.Remove(first)
			os.Rename(first+"-next", first)
		}
	})
}

var errDeep = errors.New("too deep")

func deeperThan(n int) func(*Options) {
	return func(o *Options) {
		o.TooDeep = func(dir string) error {
			if len(dir) > n {
				return errDeep
			}
			return nil
		}
	}
}

func TestADirectoryTooDeepForAKeyIsRefusedOnce(t *testing.T) {
	r := newRig(t, deeperThan(1020))
	nest(t, r.dir, "d", 5000)
	r.write("f", "x")
	r.write(strings.Repeat("d/", 400)+"deep", "x")
	// A file behind the nested directories, in each of some of them.
	for i := 1; i < 500; i += 50 {
		r.write(strings.Repeat("d/", i)+"e", "x")
	}
	r.start()
	r.eventually("every file is archived", func() bool { return len(r.sink.list()) == 12 && r.Dirty() == 0 })
	for range 2 {
		if s := r.rescan(); s.Limited != 1 || s.Unreadable != 0 || s.Files != 12 || s.Gone != 0 {
			t.Errorf("got %+v, want 12 files and one limit", s)
		}
	}
	refused := map[string]bool{}
	for _, c := range r.sink.refused {
		refused[c.Path] = true
		if !errors.Is(c.Err, errDeep) {
			t.Errorf("%q is refused for %v", c.Path, c.Err)
		}
	}
	if len(refused) != 1 || !refused[strings.Repeat("d/", 510)+"d"] {
		t.Errorf("refused: %d paths, want the first that is too deep", len(refused))
	}
	if got, _ := r.Directories(); got != 511 {
		t.Errorf("%d directories are watched, want 511", got)
	}
	// Its failure is in the index, and stays while it is there.
	deep := strings.Repeat("d/", 510) + "d"
	r.sink.mu.Lock()
	r.sink.put(scanpkg.Known{Path: deep, Recheck: true})
	r.sink.mu.Unlock()
	if s := r.rescan(); s.Gone != 0 {
		t.Errorf("it counts as gone: %+v", s)
	}
}

// A scan opens no directory by the path that it has come by.
func TestAScanOfADeepTreeCostsItsSize(t *testing.T) {
	r := newRig(t, nil)
	for i := range 20 {
		for j := range 20 {
			r.write(fmt.Sprintf("%s%d/%d/f", strings.Repeat("d/", 100), i, j), "x")
		}
	}
	if s := r.once(); s.New != 400 || s.directories != 1+100+20+400 {
		t.Errorf("got %+v", s)
	}
	if s := r.once(); s.Unchanged != 400 {
		t.Errorf("again: %+v", s)
	}
}

func TestLinksThatMultiplyPathsAreLimited(t *testing.T) {
	r := newRig(t, func(o *Options) {
		o.Root = safefs.NewRoot(o.Root.Path(), safefs.RootOptions{Follow: true, CrossMounts: true})
	})
	const levels = 14
	for i := range levels {
		r.write(fmt.Sprintf("%02d/f", i), "x")
		if i > 0 {
			r.must(os.Symlink(fmt.Sprintf("../%02d", i), r.path(fmt.Sprintf("%02d/a", i-1))))
			r.must(os.Symlink(fmt.Sprintf("../%02d", i), r.path(fmt.Sprintf("%02d/b", i-1))))
		}
	}
	r.write("zz", "behind it")
	paths := 0
	p := &counter{paths: &paths}
	for range 2 {
		paths = 0
		s := r.newScan("", archive.TriggerSync, p)
		r.overLinked.begin()
		r.must(s.run(context.Background()))
		r.overLinked.end()
		if most := levels * (maxLinksTo + 1); paths > most || paths < maxLinksTo || s.res.Limited == 0 {
			t.Errorf("%d paths, %d links left out, want at most %d paths", paths, s.res.Limited, most)
		}
		if n := len(p.refused); n == 0 || n > levels {
			t.Errorf("%d are refused, want one for each directory at most: %q", n, p.refused)
		}
		for _, path := range p.refused {
			if !r.stillRefused(path) {
				t.Errorf("%q is not refused any more", path)
			}
		}
		if p.last != "zz" {
			t.Errorf("the last file is %q", p.last)
		}
		p.refused = nil
	}
}

// counter is a policy that counts files.
type counter struct {
	paths   *int
	last    string
	refused []string
}

func (p *counter) differs(_ context.Context, _ *scan, path string, _ safefs.Stat, _ *scanpkg.Known) error {
	*p.paths++
	p.last = path
	return nil
}

func (p *counter) refuse(_ context.Context, _ *scan, path string, _ error) error {
	p.refused = append(p.refused, path)
	return nil
}

func (p *counter) missing(context.Context, *scan, scanpkg.Known) error { return nil }
func (p *counter) same(*scanpkg.Known, safefs.Stat)                    {}
func (p *counter) rest(context.Context) error                          { return nil }

func TestDirectoriesThatAreReadInPartsAreScannedAlike(t *testing.T) {
	r := newRig(t, nil)
	long := strings.Repeat("n", 200)
	for i := range 1500 {
		r.write(fmt.Sprintf("%04d%s", i, long), "x")
		if i%100 == 0 {
			r.write(fmt.Sprintf("%04d%s-dir/f", i, long), "x")
		}
	}
	for depth := 1; depth < 30; depth++ {
		r.write(strings.Repeat("d/", depth)+"f", "x")
	}
	r.once()
	for i := range 1500 {
		if i%7 == 0 {
			r.must(os.Remove(r.path(fmt.Sprintf("%04d%s", i, long))))
		}
	}
	r.sink.takeOffers()
	p := r.scanPolicy(archive.TriggerSync)
	p.settles, p.busy = false, nil
	s := r.newScan("", archive.TriggerSync, p)
	s.budget = 1
	r.must(s.run(context.Background()))
	if s.res.Gone != 215 || s.res.New+s.res.Changed != 0 || s.res.Unchanged != 1500-215+15+29 {
		t.Errorf("got %+v", s.res)
	}
	if s.held != 0 {
		t.Errorf("%d bytes of entries are held after the scan", s.held)
	}
}

func TestAHugeDirectoryTakesBoundedMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("it makes 60,000 files")
	}
	r := newRig(t, nil)
	long := strings.Repeat("n", 240)
	fd, err := unix.Open(r.dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	r.must(err)
	defer unix.Close(fd)
	for i := range 60_000 {
		r.must(unix.Mknodat(fd, fmt.Sprintf("%05d%s", i, long), unix.S_IFREG|0o644, 0))
	}
	paths := 0
	s := r.newScan("", archive.TriggerSync, &counter{paths: &paths})
	s.budget = 4 << 20
	most := 0
	s.policy = &heldBytes{counter: counter{paths: &paths}, most: &most}
	r.must(s.run(context.Background()))
	if paths != 60_000 {
		t.Errorf("%d files, want 60,000", paths)
	}
	if most > 6<<20 { // All names are 17 MiB.
		t.Errorf("the scan held %d bytes", most)
	}
}

// heldBytes is a counter that notes how much the scan holds.
type heldBytes struct {
	counter
	most *int
}

func (p *heldBytes) differs(ctx context.Context, s *scan, path string, st safefs.Stat, k *scanpkg.Known) error {
	*p.most = max(*p.most, s.held)
	return p.counter.differs(ctx, s, path, st, k)
}
