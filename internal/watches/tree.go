package watches

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/s3syncd/s3syncd/internal/ignore"
	"github.com/s3syncd/s3syncd/internal/relpath"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// placeTries bounds how often in a row a directory that keeps being replaced is
// watched again.
const placeTries = 3

// reshaped says where a directory may have come or gone.
type reshaped struct {
	path      string
	unwatched bool // Only if it is not watched.
	retry     bool // Instead of a path: what could not be watched is tried again.
}

// node is one watched directory.
type node struct {
	path                      string
	id                        scan.FileID
	parent, child, prev, next *node // next and prev are its siblings.
}

// tree manages the watches of one notifier. It knows every watched directory by
// path and by inode, because the kernel knows it by inode alone: a watch that is
// added to an inode which has one under an old path silently stays at the old
// path. Its methods are called by one goroutine.
type tree struct {
	w      *Watches
	n      Notifier
	base   string // Absolute, with a slash at its end.
	byPath map[string]*node
	byID   map[scan.FileID]*node
	first  bool // A scan follows: nothing needs to be listed.
	warned bool // Of the limit.
}

func newTree(w *Watches, n Notifier, base string) *tree {
	return &tree{w: w, n: n, base: base, byPath: make(map[string]*node), byID: make(map[scan.FileID]*node)}
}

// abs returns the absolute path that the notifier knows path by, and path as a
// part of it, so that both share their memory.
func (t *tree) abs(path string) (string, string) {
	if path == "" {
		if t.base == "/" {
			return "/", ""
		}
		return t.base[:len(t.base)-1], ""
	}
	a := t.base + path
	return a, a[len(t.base):]
}

// place watches the whole source for the first time. A scan has to follow.
func (t *tree) place(ctx context.Context, network bool) {
	if network {
		t.w.polls.add("", pollNetwork, 0)
	}
	t.first = true
	t.scan(ctx, "")
	t.first = false
	if network {
		t.w.polls.counted("", int64(len(t.byPath)))
	}
	t.report()
}

// run follows the changes of the tree. It returns errLost when events were lost,
// not before earliest, and nil when a new notifier was asked for.
func (t *tree) run(ctx context.Context, lost <-chan struct{}, earliest time.Time) error {
	var buf []reshaped
	var renew <-chan time.Time
	for {
		items := t.w.reshaped.take(buf)
		for _, r := range items {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			t.check(ctx, r)
		}
		if buf = items; len(items) > 0 {
			t.report()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.w.renewal:
			return nil
		case <-lost:
			if renew == nil {
				renew = time.After(time.Until(earliest))
			}
		case <-renew:
			return errLost
		case <-t.w.reshaped.wake:
		}
	}
}

// check handles one place where a directory may have come or gone.
func (t *tree) check(ctx context.Context, r reshaped) {
	if r.retry {
		t.retry(ctx)
		return
	}
	n := t.byPath[r.path]
	if n != nil && r.unwatched {
		return
	}
	known := n != nil
	if known {
		t.drop(n)
	}
	if t.byPath[relpath.Parent(r.path)] == nil {
		return // Found when its parent is.
	}
	st, err := t.w.o.Scope.Root.Lstat(r.path)
	if err == nil && st.IsSymlink() && t.w.o.Scope.Root.Options().Follow {
		t.linked(r.path)
		return
	}
	if err != nil || !st.IsDir() {
		if known {
			t.list(r.path) // What was below it is gone.
		}
		return
	}
	t.scan(ctx, r.path)
}

// linked handles a symbolic link that is followed: its target changes without an
// event at the link's path.
func (t *tree) linked(path string) {
	st, err := t.w.o.Scope.Root.Stat(path)
	switch {
	case err != nil:
	case st.IsDir() && !t.loops(path, scan.IDOf(st)):
		t.w.polls.add(path, pollAlias, 1)
		t.list(path)
		t.w.o.OnPoll()
	case st.IsRegular():
		t.w.polls.addList(relpath.Parent(path))
	}
}

// loops reports whether id is a directory that contains path.
func (t *tree) loops(path string, id scan.FileID) bool {
	for path != "" {
		path = relpath.Parent(path)
		if n := t.byPath[path]; n != nil && n.id == id {
			return true
		}
	}
	return false
}

// list has a directory compared with the index once it is quiet.
func (t *tree) list(path string) { t.w.o.Dirty.List(path, time.Now(), archive.TriggerEvent) }

// scan watches path and every directory below it. Each is watched before it is
// listed, so that nothing appears in between unseen.
func (t *tree) scan(ctx context.Context, path string) {
	stack := []string{path}
	for len(stack) > 0 && ctx.Err() == nil {
		dir := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if !t.w.o.Scope.Enters(dir) {
			continue
		}
		stack = t.enter(dir, stack)
		t.w.watched.Store(int64(len(t.byPath))) // The status shows it grow.
	}
}

// enter watches one directory and appends its subdirectories to subs.
func (t *tree) enter(dir string, subs []string) []string {
	for range placeTries {
		d, err := t.w.o.Scope.Root.OpenDir(dir)
		if err != nil {
			return subs // Gone, or unreadable: the next scan reports it.
		}
		watched, changed := t.watch(dir, d)
		if watched {
			subs = t.contents(d, subs)
		}
		d.Close()
		if !changed {
			return subs
		}
	}
	t.w.reshaped.add(reshaped{path: dir}) // It keeps being replaced.
	return subs
}

