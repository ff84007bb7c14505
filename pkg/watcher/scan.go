package watcher

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/ignore"
	"github.com/s3syncd/s3syncd/internal/relpath"
	"github.com/s3syncd/s3syncd/internal/safefs"
	scanpkg "github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

const (
	// How many directories a scan keeps open: those further down are
	// opened again after each of their subdirectories.
	heldDepth = 16
	// The bytes of the entries that a scan holds: larger directories are read in
	// parts, of listLeast bytes at least.
	listBudget = 64 << 20
	listLeast  = 64 << 10
	entryBytes = 48 // of an entry, beside its name
	// How large a list may be whose memory is used again.
	keptEntries = 1024
)

// errBlocked: the sink is full, and the caller does not wait.
var errBlocked = errors.New("the sink is full")

// policy says what becomes of what a scan finds.
type policy interface {
	// differs: the file at path is not as the index has it; known is nil for a
	// new one.
	differs(ctx context.Context, s *scan, path string, st safefs.Stat, known *scanpkg.Known) error
	// missing: the index has k, the source does not.
	missing(ctx context.Context, s *scan, k scanpkg.Known) error
	// refuse: path, a file or directory, cannot be archived.
	refuse(ctx context.Context, s *scan, path string, err error) error
	// same: the file is as the index has it.
	same(k *scanpkg.Known, st safefs.Stat)
	// rest is called after each directory.
	rest(ctx context.Context) error
}

// scan merges one directory, or everything below it, with the index. Its memory
// grows with the depth of the tree and the largest directory alone.
type scan struct {
	w       *Watcher
	policy  policy
	trigger archive.Trigger
	flat    bool // this directory alone
	cur     *scanpkg.Cursor
	res     ScanResult
	bufs    [][]safefs.Entry // by depth
	held    int              // bytes of the entries in bufs
	budget  int              // for them
	above   []safefs.Stat    // the directories that lead to the current one
	links   linkLimit
}

func (w *Watcher) newScan(dir string, trigger archive.Trigger, p policy) *scan {
	return &scan{w: w, policy: p, trigger: trigger, cur: scanpkg.NewCursor(w.index, dir), res: ScanResult{Trigger: trigger}, budget: listBudget}
}

// run scans. An error means that the scan is not complete; what it found until
// then holds.
func (s *scan) run(ctx context.Context) error {
	s.cur.ReadAhead = !s.flat // A flat one passes over what it would read.
	defer s.cur.Close()
	s.res.Start = time.Now()
	s.ancestors()
	err := s.top(ctx)
	if err == nil {
		err = s.drain(ctx, "")
	}
	s.res.End = time.Now()
	return err
}

// ancestors notes the directories above the one that is scanned, which a
// symbolic link may lead to.
func (s *scan) ancestors() {
	if !s.w.root.Options().Follow {
		return
	}
	for dir := s.cur.Dir; dir != ""; {
		dir = relpath.Parent(dir)
		if st, err := s.w.root.Stat(dir); err == nil {
			s.above = append(s.above, st)
		}
	}
}

func (s *scan) top(ctx context.Context) error {
	d, err := s.w.root.OpenDir(s.cur.Dir)
	if err != nil {
		return s.unopened(ctx, s.cur.Dir, err)
	}
	d, err = s.walk(ctx, d, 0)
	d.Close()
	return err
}

// unopened handles a directory that cannot be listed: one that is gone leaves
// its entries missing, any other fault keeps them.
func (s *scan) unopened(ctx context.Context, dir string, err error) error {
	switch {
	case errors.Is(err, safefs.ErrRootChanged):
		return err
	case errors.Is(err, fs.ErrNotExist) && dir != "":
		return nil
	case errors.Is(err, safefs.ErrOtherMount):
		s.res.Excluded++
		return s.keepDir(ctx, dir)
	case errors.Is(err, safefs.ErrPseudo):
		s.res.Pseudo++
		return s.keepDir(ctx, dir)
	}
	if dir == "" {
		return err
	}
	s.res.Unreadable++
	return s.refuseDir(ctx, dir, err)
}

