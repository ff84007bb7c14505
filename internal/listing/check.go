package listing

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/s3store"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/remote"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/watcher"
)

const (
	// suspectBatch is how many entries are marked in one transaction.
	suspectBatch = 1000
	// remoteRetry is the longest pause after a check that failed.
	remoteRetry = time.Hour
	// remoteLate is how long after the start an overdue check begins.
	remoteLate = time.Minute
)

// errListDenied reports that the right to list is missing.
var errListDenied = errors.New("s3:ListBucket is not granted for this prefix: the bucket cannot be compared with the index")

// Checks compares the bucket of one source with its index: once per
// interval, and on request.
type Checks struct {
	Options

	asked chan struct{} // capacity 1
}

// Options are what the checks of one source need.
type Options struct {
	Store  *s3store.Store
	State  *state.Source
	DB     *state.DB
	Watch  *watcher.Watcher
	Mapper archive.Mapper
	Key    string // under which the state keeps when the last check ended
	Log    *zap.Logger
}

// New returns the checks of one source, none of which runs yet.
func New(o Options) *Checks {
	return &Checks{Options: o, asked: make(chan struct{}, 1)}
}

// Request asks for a check and returns at once. Requests that arrive during one
// merge into one more. It fails when listing is known to be refused.
func (c *Checks) Request() error {
	if c.Store.Capabilities().ListDenied {
		return errListDenied
	}
	select {
	case c.asked <- struct{}{}:
	default:
	}
	return nil
}

// Run checks until ctx ends, and only while ready returns nil. Without an
// interval it checks on request only.
func (c *Checks) Run(ctx context.Context, interval time.Duration, ready func() error) {
	var next time.Time // zero: only on request
	if interval > 0 {
		next = c.first(ctx, time.Now(), interval)
	}
	retry := remoteLate
	for denied := false; c.await(ctx, next); {
		err := ready()
		if err == nil {
			err = c.check(ctx)
		}
		if next = (time.Time{}); interval > 0 {
			next = time.Now().Add(spread(interval))
		}
		switch {
		case err == nil:
			retry = remoteLate
		case ctx.Err() != nil:
		case !errors.Is(err, errListDenied): // It is still owed, also when only an operator asked.
			c.Log.Warn("the remote check did not complete, it is repeated", zap.Duration("retry_in", retry), zap.Error(err))
			next = time.Now().Add(spread(retry))
			retry = min(2*retry, remoteRetry)
		case !denied:
			denied = true
			c.Log.Warn("remote checks are not possible", zap.Error(err))
		}
	}
}

// await returns true when a check is asked for, or due at next, and false when
// ctx ended. A zero next is never.
func (c *Checks) await(ctx context.Context, next time.Time) bool {
	var due <-chan time.Time
	if !next.IsZero() {
		t := time.NewTimer(time.Until(next))
		defer t.Stop()
		due = t.C
	}
	select {
	case <-ctx.Done():
	case <-c.asked:
	case <-due:
	}
	return ctx.Err() == nil
}

// spread is d give or take 10%.
func spread(d time.Duration) time.Duration {
	return d + time.Duration((rand.Float64()-0.5)*0.2*float64(d))
}

// first returns when the next check is due: an interval after the last one of any
// run. Where there was none the interval begins now.
func (c *Checks) first(ctx context.Context, now time.Time, interval time.Duration) time.Time {
	b, err := c.DB.Meta(c.Key)
	var last time.Time
	if err == nil && b != nil {
		last, err = time.Parse(time.RFC3339Nano, string(b))
	}
	if err != nil {
		c.Log.Warn("the time of the last remote check is unreadable, the interval begins now", zap.Error(err))
	}
	if last.IsZero() || last.After(now) {
		last = now
		c.keep(ctx, now)
	}
	due := last.Add(spread(interval))
	if late := now.Add(min(remoteLate, interval)); due.Before(late) {
		return late
	}
	return due
}

// keep remembers over restarts when a check ended.
func (c *Checks) keep(ctx context.Context, now time.Time) {
	if err := c.DB.SetMeta(ctx, c.Key, []byte(now.UTC().Format(time.RFC3339Nano))); err != nil {
		c.Log.Warn("the time of this remote check was not kept, the next start counts from an earlier one", zap.Error(err))
	}
}

