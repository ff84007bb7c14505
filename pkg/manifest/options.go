package manifest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// ErrNotYet is what a Publisher returns before it may send anything: a short
// wait at a start, and no failure. It is tried again like a transient error.
var ErrNotYet = errors.New("the destination has not been asked yet whether it encrypts")

// Publisher is the bucket that the trail is published to. All methods may block
// for as long as their context allows and are safe for concurrent use.
type Publisher interface {
	// CreateDoc stores body under key, encrypted, if nothing is there yet.
	// state.ErrPrecondition says that something does, ErrNotYet that nothing was
	// sent because the destination has not been asked yet whether it encrypts.
	CreateDoc(ctx context.Context, key string, body io.ReadSeeker, size int64, md5 [16]byte, sha [32]byte, contentType string) (archive.Object, error)
	// Get returns the object's bytes and what the server said of it.
	Get(ctx context.Context, key string) (io.ReadCloser, archive.Object, error)
	// List calls fn for each key under prefix after startAfter, in byte order.
	List(ctx context.Context, prefix, startAfter string, fn func(archive.Object) error) error
}

// Options are a Flusher's settings. Durations of zero are refused unless the
// field says otherwise.
type Options struct {
	Source   string
	Instance string
	Bucket   string
	Mapper   archive.Mapper
	// Before says where the source was archived to before, "": nowhere else. A
	// chain that begins with another destination says so.
	Before string

	FlushInterval  time.Duration // between manifests, when there is something to publish
	DigestInterval time.Duration // at most this long between two digests
	StopTimeout    time.Duration // for what Run publishes after its context ended
	MaxRecords     int           // in one manifest
	Layout         trail.Layout

	LocalDir      string        // absolute; of this source alone: its copy of the trail
	KeepLocal     time.Duration // how long published documents stay there, 0: without limit
	KeepLocalSize int64         // bytes of published documents that stay there, 0: without limit

	// LateStart: the run ends by itself, with a digest. It begins with one only where
	// it writes more than documents, or could not find out that its state is current.
	LateStart bool

	Version      string // of s3syncd
	ConfigSHA256 string // used until PublishConfig has stored another

	// Now is the corrected clock. It may step back; names never do.
	Now func() time.Time
	// Pending returns how many paths wait and since when, zero: none.
	Pending func() (int64, time.Time)
	// Sign signs the digests; nil: they stay unsigned.
	Sign Signer
	// SignBefore signed this source's digests before Sign did, and announces
	// its key; nil: no key did, or it cannot be used any more.
	SignBefore Signer

	Log     *zap.Logger
	Metrics *Metrics
}

// validate names the first option that cannot work.
func (o *Options) validate() error {
	if ok, err := regexp.MatchString("^"+trail.NamePart+"$", o.Instance); err != nil || !ok {
		return fmt.Errorf("instance %q is not of the form [A-Za-z0-9._-]+", o.Instance)
	}
	for name, d := range map[string]time.Duration{
		"flush interval": o.FlushInterval, "digest interval": o.DigestInterval, "stop timeout": o.StopTimeout,
	} {
		if d <= 0 {
			return fmt.Errorf("%s must be positive, got %v", name, d)
		}
	}
	if o.Now == nil || o.Pending == nil || o.Log == nil || o.Metrics == nil {
		return errors.New("clock, pending paths, log and metrics must be given")
	}
	return o.validateStorage()
}

func (o *Options) validateStorage() error {
	switch {
	case o.Source == "" || o.Bucket == "":
		return errors.New("source and bucket must have names")
	case o.MaxRecords <= 0:
		return fmt.Errorf("max records must be positive, got %d", o.MaxRecords)
	case o.Layout != trail.LayoutFlat && o.Layout != trail.LayoutHive:
		return fmt.Errorf("layout must be flat or hive, got %q", o.Layout)
	case !filepath.IsAbs(o.LocalDir):
		return fmt.Errorf("local directory must be absolute, got %q", o.LocalDir)
	case o.KeepLocal < 0 || o.KeepLocalSize < 0:
		return errors.New("limits of local copies must not be negative")
	}
	return nil
}