// refuseDir reports that dir, with everything below it, cannot be archived.
func (s *scan) refuseDir(ctx context.Context, dir string, err error) error {
	if err := s.keepDir(ctx, dir); err != nil {
		return err
	}
	return s.policy.refuse(ctx, s, dir, err)
}

// walk scans d and goes into its subdirectories. It returns d, or what it was
// closed and opened again as.
func (s *scan) walk(ctx context.Context, d *safefs.Dir, depth int) (*safefs.Dir, error) {
	s.res.directories++
	s.links.count()
	self, err := d.Self()
	if err != nil {
		return d, s.unopened(ctx, d.Path(), err)
	}
	s.above = append(s.above, self)
	defer func() { s.above = s.above[:len(s.above)-1] }()
	var last *safefs.Entry
	for more := true; more; {
		var list entryList
		if list, err = s.list(d, depth, last); err != nil {
			return d, s.unopened(ctx, d.Path(), err)
		}
		more = list.more
		d, err = s.entries(ctx, d, list.entries, depth)
		last = s.release(depth, list)
		if errors.Is(err, errLeave) {
			return d, nil
		}
		if err != nil {
			return d, err
		}
	}
	return d, s.policy.rest(ctx)
}

// entries decides about entries of d.
func (s *scan) entries(ctx context.Context, d *safefs.Dir, entries []safefs.Entry, depth int) (*safefs.Dir, error) {
	for i := range entries {
		if !entries[i].IsDir() {
			if err := s.entry(ctx, d, &entries[i]); err != nil {
				return d, err
			}
			continue
		}
		again, err := s.directory(ctx, d, &entries[i], depth)
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

// list reads a part of d, from behind last on. The first part says what the
// ignore file is.
func (s *scan) list(d *safefs.Dir, depth int, last *safefs.Entry) (l entryList, err error) {
	if depth == len(s.bufs) {
		s.bufs = append(s.bufs, nil)
	}
	size := max(listLeast, (s.budget-s.held)/4)
	if l.entries, l.more, err = d.EntriesAfter(last, size, s.bufs[depth]); err != nil {
		return l, err
	}
	s.bufs[depth] = l.entries
	for i := range l.entries {
		l.bytes += len(l.entries[i].Name) + entryBytes
	}
	s.held += l.bytes
	if last == nil {
		s.ignoreFile(d, l)
	}
	return l, nil
}

// release gives back what l takes and returns its last entry, nil for none.
func (s *scan) release(depth int, l entryList) (last *safefs.Entry) {
	s.held -= l.bytes
	if n := len(l.entries); n > 0 {
		e := l.entries[n-1]
		e.Name = strings.Clone(e.Name)
		last = &e
	}
	clear(l.entries)
	if cap(l.entries) > keptEntries {
		s.bufs[depth] = nil
	}
	return last
}

func (s *scan) ignoreFile(d *safefs.Dir, l entryList) {
	found, err := s.w.ign.Enter(s.w.root, d.Path(), hasIgnoreFile(d, l.entries, l.more))
	if err != nil {
		s.w.log.Warn("ignore file not read, what was known of it stays in force", zap.Error(err))
	}
	if found != nil {
		s.res.ConfigFiles = append(s.res.ConfigFiles, *found)
	}
}

// hasIgnoreFile reports whether d has an ignore file, which may be behind the
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

// reopen opens a directory that was closed while its subdirectory was scanned.
func (s *scan) reopen(dir string, self safefs.Stat) (*safefs.Dir, error) {
	d, err := s.w.root.OpenDir(dir)
	if err != nil {
		return nil, err
	}
	now, err := d.Self()
	if err == nil && (now.Dev != self.Dev || now.Ino != self.Ino) {
		err = fmt.Errorf("scan %s: the directory was replaced meanwhile", dir)
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// directory decides about a subdirectory of d and scans it. It returns what d
// was opened again as, nil where it stayed open.
func (s *scan) directory(ctx context.Context, d *safefs.Dir, e *safefs.Entry, depth int) (*safefs.Dir, error) {
	path := relpath.Join(d.Path(), e.Name)
	if err := s.drain(ctx, path+"/"); err != nil {
		return nil, err
	}
	switch {
	case s.w.reserved(path):
		s.res.Reserved++
		return nil, s.refuseDir(ctx, path, ErrReserved)
	case s.w.ign.ExcludedHere(path, true):
		s.res.Excluded++
		return nil, s.keepDir(ctx, path)
	case s.flat:
		return nil, s.keepDir(ctx, path)
	}
	if err := s.w.o.TooDeep(path); err != nil {
		s.res.Limited++
		return nil, s.refuseDir(ctx, path, err)
	}
	sub, err := d.OpenDir(e.Name)
	if err != nil {
		return nil, s.unopened(ctx, path, err)
	}
	if e.Linked {
		leave, err := s.link(ctx, path, sub)
		if leave || err != nil {
			sub.Close()
			return nil, err
		}
		defer s.links.leave()
	}
	if depth < heldDepth {
		sub, err = s.walk(ctx, sub, depth+1)
		sub.Close()
		return nil, err
	}
	return s.deeper(ctx, d, sub, depth)
}

// deeper scans sub while d, the directory above it, is closed.
func (s *scan) deeper(ctx context.Context, d, sub *safefs.Dir, depth int) (*safefs.Dir, error) {
	self := s.above[len(s.above)-1]
	d.Close()
	sub, err := s.walk(ctx, sub, depth+1)
	var again *safefs.Dir
	if err == nil {
		again, err = s.back(ctx, sub, d.Path(), self)
	}
	sub.Close()
	return again, err
}

// back opens dir again, from sub where that is below it.
func (s *scan) back(ctx context.Context, sub *safefs.Dir, dir string, self safefs.Stat) (*safefs.Dir, error) {
	if again, err := sub.Parent(dir, self); err == nil {
		return again, nil
	}
	again, err := s.reopen(dir, self) // It was a link, or moved.
	if err == nil {
		return again, nil
	}
	if err := s.unopened(ctx, dir, err); err != nil {
		return nil, err
	}
	return nil, errLeave
}

// link decides about a symbolic link to sub.
func (s *scan) link(ctx context.Context, path string, sub *safefs.Dir) (leave bool, err error) {
	self, err := sub.Self()
	if err != nil {
		return true, s.unopened(ctx, path, err)
	}
	if s.loops(self) {
		s.res.Symlinks++
		return true, nil
	}
	report, err := s.links.enter(idOf(self))
	if err == nil {
		return false, nil
	}
	s.res.Limited++
	if report {
		s.w.overLinked.add(path)
		return true, s.refuseDir(ctx, path, err)
	}
	return true, s.keepDir(ctx, path)
}

// loops reports whether self is one of the directories above.
func (s *scan) loops(self safefs.Stat) bool {
	for _, a := range s.above {
		if a.Dev == self.Dev && a.Ino == self.Ino {
			return true
		}
	}
	return false
}

// entry decides about anything that is not a directory.
func (s *scan) entry(ctx context.Context, d *safefs.Dir, e *safefs.Entry) error {
	path := relpath.Join(d.Path(), e.Name)
	if err := s.drain(ctx, path); err != nil {
		return err
	}
	switch {
	case s.w.reserved(path):
		s.res.Reserved++
		return s.refuse(ctx, path, ErrReserved)
	case s.w.ign.ExcludedHere(path, false):
		s.res.Excluded++
		return s.keep(path)
	case e.Err != nil:
		return s.unknown(ctx, path, e.Err)
	case e.IsSymlink():
		s.res.Symlinks++
		return nil // What the index has of it is missing.
	case !e.IsRegular():
		s.res.Special++
		return nil
	}
	return s.regular(ctx, d, e, path)
}

// regular decides about a regular file.
func (s *scan) regular(ctx context.Context, d *safefs.Dir, e *safefs.Entry, path string) error {
	st, err := d.StatEntry(*e)
	switch {
	case err != nil:
		return s.unknown(ctx, path, err)
	case !st.IsRegular():
		return nil // Changed since it was listed: an event tells.
	}
	if left, err := s.mountedAlone(d, e, path, st); left || err != nil {
		return err
	}
	if st.Nlink > 1 {
		return s.linked(ctx, path, st)
	}
	return s.file(ctx, path, st)
}

// mountedAlone leaves out a file that is a mount of its own and not part of the
// source.
func (s *scan) mountedAlone(d *safefs.Dir, e *safefs.Entry, path string, st safefs.Stat) (left bool, err error) {
	if e.Linked || st.Dev == s.above[len(s.above)-1].Dev && !s.w.mounts.at(path) {
		return false, nil
	}
	switch err := d.Admits(e.Name); {
	case errors.Is(err, safefs.ErrOtherMount):
		s.res.Excluded++
	case errors.Is(err, safefs.ErrPseudo):
		s.res.Pseudo++
	default:
		return false, nil // Whoever opens it says what is wrong with it.
	}
	return true, s.keep(path)
}

// refuse reports that the file at path cannot be archived.
func (s *scan) refuse(ctx context.Context, path string, err error) error {
	if err := s.keep(path); err != nil {
		return err
	}
	return s.policy.refuse(ctx, s, path, err)
}

// unknown handles a name of which nothing is known because of err, not even
// whether it is a directory: that is what cannot be archived.
func (s *scan) unknown(ctx context.Context, path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // Gone since it was listed.
	case errors.Is(err, safefs.ErrRootChanged):
		return err
	case s.w.ign.ExcludedHere(path, true):
		s.res.Excluded++
		return s.keep(path)
	}
	s.res.Unreadable++
	return s.refuse(ctx, path, err)
}

// file compares a regular file with the index.
func (s *scan) file(ctx context.Context, path string, st safefs.Stat) error {
	s.res.Files++
	s.res.Bytes += st.Size
	k, err := s.cur.Peek()
	if err != nil {
		return err
	}
	if k == nil || k.Path != path {
		return s.policy.differs(ctx, s, path, st, nil)
	}
	if scanpkg.Unchanged(k, st) {
		s.res.Unchanged++
		s.policy.same(k, st)
		s.cur.Next()
		return nil
	}
	known := *k
	s.cur.Next()
	return s.policy.differs(ctx, s, path, st, &known)
}

// drain reports every entry before path as missing, "" for all that are left.
func (s *scan) drain(ctx context.Context, path string) error {
	for {
		k, err := s.cur.Peek()
		if err != nil {
			return err
		}
		if k == nil || path != "" && k.Path >= path {
			return nil
		}
		known := *k
		s.cur.Next()
		if err := s.policy.missing(ctx, s, known); err != nil {
			return err
		}
	}
}

// keep leaves the entry of path as it is.
func (s *scan) keep(path string) error {
	k, err := s.cur.Peek()
	if err == nil && k != nil && k.Path == path {
		s.cur.Next()
	}
	return err
}

// keepDir leaves the entries below dir as they are.
func (s *scan) keepDir(ctx context.Context, dir string) error {
	if err := s.drain(ctx, dir+"/"); err != nil {
		return err
	}
	s.cur.SkipDir(dir)
	return nil
}

// linked decides about a regular file with several names. What the policy
// refuses is a fault, unless skipping is what the configuration asks for.
func (s *scan) linked(ctx context.Context, path string, st safefs.Stat) error {
	k, err := s.cur.Peek()
	if err != nil {
		return err
	}
	archived := k != nil && k.Path == path && k.Stored && st.Ino != 0 && k.Ino == st.Ino && k.UID == st.UID
	refused := s.w.o.Hardlinks.Check(st, s.above[len(s.above)-1], archived)
	if refused == nil {
		s.w.links.see(path, st)
		return s.file(ctx, path, st)
	}
	s.res.Hardlinks++
	if err := s.keep(path); err != nil || errors.Is(refused, safefs.ErrLinkSkipped) {
		return err
	}
	return s.policy.refuse(ctx, s, path, refused)
}

// reserved reports whether path has the name of the audit trail's directory. A
// file of that name hides the trail on servers that keep objects as files.
func (w *Watcher) reserved(path string) bool { return w.o.Reserved != "" && path == w.o.Reserved }
