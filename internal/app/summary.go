package app

import (
	"context"
	"errors"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// How a command can end beside well, for main to turn into exit codes.
var (
	// ErrSomeFailed: it ran, and some files failed.
	ErrSomeFailed = errors.New("some files failed")
	// ErrInterrupted: a signal ended it before its work was done.
	ErrInterrupted = errors.New("interrupted; what was done is kept, the next run goes on")
)

// Status is what became of one file in a sync run.
type Status = state.Status

// The statuses that a sync run shows.
const (
	Uploaded = state.StatusUploaded
	Skipped  = state.StatusSkipped
	Failed   = state.StatusFailed
	Deleted  = state.StatusDeleted
	Planned  = state.Status("planned") // a dry run would upload it
	Rekeyed  = state.StatusRekeyed
	// PlannedRekey: a dry run would bring it under the key.
	PlannedRekey = state.Status("planned-rekey")
)

// Outcome is what became of one file.
type Outcome struct {
	Source string
	Path   string // below the source, raw bytes
	Status Status
	Size   int64
	Err    error // Failed only
}

// Progress is told what a sync run does. Its methods are called from many
// goroutines and must not block for long.
type Progress interface {
	Found(size int64)
	Outcome(o Outcome)
}

// Summary counts the outcomes of a sync run.
type Summary struct {
	Uploaded, Skipped, Failed, Deleted int64
	Held                               int64 // deletions of mirrors that wait for a confirmation
	Withheld                           int64 // missing files that do not count as deleted, for lack of a confirmation
	Sources, Unread                    int   // how many there are, and how many of them could not be scanned
	Bytes                              int64 // uploaded, or to upload in a dry run
	Plan                               Plan
}

// Plan counts the requests that a dry run foresees.
type Plan struct {
	Run RequestCount // of the run itself
	Day RequestCount // of a day on which nothing changes
	// FlushesDay is how many manifests a day with changes all the time has, on top
	// of the day's requests and the PUT of each changed file.
	FlushesDay int64

	// What a dry run of a sync found out beside.
	Unasked int64    // files to upload unless S3 holds them already: it did not say
	Silent  []string // why, for each source
	Aliases []string // whose keys are not known: what is under any KMS key counts as right
}

// RequestCount counts requests to S3 by kind. Each PUT and each part of data is
// a request to KMS as well where there is no bucket key.
type RequestCount struct {
	Head  int64 `json:"head"`
	Get   int64 `json:"get"` // of objects whose bytes have to prove what they hold
	Put   int64 `json:"put"` // of files, multipart uploads begun and ended, canaries
	Parts int64 `json:"upload_part"`
	List  int64 `json:"list"`
	Trail int64 `json:"trail_put"` // manifests, digests, signatures, configurations
}

func (s *Summary) add(o Outcome) {
	switch o.Status {
	case Uploaded, Planned:
		s.Uploaded++
		s.Bytes += o.Size
	case Skipped:
		s.Skipped++
	case Failed:
		s.Failed++
	case Deleted:
		s.Deleted++
	case state.StatusRekeyed: // No part of a sync run.
	}
}

// lacks reports whether something is not as it should be.
func (s *Summary) lacks() bool {
	return s.Failed > 0 || s.Held > 0 || s.Withheld > 0 || s.Unread > 0
}

// interrupted makes ErrInterrupted of an error that only says that ctx ended.
func interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return ErrInterrupted
	}
	return err
}
