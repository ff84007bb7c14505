package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/breaker"
	"github.com/s3syncd/s3syncd/pkg/remote"
	"github.com/s3syncd/s3syncd/pkg/state"
)

const (
	// DoubtBatch is how many entries are marked in one transaction.
	doubtBatch = 1000
	// RemoteRetry is the longest pause after a check that failed.
	remoteRetry = time.Hour
	// RemoteLate is how long after the start a check begins that was due before.
	remoteLate = time.Minute
)

// errListDenied: there is no right to list.
var errListDenied = errors.New("s3:ListBucket is not granted for this prefix: the bucket cannot be compared with the index")

// requestRemoteCheck asks for a comparison of the bucket's listing with the
// index and returns at once. Requests that arrive during one merge into one
// more. It fails when listing is known to be refused.
func (s *source) requestRemoteCheck() error {
	if s.store.Capabilities().ListDenied {
		return errListDenied
	}
	select {
	case s.remoteAsked <- struct{}{}:
	default:
	}
	return nil
}

// followRemote runs the checks of one source's far side until ctx ends: one an
// interval, and those that are asked for.
func (g *generation) followRemote(ctx context.Context, s *source) error {
	interval := g.cfg.Watch.RemoteCheckInterval
	var next time.Time // zero: only when asked
	if interval > 0 {
		next = s.firstRemoteCheck(ctx, time.Now(), interval)
	}
	retry := remoteLate
	for denied := false; s.awaitRemote(ctx, next); {
		err := g.inService(s)
		if err == nil {
			err = s.checkRemote(ctx)
		}
		if next = (time.Time{}); interval > 0 {
			next = time.Now().Add(spread(interval))
		}
		switch {
		case err == nil:
			retry = remoteLate
		case ctx.Err() != nil:
		case !errors.Is(err, errListDenied): // It is still owed, also when only a person asked.
			s.log.Warn("the far side was not checked to its end, it is checked again", zap.Duration("retry_in", retry), zap.Error(err))
			next = time.Now().Add(spread(retry))
			retry = min(2*retry, remoteRetry)
		case !denied:
			denied = true
			s.log.Warn("the far side is not checked", zap.Error(err))
		}
	}
	return nil
}

// awaitRemote returns true when a check is asked for, or due at next, and false
// when ctx ended. A zero next is never.
func (s *source) awaitRemote(ctx context.Context, next time.Time) bool {
	var due <-chan time.Time
	if !next.IsZero() {
		t := time.NewTimer(time.Until(next))
		defer t.Stop()
		due = t.C
	}
	select {
	case <-ctx.Done():
	case <-s.remoteAsked:
	case <-due:
	}
	return ctx.Err() == nil
}

// inService fails while the destination of s takes no requests.
func (g *generation) inService(s *source) error {
	d := g.pool.Destination(s.cfg.Name)
	if d.State == breaker.HealthOK {
		return nil
	}
	return fmt.Errorf("the destination is %s: %w", d.State, errors.Join(errNotNow, d.Err))
}

// errNotNow: the destination is out of service.
var errNotNow = errors.New("nothing is asked of it now")

// spread is d give or take 10%.
func spread(d time.Duration) time.Duration {
	return d + time.Duration((rand.Float64()-0.5)*0.2*float64(d))
}

func (s *source) remoteKey() string {
	return fmt.Sprintf("remote-check/%s/%s/%s", s.cfg.Bucket, s.cfg.Prefix, s.firstPath())
}

// firstRemoteCheck returns when the next check is due, an interval after the
// last one of any run. Where there was none the interval begins now.
func (s *source) firstRemoteCheck(ctx context.Context, now time.Time, interval time.Duration) time.Time {
	b, err := s.db.Meta(s.remoteKey())
	var last time.Time
	if err == nil && b != nil {
		last, err = time.Parse(time.RFC3339Nano, string(b))
	}
	if err != nil {
		s.log.Warn("the time of the last check of the far side is not known, it begins anew", zap.Error(err))
	}
	if last.IsZero() || last.After(now) {
		last = now
		s.checkedRemote(ctx, now)
	}
	due := last.Add(spread(interval))
	if late := now.Add(min(remoteLate, interval)); due.Before(late) {
		return late
	}
	return due
}

