package uploader

import (
	"context"
	"errors"
	"fmt"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/journal"
	"github.com/s3syncd/s3syncd/pkg/localfile"
	"github.com/s3syncd/s3syncd/pkg/remote"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// Forecast is what an attempt at a file would do.
type Forecast uint8

// The forecasts.
const (
	ForecastNothing  Forecast = iota // The file is gone, or a policy leaves it out.
	ForecastSend                     // It would be uploaded.
	ForecastSkip                     // S3 holds it.
	ForecastRead                     // S3 says that it holds it: it would be read to prove that.
	ForecastConflict                 // Another writer's object is in its place.
)

// Foresee says what an attempt at path would do, by the same decisions, and
// changes nothing. There asks for the object under the key; it is not called where
// a real attempt would not depend on the answer. The State and Ended of s may be
// nil. The error of ForecastConflict says whose object it is.
func Foresee(ctx context.Context, s Source, path string, there func(ctx context.Context) (o archive.Object, present bool, err error)) (Forecast, error) {
	x, chain, err := remembered(s.State, path)
	if err != nil {
		return 0, err
	}
	opened, err := s.Root.Open(path)
	switch {
	case noFile(s.Root, err):
		return ForecastNothing, nil
	case err != nil:
		return 0, err
	}
	defer func() { _ = opened.File.Close() }() // It was only read.
	var f localfile.File
	f.Take(opened)
	if err := x.CheckLinks(s.Hardlinks, &f); errors.Is(err, safefs.ErrLinkSkipped) {
		return ForecastNothing, nil
	} else if err != nil {
		return 0, err
	}

	hashed := x.Entry.Stored && x.Entry.Fence.Size == f.Fence.Size
	if hashed && !x.Unchanged(&f) {
		if err := hashFile(ctx, &f); err != nil {
			return 0, err
		}
	}
	switch {
	case x.Unchanged(&f), hashed && x.SameContent(f.Reading.Content):
		return ForecastSkip, nil
	case x.Believed().Present:
		return ForecastSend, nil
	}
	o, present, err := there(ctx)
	if err != nil {
		return 0, err
	}
	at := remote.State{Asked: true, Present: present, Object: o}
	if present {
		at.Key = s.Accept(o)
	}
	if !hashed && present && at.Key == archive.KeyOK && o.Size == f.Fence.Size {
		if err := hashFile(ctx, &f); err != nil {
			return 0, err
		}
	}
	f.Reading.Size = f.Fence.Size
	j := remote.NewJudge(s.Instance, s.Host, chain, x.Entry)
	j.Ended = s.Ended
	return foresee(ctx, &j, f.Reading.Content, at)
}

// remembered returns what the state knows of path, nothing where there is no state.
func remembered(st *state.Source, path string) (x journal.Index, chain archive.Chain, err error) {
	if st == nil {
		return x, chain, nil
	}
	if x.Entry, x.Known, err = st.Get(path); err != nil {
		return x, chain, err
	}
	if chain, err = st.Chain(); err != nil {
		return x, chain, localfile.Local(archive.ClassTransient, "read the chain", err)
	}
	return x, chain, nil
}

// foresee is the decision about c in the place of s, without reading the object.
func foresee(ctx context.Context, j *remote.Judge, c localfile.Content, s remote.State) (Forecast, error) {
	switch remote.Decide(c, s, j.Memory, j.Self).Act {
	case remote.Skip:
		return ForecastSkip, nil
	case remote.Read:
		return ForecastRead, nil
	case remote.Conflict:
		why, err := j.Stranger(ctx, s.Object)
		if err != nil {
			return 0, err
		}
		if why != nil {
			return ForecastConflict, fmt.Errorf("it would fail: %w", why)
		}
	case remote.Write:
	}
	return ForecastSend, nil
}

// hashFile reads the file as an attempt does.
func hashFile(ctx context.Context, f *localfile.File) (err error) {
	w := localfile.Watch{Cut: ctx.Err}
	f.Reading, err = localfile.ReadLarge(w, f.Opened.File, f.Fence, 0, make([]byte, localfile.ChunkSize))
	return err
}
