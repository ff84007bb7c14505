package ignore

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/s3syncd/s3syncd/internal/relpath"
)

// includeUse knows which patterns of include have matched no file yet.
type includeUse struct {
	left atomic.Int64

	mu      sync.Mutex
	unused  []pattern
	written []string // as the configuration has them
}

func newIncludeUse(lines []string) *includeUse {
	u := &includeUse{}
	for _, l := range lines {
		if p, ok := parsePattern(l); ok && !p.negated {
			u.unused, u.written = append(u.unused, p), append(u.written, l)
		}
	}
	u.left.Store(int64(len(u.unused)))
	return u
}

// note removes the patterns that match the file at path, or a directory
// above it.
func (u *includeUse) note(path string) {
	if u.left.Load() == 0 {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := len(u.unused) - 1; i >= 0; i-- {
		if u.unused[i].covers(path) {
			u.unused, u.written = slices.Delete(u.unused, i, i+1), slices.Delete(u.written, i, i+1)
		}
	}
	u.left.Store(int64(len(u.unused)))
}

// list returns the patterns that have matched no file.
func (u *includeUse) list() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.written)
}

// UnusedIncludes walks the directory root and returns the patterns of include that
// match none of its files, or only files that exclude matches as well. It returns
// none if there are more than limit entries or ctx ends first. It follows no
// symbolic link, and blocks where the file system does.
func UnusedIncludes(ctx context.Context, root string, include, exclude []string, limit int) ([]string, error) {
	r, err := New(include, exclude, false)
	if err != nil {
		return nil, err
	}
	for dirs := []string{""}; len(dirs) > 0 && r.use.left.Load() > 0; {
		dir := dirs[len(dirs)-1]
		below, err := r.visit(ctx, root, dir, &limit)
		if ctx.Err() != nil || errors.Is(err, errTooMany) {
			return nil, ctx.Err()
		}
		if err != nil && dir == "" {
			return nil, err
		}
		dirs = append(dirs[:len(dirs)-1], below...)
	}
	return r.use.list(), nil
}

// visit notes the files of a directory, and returns its subdirectories that are
// not excluded. It takes the entries off limit.
func (r *Rules) visit(ctx context.Context, root, dir string, limit *int) (below []string, err error) {
	err = eachEntryOf(filepath.Join(root, dir), func(e fs.DirEntry) error {
		path := relpath.Join(dir, e.Name())
		switch *limit--; {
		case ctx.Err() != nil:
			return ctx.Err()
		case *limit < 0:
			return errTooMany
		case e.Type().IsRegular():
			r.ExcludedHere(path, false) // This notes what include matches.
		case e.IsDir() && !r.ExcludedHere(path, true):
			below = append(below, path)
		}
		return nil
	})
	return below, err
}

var errTooMany = errors.New("too many entries")

// eachEntryOf calls fn for the entries of a directory, which is read in parts.
func eachEntryOf(dir string, fn func(fs.DirEntry) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }() // Only read.
	for {
		entries, err := d.ReadDir(1000)
		for _, e := range entries {
			if err := fn(e); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
