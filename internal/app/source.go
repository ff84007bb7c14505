package app

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/fscheck"
	"github.com/s3syncd/s3syncd/internal/host"
	"github.com/s3syncd/s3syncd/internal/s3store"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/manifest"
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
	watch    *watcher.Watcher // nil: the run does not watch or scan
	pool     *uploader.Pool   // nil: nothing is uploaded from a removed source
	log      *zap.Logger
	counters sourceCounters

	run      *environment
	there    bool // something was at its path when the run began
	proof    proof
	known    capabilities
	provenAt time.Time // when the canary passed that still counts; zero: none does
}

// openSource connects one source to its directory, bucket and state. It makes
// no request.
func (e *environment) openSource(ctx context.Context, i int) (*source, error) {
	c := e.cfg.Sources[i]
	s, err := e.connect(ctx, i, e.storeOptions(c, e.log.With(zap.String("source", c.Name))))
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", c.Name, err)
	}
	fo := e.flusherOptions(s)
	if fo.Before, err = archivedBefore(ctx, e.db, s.state.Key(), s.real); err != nil {
		return nil, fmt.Errorf("source %s: %w", c.Name, err)
	}
	if fo.Sign, fo.SignBefore, err = e.signers(ctx, c); err != nil {
		return nil, fmt.Errorf("manifest.sign: %w", err)
	}
	var to manifest.Publisher = publisher{s}
	if e.removed != nil {
		to = s.store // There is no pool; the canary has run.
	}
	if s.flusher, err = manifest.New(s.state, to, fo); err != nil {
		return nil, fmt.Errorf("source %s: %w", c.Name, err)
	}
	return s, nil
}

// connect makes a source of what any run needs, a dry run too.
func (e *environment) connect(ctx context.Context, i int, o s3store.Options) (*source, error) {
	c := e.cfg.Sources[i]
	s := &source{
		cfg: c, number: i, mapper: state.NewMapper(c.Prefix), root: rootOf(&c), log: e.log.With(zap.String("source", c.Name)), run: e,
	}
	at, answered := e.at(c)
	s.real, s.there = at.Real, at.There
	if !e.dry {
		o.OnThrottled, o.OnKey = s.throttled, s.keyMoved
	}
	var err error
	if s.store, err = s3store.Open(ctx, o); err != nil {
		return nil, err
	}
	if e.db == nil {
		return s, nil
	}
	if e.removed != nil {
		s.state, err = e.db.Source(ctx, *e.removed)
	} else {
		s.state, err = continued(ctx, e.db, state.SourceKey{Bucket: c.Bucket, Prefix: c.Prefix, RealPath: s.real})
	}
	if err != nil {
		return nil, err
	}
	if !answered {
		s.real = s.state.Path()
		s.log.Warn("the directory of a source does not answer: it is taken for the one that it was", zap.String("path", c.Path), zap.String("was", s.real))
	}
	s.known = capabilitiesOf(&c, s.store, e.db, s.log)
	s.provenAt, err = s.known.recall()
	return s, err
}

// at returns what is at the path of c, and whether its file system answered: a
// source that does not answer is still the one that it was.
func (e *environment) at(c config.Source) (config.Look, bool) {
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

// pending counts the paths of a source that are on their way.
type pending struct {
	settling, queued, inFlight, delayed int

	oldest time.Time // when the oldest was first seen to have changed; zero: none
}

func (p pending) total() int64 { return int64(p.settling + p.queued + p.inFlight + p.delayed) }

// pending asks the watcher first: a path moves from there to the queue, so that
// none is missed on its way.
func (s *source) pending() pending {
	var p pending
	if s.watch != nil {
		p.settling, p.oldest = s.watch.Dirty(), s.watch.OldestDirty()
	}
	q := s.run.queue.Source(s.cfg.Name)
	p.queued, p.inFlight, p.delayed = q.Depth()
	if t := q.Oldest(); !t.IsZero() && (p.oldest.IsZero() || t.Before(p.oldest)) {
		p.oldest = t
	}
	return p
}

// A file that is gone within this many times settle, and at least this soon, after
// its last change need not have been uploaded.
const (
	shortLifeSettles = 10
	shortLifeLeast   = time.Minute
)

// uploads is what the pool needs to know of s.
func (s *source) uploads() uploader.Source {
	instance := s.run.cfg.Instance
	return uploader.Source{
		Name: s.cfg.Name, Instance: instance, Bucket: s.cfg.Bucket, RealPath: s.cfg.Path,
		Mapper: s.mapper, Root: s.root, Objects: s.store, Multipart: s.store, State: s.state,
		Accept:                    s.store.KeyVerdict,
		HeadForbiddenMeansUnknown: func() bool { return s.store.Capabilities().ListDenied },
		Proven:                    !s.provenAt.IsZero(),
		ProvenAt:                  s.provenAt,
		OnProven:                  s.proven,
		OnStopped:                 s.stopped,
		Claim:                     s.claim,
		Hardlinks:                 safefs.LinkPolicy(s.cfg.Hardlinks),
		Deletes:                   s.cfg.Deletes,
		Host:                      host.ID(host.MachineID(), host.Name(), instance),
		Fetch:                     s.fetch,
		Ended:                     newEndings(s).ended,
		ShortLife:                 max(shortLifeLeast, shortLifeSettles*s.cfg.Settle),
		Intact:                    s.intact,
		LeftOut:                   s.leftOut,
		Requeue:                   s.requeue,
	}
}
