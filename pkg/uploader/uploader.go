// Package uploader turns paths into outcomes: it decides for each file whether
// S3 holds its content already, sends what it does not hold, and makes every
// outcome durable in the state.
//
// A Pool of workers takes tasks from a queue.Queue and makes an attempt at each
// file: open and fence, compare with the index, hash, decide, write the intent
// (durable before the request), send conditionally, fence again, commit.
//
//	attempt   one try at one file: what it read, and what S3 holds under its key
//	intents   writing the intents of a key, and resolving them by what S3 holds
//	journal   making the results durable: index entries and records of the trail
//	transfer  a multipart upload; removal: a file that is gone; rekey: another KMS key
//	closing   what becomes of the task afterwards: done, tried again, held
//
// What is recorded as uploaded was acknowledged by the server under the
// configured KMS key and was one consistent reading of the file. A write whose
// answer was lost is recognized later by its attempt number in the object's
// metadata. A destination that does not work holds its own files back, is
// probed (package breaker), and lets them go when it works again; nothing is
// dropped until then.
package uploader

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/gate"
	"github.com/s3syncd/s3syncd/pkg/remote"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// Source is one directory and its destination. The functions are called from
// several goroutines; those marked optional may be nil.
type Source struct {
	Name      string
	Instance  string
	Bucket    string
	RealPath  string // The directory, for the local paths of the records.
	Mapper    archive.Mapper
	Root      *safefs.Root
	Objects   gate.Objects
	Multipart gate.Multipart
	State     *state.Source
	// Copy, needed for Rekey jobs, writes an object onto itself under the
	// configured KMS key, under the same rules as Objects.
	Copy func(ctx context.Context, c archive.Copy) (archive.Object, error)

	// Fetch, optional, reads an object, so that its bytes prove what its metadata
	// claims. Without it a claim proves nothing where s3syncd may have written.
	Fetch remote.Fetch
	// Archived, optional, is what the trail knows of the object of a Rekey job's
	// path: the last record that says which it is.
	Archived func(path string) (archive.Record, bool)
	// Host, optional, tells this host's objects from those of another one with the
	// same Instance.
	Host string
	// Ended, optional, reports whether the chain that o names, of this instance but
	// not this host's, has ended: then its objects may be replaced.
	Ended func(ctx context.Context, o archive.Object) (bool, error)

	// Accept judges an object's encryption from its SSE and KMSKeyID. An unchanged
	// file that the index holds under another key stays as it is; at first sight
	// such an object is always replaced.
	Accept func(o archive.Object) archive.KeyVerdict
	// HeadForbiddenMeansUnknown, optional: true when a 403 on a HEAD only says
	// that the object is absent and listing is not granted.
	HeadForbiddenMeansUnknown func() bool
	// Proven: the canary passed at ProvenAt, and need not run before the first
	// file is sent. A canary runs again a day after the last.
	Proven   bool
	ProvenAt time.Time
	// OnProven, optional, is called after each canary that passed, and OnStopped
	// after an answer that did not confirm the key.
	OnProven  func()
	OnStopped func()

	Hardlinks safefs.LinkPolicy
	Deletes   string // archive.DeletesKeep or archive.DeletesMirror.
	// ShortLife is how soon after its last change a file must be gone for its
	// upload to count as wasted. 0: none is counted.
	ShortLife time.Duration
	// LeftOut, optional, reports whether the path is not to be archived any more.
	// The watcher has asked before it offers a Look; what is read again, or was
	// interrupted in an earlier run, comes from the index and the intents.
	LeftOut func(path string) bool
	// Requeue, optional, takes a path whose file changed while it was read, or that
	// is gone without a scan that confirms it; it must not block for long. Without
	// it, and in a run that gives up, the file is tried again after a second.
	Requeue func(path string)
	// Intact, optional, says whether id is the directory that the index
	// describes. Without it, it is the one that was there when Run began. Nothing
	// is taken for deleted in another.
	Intact func(id safefs.Identity, path string) bool
	// Claim, optional, returns nil when this run may write: it is called before
	// each intent is written. After an error the attempt is repeated.
	Claim func(ctx context.Context) error
}

// Options tune a Pool. All sizes are bytes.
type Options struct {
	Workers        int
	PartSize       int64
	SinglePutMax   int64 // Larger files are sent as multipart uploads.
	MemoryLimit    int64 // All buffers together.
	BandwidthLimit int64 // Bytes a second over all sources, 0 for none.
	// Drain is how long attempts may continue after Run's context has ended.
	Drain time.Duration
	// Hurry, optional, cuts that short when it is closed.
	Hurry <-chan struct{}
	// GiveUp ends a transient error that is older than this as a failure, and any
	// error that needs an operator at once. 0 retries for ever.
	GiveUp time.Duration

	// ListSkips records also the skips that the index alone decided. Without it
	// they are recorded for events only, and counted otherwise.
	ListSkips bool

	// Paused, optional, holds a source back while it is true.
	Paused func(source string) bool
	// OnOutcome, optional, is called by the workers after each attempt that ended.
	// It must not block.
	OnOutcome func(Outcome)

	Log     *zap.Logger
	Metrics *Metrics
}

// Outcome is how one attempt at a path ended.
type Outcome struct {
	Source    string
	Path      string
	Status    archive.Status // "" when nothing was recorded: it will be tried again, or it is gone.
	Class     archive.Class  // Of Err.
	Err       error
	Basis     archive.Basis
	Trigger   archive.Trigger
	Bytes     int64 // Sent and acknowledged.
	Size      int64
	Took      time.Duration
	Detected  time.Time // When the change was first seen; zero: not known.
	Recovered bool
	Retry     bool // It is tried again without an operator.
	Stuck     bool // It is tried again, and a flush should not wait for it.
}

// InFlight is one file that a worker is attempting.
type InFlight struct {
	Source  string
	Path    string
	Bytes   int64 // Size of the file.
	Sent    int64
	Hashed  int64 // Of a file that is not read into memory.
	Started time.Time
	Phase   Phase
}

// Phase is a step of the one-file protocol.
type Phase string

// The phases.
const (
	PhaseOpen   Phase = "open"
	PhaseHash   Phase = "hash"
	PhaseAsk    Phase = "ask"
	PhaseSend   Phase = "send"
	PhaseCommit Phase = "commit"
)
