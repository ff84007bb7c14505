package watcher

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/safefs"
)

// heldDepth is how many directories a scan keeps open: those further down are
// opened again after each of their subdirectories.
const heldDepth = 64

// errBlocked: the sink is full, and the caller does not wait.
var errBlocked = errors.New("the sink is full")

// policy says what becomes of what a scan finds.
type policy interface {
	// differs: the file at path is not as the index has it; known is nil for a
	// new one.
	differs(ctx context.Context, s *scan, path string, st safefs.Stat, known *Known) error
	// missing: the index has k, the source does not.
	missing(ctx context.Context, s *scan, k Known) error
	// refuse: path, a file or directory, cannot be archived.
	refuse(ctx context.Context, s *scan, path string, err error) error
	// same: the file is as the index has it.
	same(k *Known, st safefs.Stat)
	// rest is called after each directory.
	rest(ctx context.Context) error
}

// scan merges one directory, or everything below it, with the index. Its memory
// grows with the depth of the tree and the largest directory alone.
type scan struct {
	w       *Watcher
	policy  policy
	trigger string
	flat    bool // this directory alone
	cur     *cursor
	res     ScanResult
	bufs    [][]safefs.Entry // by depth
	above   []safefs.Stat    // the directories that lead to the current one
}

func (w *Watcher) newScan(dir, trigger string, p policy) *scan {
	return &scan{w: w, policy: p, trigger: trigger, cur: newCursor(w.index, dir), res: ScanResult{Trigger: trigger}}
}

// run scans. An error means that the scan is not complete; what it found until
// then holds.
func (s *scan) run(ctx context.Context) error {
	s.cur.readAhead = !s.flat // A flat one passes over what it would read.
	defer s.cur.close()
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
	for dir := s.cur.dir; dir != ""; {
		dir = parentOf(dir)
		if st, err := s.w.root.Stat(dir); err == nil {
			s.above = append(s.above, st)
		}
	}
}

