package app

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/fscheck"
	"github.com/s3syncd/s3syncd/internal/host"
	"github.com/s3syncd/s3syncd/internal/s3store"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/manifest"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/uploader"
	"github.com/s3syncd/s3syncd/pkg/watcher"
)

// source is one configured directory with all that works on it.
type source struct {
	cfg      config.Source
	number   int    // in the configuration
	real     string // the directory without symbolic links
	mapper   state.Mapper
	root     *safefs.Root
	store    *s3store.Store
	state    *state.Source
	flusher  *manifest.Flusher
	watch    *watcher.Watcher
	log      *zap.Logger
	db       *state.DB
	instance string
	copies   string // of the trail, on this host
	uploads  *uploader.Metrics
	pool     atomic.Pointer[uploader.Pool] // nil until it is built
	counters sourceCounters

	runsOnce  bool // the run ends by itself
	there     bool // something stood at its path when the run began
	proof     proof
	provenAt  time.Time // when the canary passed that still counts; zero: none does
	listSkips bool      // each skip that the index alone decides gets a record
}

// environment is what sources of one run share.
type environment struct {
	cfg     *config.Config
	db      *state.DB
	log     *zap.Logger
	metrics *metrics
	build   host.Build
	queue   *queue.Queue

	grace     Grace            // of an orderly end
	keysMoved chan struct{}    // capacity 1, nil: nobody counts; an alias moved
	found     fscheck.Found    // what stands at the paths; nil: nobody has looked
	budget    host.Budget      // of memory
	direct    bool             // documents are sent without a pool: whoever sends them has run the canary
	of        *state.SourceKey // whose state is meant, nil: that of the configured destination
	runsOnce  bool             // the run ends by itself
}

// publisher returns what the documents of s are sent through.
func (e *environment) publisher(s *source) manifest.Publisher {
	if e.direct {
		return s.store
	}
	return publisher{Store: s.store, source: s}
}

// openSource connects one source to its directory, bucket and state. It makes
// no request.
func (e *environment) openSource(ctx context.Context, i int) (*source, error) {
	c := e.cfg.Sources[i]
	s := &source{
		cfg: c, number: i, mapper: state.NewMapper(c.Prefix), db: e.db, uploads: e.metrics.uploader, runsOnce: e.runsOnce,
		root:     rootOf(&c),
		log:      e.log.With(zap.String("source", c.Name)),
		instance: e.cfg.Instance, copies: e.copiesOf(c.Name),
	}
	look, answered := e.lookAt(c)
	s.real, s.there = look.Real, look.There
	o := e.storeOptions(c, s.log)
	o.OnThrottled = func() {
		if p := s.pool.Load(); p != nil {
			p.Throttled(c.Name)
		}
	}
	o.OnKey = func() { //nolint:contextcheck // What was learned is kept also when the run is interrupted.
		s.rememberCapabilities()
		select {
		case e.keysMoved <- struct{}{}:
		default:
		}
	}
	var err error
	if s.store, err = s3store.Open(ctx, o); err != nil {
		return nil, fmt.Errorf("source %s: %w", c.Name, err)
	}
	key := state.SourceKey{Bucket: c.Bucket, Prefix: c.Prefix, RealPath: s.real}
	if e.of != nil {
		s.state, err = e.db.Source(ctx, *e.of)
	} else {
		s.state, err = continued(ctx, e.db, key)
	}
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", c.Name, err)
	}
	if !answered {
		s.real = s.state.Path()
		s.log.Warn("the directory of a source does not answer: it is taken for the one that it was", zap.String("path", c.Path), zap.String("was", s.real))
	}
	if err := s.recallCapabilities(); err != nil {
		return nil, fmt.Errorf("source %s: %w", c.Name, err)
	}
	fo := e.flusherOptions(s)
	if fo.Before, err = archivedBefore(ctx, e.db, s.state.Key(), s.real); err != nil {
		return nil, fmt.Errorf("source %s: %w", c.Name, err)
	}
	if fo.Sign, fo.SignBefore, err = e.signers(ctx, c); err != nil {
		return nil, fmt.Errorf("manifest.sign: %w", err)
	}
	if s.flusher, err = manifest.New(s.state, e.publisher(s), fo); err != nil {
		return nil, fmt.Errorf("source %s: %w", c.Name, err)
	}
	return s, nil
}

