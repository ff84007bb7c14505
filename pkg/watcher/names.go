package watcher

import (
	"context"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/debounce"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

const (
	// maxLinked bounds the paths that are remembered by inode. Of more, a change
	// under another name is found by the next scan.
	maxLinked = 65_536
	// linkCost is how much longer than a search for names the pause after it is.
	linkCost = 20
)

// linkSet knows the files that have several names: a change under one of them
// makes no event for the others. It may be used concurrently.
type linkSet struct {
	mu     sync.Mutex
	paths  map[scan.FileID][]string
	ids    map[string]scan.FileID
	whole  map[scan.FileID]struct{} // Those of paths whose names in the index are all known.
	wanted map[scan.FileID]struct{} // Those whose names in the index are to be found.
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
		return nil // Inodes identify nothing on this file system (safefs.RootOptions.SizeMtime).
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	id := scan.IDOf(st)
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

func (l *linkSet) remove(path string, id scan.FileID) {
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
		l.search(map[scan.FileID]struct{}{scan.IDOf(st): {}})
	}
}

// search asks for a search for those of ids of which not all names are known.
func (l *linkSet) search(ids map[scan.FileID]struct{}) {
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
func (l *linkSet) take() map[scan.FileID]struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	wanted := l.wanted
	l.wanted = make(map[scan.FileID]struct{})
	return wanted
}

// found notes that the search for the names of ids is done.
func (l *linkSet) found(ids map[scan.FileID]struct{}) {
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
	l.paths, l.ids = make(map[scan.FileID][]string), make(map[string]scan.FileID)
	l.whole, l.wanted = make(map[scan.FileID]struct{}), make(map[scan.FileID]struct{})
}

// names has the other names of a changed file debounced as well.
type names struct {
	links *linkSet
	root  *safefs.Root
	index scan.Index
	sink  Sink
	dirty *debounce.Debouncer
	log   *zap.Logger
}

// changed touches the other names of p, a file that changed.
func (n *names) changed(p *debounce.Pending, st safefs.Stat) error {
	for _, other := range n.links.see(p.Path(), st) {
		now, err := n.root.Lstat(other)
		if err != nil || scan.IDOf(now) != scan.IDOf(st) {
			n.links.forget(other)
			continue
		}
		if n.dirty.Has(other) || n.sink.Pending(other) {
			continue
		}
		known, ok, err := scan.Lookup(n.index, other)
		if err != nil {
			return err
		}
		if !ok || !known.Unchanged(now) {
			n.dirty.Touch(other, p.Last(), p.Trigger())
		}
	}
	return nil
}

// gone touches the other names of a file that lost the name path.
func (n *names) gone(path string, at time.Time, trigger archive.Trigger) {
	for _, other := range n.links.forget(path) {
		n.dirty.Touch(other, at, trigger)
	}
}

// run searches the index for the other names of files that changed until ctx
// ends. A search reads the whole index, so it serves all that are wanted.
func (n *names) run(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-n.links.wake:
		}
		begin := time.Now()
		pause := faultPause
		if wanted := n.links.take(); len(wanted) > 0 {
			if err := n.find(ctx, wanted); err != nil {
				n.log.Warn("other names of changed files not found, they are searched again", zap.Error(err))
				n.links.search(wanted)
			} else {
				pause = linkCost * time.Since(begin)
			}
			_ = wait(ctx, pause) // The loop checks ctx.
		}
	}
}

// find touches every path of the index that is a name of one of ids, unless the
// index has it as it is.
func (n *names) find(ctx context.Context, ids map[scan.FileID]struct{}) error {
	inodes := make(map[uint64]struct{}, len(ids))
	for id := range ids {
		inodes[id.Ino] = struct{}{}
	}
	n.findPending(ids) // First: what leaves the sink before that is in the index then.
	for k, err := range scan.Each(n.index, "") {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		if _, ok := inodes[k.Ino]; !ok {
			continue
		}
		st, err := n.root.Lstat(k.Path)
		if _, ok := ids[scan.IDOf(st)]; err != nil || !ok || st.Nlink < 2 {
			continue
		}
		n.links.see(k.Path, st)
		if !k.Unchanged(st) {
			n.dirty.Touch(k.Path, time.Now(), archive.TriggerEvent)
		}
	}
	n.links.found(ids)
	return nil
}

// findPending notes the names of ids among the paths in the sink. They are
// checked when they are read; only later changes have to be noticed.
func (n *names) findPending(ids map[scan.FileID]struct{}) {
	for _, path := range n.sink.Paths() {
		st, err := n.root.Lstat(path)
		if _, ok := ids[scan.IDOf(st)]; err == nil && ok {
			n.links.see(path, st)
		}
	}
}
