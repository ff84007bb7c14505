// Package s3store is the only user of the AWS SDK. It sends what the stages
// decide to one bucket, adds the configured KMS key to every write, checks the
// key in every answer, and turns the SDK's errors into the classes of
// pkg/state.
//
// No function of this package can write without the configured key: the fields
// that ask for encryption are built in one place, and an answer that does not
// confirm them is an error of class encryption, whatever its status.
package s3store

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// The sizes of time that apply where Options leaves them zero.
const (
	defaultStallLimit    = time.Minute
	defaultCompleteLimit = 10 * time.Minute
)

// Options describes one destination: a bucket, a prefix in it, and the key that
// every object there is encrypted under.
type Options struct {
	Region              string // "": as the AWS environment says
	EndpointURL         string // "": AWS, or as the AWS environment says
	PathStyle           bool
	AllowInsecure       bool // http:// to an address that is not a loopback one
	ExpectedBucketOwner string
	Profile             string

	Bucket   string
	Prefix   string // of the data; the trail stands below it
	Instance string // names the canary

	KMSKeyID          string   // key id, key ARN or alias; required
	AcceptKeys        []string // count for what is there already, never for a write
	SSE               string   // aws:kms or aws:kms:dsse
	BucketKey         bool
	EncryptionContext map[string]string
	StorageClass      string // of data; documents of the trail are STANDARD
	ObjectLock        ObjectLock
	ACL               string            // canned, of every write; "": none is sent
	Tags              map[string]string // of every write

	Workers int // how many requests run at once; idle connections are kept for all
	// StallLimit ends an attempt whose body moved no byte, or whose answer did
	// not begin, for this long. 0: one minute.
	StallLimit time.Duration
	// CompleteLimit takes StallLimit's place for the answers to
	// CompleteMultipartUpload and to copies, which a server may need minutes for.
	// 0: ten minutes.
	CompleteLimit time.Duration
	// CopyMax is the largest object that Copy copies in one request, CopyPart how
	// much goes into each request of a larger one, in bytes. 0: 5 GiB, 512 MiB.
	CopyMax, CopyPart int64

	// OnKey, optional, is called after a canary has found another key than the one
	// before: an alias moved. It must not block for long.
	OnKey func()

	// OnThrottled, optional, is called for each attempt that the server asked to
	// slow down at, also when a later attempt of the same request succeeds. It
	// must not block.
	OnThrottled func()

	Log     *zap.Logger
	Metrics *Metrics
}

// ObjectLock is the retention of the documents of the trail. The zero value is
// none.
type ObjectLock struct {
	Mode string // GOVERNANCE, COMPLIANCE or ""
	Days int
}

// Store is one destination. It is safe for concurrent use.
type Store struct {
	o         Options
	client    *s3.Client
	wire      *wire // for PutObject
	observer  *observer
	transport *http.Transport
	watched   *watchdog // around transport
	creds     *credentialSource
	enc       encryption
	marks     marks
	log       *zap.Logger
	clock     *clock
	reask     *reasker

	// The server's answers to CreateMultipartUpload do not name the key, so
	// those to UploadPart have to.
	silentCreate atomic.Bool

	probeMu sync.Mutex // One canary at a time.
	mu      sync.Mutex // Guards caps.
	caps    Capabilities
}

// Open prepares the use of one destination. It reads the AWS environment and
// makes no request to the bucket; credentials are fetched by the first request.
func Open(ctx context.Context, o Options) (*Store, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	enc, err := newEncryption(o)
	if err != nil {
		return nil, err
	}
	if o.StallLimit == 0 {
		o.StallLimit = defaultStallLimit
	}
	if o.CompleteLimit == 0 {
		o.CompleteLimit = max(defaultCompleteLimit, o.StallLimit)
	}
	if o.CopyMax == 0 {
		o.CopyMax = defaultCopyMax
	}
	if o.CopyPart == 0 {
		o.CopyPart = defaultCopyPart
	}
	s := &Store{o: o, enc: enc, marks: newMarks(o), log: o.Log, clock: &clock{metrics: o.Metrics, log: o.Log}, reask: &reasker{}}
	if err := s.connect(ctx); err != nil {
		return nil, err
	}
	s.caps = s.unknown()
	return s, nil
}