// lookAt returns what stands at the path of c, and whether anybody knows: a source
// that does not answer is still the one that it was.
func (e *environment) lookAt(c config.Source) (config.Look, bool) {
	if e.found == nil {
		return fscheck.Path(c.Path)
	}
	l, ok := e.found[c.Path]
	if !ok {
		l.Real = c.Path
	}
	return l, ok
}

// rootOf is the directory of a source.
func rootOf(c *config.Source) *safefs.Root {
	return safefs.NewRoot(c.Path, safefs.RootOptions{
		Follow: c.Symlinks == archive.SymlinksFollow, CrossMounts: c.CrossMounts, SizeMtime: c.Identity == "size-mtime",
	})
}

func (e *environment) storeOptions(c config.Source, log *zap.Logger) s3store.Options {
	return s3store.Options{
		Region: c.Region, EndpointURL: e.cfg.S3.EndpointURL, PathStyle: e.cfg.S3.PathStyle,
		AllowInsecure: e.cfg.S3.AllowInsecureEndpoint, ExpectedBucketOwner: c.ExpectedBucketOwner, Profile: c.Profile,
		Bucket: c.Bucket, Prefix: c.Prefix, Instance: e.cfg.Instance,
		KMSKeyID: c.KMSKeyID, AcceptKeys: c.AcceptKMSKeys, SSE: c.SSE, BucketKey: c.BucketKey,
		EncryptionContext: c.EncryptionContext, StorageClass: c.StorageClass, ACL: e.cfg.S3.ACL, Tags: c.Tags,
		ObjectLock: s3store.ObjectLock{Mode: e.cfg.Manifest.ObjectLock.Mode, Days: e.cfg.Manifest.ObjectLock.Days},
		Workers:    e.cfg.Upload.Workers,
		Log:        log.Named("s3"), Metrics: e.metrics.s3store,
	}
}

func (e *environment) flusherOptions(s *source) manifest.Options {
	m := e.cfg.Manifest
	if m.DigestInterval == 0 {
		m.DigestInterval = never
	}
	return manifest.Options{
		Source: s.cfg.Name, Instance: e.cfg.Instance, Bucket: s.cfg.Bucket, Mapper: s.mapper,
		FlushInterval: m.FlushInterval, DigestInterval: m.DigestInterval, StopTimeout: e.grace.Publish,
		MaxRecords: m.MaxRecords, Layout: manifest.Layout(m.Layout),
		LocalDir:  s.copies,
		KeepLocal: m.KeepLocal, KeepLocalSize: m.KeepLocalSize,
		LateStart: e.runsOnce,
		Version:   e.build.Version, ConfigSHA256: e.cfg.SourceSHA256(s.number),
		Now:     s.store.Now,
		Pending: func() (int64, time.Time) { p := e.pending(s); return p.total(), p.oldest },
		Log:     e.log.Named("manifest"), Metrics: e.metrics.manifest,
	}
}

// never is the interval of what is switched off.
const never = 100 * 365 * 24 * time.Hour

// pending counts the paths of a source that are on their way.
type pending struct {
	settling, queued, inFlight, delayed int

	oldest time.Time // when the oldest was first seen to have changed; zero: none
}

func (p pending) total() int64 { return int64(p.settling + p.queued + p.inFlight + p.delayed) }

// pending looks at the settler first: a path moves from there to the queue, so
// that none is missed on its way.
func (e *environment) pending(s *source) pending {
	var p pending
	if s.watch != nil {
		p.settling, p.oldest = s.watch.Dirty(), s.watch.OldestDirty()
	}
	p.queued, p.inFlight, p.delayed = e.queue.Source(s.cfg.Name).Depth()
	if t := e.queue.Source(s.cfg.Name).Oldest(); !t.IsZero() && (p.oldest.IsZero() || t.Before(p.oldest)) {
		p.oldest = t
	}
	return p
}

