package scan

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/ignore"
	"github.com/s3syncd/s3syncd/internal/relpath"
	"github.com/s3syncd/s3syncd/internal/safefs"
)

const (
	// heldDepth is how many directories a scan keeps open: one further down is
	// opened again after each of its subdirectories.
	heldDepth = 16
	// listBudget bounds the bytes of the entries that a scan holds: larger
	// directories are read in parts of at least listLeast bytes.
	listBudget = 64 << 20
	listLeast  = 64 << 10
	entryBytes = 48 // Of an entry, beside its name.
	// keptEntries is how large a list may be whose memory is used again.
	keptEntries = 1024
)

// errLeave: a directory that is being scanned is not there any more, which has
// been dealt with.
var errLeave = errors.New("the directory is left")

// walk is one scan. It walks the tree and merges what it sees with the index.
type walk struct {
	*Source
	merge  merge
	flat   bool
	rest   func(ctx context.Context) error
	res    *Result
	bufs   [][]safefs.Entry // By depth.
	held   int              // Bytes of the entries in bufs.
	budget int              // For them.
	above  []safefs.Stat    // The current directory and those above it.
	links  linkLimit
}

// noteAncestors notes the directories above dir: a symbolic link may point to one.
func (w *walk) noteAncestors(dir string) {
	if !w.Root.Options().Follow {
		return
	}
	for dir != "" {
		dir = relpath.Parent(dir)
		if st, err := w.Root.Stat(dir); err == nil {
			w.above = append(w.above, st)
		}
	}
}

// unopened handles a directory that cannot be listed: if it is gone its entries
// are missing, any other fault keeps them.
func (w *walk) unopened(ctx context.Context, dir string, err error) error {
	switch {
	case errors.Is(err, safefs.ErrRootChanged):
		return err
	case isGone(err) && dir != "":
		return nil
	case errors.Is(err, safefs.ErrOtherMount):
		w.res.Excluded++
		return w.merge.keepDir(ctx, dir)
	case errors.Is(err, safefs.ErrPseudo):
		w.res.Pseudo++
		return w.merge.keepDir(ctx, dir)
	case dir == "":
		return err
	}
	w.res.Unreadable++
	return w.merge.refuseDir(ctx, dir, err)
}

// directory scans d and its subdirectories. It returns d, or what it was closed
// and opened again as.
func (w *walk) directory(ctx context.Context, d *safefs.Dir, depth int) (*safefs.Dir, error) {
	w.res.Directories++
	w.links.count()
	self, err := d.Self()
	if err != nil {
		return d, w.unopened(ctx, d.Path(), err)
	}
	w.above = append(w.above, self)
	defer func() { w.above = w.above[:len(w.above)-1] }()

	var last *safefs.Entry
	for more := true; more; {
		var list entryList
		if list, err = w.list(d, depth, last); err != nil {
			return d, w.unopened(ctx, d.Path(), err)
		}
		more = list.more
		d, err = w.entries(ctx, d, list.entries, depth)
		last = w.release(depth, list)
		if errors.Is(err, errLeave) {
			return d, nil
		}
		if err != nil {
			return d, err
		}
	}
	return d, w.rest(ctx)
}

// entries decides about entries of d.
func (w *walk) entries(ctx context.Context, d *safefs.Dir, entries []safefs.Entry, depth int) (*safefs.Dir, error) {
	for i := range entries {
		if !entries[i].IsDir() {
			if err := w.entry(ctx, d, &entries[i]); err != nil {
				return d, err
			}
			continue
		}
		again, err := w.subdirectory(ctx, d, &entries[i], depth)
		if again != nil {
			d = again
		}
		if err != nil {
			return d, err
		}
	}
	return d, nil
}

// entryList is a part of a directory.
type entryList struct {
	entries []safefs.Entry
	bytes   int
	more    bool
}

