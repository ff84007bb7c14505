// Package s3store sends what the stages decide to one bucket, adds the configured
// KMS key to every write, and checks the key in every answer.
//
// No function of this package can write without the configured key: the fields
// that ask for encryption are built in one place, and an answer that does not
// confirm them is an error of class encryption, whatever its status.
package s3store

import (
	"context"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/pkg/archive"
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
	Metrics *s3conn.Metrics
}

// ObjectLock is the retention of the documents of the trail. The zero value is
// none.
type ObjectLock struct {
	Mode string // GOVERNANCE, COMPLIANCE or ""
	Days int
}

// Store is one destination. It is safe for concurrent use.
type Store struct {
	*requests
	*uploads

	o      *Options
	conn   *s3conn.Conn
	dest   *destination
	prober *prober
	copier *copier
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
	c, err := s3conn.Dial(ctx, o.connection())
	if err != nil {
		return nil, err
	}
	marks := newMarks(o)
	req := &requests{o: &o, conn: c, enc: &enc, marks: marks}
	dest := &destination{o: &o, conn: c, enc: &enc, marks: marks}
	dest.caps = dest.unknown()
	prober := &prober{o: &o, conn: c, req: req, dest: dest, enc: &enc}
	up := &uploads{o: &o, conn: c, req: req, dest: dest, prober: prober, enc: &enc, marks: marks}
	return &Store{
		requests: req, uploads: up, o: &o, conn: c, dest: dest, prober: prober,
		copier: &copier{o: &o, conn: c, dest: dest, prober: prober, uploads: up, enc: &enc, marks: marks},
	}, nil
}

// connection returns what of o the connection is made with.
func (o Options) connection() s3conn.Options {
	return s3conn.Options{
		Region: o.Region, EndpointURL: o.EndpointURL, PathStyle: o.PathStyle, AllowInsecure: o.AllowInsecure, Profile: o.Profile,
		Bucket: o.Bucket, ExpectedBucketOwner: o.ExpectedBucketOwner, Workers: o.Workers,
		StallLimit: o.StallLimit, CompleteLimit: o.CompleteLimit, OnThrottled: o.OnThrottled, Log: o.Log, Metrics: o.Metrics,
	}
}

// Region returns the region that requests are signed for.
func (s *Store) Region() string { return s.conn.Region() }

// CloseIdle closes the connections that no request is using, so that the next
// ones resolve the endpoint's name again. For the time after an outage.
func (s *Store) CloseIdle() { s.conn.CloseIdle() }

// Close closes the idle connections, and takes what this store knows of
// credentials and clocks out of the metrics. Nothing may use the store after it.
func (s *Store) Close() { s.conn.Close() }

// KeepCredentials renews credentials that have run out, as the next request
// would, so that a host where nothing happens for hours has valid ones too, and
// a renewal that is refused shows before something waits for it. It does
// nothing before the first request. The error is that of the AWS environment.
func (s *Store) KeepCredentials(ctx context.Context) error { return s.conn.KeepCredentials(ctx) }

// ClockOffset returns how far S3's clock is ahead of this host's, as several
// answers in a row say or a refusal has shown, and 0 while the difference is
// below what a Date header can tell.
func (s *Store) ClockOffset() time.Duration { return s.conn.ClockOffset() }

// Now returns this host's time corrected by ClockOffset.
func (s *Store) Now() time.Time { return s.conn.Now() }

// Capabilities returns what is known of the destination.
func (s *Store) Capabilities() Capabilities { return s.dest.Capabilities() }

// Restore takes up what an earlier process learned. It reports false, and
// changes nothing, when that was about another destination or key.
func (s *Store) Restore(c Capabilities) bool { return s.dest.Restore(c) }

// MatchesKey reports whether serverKey, as an answer or the index names it, is
// the configured key, the key that its alias stands for, or an accepted one.
func (s *Store) MatchesKey(serverKey string) bool { return s.dest.MatchesKey(serverKey) }

// KeyVerdict judges an object that is already in the bucket. Accepted keys
// count here, and only here; aws:kms:dsse satisfies aws:kms.
func (s *Store) KeyVerdict(o archive.Object) archive.KeyVerdict { return s.dest.KeyVerdict(o) }

// Resolved reports whether the configured key can be compared with that of an
// object: an alias has to be resolved by a canary first.
func (s *Store) Resolved() bool { return s.dest.Resolved() }

// Probe sends the canary: a few small requests to one new key with exactly the
// headers of a production write. Nil means that the destination can be reached,
// written to, read from, and that it encrypts under the configured key, whose
// name is pinned. A missing capability other than encryption is logged and
// worked around. The canary object stays.
func (s *Store) Probe(ctx context.Context) error { return s.prober.Probe(ctx) }

// Ping sends one HEAD for a key that does not exist: nil means that the
// destination answers this daemon's requests. It is the probe of a closed
// circuit, not of the key: that is Probe.
func (s *Store) Ping(ctx context.Context) error { return s.prober.Ping(ctx) }

// Copy writes the object under c.Key again under the configured key, and returns
// only when the server has confirmed that key. It is done on the server: no
// content is read or sent. Nothing happens unless the object still has c.ETag
// (state.ErrPrecondition). Tags, headers, storage class, retention and legal hold
// stay; the user metadata becomes c.Metadata. A copy of other bytes than c.SHA256
// says is an error of class file: it is in the bucket all the same, with the bytes
// that the object had before. Objects above CopyMax are copied in parts. Versions
// that were noncurrent stay as they are.
func (s *Store) Copy(ctx context.Context, c archive.Copy) (archive.Object, error) {
	return s.copier.Copy(ctx, c)
}

// CopyParts returns in how many parts Copy copies an object of size bytes: one
// where a single request does.
func (s *Store) CopyParts(size int64) int64 { return s.copier.CopyParts(size) }

func (o Options) validate() error {
	switch {
	case o.Log == nil || o.Metrics == nil:
		return s3conn.Invalid("a logger and metrics are required")
	case o.Bucket == "":
		return s3conn.Invalid("a bucket is required")
	case o.Instance == "":
		return s3conn.Invalid("an instance is required")
	case o.KMSKeyID == "":
		return s3conn.Invalid("a KMS key is required")
	case o.SSE != string(types.ServerSideEncryptionAwsKms) && o.SSE != string(types.ServerSideEncryptionAwsKmsDsse):
		return s3conn.Invalid("sse must be aws:kms or aws:kms:dsse, got %q", o.SSE)
	}
	if err := o.ObjectLock.validate(); err != nil {
		return err
	}
	return s3conn.CheckEndpoint(o.EndpointURL, o.AllowInsecure)
}

func (l ObjectLock) validate() error {
	switch {
	case l.Days < 0 || (l.Mode == "") != (l.Days == 0):
		return s3conn.Invalid("object lock needs a mode and days, got %q and %d", l.Mode, l.Days)
	case l.Mode != "" && !slices.Contains(types.ObjectLockMode("").Values(), types.ObjectLockMode(l.Mode)):
		return s3conn.Invalid("object lock mode must be GOVERNANCE or COMPLIANCE, got %q", l.Mode)
	}
	return nil
}
