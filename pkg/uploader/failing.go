package uploader

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/s3syncd/s3syncd/pkg/state"
)

const (
	// StuckAfter is how long a file fails, and StuckTries how often, before it
	// counts as one that keeps failing: a flush does not wait for it any more.
	stuckAfter = time.Minute
	stuckTries = 3
	// LostAfter and lostTries are the same for a record of the failure where the
	// destination is at fault: an outage is no failure of a file.
	lostAfter = 15 * time.Minute
	lostTries = 5
	// FailingMax bounds how many paths are remembered as failing.
	failingMax = 10_000
)

// failing remembers the paths that fail in a row for causes that may pass.
// Unlike the queue's own count it lasts until a look at the path succeeds.
type failing struct {
	mu    sync.Mutex
	paths map[string]*failure
}

// failure is one path that fails.
type failure struct {
	since time.Time
	tries int
	class state.Class
}

// stuck reports whether the path keeps failing.
func (f *failure) stuck(now time.Time) bool {
	return f.tries >= stuckTries && now.Sub(f.since) >= stuckAfter
}

// add notes one more failure of path and returns all that is known of it.
func (f *failing) add(path string, class state.Class, now time.Time) failure {
	f.mu.Lock()
	defer f.mu.Unlock()
	one := f.paths[path]
	if one == nil {
		one = &failure{since: now}
		if f.paths == nil {
			f.paths = map[string]*failure{}
		}
		if len(f.paths) < failingMax {
			f.paths[path] = one
		}
	}
	one.tries++
	one.class = class
	return *one
}

// clear notes that a look at path did not fail.
func (f *failing) clear(path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.paths, path)
}

// Failing is how many files keep failing, since when the first of them does,
// and why.
type Failing struct {
	Files int
	Since time.Time
	Class state.Class
}

// list returns the paths that keep failing.
func (f *failing) list(now time.Time) (l Failing) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, one := range f.paths {
		if !one.stuck(now) {
			continue
		}
		if l.Files++; l.Since.IsZero() || one.since.Before(l.Since) {
			l.Since, l.Class = one.since, one.class
		}
	}
	return l
}

// Failing returns which files of source keep failing for causes that may pass.
func (p *Pool) Failing(source string) Failing {
	d := p.dests[source]
	if d == nil {
		return Failing{}
	}
	return d.failing.list(time.Now())
}

// unreadable marks err as one of reading a file, of class transient: its disk,
// or the server that it is on, may recover.
func unreadable(op string, err error) error {
	return &localError{err: state.Classified(state.ClassTransient, op, err), file: true}
}

// isUnreadable reports whether err is about one file of this host alone.
func isUnreadable(err error) bool {
	e, ok := errors.AsType[*localError](err)
	return ok && e.file && !hostBusy(err)
}

// fileFault gives err, of a file that cannot be read, the class of what a person
// has to mend.
func fileFault(err error) error {
	return &localError{err: &state.Error{Class: state.ClassFile, Op: "read", Err: err}, file: true}
}

// recordLasting records the failure of a file that fails for too long, and
// returns the error with its class: a disk or a key that is broken for good looks
// like one that recovers.
func (l *look) recordLasting(ctx context.Context, err error, f failure, now time.Time) error {
	switch {
	case isUnreadable(err) && now.Sub(f.since) >= stuckAfter:
		err = fileFault(err)
	case isUnreadable(err), f.class.Throttles(), f.tries < lostTries, now.Sub(f.since) < lostAfter:
		return err
	}
	recorded, rerr := l.recordFailure(ctx, err, false)
	if rerr != nil || !recorded {
		return err // The next look tries again to record it.
	}
	l.end.status = state.StatusFailed
	if l.name(noticeKind{class: state.ClassOf(err)}, now) {
		l.warn("file keeps failing, it is tried again", err)
	}
	return err
}
