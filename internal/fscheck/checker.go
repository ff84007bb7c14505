// Package fscheck asks file systems that may not answer: a caller that waits for one
// waits in the kernel and cannot be interrupted, so each question has a goroutine
// of its own and is left behind when it takes too long.
package fscheck

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

// pathBound is how long checking a path may take. A file system that does not
// answer must hold up neither a start nor a reload.
const pathBound = 5 * time.Second

// A source is checked each Pause; a check that lasts longer than HungAfter makes
// it hung.
const (
	Pause     = 10 * time.Second
	HungAfter = 30 * time.Second
)

// Checker checks the paths of a configuration. A check that does not end in time
// is left behind and not begun again until it has ended. The zero value is ready;
// its methods may be called concurrently.
type Checker struct {
	mu   sync.Mutex
	open map[string]*Check // by what is checked
}

// Check is one check, which may still be under way.
type Check struct {
	Since  time.Time
	Done   chan struct{}
	result config.Look
}

// Found is what the checks that ended in time found, by path.
type Found map[string]config.Look

// of returns what is at path; a path that was not checked in time is taken as it is.
func (f Found) of(path string) config.Look {
	if l, ok := f[path]; ok {
		return l
	}
	return config.Look{Real: path}
}

// All checks every path that c names for a directory of ours or of a source.
func (p *Checker) All(c *config.Config) Found {
	paths := []string{c.StateDir, c.Manifest.LocalDir, c.Admin.Socket}
	for _, s := range c.Sources {
		paths = append(paths, s.Path)
	}
	bound := time.NewTimer(pathBound)
	defer bound.Stop()
	checks := make([]*Check, len(paths))
	for i, path := range paths {
		checks[i] = p.Begin(path, func() config.Look { return inspect(path) })
	}
	f := Found{}
	expired := false
	for i, path := range paths {
		if !expired {
			select {
			case <-checks[i].Done:
			case <-bound.C:
				expired = true
			}
		}
		if isClosed(checks[i].Done) {
			f[path] = checks[i].result
		}
	}
	return f
}

// Placed checks every path of c and refuses what CheckPlaces refuses.
func (p *Checker) Placed(c *config.Config) (Found, error) {
	f := p.All(c)
	return f, c.CheckPlaces(f.of)
}

// Begin begins the check named what, or joins the one that is under way.
func (p *Checker) Begin(what string, check func() config.Look) *Check {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o := p.open[what]; o != nil && !isClosed(o.Done) {
		return o
	}
	if p.open == nil {
		p.open = map[string]*Check{}
	}
	o := &Check{Since: time.Now(), Done: make(chan struct{})}
	p.open[what] = o
	go func() {
		defer close(o.Done)
		o.result = check()
	}()
	return o
}

// inspect checks path, for as long as the file system takes.
func inspect(path string) config.Look {
	fi, err := os.Stat(path)
	return config.Look{Real: resolve(path), There: err == nil, File: err == nil && !fi.IsDir()}
}

// RealPath is path without symbolic links, as far as it exists and its file
// system answers in time.
func RealPath(path string) string {
	l, _ := Path(path)
	return l.Real
}

// Path returns what is at path, and whether its file system said so in time.
func Path(path string) (config.Look, bool) {
	var p Checker
	o := p.Begin(path, func() config.Look { return inspect(path) })
	select {
	case <-o.Done:
		return o.result, true
	case <-time.After(pathBound):
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

// SilentReason is what is wrong with a file system that does not answer.
const SilentReason = "the file system does not answer"

// ErrSilent reports a check that did not end in time.
var ErrSilent = errors.New(SilentReason)

// Inside asks the file systems of a source something that only they know. What
// they answer is the watcher's affair.
func Inside(root *safefs.Root, mounts []string) {
	if _, err := root.Identify(); err != nil {
		return
	}
	const most = 100 // What hangs is most often at the top.
	for _, rel := range append([]string{""}, mounts[:min(len(mounts), most)]...) {
		if d, err := root.OpenDir(rel); err == nil {
			d.Close()
		}
	}
}

// Within runs check, and returns ErrSilent where that takes longer than bound; the
// check is left behind then.
func Within(ctx context.Context, bound time.Duration, check func() error) error {
	ended := make(chan error, 1)
	go func() { ended <- check() }()
	t := time.NewTimer(bound)
	defer t.Stop()
	select {
	case err := <-ended:
		return err
	case <-t.C:
		return fmt.Errorf("%w within %v", ErrSilent, bound)
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