// list reads a part of d, from after last on. With the first part it applies the
// ignore file.
func (w *walk) list(d *safefs.Dir, depth int, last *safefs.Entry) (l entryList, err error) {
	if depth == len(w.bufs) {
		w.bufs = append(w.bufs, nil)
	}
	size := max(listLeast, (w.budget-w.held)/4)
	if l.entries, l.more, err = d.EntriesAfter(last, size, w.bufs[depth]); err != nil {
		return l, err
	}
	w.bufs[depth] = l.entries
	for i := range l.entries {
		l.bytes += len(l.entries[i].Name) + entryBytes
	}
	w.held += l.bytes
	if last != nil {
		return l, nil
	}

	found, err := w.Rules.Enter(w.Root, d.Path(), hasIgnoreFile(d, l.entries, l.more))
	if err != nil {
		w.Log.Warn("ignore file not read, the patterns that were read before stay in force", zap.Error(err))
	}
	if found != nil {
		w.res.ConfigFiles = append(w.res.ConfigFiles, *found)
	}
	return l, nil
}

// hasIgnoreFile reports whether d has an ignore file, which may come after the
// first entries.
func hasIgnoreFile(d *safefs.Dir, entries []safefs.Entry, more bool) bool {
	for i := range entries {
		if entries[i].Name == ignore.FileName {
			return entries[i].IsRegular()
		}
	}
	if !more {
		return false
	}
	st, err := d.Stat(ignore.FileName)
	return err == nil && st.IsRegular()
}

// release frees the memory of l and returns its last entry, nil if it is empty.
func (w *walk) release(depth int, l entryList) (last *safefs.Entry) {
	w.held -= l.bytes
	if n := len(l.entries); n > 0 {
		e := l.entries[n-1]
		e.Name = strings.Clone(e.Name)
		last = &e
	}
	clear(l.entries)
	if cap(l.entries) > keptEntries {
		w.bufs[depth] = nil
	}
	return last
}

// subdirectory decides about a subdirectory of d and scans it. It returns what d
// was opened again as, nil if it stayed open.
func (w *walk) subdirectory(ctx context.Context, d *safefs.Dir, e *safefs.Entry, depth int) (*safefs.Dir, error) {
	path := relpath.Join(d.Path(), e.Name)
	if err := w.merge.drain(ctx, path+"/"); err != nil {
		return nil, err
	}
	switch {
	case w.IsReserved(path):
		w.res.Reserved++
		return nil, w.merge.refuseDir(ctx, path, ErrReserved)
	case w.Rules.ExcludedHere(path, true):
		w.res.Excluded++
		return nil, w.merge.keepDir(ctx, path)
	case w.flat:
		return nil, w.merge.keepDir(ctx, path)
	}
	if err := w.TooDeep(path); err != nil {
		w.res.Limited++
		return nil, w.merge.refuseDir(ctx, path, err)
	}
	sub, err := d.OpenDir(e.Name)
	if err != nil {
		return nil, w.unopened(ctx, path, err)
	}
	if e.Linked {
		leave, err := w.link(ctx, path, sub)
		if leave || err != nil {
			sub.Close()
			return nil, err
		}
		defer w.links.leave()
	}
	if depth < heldDepth {
		sub, err = w.directory(ctx, sub, depth+1)
		sub.Close()
		return nil, err
	}
	return w.deeper(ctx, d, sub, depth)
}

// deeper scans sub while d, the directory above it, is closed, and opens that
// again: from sub if it is still there, else by its path.
func (w *walk) deeper(ctx context.Context, d, sub *safefs.Dir, depth int) (*safefs.Dir, error) {
	self := w.above[len(w.above)-1]
	d.Close()
	sub, err := w.directory(ctx, sub, depth+1)
	defer func() { sub.Close() }()
	if err != nil {
		return nil, err
	}
	if again, err := sub.Parent(d.Path(), self); err == nil {
		return again, nil
	}
	again, err := w.reopen(d.Path(), self) // sub was a link, or moved.
	if err == nil {
		return again, nil
	}
	if err := w.unopened(ctx, d.Path(), err); err != nil {
		return nil, err
	}
	return nil, errLeave
}

