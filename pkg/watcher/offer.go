package watcher

import (
	"context"
	"errors"
	"io/fs"
	"sync/atomic"
	"time"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

const (
	// starvedMax is how long a scan holds an offer back for the dispatcher, which
	// tries again within fullPauseMax.
	starvedMax   = 150 * time.Millisecond
	starvedPause = 5 * time.Millisecond
)

// outlet is the sink as the dispatcher and the scanner share it.
type outlet struct {
	Sink
	starved atomic.Bool // It was full when the dispatcher had something for it.
}

// offerLast offers what a scan found. While the sink is full, what events named
// has a chance to go first.
func (o *outlet) offerLast(ctx context.Context, c Change) error {
	for waited := time.Duration(0); o.starved.Load() && waited < starvedMax; waited += starvedPause {
		if err := wait(ctx, starvedPause); err != nil {
			return err
		}
	}
	return o.Offer(ctx, c)
}

// offerer turns what one scan finds into changes.
type offerer struct {
	source    *scan.Source
	presence  *presence
	mirror    *mirror
	trigger   archive.Trigger // Of the changes.
	offer     func(context.Context, Change) error
	onSame    func(scan.Known, safefs.Stat, archive.Trigger) // nil: not wanted.
	res       *ScanResult
	deletions *deletions // nil: this scan decides on no deletion.
}

// offerFile offers the file at path.
func (o *offerer) offerFile(ctx context.Context, path string, st safefs.Stat) error {
	o.presence.mounts.Offered(path)
	return o.offer(ctx, Change{Path: path, Trigger: o.trigger, Detected: time.Now(), Kind: archive.Check, Size: st.Size})
}

// refuse offers what cannot be archived.
func (o *offerer) refuse(ctx context.Context, f scan.Finding) error {
	return o.offer(ctx, Change{Path: f.Path, Trigger: o.trigger, Detected: time.Now(), Kind: archive.Refused, Err: f.Err})
}

// same passes on that the file of k is as the index has it.
func (o *offerer) same(k *scan.Known, st safefs.Stat) {
	if o.onSame != nil {
		o.onSame(*k, st, o.trigger)
	}
}

// count counts a file that differs from known, nil for a new one.
func (o *offerer) count(known *scan.Known) {
	if known == nil {
		o.res.New++
	} else {
		o.res.Changed++
	}
}

// lookup returns what the index has of path now, nil for nothing.
func (o *offerer) lookup(path string) (*scan.Known, error) {
	k, ok, err := scan.Lookup(o.source.Index, path)
	if !ok {
		return nil, err
	}
	return &k, nil
}

// recheck reads what is at the path of k, which the scan did not find. Gone: no
// file that is archived; st: a file that has come since, else nil.
func (o *offerer) recheck(k *scan.Known) (gone bool, st *safefs.Stat, err error) {
	now, err := o.source.Root.Stat(k.Path)
	switch {
	case errors.Is(err, safefs.ErrRootChanged):
		return false, nil, err
	case errors.Is(err, fs.ErrNotExist):
		return true, nil, nil
	case err != nil:
		return false, nil, nil //nolint:nilerr // Unknown is not gone.
	case o.source.IsReserved(k.Path), !now.IsRegular() && !k.Stored && o.source.StillRefused(k.Path):
		return false, nil, nil // What the index has of it is that it was refused.
	case now.IsRegular() && !o.source.Root.Misnamed(k.Path):
		return false, &now, nil
	}
	return true, nil, nil
}

// gone counts that k is gone and offers it, or leaves that to the end of the scan.
// An object of a mirrored source is deleted only after a scan of the whole source;
// any other scan asks for one.
func (o *offerer) gone(ctx context.Context, k *scan.Known) error {
	o.res.Gone++
	c := Change{Path: k.Path, Trigger: o.trigger, Detected: time.Now(), Kind: archive.Gone}
	switch {
	case !o.mirror.on || !k.Stored:
		return o.offer(ctx, c)
	case o.deletions == nil:
		o.mirror.reported.add(k.Path, true)
		o.mirror.requests.removals()
	default:
		if o.mirror.reported.byEvent(k.Path) {
			c.Trigger = archive.TriggerEvent
		}
		c.Confirmed = true
		o.deletions.add(c)
	}
	return nil
}

// direct offers each difference at once, quiet or not.
type direct struct {
	offerer
	fresh bool // Reads the index again: the scan may have read it some time ago.
}

// found handles one difference.
func (d *direct) found(ctx context.Context, f scan.Finding) error {
	switch f.Kind {
	case scan.Differs:
		return d.differs(ctx, f.Path, f.Stat, f.Known)
	case scan.Missing:
		return d.missing(ctx, f)
	default:
		return d.refuse(ctx, f)
	}
}

func (d *direct) differs(ctx context.Context, path string, st safefs.Stat, known *scan.Known) error {
	if d.fresh {
		now, err := d.lookup(path)
		if err != nil {
			return err
		}
		if now != nil && now.Unchanged(st) {
			d.res.Unchanged++
			return nil
		}
		known = now
	}
	d.count(known)
	return d.offerFile(ctx, path, st)
}

// missing is found for a scan that decides on removals alone.
func (d *direct) missing(ctx context.Context, f scan.Finding) error {
	if f.Kind != scan.Missing || d.source.LeavesOutKnown(f.Known) {
		return nil
	}
	gone, st, err := d.recheck(f.Known)
	switch {
	case err != nil:
		return err
	case st != nil:
		return d.differs(ctx, f.Path, *st, f.Known)
	case !gone:
		return nil
	case d.presence.withheld(f.Path):
		d.res.Withheld++
		return nil
	}
	return d.gone(ctx, f.Known)
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
