package watcher

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/debounce"
	"github.com/s3syncd/s3syncd/internal/relpath"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

const (
	// eventMargin is how long an event may take to reach the debouncer: what changed
	// more recently does not count as missed.
	eventMargin = time.Second
	// clockSkew is how much the clock of a file server may differ from ours.
	clockSkew = time.Hour
	// maxNamed is how many changes that no event reported one scan logs.
	maxNamed = 10
	// fewRestless is how many files of a listing are debounced by themselves; for
	// more, the listing is repeated.
	fewRestless = 64
)

// debounced offers what is quiet, and leaves the rest to the debouncer. It is for
// scans that run while the source is watched.
type debounced struct {
	offerer
	out    *outlet
	dirty  *debounce.Debouncer
	names  *names
	quiet  time.Duration // How long a file must not have changed.
	missed bool          // Counts what no event reported.
	// restless is given a file that is not quiet, and reports whether it is to be
	// offered all the same.
	restless func(path string, st safefs.Stat, now time.Time) bool
	log      *zap.Logger
}

// found handles one difference.
func (d *debounced) found(ctx context.Context, f scan.Finding) error {
	switch f.Kind {
	case scan.Differs:
		return d.differs(ctx, f.Path, f.Stat)
	case scan.Missing:
		return d.missing(ctx, f.Known)
	default:
		return d.refuse(ctx, f)
	}
}

// touch leaves a file that is not quiet to the debouncer.
func (d *debounced) touch(path string, _ safefs.Stat, now time.Time) bool {
	d.dirty.Touch(path, now, d.trigger)
	return false
}

// pending reports whether path waits to be quiet, or is in the sink: in this order,
// because a path is in the sink before it leaves the debouncer.
func (d *debounced) pending(path string) bool { return d.dirty.Covered(path) || d.out.Pending(path) }

// differs searches path where it may be now. The index comes last, so that an
// upload that has ended is seen there.
func (d *debounced) differs(ctx context.Context, path string, st safefs.Stat) error {
	now := time.Now()
	d.presence.mounts.Offered(path)
	pending := d.pending(path)
	known, err := d.lookup(path)
	switch {
	case err != nil:
		return err
	case known != nil && known.Unchanged(st):
		d.res.Unchanged++
		d.same(known, st)
		return nil
	}
	d.count(known)
	if d.dirty.Has(path) || !d.seemsQuiet(st, now) && !d.restless(path, st, now) {
		return nil
	}
	if !pending && reportable(known, st) && old(now, st.CtimeNs, d.quiet+eventMargin) {
		what := "changed"
		if known == nil {
			what = "new"
		}
		d.countMissed(path, what)
	}
	d.names.links.want(st)
	return d.offer(ctx, Change{Path: path, Trigger: d.trigger, Detected: now, Kind: archive.Look, Size: st.Size})
}

// reportable reports whether an event could have reported how st differs from k.
// None does when a file gets or loses another name, which moves its ctime alone:
// the kernel reports that to watches of the file itself (fsnotify_link_count in
// fs/namei.c), and backups by hard links do it to every file.
func reportable(k *scan.Known, st safefs.Stat) bool {
	return k == nil || k.Size != st.Size || k.MtimeNs != st.MtimeNs || k.Ino != st.Ino ||
		k.Mode != st.Mode&0o7777 || k.UID != st.UID || k.GID != st.GID
}

// countMissed counts a change that no event reported, if this scan counts them.
// The first few are logged: they are where to begin when the watches are suspected.
func (d *debounced) countMissed(path, what string) {
	if !d.missed {
		return
	}
	d.res.Missed++
	if d.res.Missed <= maxNamed {
		d.log.Info("no event reported this change", zap.String("path", path), zap.String("change", what))
	}
}

// seemsQuiet reports whether a file that a scan found is quiet by its ctime.
func (d *debounced) seemsQuiet(st safefs.Stat, now time.Time) bool {
	quiet := d.quiet
	if !d.presence.localClock() {
		quiet += clockSkew
	}
	return old(now, st.CtimeNs, quiet)
}

func old(now time.Time, ns int64, d time.Duration) bool { return now.UnixNano()-ns >= int64(d) }

func (d *debounced) missing(ctx context.Context, k *scan.Known) error {
	if d.source.LeavesOutKnown(k) {
		return nil
	}
	pending := d.pending(k.Path) // Before the file is read: what leaves the sink after that is done.
	gone, st, err := d.recheck(k)
	switch {
	case err != nil:
		return err
	case st != nil:
		return d.differs(ctx, k.Path, *st)
	case !gone:
		return nil
	case d.presence.withheld(k.Path):
		d.res.Withheld++
		return nil
	}
	if known, err := d.lookup(k.Path); err != nil || known == nil || d.dirty.Has(k.Path) {
		return err
	}
	d.names.gone(k.Path, time.Now(), d.trigger)
	if !pending && d.missed {
		d.missedGone(k.Path)
	}
	// Also if it is in the sink: what was asked for there may not be a check whether
	// the file is gone.
	return d.gone(ctx, k)
}

// missedGone counts the removal of path if no event reported it. In a mirror it may
// be found again and again, and counts once.
func (d *debounced) missedGone(path string) {
	if d.mirror.reported.covers(path) || d.mirror.on && d.out.Pending(path) || !d.goneLongAgo(path) {
		return
	}
	if d.mirror.on {
		d.mirror.reported.add(path, false)
	}
	d.countMissed(path, "gone")
}

// goneLongAgo reports whether path went so long ago that an event of it would
// have been seen: the directory that held it has not changed since.
func (d *debounced) goneLongAgo(path string) bool {
	for dir := relpath.Parent(path); ; dir = relpath.Parent(dir) {
		st, err := d.source.Root.Lstat(dir)
		if err == nil {
			return old(time.Now(), st.CtimeNs, d.quiet+eventMargin)
		}
		if dir == "" || !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
}

// listing compares one directory with the index when its changes are debounced.
type listing struct {
	*debounced
	since   time.Time // When the listing was asked for.
	touched int
	again   int  // Files that are not quiet and are not debounced by themselves.
	forced  bool // A file was offered although it is not quiet.
}

// found handles one difference. What cannot be archived the next scan reports.
func (l *listing) found(ctx context.Context, f scan.Finding) error {
	if f.Kind == scan.Refused {
		return nil
	}
	return l.debounced.found(ctx, f)
}

// touch leaves a file that is not quiet to the debouncer, or to a repetition of
// the listing, unless it has been so for max_delay.
func (l *listing) touch(path string, st safefs.Stat, now time.Time) bool {
	if !now.Before(l.since.Add(l.dirty.Limit(st.Size))) {
		l.forced = true
		return true
	}
	if l.touched < fewRestless {
		l.touched++
		l.dirty.Touch(path, now, l.trigger)
		if l.dirty.Has(path) {
			return false
		}
	}
	l.again++
	return false
}
