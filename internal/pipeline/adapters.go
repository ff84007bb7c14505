package pipeline

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/ignore"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/watcher"
)

// noteTimeout bounds the writing of a note about a scan or a source.
const noteTimeout = 30 * time.Second

// Sink hands what the watcher finds to the queue.
type Sink struct {
	Source   string
	Queue    *queue.Queue
	Progress func(size int64) // nil: not counted
}

func (s Sink) job(c watcher.Change) queue.Job {
	return queue.Job{
		Source: s.Source, Path: c.Path, Kind: c.Kind, Err: c.Err,
		Trigger: c.Trigger, Detected: c.Detected, Confirmed: c.Confirmed,
	}
}

// Offer implements watcher.Sink.
func (s Sink) Offer(ctx context.Context, c watcher.Change) error {
	if s.Progress != nil && c.Kind == archive.Look {
		s.Progress(c.Size)
	}
	return s.Queue.Offer(ctx, s.job(c))
}

// TryOffer implements watcher.Sink.
func (s Sink) TryOffer(c watcher.Change) bool { return s.Queue.TryOffer(s.job(c)) }

// Pending implements watcher.Sink.
func (s Sink) Pending(path string) bool { return s.Queue.Source(s.Source).Pending(path) }

// Paths implements watcher.Sink.
func (s Sink) Paths() []string { return s.Queue.Source(s.Source).Paths() }

// Index shows the state's index to the scan.
type Index struct {
	State *state.Source
	pool  sync.Pool // of *[]state.Item
}

// Range implements watcher.Index.
func (x *Index) Range(after string, n int, buf []scan.Known) ([]scan.Known, error) {
	items, ok := x.pool.Get().(*[]state.Item)
	if !ok {
		items = new([]state.Item)
	}
	defer x.pool.Put(items)
	var err error
	if *items, err = x.State.Range(after, n, (*items)[:0]); err != nil {
		return nil, fmt.Errorf("read the index: %w", err)
	}
	for _, it := range *items {
		buf = append(buf, known(it))
	}
	return buf, nil
}

func known(it state.Item) scan.Known {
	e := it.Entry
	return scan.Known{
		Path: it.Path, Size: e.Fence.Size, MtimeNs: e.Fence.MtimeNs, CtimeNs: e.Fence.CtimeNs, Ino: e.Fence.Ino,
		Mode: e.Attributes.Mode, UID: e.Attributes.UID, GID: e.Attributes.GID,
		Stored: e.Stored, Recheck: e.Racy || !e.Stored || e.Doubted || e.FailClass != "",
	}
}

// Counters are what callbacks of several goroutines share.
type Counters struct {
	gone       atomic.Bool // the trail says that the source went away
	Trouble    atomic.Pointer[trouble]
	diskSeenAt atomic.Int64 // Unix nanoseconds of the last check
	Unlisted   atomic.Int64 // skips of a scan under way that could not be listed
	goneAt     atomic.Int64 // Unix nanoseconds of when it was seen to be away, 0: it is there
	LastScan   atomic.Pointer[watcher.ScanResult]
	Ended      atomic.Int64 // attempts whose outcome was reported
}

// GoneSince returns when the source was seen to be away, zero when it is not.
func (c *Counters) GoneSince() time.Time {
	if ns := c.goneAt.Load(); ns != 0 {
		return time.Unix(0, ns)
	}
	return time.Time{}
}

// onScan puts a finished scan into the next digest. Unless skips are listed one
// by one, the files that it found unchanged are counted there.
func (s *Source) onScan(r watcher.ScanResult) {
	s.Counters.LastScan.Store(&r)
	s.Session.Metrics.uploader.AddUnchanged(s.Config.Name, r.Unchanged)
	note := state.ScanNote{
		Trigger: r.Trigger, Start: r.Start, End: r.End, Complete: r.Complete,
		Files: r.Files, New: r.New, Changed: r.Changed, Unchanged: r.Unchanged, Gone: r.Gone,
		Excluded: r.Excluded, Unreadable: r.Unreadable, Special: r.Special, Hardlinks: r.Hardlinks,
		Pseudo: r.Pseudo, Limited: r.Limited, DeletesWithheld: r.Withheld, DeletesHeld: r.Held,
	}
	note.IgnoreFiles, note.IgnoreFilesOmitted = ignoreFiles(r.ConfigFiles)
	ctx, cancel := context.WithTimeout(context.Background(), noteTimeout)
	defer cancel()
	err := s.State.AddScan(ctx, note)
	unlisted := r.Unchanged
	if s.Session.ListSkips {
		unlisted = s.Counters.Unlisted.Swap(0)
	}
	if unlisted > 0 {
		err = errors.Join(err, s.State.AddCounts(ctx, nil, unlisted))
	}
	if err != nil {
		s.Log.Warn("a scan is missing from the next digest", zap.Error(err))
	}
}