// check compares the bucket's listing with the index. What is missing or was
// replaced is marked, and a scan is asked for that has it put back. An error
// leaves marked what was found until then.
func (c *Checks) check(ctx context.Context) error {
	if c.Store.Capabilities().ListDenied {
		return errListDenied
	}
	r := &remoteCheck{state: c.State, watch: c.Watch, head: c.Store, begun: c.State.NextAttempt()}
	start := time.Now()
	listed, err := compareListing(ctx, c.Store, c.State, c.Mapper, func(key string, it archive.Item, o *archive.Object) error {
		return r.compare(ctx, key, it, o)
	})
	if merr := r.mark(ctx); err == nil {
		err = merr
	}
	if r.marked > 0 {
		c.Watch.Rescan(archive.TriggerRescan)
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: %w", errListDenied, err)
	}
	fields := []zap.Field{
		zap.Duration("took", time.Since(start)), zap.Int64("listed", listed), zap.Int64("missing", r.missing),
		zap.Int64("replaced", r.replaced), zap.Int("to_put_back", r.marked),
	}
	if r.marked > 0 {
		c.Log.Warn("objects are missing or were replaced in S3, they are put back", fields...)
	}
	if err != nil {
		return err
	}
	if r.asked > 0 {
		c.Log.Info("this server's listings do not show the ETags of its objects: each was asked for", zap.Int64("objects", r.asked))
	}
	c.Log.Info("remote check done", fields...)
	c.keep(ctx, time.Now())
	return c.State.AddNote(ctx, archive.Note{
		Kind: archive.NoteRemoteCheck, Time: c.Store.Now(),
		Detail: fmt.Sprintf("listed %d, missing %d, replaced %d", listed, r.missing, r.replaced),
	})
}

// header asks for one object.
type header interface {
	Head(ctx context.Context, key string) (archive.Object, error)
}

// remoteCheck is one check under way.
type remoteCheck struct {
	state *state.Source
	watch *watcher.Watcher
	head  header
	begun uint64 // entries with this attempt or a later one were written during the check

	missing, replaced int64
	marked            int
	batch             []archive.Item
	asked             int64 // objects whose listed ETag was another one, and that are the indexed ones
	trusted           bool
}

// compare judges one stored entry by what the listing shows, nil for nothing.
func (c *remoteCheck) compare(ctx context.Context, key string, it archive.Item, o *archive.Object) error {
	if it.Entry.Suspect || it.Entry.Attempt >= c.begun {
		return ctx.Err()
	}
	if o == nil {
		c.missing++
	} else {
		differs, err := c.differs(ctx, key, &it.Entry, o)
		if err != nil || !differs {
			return err
		}
		if !c.underWay(it.Path) {
			c.replaced++
		}
	}
	c.batch = append(c.batch, it)
	if len(c.batch) >= suspectBatch {
		return c.mark(ctx)
	}
	return ctx.Err()
}

// underWay reports whether an attempt at the path is due anyway. Another object
// may then be this daemon's own, of an upload that is not in the index yet. The
// entry is marked all the same: an attempt that finds the file unchanged asks S3
// nothing unless it is, and an upload replaces what was marked.
func (c *remoteCheck) underWay(path string) bool {
	return c.watch.Pending(path)
}

// differs reports whether o is not the object that e describes. A listing is
// believed when it shows the ETag that was acknowledged, and from when one other
// ETag has proved to be true; until then S3 is asked for each by itself. On a
// server whose listings show other ETags than its answers that is each object, at
// each check: nothing else finds what was replaced there.
func (c *remoteCheck) differs(ctx context.Context, key string, e *archive.Entry, o *archive.Object) (bool, error) {
	switch {
	case o.Size != e.Fence.Size:
		return true, nil
	case o.ETag != "" && o.ETag == e.ETag, !remote.Identified(e):
		return false, nil
	case c.trusted && o.ETag != "":
		return true, nil
	}
	return c.ask(ctx, key, e, o)
}

// ask is differs by a HEAD.
func (c *remoteCheck) ask(ctx context.Context, key string, e *archive.Entry, o *archive.Object) (bool, error) {
	now, err := c.head.Head(ctx, key)
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return false, err
	case err == nil && remote.Describes(e, now):
		c.asked++
		return false, nil
	}
	if err == nil && o.ETag != "" && now.ETag == o.ETag {
		c.trusted = true
	}
	return true, nil
}

// mark makes the entries that were found suspect. One that changed since it was
// read is left alone.
func (c *remoteCheck) mark(ctx context.Context) error {
	if len(c.batch) == 0 {
		return nil
	}
	n, err := c.state.MarkSuspect(ctx, c.batch)
	c.marked += n
	c.batch = c.batch[:0]
	return err
}
