package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/queue"
)

const (
	// A round is divided into this many turns, so that a restart loses little.
	rereadTurns                     = 720
	rereadTurnLeast, rereadTurnMost = time.Second, time.Hour
	// After a pause, at most this many turns are caught up with at once.
	rereadCatchUp = 24
	// rereadChunk is how many entries of the index are read at a time.
	rereadChunk = 256
)

// rereader reads every file of a source again within a period, in the order of
// the index and one at a time, to find content that changed without its times.
type rereader struct {
	s      *liveSource
	queue  *queue.Queue
	period time.Duration
	may    func() bool // files may be read, and uploaded, now

	cursor rereadCursor
	budget float64 // the part of a round that may be read now; negative after a large file
}

// rereadCursor is the place of a round, kept over restarts.
type rereadCursor struct {
	After []byte    `json:"after"` // the path that was last read
	Begun time.Time `json:"begun"` // of the round
	Turn  time.Time `json:"turn"`  // when the last turn ended
}

// reread runs the rereading of one source until ctx ends.
func reread(ctx context.Context, s *liveSource) error {
	period := s.Session.Config.Watch.Reread
	if period == 0 {
		<-ctx.Done()
		return nil
	}
	r := &rereader{s: s, queue: s.Session.Queue, period: period}
	r.may = func() bool { return s.inService() == nil && s.Watch.Available() }
	r.load(time.Now())
	turn := min(max(period/rereadTurns, rereadTurnLeast), rereadTurnMost)
	for wait(ctx, time.Until(r.cursor.Turn.Add(turn))) {
		now := time.Now()
		if r.may() {
			if err := r.turn(ctx, min(now.Sub(r.cursor.Turn), rereadCatchUp*turn)); err != nil && ctx.Err() == nil {
				s.Log.Warn("files were not read again, the next turn continues with them", zap.Duration("retry_in", turn), zap.Error(err))
			}
		}
		r.cursor.Turn = now
		r.save(ctx)
	}
	return nil
}

// wait blocks for d, and returns false when ctx ended.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
	return ctx.Err() == nil
}

// turn reads as many files as are due for a time of d, and each at most once.
func (r *rereader) turn(ctx context.Context, d time.Duration) error {
	files, bytes := r.s.State.Totals()
	if files == 0 {
		return nil
	}
	r.budget = min(r.budget+float64(d)/float64(r.period), 1)
	var items []archive.Item
	for begun := r.cursor.Begun; r.budget > 0; {
		var err error
		if items, err = r.s.State.Range(string(r.cursor.After), rereadChunk, items); err != nil {
			return fmt.Errorf("read the index: %w", err)
		}
		for i := range items {
			it := &items[i]
			if r.budget <= 0 {
				break
			}
			if !r.may() {
				return nil // The next turn continues from here.
			}
			if it.Entry.Stored {
				if err := r.one(ctx, it); err != nil {
					return err
				}
				// Half of a round's time is shared by number, half by size.
				r.budget -= (1/float64(files) + float64(it.Entry.Fence.Size)/float64(max(bytes, 1))) / 2
			}
			r.cursor.After = []byte(it.Path)
		}
		if len(items) < rereadChunk && r.budget > 0 {
			if !r.cursor.Begun.Equal(begun) {
				return nil // Every file was read in this very turn.
			}
			now := time.Now()
			r.s.Log.Info("every file was read again", zap.Int64("files", files), zap.Duration("took", now.Sub(begun)))
			r.cursor.After, r.cursor.Begun = nil, now
		}
	}
	return nil
}

// one has one file read again and waits until that is done or put off: a file that
// cannot be read holds up no other. A file that is due for an attempt anyway is
// left to it.
func (r *rereader) one(ctx context.Context, it *archive.Item) error {
	w := r.s.Watch
	if it.Entry.FailClass != "" || w.Pending(it.Path) {
		return nil
	}
	job := queue.Job{Source: r.s.Config.Name, Path: it.Path, Kind: archive.Reread, Trigger: archive.TriggerRescan}
	if err := r.queue.Offer(ctx, job); err != nil {
		return err
	}
	for pause := 5 * time.Millisecond; r.queue.Source(r.s.Config.Name).Begun(it.Path); pause = min(2*pause, time.Second) {
		if !wait(ctx, pause) {
			return ctx.Err()
		}
	}
	return nil
}

func (r *rereader) key() string {
	return fmt.Sprintf("reread/%s/%s", r.s.Config.Bucket, r.s.Config.Prefix)
}

// load takes up the round of an earlier run. A cursor that cannot be read only
// means that a round begins again.
func (r *rereader) load(now time.Time) {
	b, err := r.s.Session.DB.Meta(r.key())
	if err == nil && b != nil {
		err = json.Unmarshal(b, &r.cursor)
	}
	if err != nil {
		r.s.Log.Warn("the place in the round of rereading is lost, a new round begins", zap.Error(err))
	}
	if err != nil || b == nil || r.cursor.Turn.After(now) {
		r.cursor = rereadCursor{Begun: now, Turn: now}
	}
}

// save keeps the place over restarts.
func (r *rereader) save(ctx context.Context) {
	b, err := json.Marshal(r.cursor)
	if err == nil {
		err = r.s.Session.DB.SetMeta(context.WithoutCancel(ctx), r.key(), b)
	}
	if err != nil {
		r.s.Log.Warn("the place in the round of rereading was not kept, a restart reads some files twice", zap.Error(err))
	}
}
