package oneshot

import (
	"github.com/s3syncd/s3syncd/internal/pipeline"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

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

	// What else a dry run of a sync found.
	Unasked int64    // files to upload unless S3 holds them already: it did not say
	Silent  []string // why, for each source
	Aliases []string // whose keys are not known: what is under any KMS key counts as right
}

// RequestCount counts requests to S3 by kind. Each PUT and each part of data is
// a request to KMS as well where there is no bucket key.
type RequestCount struct {
	Head  int64 `json:"head"`
	Get   int64 `json:"get"` // of objects whose bytes have to prove what they hold
	Put   int64 `json:"put"` // of files, of canaries, and to begin and end multipart uploads
	Parts int64 `json:"upload_part"`
	List  int64 `json:"list"`
	Trail int64 `json:"trail_put"` // manifests, digests, signatures, configurations
}

func (s *Summary) add(o pipeline.Outcome) {
	switch o.Status {
	case pipeline.Uploaded, pipeline.Planned:
		s.Uploaded++
		s.Bytes += o.Size
	case pipeline.Skipped:
		s.Skipped++
	case pipeline.Failed:
		s.Failed++
	case pipeline.Deleted:
		s.Deleted++
	case archive.StatusRekeyed: // No part of a sync run.
	}
}

// lacks reports whether the run left something undone.
func (s *Summary) lacks() bool {
	return s.Failed > 0 || s.Held > 0 || s.Withheld > 0 || s.Unread > 0
}
