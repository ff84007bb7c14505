package uploader

import (
	"time"

	"github.com/s3syncd/s3syncd/pkg/state"
)

const (
	// A file modified so shortly before it was read may be modified again without
	// a new time, so an equal fence proves nothing.
	racyWindow = 2 * time.Second
	// The longest time for which a kernel stamps the same time on changes,
	// whatever the file system can store: one tick of its clock.
	tick = 10 * time.Millisecond
)

// racy reports whether a file whose fence was taken before now may change after
// it with neither a new ctime nor, by its mtime put back, a new mtime.
func racy(f state.Fence, now time.Time) bool {
	g := granularity(f.CtimeNs) + tick
	return within(f.CtimeNs, now, g) || within(f.MtimeNs, now, max(g, racyWindow))
}

// granularity is how long a file system may stamp the same time on changes, by
// what it stored as a ctime, which no program can choose.
func granularity(ctimeNs int64) time.Duration {
	for _, unit := range []time.Duration{24 * time.Hour, time.Hour, time.Minute} {
		if ctimeNs%int64(unit) == 0 {
			return unit
		}
	}
	if ctimeNs%int64(time.Second) == 0 {
		return 2 * time.Second // FAT's; one second looks the same half of the time.
	}
	return 0
}

func within(ns int64, now time.Time, d time.Duration) bool {
	return now.Sub(time.Unix(0, ns)).Abs() < d
}
