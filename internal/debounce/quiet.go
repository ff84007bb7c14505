package debounce

import (
	"time"

	"github.com/s3syncd/s3syncd/internal/safefs"
)

// maxDelayUnit is the size up to which a file may stay pending for one maxDelay.
const maxDelayUnit = 64 << 20

// Quiet decides whether the file of p, which is now as st says, may be offered, or
// when to check again. localClock: its ctime is by this host's clock. Forced says
// that it was not quiet, but has been pending for too long. The holder of p calls
// it.
func (d *Debouncer) Quiet(p *Pending, st safefs.Stat, localClock bool, now time.Time) (offer, forced bool, next time.Time) {
	offer, forced, next = d.delays.quiet(view{now: now, first: p.first, last: p.handed, st: st, seen: p.seen, seenAt: p.seenAt, localClock: localClock})
	if !offer && (p.seen == nil || !same(*p.seen, st)) {
		p.seen, p.seenAt = &st, now
	}
	return offer, forced, next
}

// Limit returns how long a file of this size may stay pending.
func (d *Debouncer) Limit(size int64) time.Duration { return d.delays.limit(size) }

// delays decide when something is due.
type delays struct {
	settle time.Duration // Nothing must have changed for this long.
	max    time.Duration // Longest time to stay pending, times the units of the size.
}

// least returns after which time something new may be due.
func (d delays) least() time.Duration { return min(d.settle, d.max) }

// due returns when p has been quiet for long enough, or pending for too long.
func (d delays) due(p *Pending) time.Time {
	at := earlier(p.last.Add(d.settle), p.first.Add(d.max))
	if p.after.After(at) {
		at = p.after
	}
	return at
}

// view is what is known of a file that may be quiet.
type view struct {
	now         time.Time
	first, last time.Time // Of the events.
	st          safefs.Stat
	seen        *safefs.Stat // By an earlier check; nil: this is the first.
	seenAt      time.Time
	localClock  bool
}

// quiet: content and attributes have not changed for settle if no event came and
// either the ctime, which no program can set and every change moves, is that old,
// or two checks that far apart saw the same.
func (d delays) quiet(v view) (offer, forced bool, next time.Time) {
	limit := v.first.Add(d.limit(v.st.Size))
	if !v.now.Before(limit) {
		return true, true, time.Time{}
	}
	next = v.last.Add(d.settle)
	if next.After(v.now) {
		return false, false, earlier(next, limit)
	}

	age := time.Duration(v.now.UnixNano() - v.st.CtimeNs)
	switch {
	case v.localClock && age >= d.settle:
		return true, false, time.Time{}
	case v.localClock && age >= 0:
		next = v.now.Add(d.settle - age)
	case v.seen == nil || !same(*v.seen, v.st):
		next = v.now.Add(d.settle)
	default:
		next = v.seenAt.Add(d.settle)
		if !next.After(v.now) {
			return true, false, time.Time{}
		}
	}
	return false, false, earlier(next, limit)
}

// limit returns how long a file of this size may stay pending.
func (d delays) limit(size int64) time.Duration {
	units := max(1, (size+maxDelayUnit-1)/maxDelayUnit)
	if units > int64(1<<62/d.max) {
		return 1 << 62
	}
	return d.max * time.Duration(units)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// same reports whether a and b are the same content of one inode.
func same(a, b safefs.Stat) bool {
	return a.Size == b.Size && a.MtimeNs == b.MtimeNs && a.CtimeNs == b.CtimeNs && a.Ino == b.Ino
}