// checkedRemote remembers over restarts when the far side was checked.
func (s *source) checkedRemote(ctx context.Context, now time.Time) {
	if err := s.db.SetMeta(ctx, s.remoteKey(), []byte(now.UTC().Format(time.RFC3339Nano))); err != nil {
		s.log.Warn("the time of this check of the far side was not kept, the next start counts from an earlier one", zap.Error(err))
	}
}

// checkRemote compares the bucket's listing with the index. What is missing or
// was replaced is marked, and a scan is asked for that has it put back. An
// error leaves marked what was found until then.
func (s *source) checkRemote(ctx context.Context) error {
	if s.store.Capabilities().ListDenied {
		return errListDenied
	}
	c := &remoteCheck{source: s, head: s.store, begun: s.state.NextAttempt()}
	start := time.Now()
	listed, err := compareListing(ctx, s.store, s.state, s.mapper, func(key string, it state.Item, o *state.Object) error {
		return c.compare(ctx, key, it, o)
	})
	if cerr := c.mark(ctx); err == nil {
		err = cerr
	}
	if c.marked > 0 {
		s.watch.Rescan(archive.TriggerRescan)
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: %w", errListDenied, err)
	}
	fields := []zap.Field{
		zap.Duration("took", time.Since(start)), zap.Int64("listed", listed), zap.Int64("missing", c.missing),
		zap.Int64("replaced", c.replaced), zap.Int("to_put_back", c.marked),
	}
	if c.marked > 0 {
		s.log.Warn("objects are missing or were replaced in S3, they are put back", fields...)
	}
	if err != nil {
		return err
	}
	if c.asked > 0 {
		s.log.Info("this server's listings do not show the ETags of its objects: each was asked for", zap.Int64("objects", c.asked))
	}
	s.log.Info("far side checked", fields...)
	s.checkedRemote(ctx, time.Now())
	return s.state.AddNote(ctx, state.Note{
		Kind: state.NoteRemoteCheck, Time: s.store.Now(),
		Detail: fmt.Sprintf("listed %d, missing %d, replaced %d", listed, c.missing, c.replaced),
	})
}

// header asks for one object.
type header interface {
	Head(ctx context.Context, key string) (state.Object, error)
}

// remoteCheck is one check under way.
type remoteCheck struct {
	source *source
	head   header
	begun  uint64 // entries with this attempt or a later one were written during the check

	missing, replaced int64
	marked            int
	batch             []state.Item
	asked             int64 // objects whose listed ETag was another one, and that are the indexed ones
	trusted           bool
}

// compare judges one stored entry by what the listing shows, nil for nothing.
func (c *remoteCheck) compare(ctx context.Context, key string, it state.Item, o *state.Object) error {
	if it.Entry.Doubted || it.Entry.Attempt >= c.begun {
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
	if len(c.batch) >= doubtBatch {
		return c.mark(ctx)
	}
	return ctx.Err()
}

// underWay reports whether the path is about to be looked at anyway. Another
// object may then be this daemon's own, of an upload that is not in the index
// yet. The entry is marked all the same: a look that finds the file unchanged
// asks S3 nothing unless it is, and an upload replaces what was marked.
func (c *remoteCheck) underWay(path string) bool {
	w := c.source.watch
	return w.Unsettled(path) || w.Pending(path)
}

// differs reports whether o is not the object that e describes. A listing is
// believed when it shows the ETag that was acknowledged, and from when one other
// ETag has proved to be true; until then S3 is asked for each by itself. On a
// server whose listings show other ETags than its answers that is each object, at
// each check: nothing else finds what was replaced there.
func (c *remoteCheck) differs(ctx context.Context, key string, e *state.Entry, o *state.Object) (bool, error) {
	switch {
	case o.Size != e.Fence.Size:
		return true, nil
	case o.ETag != "" && o.ETag == e.ETag, !remote.Identified(e):
		return false, nil
	case c.trusted && o.ETag != "":
		return true, nil
	}
	return c.askWhether(ctx, key, e, o)
}

// askWhether is differs by a HEAD.
func (c *remoteCheck) askWhether(ctx context.Context, key string, e *state.Entry, o *state.Object) (bool, error) {
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

// mark has the entries that were found looked at. One that changed since it was
// read is left alone.
func (c *remoteCheck) mark(ctx context.Context) error {
	if len(c.batch) == 0 {
		return nil
	}
	n, err := c.source.state.Doubt(ctx, c.batch)
	c.marked += n
	c.batch = c.batch[:0]
	return err
}
