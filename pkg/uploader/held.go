package uploader

import (
	"errors"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// noticeEvery is how often the log says of one class of failure that there are
// more files.
const noticeEvery = time.Minute

// notices keeps a failure that many files share from filling the log.
type notices map[noticeKind]*notice

// noticeKind is what the lines of one notice have in common.
type noticeKind struct {
	class state.Class
	again bool // Nothing is recorded: the file is tried again by itself.
	local bool // This host failed, not the destination.
}

// notice is what the log said of one kind of failure.
type notice struct {
	since time.Time // Of the minute that is counted.
	said  int       // Files that the log named in it.
	more  int       // And those that it did not name.
}

// namedFiles returns how many failed files of a kind the log names a minute. A
// refusal or an outage is one fault of many files; another failure is each
// file's own.
func namedFiles(k noticeKind) int {
	if k.again || k.class.OutOfService() {
		return 1
	}
	return 10
}

// name reports whether the log names one more failed file of kind k. A run that
// ends by itself names all that it gives up: it tells a person of each.
func (d *destination) name(k noticeKind, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.giveUp > 0 && !k.again {
		return true
	}
	n := d.notices[k]
	if n == nil {
		n = &notice{since: now}
		if d.notices == nil {
			d.notices = notices{}
		}
		d.notices[k] = n
	}
	if now.Sub(n.since) >= noticeEvery && n.more == 0 {
		*n = notice{since: now}
	}
	if n.said >= namedFiles(k) {
		n.more++
		return false
	}
	n.said++
	return true
}

// flushNotices says how many files failed that the log did not name.
func (d *destination) flushNotices(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for k, n := range d.notices {
		if now.Sub(n.since) < noticeEvery {
			continue
		}
		delete(d.notices, k)
		switch fields := []zap.Field{zap.String("class", string(k.class)), zap.Int("files", n.more)}; {
		case n.more == 0:
		case k.again:
			// While it lasts this line comes in place of one that names a file.
			d.notices[k] = &notice{since: now, said: namedFiles(k)}
			d.log.Warn("more looks were postponed likewise, they are tried again", fields...)
		default:
			d.log.Warn("more files failed likewise, the trail names each", fields...)
		}
	}
}

// causeOf names what refused a file, "" for an error that holds no others.
func causeOf(err error) string {
	c := state.ClassOf(err)
	if !c.Parks() {
		return ""
	}
	e, _ := errors.AsType[*state.Error](err)
	if e == nil || e.Code == "" {
		return string(c)
	}
	return string(c) + " " + e.Code
}

// probeHeld tries one of the files that each cause holds, at least once a
// minute, while the destination itself works. The rest follows when it is taken.
func (d *destination) probeHeld(now time.Time) {
	d.mu.Lock()
	due := d.st.State == HealthOK && now.Sub(d.heldAsked) >= heldEvery
	if due {
		d.heldAsked = now
	}
	d.mu.Unlock()
	if !due {
		return
	}
	held := d.q.Source(d.Name).ProbeHeld()
	for _, cause := range slices.Sorted(maps.Keys(held)) {
		d.log.Warn("files wait for a person, one is tried again each minute",
			zap.String("cause", cause), zap.Int("files", held[cause]))
	}
}