// watch puts a watch on d, which was opened at dir. Changed says that something
// else is at dir now.
func (t *tree) watch(dir string, d *safefs.Dir) (watched, changed bool) {
	st, err := d.Self()
	if err != nil {
		return false, false
	}
	id := scan.IDOf(st)
	if t.alias(dir, id) {
		return false, false
	}
	if n := t.byPath[dir]; n != nil {
		t.drop(n)
	}
	abs, path := t.abs(dir)
	if err := t.n.Add(abs); err != nil {
		t.refused(dir, err)
		return false, false
	}
	now, err := t.w.o.Scope.Root.Lstat(dir)
	if err != nil || scan.IDOf(now) != id {
		t.remove(abs)
		return false, err == nil && now.IsDir()
	}
	t.insert(path, id)
	return true, false
}

// alias handles a directory that is watched under another path. If it is not at
// that path any more, it moved: the old watches go. If it is, it is mounted twice,
// and this path is polled.
func (t *tree) alias(dir string, id scan.FileID) bool {
	q := t.byID[id]
	if q == nil || q.path == dir {
		return false
	}
	old := q.path
	if st, err := t.w.o.Scope.Root.Lstat(old); err == nil && scan.IDOf(st) == id {
		t.w.o.Log.Warn("directory is watched under another path already, it is polled", zap.String("path", dir), zap.String("watched", old))
		t.w.polls.add(dir, pollAlias, t.w.countDirs(dir))
		return true
	}
	t.drop(q)
	t.list(old)
	t.w.reshaped.add(reshaped{path: old})
	return false
}

// refused handles a directory that cannot be watched.
func (t *tree) refused(dir string, err error) {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR), errors.Is(err, fs.ErrPermission):
		return // Gone, or unreadable.
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.ENOMEM):
		t.w.polls.add(dir, pollLimit, t.w.countDirs(dir))
	case errors.Is(err, unix.ENAMETOOLONG):
		t.w.polls.add(dir, pollDeep, t.w.countDirs(dir))
	default:
		t.w.polls.add(dir, pollFailed, t.w.countDirs(dir))
		t.w.o.Log.Warn("directory cannot be watched, it is polled and tried again", zap.String("path", dir), zap.Error(err))
	}
}

// contents lists a directory that is watched now.
func (t *tree) contents(d *safefs.Dir, subs []string) []string {
	dir := d.Path()
	present := false
	err := d.Visit(func(e *safefs.Entry) bool {
		switch {
		case e.Linked:
			t.linked(relpath.Join(dir, e.Name))
		case e.IsDir():
			subs = append(subs, relpath.Join(dir, e.Name))
		}
		present = present || e.Name == ignore.FileName && e.IsRegular()
		return true
	})
	if err != nil {
		return subs // The next scan reports it.
	}
	if _, err := t.w.o.Scope.Rules.Enter(t.w.o.Scope.Root, dir, present); err != nil {
		t.w.o.Log.Warn("ignore file not read, the patterns that were read before stay in force", zap.Error(err))
	}
	if !t.first {
		t.list(dir)
	}
	return subs
}

func (t *tree) insert(path string, id scan.FileID) {
	n := &node{path: path, id: id}
	if path != "" {
		n.parent = t.byPath[relpath.Parent(path)]
	}
	if p := n.parent; p != nil {
		if n.next = p.child; n.next != nil {
			n.next.prev = n
		}
		p.child = n
	}
	t.byPath[path], t.byID[id] = n, n
}

// drop removes the watches of n and of everything below it.
func (t *tree) drop(n *node) {
	t.unlink(n)
	t.w.polls.removeBelow(n.path)
	stack := []*node{n}
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for c := n.child; c != nil; c = c.next {
			stack = append(stack, c)
		}
		abs, _ := t.abs(n.path)
		t.remove(abs)
		delete(t.byPath, n.path)
		if t.byID[n.id] == n {
			delete(t.byID, n.id)
		}
	}
}

// remove removes a watch. The kernel may have done so already.
func (t *tree) remove(abs string) { _ = t.n.Remove(abs) }

func (t *tree) unlink(n *node) {
	if n.parent != nil && n.parent.child == n {
		n.parent.child = n.next
	}
	if n.prev != nil {
		n.prev.next = n.next
	}
	if n.next != nil {
		n.next.prev = n.prev
	}
	n.parent, n.prev, n.next = nil, nil, nil
}

// retry watches what could not be watched, as far as that is possible now.
func (t *tree) retry(ctx context.Context) {
	for _, dir := range t.w.polls.retryable() {
		if dir == "" {
			t.w.Renew()
			return
		}
		if t.byPath[relpath.Parent(dir)] == nil {
			continue
		}
		t.w.polls.removeBelow(dir)
		t.scan(ctx, dir)
		if t.byPath[dir] == nil {
			return // Still refused, or gone.
		}
	}
}

// report sets the gauges, and warns once about a limit that is too low.
func (t *tree) report() {
	watched := len(t.byPath)
	t.w.watched.Store(int64(watched))
	t.w.gauges()
	_, limited := t.w.polls.count()
	if limited == 0 {
		t.warned = false
		return
	}
	if t.warned {
		return
	}
	t.warned = true
	t.w.o.Log.Warn("the limit of inotify watches is too low: some directories are polled; raise sysctl fs.inotify.max_user_watches, which is used without a restart",
		zap.Int("watched", watched), zap.Int64("polled", limited), zap.Int64("needed", int64(watched)+limited))
}
