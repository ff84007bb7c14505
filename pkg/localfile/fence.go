package localfile

import (
	"os"
	"time"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// RacyWindow is how shortly before it is read a file may be modified again without
// a new mtime, so that an equal fence proves nothing.
const RacyWindow = 2 * time.Second

// tick is the longest time for which a kernel stamps the same time on changes,
// whatever the file system can store: one tick of its clock.
const tick = 10 * time.Millisecond

// File is what an attempt knows of the file at its path.
type File struct {
	Opened     *safefs.Opened // Nil: none was opened, or what is known is of no file.
	Fence      archive.Fence
	Attributes archive.Attributes
	Racy       bool
	Reading    Reading
}

// Take makes f that of an opened file.
func (f *File) Take(o *safefs.Opened) {
	f.Opened, f.Fence, f.Attributes = o, FenceOf(o.Stat), attributesOf(o.Stat)
}

// None makes f describe an object of size bytes without a local file.
func (f *File) None(size int64) { f.Opened, f.Fence = nil, archive.Fence{Size: size} }

// Unchanged fails unless the open file is still what Take found.
func (f *File) Unchanged() error { return SameFence(f.Opened.File, f.Fence) }

// FenceOf is the fence of a file's stat.
func FenceOf(st safefs.Stat) archive.Fence {
	return archive.Fence{Dev: st.Dev, Ino: st.Ino, Size: st.Size, MtimeNs: st.MtimeNs, CtimeNs: st.CtimeNs, MtimeSec: st.MtimeSec}
}

func attributesOf(st safefs.Stat) archive.Attributes {
	return archive.Attributes{Mode: st.Mode & 0o7777, UID: st.UID, GID: st.GID}
}

// SameFence fails unless the open file still has fence f.
func SameFence(file *os.File, f archive.Fence) error {
	st, err := safefs.Fstat(file)
	if err != nil {
		return Unreadable("fstat", err)
	}
	if f.Ino == 0 {
		st = st.SizeMtime() // As the source's identity has it.
	}
	switch now := FenceOf(st); {
	case now == f:
		return nil
	case now.Size == f.Size && now.MtimeNs == f.MtimeNs:
		return archive.Classified(archive.ClassChanged, "fstat", errIdentity)
	}
	return Changed("fstat")
}

// Racy reports whether a file whose fence was taken before now may change after
// it with neither a new ctime nor, by its mtime put back, a new mtime.
func Racy(f archive.Fence, now time.Time) bool {
	g := granularity(f.CtimeNs) + tick
	return within(f.CtimeNs, now, g) || within(f.MtimeNs, now, max(g, RacyWindow))
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
