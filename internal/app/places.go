package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/safefs"
)

// lookBound is how long a look at where a source is may take. A file system that
// does not answer must hold up neither a start nor a reload.
const lookBound = 5 * time.Second

// places finds out what stands at the paths of a configuration. A look that does
// not end in time is left behind and not begun again until it has: its thread is
// in the kernel. The zero value is ready; its methods may be called concurrently.
type places struct {
	mu   sync.Mutex
	open map[string]*opened // by what is looked at
}

// opened is one look that is under way.
type opened struct {
	since  time.Time
	done   chan struct{}
	result config.Look
}

// found are the looks that ended in time, by path.
type found map[string]config.Look

// of returns what stands at path, or that nobody knows.
func (f found) of(path string) config.Look {
	if l, ok := f[path]; ok {
		return l
	}
	return config.Look{Real: path}
}

// all looks at every path that c names for a directory of ours or of a source.
func (p *places) all(c *config.Config) found {
	paths := []string{c.StateDir, c.Manifest.LocalDir, c.Admin.Socket}
	for _, s := range c.Sources {
		paths = append(paths, s.Path)
	}
	bound := time.NewTimer(lookBound)
	defer bound.Stop()
	looks := make([]*opened, len(paths))
	for i, path := range paths {
		looks[i] = p.begin(path, func() config.Look { return lookAt(path) })
	}
	f := found{}
	expired := false
	for i, path := range paths {
		if !expired {
			select {
			case <-looks[i].done:
			case <-bound.C:
				expired = true
			}
		}
		if isClosed(looks[i].done) {
			f[path] = looks[i].result
		}
	}
	return f
}

// placed looks at every path of c and refuses what CheckPlaces refuses.
func (p *places) placed(c *config.Config) (found, error) {
	f := p.all(c)
	return f, c.CheckPlaces(f.of)
}

// begin begins a look at what, or joins the one that is under way.
func (p *places) begin(what string, look func() config.Look) *opened {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o := p.open[what]; o != nil && !isClosed(o.done) {
		return o
	}
	if p.open == nil {
		p.open = map[string]*opened{}
	}
	o := &opened{since: time.Now(), done: make(chan struct{})}
	p.open[what] = o
	go func() {
		defer close(o.done)
		o.result = look()
	}()
	return o
}

// lookAt looks at path, for as long as the file system takes.
func lookAt(path string) config.Look {
	fi, err := os.Stat(path) //nolint:gosec // The operator names the path.
	return config.Look{Real: resolve(path), There: err == nil, File: err == nil && !fi.IsDir()}
}

// realPath is the path without symbolic links, as far as it exists and its file
// system answers in time.
func realPath(path string) string {
	l, _ := boundedLook(path)
	return l.Real
}

// boundedLook is what stands at path, and whether its file system said so in time.
func boundedLook(path string) (config.Look, bool) {
	var p places
	o := p.begin(path, func() config.Look { return lookAt(path) })
	select {
	case <-o.done:
		return o.result, true
	case <-time.After(lookBound):
		return config.Look{Real: path}, false
	}
}

// resolve resolves the symbolic links of path as far as it exists.
func resolve(path string) string {
	rest := ""
	for dir := path; ; dir = filepath.Dir(dir) {
		resolved, err := filepath.EvalSymlinks(dir)
		if err == nil {
			return filepath.Join(resolved, rest)
		}
		if dir == filepath.Dir(dir) {
			return path
		}
		rest = filepath.Join(filepath.Base(dir), rest)
	}
}

// hungReason is why a hung source is not available.
const hungReason = "the file system does not answer"

// errSilent: a look did not end in time.
var errSilent = errors.New(hungReason)

// lookInside asks the file systems of a source something that only they know.
// What they answer is the watcher's affair.
func lookInside(root *safefs.Root, mounts []string) {
	if _, err := root.Identify(); err != nil {
		return
	}
	const most = 100 // Whatever hangs, hangs most often at the top.
	for _, rel := range append([]string{""}, mounts[:min(len(mounts), most)]...) {
		if d, err := root.OpenDir(rel); err == nil {
			d.Close()
		}
	}
}

// bounded runs look, and returns errSilent where that takes longer than bound; the
// look is left behind then.
func bounded(ctx context.Context, bound time.Duration, look func() error) error {
	ended := make(chan error, 1)
	go func() { ended <- look() }()
	t := time.NewTimer(bound)
	defer t.Stop()
	select {
	case err := <-ended:
		return err
	case <-t.C:
		return fmt.Errorf("%w within %v", errSilent, bound)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