// ignoreFiles renders the ignore files that a scan honored, as many as a note
// names, and counts the rest.
func ignoreFiles(found []ignore.File) (list []state.IgnoreFile, omitted int64) {
	for _, f := range found[:min(len(found), state.MaxIgnoreFiles)] {
		n := state.IgnoreFile{Path: f.Path, SHA256: f.SHA256}
		if !utf8.ValidString(f.Path) {
			n.PathB64 = base64.StdEncoding.EncodeToString([]byte(f.Path))
		}
		list = append(list, n)
	}
	return list, int64(len(found) - len(list))
}

// OnAvailable puts into the trail that the source went away or came back.
func (s *Source) OnAvailable(ok bool, reason string) {
	if ok {
		s.Counters.goneAt.Store(0)
	} else {
		s.Counters.goneAt.CompareAndSwap(0, time.Now().UnixNano())
	}
	if s.Counters.gone.Swap(!ok) == !ok {
		return // The trail says so already.
	}
	note := state.Note{Kind: state.NoteSourceBack, Time: s.Store.Now(), Detail: reason}
	if !ok {
		note.Kind = state.NoteSourceGone
	}
	ctx, cancel := context.WithTimeout(context.Background(), noteTimeout)
	defer cancel()
	if err := s.State.AddNote(ctx, note); err != nil {
		s.Log.Warn("the source's state is missing from the next digest", zap.Error(err))
	}
}

// SkipRecord is the record of a file that the index alone shows as unchanged.
func (s *Source) SkipRecord(k scan.Known, st safefs.Stat, trigger archive.Trigger) state.Record {
	key, _ := s.Mapper.Key(k.Path) // It was uploaded under this key: it is one.
	r := state.Record{
		S3Key: key, S3URI: "s3://" + s.Config.Bucket + "/" + key, SizeBytes: &st.Size,
		Status: state.StatusSkipped, Timestamp: state.FormatTime(s.Store.Now()),
		Basis: state.BasisIndex, Trigger: trigger, Source: s.Config.Name, Instance: s.Session.Config.Instance,
	}
	r.SetPath(s.Config.Path + "/" + k.Path)
	return r
}

// stateReserve is how much room the state's file system must have for an upload
// to begin: what is acknowledged must be recorded.
const stateReserve = 4 << 20

// trouble is why the state cannot be written.
type trouble struct {
	Err   error
	Since time.Time
}

// errStateFull: the file system of the state has less room than stateReserve.
var errStateFull = errors.New("no room")

// stateTrouble returns why nothing can be recorded at present, nil when all is
// well. It is asked for every file, and checks at most once a second: a disk that
// has failed is tried by a small change, and what waited for it is let go as
// soon as that is durable. The log says so once each time that it begins or ends.
func (s *Source) stateTrouble() *trouble {
	now, last := time.Now(), s.Counters.diskSeenAt.Load()
	if now.UnixNano()-last < int64(time.Second) || !s.Counters.diskSeenAt.CompareAndSwap(last, now.UnixNano()) {
		return s.Counters.Trouble.Load()
	}
	before := s.Counters.Trouble.Load()
	err := stateFault(s.Session.DB)
	if err == nil {
		s.Counters.Trouble.Store(nil)
		if before != nil {
			s.Log.Info("the state can be written again, uploads continue", zap.Duration("after", now.Sub(before.Since)))
			s.Release()
		}
		return nil
	}
	t := &trouble{Err: err, Since: now}
	if before != nil {
		t.Since = before.Since
	} else {
		s.Log.Error("the state cannot be written: uploads pause until it can be, changes are still watched",
			zap.String("state_dir", s.Session.Config.StateDir), zap.Error(err))
	}
	s.Counters.Trouble.Store(t)
	return t
}

// stateFault returns what keeps the state from being written.
func stateFault(db *state.DB) error {
	if free, err := db.FreeBytes(); err == nil && free < stateReserve {
		return fmt.Errorf("%w: %d bytes free, %d needed", errStateFull, free, stateReserve)
	}
	if db.Failing() == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), noteTimeout)
	defer cancel()
	return db.Try(ctx)
}

// Backlog is how many records of a source no acknowledged manifest holds. Its
// methods may be called concurrently.
type Backlog struct {
	state  *state.Source
	log    *zap.Logger
	last   atomic.Int64
	readAt atomic.Int64 // Unix nanoseconds
}

// Last returns what the state said when it was last read.
func (b *Backlog) Last() int64 { return b.last.Load() }

// Records reads the state, at most once a second.
func (b *Backlog) Records() int64 {
	now := time.Now().UnixNano()
	last := b.readAt.Load()
	if now-last < int64(time.Second) || !b.readAt.CompareAndSwap(last, now) {
		return b.last.Load()
	}
	c, err := b.state.Chain()
	if err != nil {
		b.log.Warn("the chain's head is unreadable, uploads continue", zap.Error(err))
		return b.last.Load()
	}
	b.last.Store(c.Unpublished)
	return c.Unpublished
}
