package uploader

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// Forecast is what a look at a file would do.
type Forecast uint8

// The forecasts.
const (
	ForecastNothing  Forecast = iota // The file is gone, or a policy leaves it out.
	ForecastSend                     // It would be uploaded.
	ForecastSkip                     // S3 holds it.
	ForecastRead                     // S3 says that it holds it: it would be read to prove that.
	ForecastConflict                 // Another writer's object is in its place.
)

// Foresee says what a look at path would do, by the same decisions, and changes
// nothing. There asks for the object that stands under the key; it is not called
// where the real look would not depend on the answer. The State and Ended of s may
// be nil. The error of ForecastConflict says whose object it is.
func Foresee(ctx context.Context, s Source, path string, there func(ctx context.Context) (o state.Object, present bool, err error)) (Forecast, error) {
	l := &look{destination: &destination{Source: s}, job: queue.Job{Path: path}, f: &flight{started: time.Now()}}
	j := judge{d: l.destination, self: writer{instance: s.Instance, host: s.Host}}
	if s.State != nil {
		var err error
		if l.entry, l.known, err = s.State.Get(path); err != nil {
			return 0, err
		}
		if j, err = l.judgeOf(l.entry); err != nil {
			return 0, err
		}
	}
	opened, err := s.Root.Open(path)
	switch {
	case l.noFile(err):
		return ForecastNothing, nil
	case err != nil:
		return 0, err
	}
	defer func() { _ = opened.File.Close() }() // It was only read.
	l.file, l.fence = opened, fenceOf(opened.Stat)
	if err := l.checkLinks(); errors.Is(err, safefs.ErrLinkSkipped) {
		return ForecastNothing, nil
	} else if err != nil {
		return 0, err
	}
	if same, err := foreseeSame(ctx, l); same || err != nil {
		return ForecastSkip, err
	}
	if l.believe().present {
		return ForecastSend, nil
	}
	return foreseeAt(ctx, l, &j, there)
}

// foreseeSame reports whether the index has the file's content.
func foreseeSame(ctx context.Context, l *look) (bool, error) {
	if l.unchanged() {
		return true, nil
	}
	if !l.entry.Stored || l.entry.Fence.Size != l.fence.Size {
		return false, nil
	}
	err := foreseeHash(ctx, l)
	return err == nil && l.sameAsIndex(), err
}

// foreseeAt asks what stands under the key. The file is hashed where that matters.
func foreseeAt(ctx context.Context, l *look, j *judge, there func(ctx context.Context) (o state.Object, present bool, err error)) (Forecast, error) {
	o, present, err := there(ctx)
	if err != nil {
		return 0, err
	}
	at := standing{asked: true, present: present, object: o}
	if present {
		at.key = l.Accept(o)
	}
	if l.read.size == 0 && present && at.key == archive.KeyOK && o.Size == l.fence.Size {
		if err := foreseeHash(ctx, l); err != nil {
			return 0, err
		}
	}
	l.read.size = l.fence.Size
	return j.foresee(ctx, l.read.content, at)
}

// foreseeHash hashes the file as a look does.
func foreseeHash(ctx context.Context, l *look) (err error) {
	l.read, err = readLarge(hashing{cut: ctx.Err}, l.file.File, l.fence, 0, make([]byte, hashChunk))
	return err
}

// foresee is decide without what it would change or read.
func (j *judge) foresee(ctx context.Context, c content, s standing) (Forecast, error) {
	switch d := decide(c, s, j.memory, j.self); d.act {
	case actSkip:
		return ForecastSkip, nil
	case actRead:
		return ForecastRead, nil
	case actConflict:
		why, err := j.stranger(ctx, s.object)
		if err != nil {
			return 0, err
		}
		if why != nil {
			return ForecastConflict, fmt.Errorf("it would fail: %w", why)
		}
		return ForecastSend, nil
	case actWrite:
	}
	return ForecastSend, nil
}