// A file that is gone within so many times settle, and at least so soon, after
// its last change need not have been uploaded.
const (
	shortLifeSettles = 10
	shortLifeLeast   = time.Minute
)

// uploaderSource is what the pool needs to know of s.
func (s *source) uploaderSource(instance string) uploader.Source {
	return uploader.Source{
		Name: s.cfg.Name, Instance: instance, Bucket: s.cfg.Bucket, RealPath: s.cfg.Path,
		Mapper: s.mapper, Root: s.root, Objects: s.store, Multipart: s.store, State: s.state,
		Accept:                    s.store.KeyVerdict,
		HeadForbiddenMeansUnknown: func() bool { return s.store.Capabilities().ListDenied },
		Proven:                    !s.provenAt.IsZero(),
		ProvenAt:                  s.provenAt,
		OnProven:                  s.onProven,
		OnStopped:                 s.forgetCapabilities,
		Claim:                     s.claim,
		Hardlinks:                 safefs.LinkPolicy(s.cfg.Hardlinks),
		Deletes:                   s.cfg.Deletes,
		Host:                      host.ID(host.MachineID(), host.Name(), instance),
		Fetch:                     s.fetch,
		Ended:                     newEndings(s, instance).ended,
		ShortLife:                 max(shortLifeLeast, shortLifeSettles*s.cfg.Settle),
		Intact:                    func(id safefs.Identity, path string) bool { return s.watch != nil && s.watch.Intact(id, path) },
		LeftOut:                   func(path string) bool { return s.watch != nil && s.watch.LeavesOut(path) },
		Requeue: func(path string) {
			if s.watch != nil {
				s.watch.Requeue(path)
			}
		},
	}
}

// canaryAge is how long a canary that passed counts for an unchanged
// destination.
const canaryAge = 24 * time.Hour

// provenDestination is what the state remembers of the last canary.
type provenDestination struct {
	Time         time.Time            `json:"time"`
	Capabilities s3store.Capabilities `json:"capabilities"`
}

func (s *source) capabilityKey() string {
	return fmt.Sprintf("canary/%s/%s/%s", s.cfg.Bucket, s.cfg.Prefix, s.cfg.Name)
}

// recallCapabilities takes over what an earlier run's canary learned, when it
// was made for the same destination within canaryAge.
func (s *source) recallCapabilities() error {
	b, err := s.db.Meta(s.capabilityKey())
	if err != nil || b == nil {
		return err
	}
	var p provenDestination
	if err := json.Unmarshal(b, &p); err != nil {
		s.log.Warn("what the last canary learned is unreadable, it runs again", zap.Error(err))
		return nil
	}
	age := time.Since(p.Time)
	if s.store.Restore(p.Capabilities) && age >= 0 && age < canaryAge {
		s.provenAt = p.Time
	}
	return nil
}

// onProven takes in that the canary has passed.
func (s *source) onProven() {
	s.proof.proven()
	s.rememberCapabilities()
	s.flusher.Retry()
}

// rememberCapabilities keeps what the canary learned for the next run.
func (s *source) rememberCapabilities() {
	b, err := json.Marshal(provenDestination{Time: time.Now(), Capabilities: s.store.Capabilities()})
	if err == nil {
		err = s.db.SetMeta(context.Background(), s.capabilityKey(), b)
	}
	if err != nil {
		s.log.Warn("the canary's result was not kept, the next start runs it again", zap.Error(err))
	}
}

// forgetCapabilities makes the next start run the canary, because the server
// did not confirm the key.
func (s *source) forgetCapabilities() {
	if err := s.db.SetMeta(context.Background(), s.capabilityKey(), nil); err != nil {
		s.log.Warn("the canary's old result was not removed", zap.Error(err))
	}
}
