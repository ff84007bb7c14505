package watcher

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/relpath"
	"github.com/s3syncd/s3syncd/internal/safefs"
	scanpkg "github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

const (
	// How long an event may be on its way to the settler: what
	// changed more recently does not count as missed.
	eventMargin = time.Second
	// How much the clock of a file server may differ from ours.
	clockSkew = time.Hour
	// How long a scan waits for events to be worked off, at each
	// directory.
	restPause = time.Millisecond
	// So many changes that no event told of are named by one scan.
	maxNamed = 10
	// How long a scan holds an offer back for the settler, which tries again
	// within fullPauseMax.
	starvedMax   = 150 * time.Millisecond
	starvedPause = 5 * time.Millisecond
	// So many files of a listing settle by themselves; for more, the listing is
	// repeated.
	fewRestless = 64
)

// offerer is the policy of all scans: it turns what they find into changes.
type offerer struct {
	w       *Watcher
	trigger archive.Trigger // of the changes
	offer   func(context.Context, Change) error
	onSame  func(scanpkg.Known, safefs.Stat, archive.Trigger)
	busy    func() bool // events wait; nil: none can
	settles bool        // what is not quiet goes to the settler
	missed  bool        // what no event told of is counted

	// For a scan of the whole of a mirrored source.
	doomed    *doomed // nil: this look decides on no deletion
	consented bool    // a person has allowed what it finds gone to be deleted

	// For a listing of the settler.
	listed   time.Time // when the listing was asked for; zero: not a listing
	restless int       // files that are not quiet and do not settle by themselves
	touched  int
	forced   bool // a file was offered although it is not quiet
}

// finding is one path that a scan found to differ from the index.
type finding struct {
	path             string
	covered, pending bool           // it waits to settle, or is on its way in the sink
	known            *scanpkg.Known // nil: not in the index
}

// find looks a path up where it may be by now. The index comes last, so that
// what is on its way is seen to have arrived.
func (p *offerer) find(path string) (finding, error) {
	f := finding{path: path, covered: p.w.dirty.covered(path), pending: p.w.sink.Pending(path)}
	fresh, ok, err := scanpkg.Lookup(p.w.index, path)
	if ok {
		f.known = &fresh
	}
	return f, err
}

func (p *offerer) differs(ctx context.Context, s *scan, path string, st safefs.Stat, known *scanpkg.Known) error {
	now := time.Now()
	p.w.mounts.offered(path)
	if !p.settles {
		s.count(known)
		return p.offer(ctx, Change{Path: path, Trigger: p.trigger, Detected: now, Kind: archive.Look, Size: st.Size})
	}
	f, err := p.find(path)
	switch {
	case err != nil:
		return err
	case f.known != nil && scanpkg.Unchanged(f.known, st):
		s.res.Unchanged++
		p.same(f.known, st)
		return nil
	}
	s.count(f.known)
	if p.w.dirty.has(path) {
		return nil
	}
	if !p.w.seemsQuiet(st, now) && !p.overdue(st, now) {
		p.settle(path, now)
		return nil
	}
	if p.isMissed(f) && tellable(f.known, st) && old(now, st.CtimeNs, p.w.o.Settle+eventMargin) {
		p.countMissed(s, path, f.known, &st)
	}
	p.w.links.want(st)
	return p.offer(ctx, Change{Path: path, Trigger: p.trigger, Detected: now, Kind: archive.Look, Size: st.Size})
}

// tellable reports whether an event could have told how st differs from k. None
// tells that a file got or lost another name, which moves its ctime alone: the
// kernel reports that to watches of the file itself (fsnotify_link_count in
// fs/namei.c), and backups by hard links do it to every file.
func tellable(k *scanpkg.Known, st safefs.Stat) bool {
	return k == nil || k.Size != st.Size || k.MtimeNs != st.MtimeNs || k.Ino != st.Ino ||
		k.Mode != st.Mode&0o7777 || k.UID != st.UID || k.GID != st.GID
}

// countMissed counts a change that no event has told of, st nil when the file
// is gone. The first few are named: they are what to look at when a watcher is
// suspected.
func (p *offerer) countMissed(s *scan, path string, known *scanpkg.Known, st *safefs.Stat) {
	s.res.Missed++
	if s.res.Missed > maxNamed {
		return
	}
	what := "changed"
	switch {
	case st == nil:
		what = "gone"
	case known == nil:
		what = "new"
	}
	p.w.log.Info("no event told of this change", zap.String("path", path), zap.String("change", what))
}

// isMissed reports whether no event has told of f.
func (p *offerer) isMissed(f finding) bool { return p.missed && !f.covered && !f.pending }

func (s *scan) count(known *scanpkg.Known) {
	if known == nil {
		s.res.New++
	} else {
		s.res.Changed++
	}
}

// overdue reports whether a file of a listing has been restless for max_delay.
func (p *offerer) overdue(st safefs.Stat, now time.Time) bool {
	if p.listed.IsZero() || now.Before(p.listed.Add(p.w.dirty.s.limit(st.Size))) {
		return false
	}
	p.forced = true
	return true
}

// settle leaves a file that is not quiet to the settler.
func (p *offerer) settle(path string, now time.Time) {
	if p.listed.IsZero() || p.touched < fewRestless {
		p.touched++
		p.w.dirty.touch(path, now, p.trigger)
		if p.listed.IsZero() || p.w.dirty.has(path) {
			return
		}
	}
	p.restless++
}