// reopen opens the directory self by its path.
func (w *walk) reopen(dir string, self safefs.Stat) (*safefs.Dir, error) {
	d, err := w.Root.OpenDir(dir)
	if err != nil {
		return nil, err
	}
	now, err := d.Self()
	if err == nil && IDOf(now) != IDOf(self) {
		err = fmt.Errorf("scan %s: the directory was replaced during the scan", dir)
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// link decides about a symbolic link to sub.
func (w *walk) link(ctx context.Context, path string, sub *safefs.Dir) (leave bool, err error) {
	self, err := sub.Self()
	if err != nil {
		return true, w.unopened(ctx, path, err)
	}
	loops := func(above safefs.Stat) bool { return IDOf(above) == IDOf(self) }
	if slices.ContainsFunc(w.above, loops) {
		w.res.Symlinks++
		return true, nil
	}
	report, err := w.links.enter(IDOf(self))
	if err == nil {
		return false, nil
	}
	w.res.Limited++
	if report {
		w.OverLinked.add(path)
		return true, w.merge.refuseDir(ctx, path, err)
	}
	return true, w.merge.keepDir(ctx, path)
}

// entry decides about anything that is not a directory.
func (w *walk) entry(ctx context.Context, d *safefs.Dir, e *safefs.Entry) error {
	path := relpath.Join(d.Path(), e.Name)
	if err := w.merge.drain(ctx, path); err != nil {
		return err
	}
	switch {
	case w.IsReserved(path):
		w.res.Reserved++
		return w.merge.refuse(ctx, path, ErrReserved)
	case w.Rules.ExcludedHere(path, false):
		w.res.Excluded++
		return w.merge.keep(path)
	case e.Err != nil:
		return w.unknown(ctx, path, e.Err)
	case e.IsSymlink():
		w.res.Symlinks++
		return nil // What the index has of it is missing.
	case !e.IsRegular():
		w.res.Special++
		return nil
	}

	st, err := d.StatEntry(*e)
	switch {
	case err != nil:
		return w.unknown(ctx, path, err)
	case !st.IsRegular():
		return nil // Changed since it was listed: an event follows.
	}
	if left, err := w.mountedAlone(d, e, path, st); left || err != nil {
		return err
	}
	if st.Nlink > 1 {
		return w.linked(ctx, path, st)
	}
	return w.merge.file(ctx, path, st)
}

// mountedAlone leaves out a file that is a mount point by itself and not part of
// the source.
func (w *walk) mountedAlone(d *safefs.Dir, e *safefs.Entry, path string, st safefs.Stat) (left bool, err error) {
	if e.Linked || st.Dev == w.above[len(w.above)-1].Dev && !w.MountPoint(path) {
		return false, nil
	}
	switch err := d.Admits(e.Name); {
	case errors.Is(err, safefs.ErrOtherMount):
		w.res.Excluded++
	case errors.Is(err, safefs.ErrPseudo):
		w.res.Pseudo++
	default:
		return false, nil // Any other fault shows when the file is opened.
	}
	return true, w.merge.keep(path)
}

// unknown handles a name of which nothing is known because of err, not even
// whether it is a directory: it cannot be archived.
func (w *walk) unknown(ctx context.Context, path string, err error) error {
	switch {
	case isGone(err):
		return nil // Since it was listed.
	case errors.Is(err, safefs.ErrRootChanged):
		return err
	case w.Rules.ExcludedHere(path, true):
		w.res.Excluded++
		return w.merge.keep(path)
	}
	w.res.Unreadable++
	return w.merge.refuse(ctx, path, err)
}

// linked decides about a regular file with several names. One that the policy
// refuses is a fault, unless the configuration asks for it to be skipped.
func (w *walk) linked(ctx context.Context, path string, st safefs.Stat) error {
	k, err := w.merge.at(path)
	if err != nil {
		return err
	}
	archived := k != nil && k.Stored && st.Ino != 0 && k.Ino == st.Ino && k.UID == st.UID
	why := w.Hardlinks.Check(st, w.above[len(w.above)-1], archived)
	if why == nil {
		w.Linked(path, st)
		return w.merge.file(ctx, path, st)
	}
	w.res.Hardlinks++
	if errors.Is(why, safefs.ErrLinkSkipped) {
		return w.merge.keep(path)
	}
	return w.merge.refuse(ctx, path, why)
}

func isGone(err error) bool { return errors.Is(err, fs.ErrNotExist) }
