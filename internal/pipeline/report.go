package pipeline

import (
	"context"
	"errors"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// How a command can end other than well; main turns them into exit codes.
var (
	// ErrSomeFailed reports a run in which some files failed.
	ErrSomeFailed = errors.New("some files failed")
	// ErrInterrupted reports a run that a signal ended before its work was done.
	ErrInterrupted = errors.New("interrupted; what was done is kept, the next run goes on")
)

// Status is what became of one file in a sync run.
type Status = archive.Status

// The statuses that a sync run shows.
const (
	Uploaded = archive.StatusUploaded
	Skipped  = archive.StatusSkipped
	Failed   = archive.StatusFailed
	Deleted  = archive.StatusDeleted
	Planned  = archive.Status("planned") // a dry run would upload it
	Rekeyed  = archive.StatusRekeyed
	// PlannedRekey: a dry run would bring it under the key.
	PlannedRekey = archive.Status("planned-rekey")
)

// Outcome is what became of one file.
type Outcome struct {
	Source string
	Path   string // below the source, raw bytes
	Status Status
	Size   int64
	Err    error // Failed only
}

// Progress follows what a run does. Its methods are called from many
// goroutines and must not block for long.
type Progress interface {
	Found(size int64)
	Outcome(o Outcome)
}

// Interrupted makes ErrInterrupted of an error that only says that ctx ended.
func Interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return ErrInterrupted
	}
	return err
}