// seemsQuiet reports whether a file that a scan found is quiet by its ctime.
func (w *Watcher) seemsQuiet(st safefs.Stat, now time.Time) bool {
	d := w.o.Settle
	if !w.localClock() {
		d += clockSkew
	}
	return old(now, st.CtimeNs, d)
}

func old(now time.Time, ns int64, d time.Duration) bool {
	return now.UnixNano()-ns >= int64(d)
}

func (p *offerer) missing(ctx context.Context, s *scan, k scanpkg.Known) error {
	if leaves(p.w, &k) {
		return nil
	}
	f := finding{path: k.Path, known: &k}
	if p.settles { // Before the look at the file: what is gone after it is on no way any more.
		f.covered, f.pending = p.w.dirty.covered(k.Path), p.w.sink.Pending(k.Path)
	}
	st, err := p.w.root.Stat(k.Path)
	switch {
	case errors.Is(err, safefs.ErrRootChanged):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return p.gone(ctx, s, f)
	case err != nil:
		return nil //nolint:nilerr // Unknown is not gone.
	}
	switch {
	case p.w.reserved(k.Path), !st.IsRegular() && !k.Stored && p.w.stillRefused(k.Path):
		return nil // What the index has of it is that it was refused.
	case st.IsRegular() && !p.w.root.Misnamed(k.Path):
		return p.differs(ctx, s, k.Path, st, &k) // It came while the scan went by.
	}
	return p.gone(ctx, s, f)
}

// gone reports a path that the index has and the source does not.
func (p *offerer) gone(ctx context.Context, s *scan, f finding) error {
	if p.w.withheld(f.path) {
		s.res.Withheld++
		return nil
	}
	if p.settles {
		if _, ok, err := scanpkg.Lookup(p.w.index, f.path); err != nil || !ok || p.w.dirty.has(f.path) {
			return err
		}
		p.w.goneName(f.path, time.Now(), p.trigger)
	}
	s.res.Gone++
	pending := f.pending || p.w.o.Mirror && p.w.sink.Pending(f.path)
	if !pending && p.missedGone(&f) {
		p.countMissed(s, f.path, f.known, nil)
	}
	// Also when it is on its way: what is asked of it there may not be to look
	// whether it is gone.
	return p.offerGone(ctx, &f)
}

// stillRefused reports whether path is a directory that cannot be read, or that
// a limit keeps out.
func (w *Watcher) stillRefused(path string) bool {
	d, err := w.root.OpenDir(path)
	if err == nil {
		d.Close()
		return w.o.TooDeep(path) != nil || w.overLinked.has(path)
	}
	for _, left := range []error{fs.ErrNotExist, safefs.ErrOtherMount, safefs.ErrPseudo} {
		if errors.Is(err, left) {
			return false
		}
	}
	return true
}

// left reports whether the policies leave path out: what the index has of it
// stays.
func (w *Watcher) left(path string) bool {
	return w.o.Reserved != "" && (path == w.o.Reserved || relpath.Below(path, w.o.Reserved)) || w.ign.Excluded(path, false)
}

// leaves is left for what the index has: that the reserved name was refused is
// forgotten once nothing has it.
func leaves(w *Watcher, k *scanpkg.Known) bool {
	return w.left(k.Path) && (k.Stored || !w.reserved(k.Path))
}

// withheld reports whether a file that was not found must not count as deleted:
// it may be out of sight.
func (w *Watcher) withheld(path string) bool {
	w.mounts.refresh()
	return w.replaced.Load() || w.mounts.lost(path)
}

// goneLongAgo reports whether path went so long ago that an event of it would
// have been seen: the directory that held it has not changed since.
func (w *Watcher) goneLongAgo(path string) bool {
	for dir := relpath.Parent(path); ; dir = relpath.Parent(dir) {
		st, err := w.root.Lstat(dir)
		if err == nil {
			return old(time.Now(), st.CtimeNs, w.o.Settle+eventMargin)
		}
		if dir == "" || !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
}

func (p *offerer) refuse(ctx context.Context, _ *scan, path string, err error) error {
	if !p.listed.IsZero() {
		return nil // The scans say so.
	}
	return p.offer(ctx, Change{Path: path, Trigger: p.trigger, Detected: time.Now(), Kind: archive.Refused, Err: err})
}

func (p *offerer) same(k *scanpkg.Known, st safefs.Stat) {
	if p.onSame != nil {
		p.onSame(*k, st, p.trigger)
	}
}

// rest lets events go first.
func (p *offerer) rest(ctx context.Context) error {
	if p.busy == nil || !p.busy() {
		return ctx.Err()
	}
	return wait(ctx, restPause)
}

// offerLast offers what a scan found. While the sink is full, what events told
// of has a chance to go first.
func (w *Watcher) offerLast(ctx context.Context, c Change) error {
	for waited := time.Duration(0); w.starved.Load() && waited < starvedMax; waited += starvedPause {
		if err := wait(ctx, starvedPause); err != nil {
			return err
		}
	}
	return w.sink.Offer(ctx, c)
}

// wait returns after d, or with ctx's error when that ends first.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
