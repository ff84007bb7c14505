package watcher

import (
	"context"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/safefs"
	scanpkg "github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// maxLinked bounds the paths that are remembered by inode. Of more, a change
// under another name is found by the next scan.
const maxLinked = 65_536

// linkCost is how much longer than a search for names the pause after it is.
const linkCost = 20

// linkSet knows the files that have several names: a change under one of them
// makes no event for the others. It may be used concurrently.
type linkSet struct {
	mu     sync.Mutex
	paths  map[fileID][]string
	ids    map[string]fileID
	whole  map[fileID]struct{} // those of paths whose names in the index are all known
	wanted map[fileID]struct{} // those whose names in the index are to be found
	wake   chan struct{}
}

func newLinkSet() *linkSet {
	l := &linkSet{wake: make(chan struct{}, 1)}
	l.reset()
	return l
}

// see notes that path is a name of st and returns the other names.
func (l *linkSet) see(path string, st safefs.Stat) (others []string) {
	if st.Ino == 0 {
		return nil // The file system's inodes say nothing (safefs.RootOptions.SizeMtime).
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	id := idOf(st)
	if old, ok := l.ids[path]; ok && old != id {
		l.remove(path, old)
	}
	if _, ok := l.ids[path]; !ok && len(l.ids) < maxLinked {
		l.ids[path] = id
		l.paths[id] = append(l.paths[id], path)
	}
	for _, p := range l.paths[id] {
		if p != path {
			others = append(others, p)
		}
	}
	return others
}

// forget drops a name that is gone, or of another file by now, and returns the
// other names of the file that it was.
func (l *linkSet) forget(path string) (others []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	id, ok := l.ids[path]
	if !ok {
		return nil
	}
	l.remove(path, id)
	return slices.Clone(l.paths[id])
}

func (l *linkSet) remove(path string, id fileID) {
	delete(l.ids, path)
	names := l.paths[id]
	if i := slices.Index(names, path); i >= 0 {
		names = slices.Delete(names, i, i+1)
	}
	if len(names) == 0 {
		delete(l.paths, id)
		delete(l.whole, id)
	} else {
		l.paths[id] = names
	}
}

// want asks for a search of the index for the other names of a file that
// changed. A file that had one name is not known here when it gets a second
// one, which changes its ctime without an event at the first.
func (l *linkSet) want(st safefs.Stat) {
	if st.Nlink > 1 && st.Ino != 0 {
		l.search(map[fileID]struct{}{idOf(st): {}})
	}
}

// search asks for a search for those of ids of which not all names are known.
func (l *linkSet) search(ids map[fileID]struct{}) {
	l.mu.Lock()
	for id := range ids {
		if _, whole := l.whole[id]; !whole && len(l.wanted) < maxLinked {
			l.wanted[id] = struct{}{}
		}
	}
	wanted := len(l.wanted) > 0
	l.mu.Unlock()
	if !wanted {
		return
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// take returns what is wanted and forgets it.
func (l *linkSet) take() map[fileID]struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	wanted := l.wanted
	l.wanted = make(map[fileID]struct{})
	return wanted
}

// found notes that the search for the names of ids is done.
func (l *linkSet) found(ids map[fileID]struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range ids {
		if len(l.paths[id]) > 0 {
			l.whole[id] = struct{}{}
		}
	}
}

// reset forgets everything; a scan of the whole source fills the set again.
func (l *linkSet) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.paths, l.ids = make(map[fileID][]string), make(map[string]fileID)
	l.whole, l.wanted = make(map[fileID]struct{}), make(map[fileID]struct{})
}

// otherNames makes the other names of a file that changed settle as well.
func (w *Watcher) otherNames(it *item, path string, st safefs.Stat) error {
	for _, other := range w.links.see(path, st) {
		now, err := w.root.Lstat(other)
		if err != nil || idOf(now) != idOf(st) {
			w.links.forget(other)
			continue
		}
		if w.dirty.has(other) || w.sink.Pending(other) {
			continue
		}
		known, ok, err := scanpkg.Lookup(w.index, other)
		if err != nil {
			return err
		}
		if !ok || !scanpkg.Unchanged(&known, now) {
			w.dirty.touch(other, it.handed, it.trigger)
		}
	}
	return nil
}

// goneName makes the other names of a file settle that lost this one.
func (w *Watcher) goneName(path string, at time.Time, trigger archive.Trigger) {
	for _, other := range w.links.forget(path) {
		w.dirty.touch(other, at, trigger)
	}
}

// linkFinder searches the index for the other names of files that changed until
// ctx ends. A search reads the whole index, so it serves all that are wanted.
func (w *Watcher) linkFinder(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-w.links.wake:
		}
		begin := time.Now()
		pause := faultPause
		if wanted := w.links.take(); len(wanted) > 0 {
			if err := w.findNames(ctx, wanted); err != nil {
				w.log.Warn("other names of changed files not found, they are searched again", zap.Error(err))
				w.links.search(wanted)
			} else {
				pause = linkCost * time.Since(begin)
			}
			_ = wait(ctx, pause) // The loop looks at ctx.
		}
	}
}

// pendingNames notes the names of ids among the paths that are on their way.
// They are seen when they are read; it is what comes later that is told.
func (w *Watcher) pendingNames(ids map[fileID]struct{}) {
	for _, path := range w.sink.Paths() {
		st, err := w.root.Lstat(path)
		if _, ok := ids[idOf(st)]; err == nil && ok {
			w.links.see(path, st)
		}
	}
}

// findNames makes every path of the index settle that is a name of one of ids,
// unless the index has it as it is.
func (w *Watcher) findNames(ctx context.Context, ids map[fileID]struct{}) error {
	inodes := make(map[uint64]struct{}, len(ids))
	for id := range ids {
		inodes[id.ino] = struct{}{}
	}
	w.pendingNames(ids) // First: what leaves it before is in the index by then.
	for cur := scanpkg.NewCursor(w.index, ""); ctx.Err() == nil; cur.Next() {
		k, err := cur.Peek()
		if err != nil {
			return err
		}
		if k == nil {
			w.links.found(ids)
			return nil
		}
		if _, ok := inodes[k.Ino]; !ok {
			continue
		}
		st, err := w.root.Lstat(k.Path)
		if _, ok := ids[idOf(st)]; err != nil || !ok || st.Nlink < 2 {
			continue
		}
		w.links.see(k.Path, st)
		if !scanpkg.Unchanged(k, st) {
			w.dirty.touch(k.Path, time.Now(), archive.TriggerEvent)
		}
	}
	return nil
}
