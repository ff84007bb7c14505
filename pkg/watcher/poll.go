package watcher

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// poll scans what is not watched, or not by events alone.
func (w *Watcher) poll(ctx context.Context, id safefs.Identity) {
	roots, lists := w.polls.all()
	for _, dir := range roots {
		if ctx.Err() != nil {
			return
		}
		p := w.scanPolicy(archive.TriggerPoll)
		if dir == "" {
			res := w.whole(ctx, id, archive.TriggerPoll, p, p)
			w.polled(ctx, dir, &res)
			w.met.scanned(archive.TriggerPoll, &res)
			return // Everything else is part of it.
		}
		s := w.newScan(dir, archive.TriggerPoll, p)
		s.res.Err = s.run(ctx)
		w.polled(ctx, dir, &s.res)
	}
	now := time.Now().Add(-w.o.Settle)
	for _, dir := range lists {
		w.dirty.list(dir, now, archive.TriggerPoll)
	}
	w.gauges(-1)
}

func (w *Watcher) polled(ctx context.Context, dir string, res *ScanResult) {
	switch {
	case res.Err == nil:
		w.polls.counted(dir, res.directories)
	case errors.Is(res.Err, safefs.ErrRootChanged):
		w.suspect()
	case ctx.Err() == nil:
		w.log.Warn("directory not polled, it is tried again", zap.String("path", dir), zap.Error(res.Err))
	}
}

// gauges tells how much is watched (-1: as before) and polled.
func (w *Watcher) gauges(watched int) {
	if watched >= 0 {
		w.watched.Store(int64(watched))
		w.met.watched.Set(float64(watched))
	}
	dirs, limited := w.polls.count()
	w.met.polled.Set(float64(dirs))
	if limited > 0 {
		w.met.degraded.Set(1)
	} else {
		w.met.degraded.Set(0)
	}
}
