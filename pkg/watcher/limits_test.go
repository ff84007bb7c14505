package watcher

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/s3syncd/s3syncd/internal/scan"
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
	// A file that sorts after the nested directory, in some of them.
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
	// Its failure is in the index, and remains while it is there.
	deep := strings.Repeat("d/", 510) + "d"
	r.sink.mu.Lock()
	r.sink.put(scan.Known{Path: deep, Recheck: true})
	r.sink.mu.Unlock()
	if s := r.rescan(); s.Gone != 0 {
		t.Errorf("it counts as gone: %+v", s)
	}
}

// A scan opens no directory by its whole path.
func TestAScanOfADeepTreeCostsItsSize(t *testing.T) {
	r := newRig(t, nil)
	for i := range 20 {
		for j := range 20 {
			r.write(fmt.Sprintf("%s%d/%d/f", strings.Repeat("d/", 100), i, j), "x")
		}
	}
	if s := r.once(); s.New != 400 || s.Directories != 1+100+20+400 {
		t.Errorf("got %+v", s)
	}
	if s := r.once(); s.Unchanged != 400 {
		t.Errorf("again: %+v", s)
	}
}
