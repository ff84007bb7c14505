package pipeline

import (
	"context"
	"fmt"
	"sync"

	"github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/watcher"
)

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
	items, ok := x.pool.Get().(*[]archive.Item)
	if !ok {
		items = new([]archive.Item)
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

func known(it archive.Item) scan.Known {
	e := it.Entry
	return scan.Known{
		Path: it.Path, Size: e.Fence.Size, MtimeNs: e.Fence.MtimeNs, CtimeNs: e.Fence.CtimeNs, Ino: e.Fence.Ino,
		Mode: e.Attributes.Mode, UID: e.Attributes.UID, GID: e.Attributes.GID,
		Stored: e.Stored, Recheck: e.Racy || !e.Stored || e.Suspect || e.FailClass != "",
	}
}