// CloseIdle closes the connections that no request is using, so that the next
// ones resolve the endpoint's name again. For the time after an outage.
func (s *Store) CloseIdle() { s.transport.CloseIdleConnections() }

// Close closes the idle connections, and takes what this store knows of
// credentials and clocks out of the metrics. Nothing may use the store after it.
func (s *Store) Close() {
	s.CloseIdle()
	s.o.Metrics.forget(s.creds, s.clock)
}

// KeepCredentials renews credentials that have run out, as the next request
// would, so that a host where nothing happens for hours has valid ones too, and
// a renewal that is refused shows before something waits for it. It does
// nothing before the first request. The error is that of the AWS environment.
func (s *Store) KeepCredentials(ctx context.Context) error {
	if e := s.o.Metrics.expiryOf(s.creds); e.IsZero() || time.Now().Before(e) {
		return nil
	}
	_, err := s.creds.Retrieve(ctx)
	return err
}

// ClockOffset returns how far S3's clock is ahead of this host's, as several
// answers in a row say or a refusal has shown, and 0 while the difference is
// below what a Date header can tell.
func (s *Store) ClockOffset() time.Duration { return s.clock.offset() }

// Now returns this host's time corrected by ClockOffset.
func (s *Store) Now() time.Time { return time.Now().Add(s.clock.offset()) }

func (o Options) validate() error {
	switch {
	case o.Log == nil || o.Metrics == nil:
		return invalid("a logger and metrics are required")
	case o.Bucket == "":
		return invalid("a bucket is required")
	case o.Instance == "":
		return invalid("an instance is required")
	case o.KMSKeyID == "":
		return invalid("a KMS key is required")
	case o.SSE != string(types.ServerSideEncryptionAwsKms) && o.SSE != string(types.ServerSideEncryptionAwsKmsDsse):
		return invalid("sse must be aws:kms or aws:kms:dsse, got %q", o.SSE)
	}
	if err := o.ObjectLock.validate(); err != nil {
		return err
	}
	return checkEndpoint(o.EndpointURL, o.AllowInsecure)
}

func (l ObjectLock) validate() error {
	switch {
	case l.Days < 0 || (l.Mode == "") != (l.Days == 0):
		return invalid("object lock needs a mode and days, got %q and %d", l.Mode, l.Days)
	case l.Mode != "" && !slices.Contains(types.ObjectLockMode("").Values(), types.ObjectLockMode(l.Mode)):
		return invalid("object lock mode must be GOVERNANCE or COMPLIANCE, got %q", l.Mode)
	}
	return nil
}

// destination names what capabilities were learned about: the bucket as it is
// reached now, whatever part of that the environment says.
func (s *Store) destination() string {
	o, effective := s.o, s.client.Options()
	var b strings.Builder
	for _, p := range []string{
		effective.Region, aws.ToString(effective.BaseEndpoint), o.Profile, o.ExpectedBucketOwner, o.Bucket, o.Prefix,
		o.KMSKeyID, o.SSE, o.StorageClass, strconv.FormatBool(o.BucketKey), o.ACL, s.marks.tags.Encode(),
	} {
		fmt.Fprintf(&b, "%q ", p)
	}
	for _, k := range slices.Sorted(maps.Keys(o.EncryptionContext)) {
		fmt.Fprintf(&b, "%q=%q ", k, o.EncryptionContext[k])
	}
	return strings.TrimSpace(b.String())
}

func (s *Store) trailPrefix() string { return state.NewMapper(s.o.Prefix).TrailPrefix() }