func (s *scan) top(ctx context.Context) error {
	d, err := s.w.root.OpenDir(s.cur.dir)
	if err != nil {
		return s.unopened(ctx, s.cur.dir, err)
	}
	return s.walk(ctx, d, 0)
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

// walk scans d, closes it, and goes into its subdirectories.
func (s *scan) walk(ctx context.Context, d *safefs.Dir, depth int) error {
	defer func() { d.Close() }()
	s.res.directories++
	self, entries, err := s.enter(d, depth)
	if err != nil {
		return s.unopened(ctx, d.Path(), err)
	}
	s.above = append(s.above, self)
	defer func() { s.above = s.above[:len(s.above)-1] }()
	for i := range entries {
		if !entries[i].IsDir() {
			if err := s.entry(ctx, d, &entries[i]); err != nil {
				return err
			}
			continue
		}
		if err := s.directory(ctx, d, &entries[i], depth); err != nil {
			return err
		}
		if depth >= heldDepth {
			again, err := s.reopen(d.Path(), self)
			if err != nil {
				return s.unopened(ctx, d.Path(), err)
			}
			d.Close()
			d = again
		}
	}
	return s.policy.rest(ctx)
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

// enter lists d and reads its ignore file.
func (s *scan) enter(d *safefs.Dir, depth int) (self safefs.Stat, entries []safefs.Entry, err error) {
	if self, err = d.Self(); err != nil {
		return self, nil, err
	}
	if depth == len(s.bufs) {
		s.bufs = append(s.bufs, nil)
	}
	if entries, err = d.Entries(s.bufs[depth]); err != nil {
		return self, nil, err
	}
	s.bufs[depth] = entries
	found, err := s.w.ign.enter(s.w.root, d.Path(), entries)
	if err != nil {
		s.w.log.Warn("ignore file not read, what was known of it stays in force", zap.Error(err))
	}
	if found != nil {
		s.res.ConfigFiles = append(s.res.ConfigFiles, *found)
	}
	return self, entries, nil
}

// directory decides about a subdirectory and scans it.
func (s *scan) directory(ctx context.Context, d *safefs.Dir, e *safefs.Entry, depth int) error {
	path := join(d.Path(), e.Name)
	if err := s.drain(ctx, path+"/"); err != nil {
		return err
	}
	switch {
	case s.w.reserved(path):
		s.res.Reserved++
		return s.refuseDir(ctx, path, ErrReserved)
	case s.w.ign.excludedHere(path, true):
		s.res.Excluded++
		return s.keepDir(ctx, path)
	case s.flat:
		return s.keepDir(ctx, path)
	}
	sub, err := d.OpenDir(e.Name)
	if err != nil {
		return s.unopened(ctx, path, err)
	}
	if e.Linked && s.loops(sub) {
		sub.Close()
		s.res.Symlinks++
		return nil
	}
	if depth >= heldDepth {
		d.Close()
	}
	return s.walk(ctx, sub, depth+1)
}

// loops reports whether d is one of the directories above it.
func (s *scan) loops(d *safefs.Dir) bool {
	self, err := d.Self()
	if err != nil {
		return true
	}
	for _, a := range s.above {
		if a.Dev == self.Dev && a.Ino == self.Ino {
			return true
		}
	}
	return false
}

// entry decides about anything that is not a directory.
func (s *scan) entry(ctx context.Context, d *safefs.Dir, e *safefs.Entry) error {
	path := join(d.Path(), e.Name)
	if err := s.drain(ctx, path); err != nil {
		return err
	}
	switch {
	case s.w.reserved(path):
		s.res.Reserved++
		return s.refuse(ctx, path, ErrReserved)
	case s.w.ign.excludedHere(path, false):
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
	st, err := d.StatEntry(*e)
	switch {
	case err != nil:
		return s.unknown(ctx, path, err)
	case !st.IsRegular():
		return nil // Changed since it was listed: an event tells.
	}
	if left, err := s.mountedAlone(d, e, st); left || err != nil {
		return err
	}
	if st.Nlink > 1 {
		return s.linked(ctx, path, st)
	}
	return s.file(ctx, path, st)
}

// mountedAlone leaves out a file that is a mount of its own and not part of the
// source.
func (s *scan) mountedAlone(d *safefs.Dir, e *safefs.Entry, st safefs.Stat) (left bool, err error) {
	path := join(d.Path(), e.Name)
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
	case s.w.ign.excludedHere(path, true):
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
	k, err := s.cur.peek()
	if err != nil {
		return err
	}
	if k == nil || k.Path != path {
		return s.policy.differs(ctx, s, path, st, nil)
	}
	if unchanged(k, st) {
		s.res.Unchanged++
		s.policy.same(k, st)
		s.cur.next()
		return nil
	}
	known := *k
	s.cur.next()
	return s.policy.differs(ctx, s, path, st, &known)
}

// unchanged reports whether the index says enough about the file to leave it.
func unchanged(k *Known, st safefs.Stat) bool { return !k.Look && fenceOf(k, st) }

func fenceOf(k *Known, st safefs.Stat) bool {
	return k.Size == st.Size && k.MtimeNs == st.MtimeNs && k.CtimeNs == st.CtimeNs && k.Ino == st.Ino
}

// drain reports every entry before path as missing, "" for all that are left.
func (s *scan) drain(ctx context.Context, path string) error {
	for {
		k, err := s.cur.peek()
		if err != nil {
			return err
		}
		if k == nil || path != "" && k.Path >= path {
			return nil
		}
		known := *k
		s.cur.next()
		if err := s.policy.missing(ctx, s, known); err != nil {
			return err
		}
	}
}

// keep leaves the entry of path as it is.
func (s *scan) keep(path string) error {
	k, err := s.cur.peek()
	if err == nil && k != nil && k.Path == path {
		s.cur.next()
	}
	return err
}

// keepDir leaves the entries below dir as they are.
func (s *scan) keepDir(ctx context.Context, dir string) error {
	if err := s.drain(ctx, dir+"/"); err != nil {
		return err
	}
	s.cur.skipDir(dir)
	return nil
}

// linked decides about a regular file with several names. What the policy
// refuses is a fault, unless skipping is what the configuration asks for.
func (s *scan) linked(ctx context.Context, path string, st safefs.Stat) error {
	k, err := s.cur.peek()
	if err != nil {
		return err
	}
	archived := k != nil && k.Path == path && k.Stored && k.Ino == st.Ino && k.UID == st.UID
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
