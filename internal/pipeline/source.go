package pipeline

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

// Source is one configured directory with all that works on it.
type Source struct {
	Config   config.Source
	number   int    // in the configuration
	Real     string // the directory without symbolic links
	Mapper   archive.Mapper
	Root     *safefs.Root
	Store    *s3store.Store
	State    *state.Source
	Flusher  *manifest.Flusher
	Watch    *watcher.Watcher // nil: the run does not watch or scan
	Pool     *uploader.Pool   // nil: nothing is uploaded from a removed source
	Log      *zap.Logger
	Counters Counters
	Backlog  *Backlog // of the trail
	Disk     *Disk    // of the state

	Session  *Session
	there    bool // something was at its path when the run began
	proof    proof
	known    Capabilities
	provenAt time.Time // when a canary passed that still counts; zero: none
}

// OpenSource connects one source to its directory, bucket and state. It makes
// no request.
func (e *Session) OpenSource(ctx context.Context, i int) (*Source, error) {
	c := e.Config.Sources[i]
	s, err := e.Connect(ctx, i, e.StoreOptions(c, e.Log.With(zap.String("source", c.Name))))
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", c.Name, err)
	}
	fo := e.flusherOptions(s)
	if fo.Before, err = archivedBefore(ctx, e.DB, s.State.Key(), s.Real); err != nil {
		return nil, fmt.Errorf("source %s: %w", c.Name, err)
	}
	if fo.Sign, fo.SignBefore, err = e.Signers(ctx, c); err != nil {
		return nil, fmt.Errorf("manifest.sign: %w", err)
	}
	var to manifest.Publisher = publisher{s}
	if e.Removed != nil {
		to = s.Store // There is no pool; the canary has run.
	}
	if s.Flusher, err = manifest.New(s.State, to, fo); err != nil {
		return nil, fmt.Errorf("source %s: %w", c.Name, err)
	}
	return s, nil
}

// Connect makes a source of what any run needs, a dry run too.
func (e *Session) Connect(ctx context.Context, i int, o s3store.Options) (*Source, error) {
	c := e.Config.Sources[i]
	s := &Source{
		Config: c, number: i, Mapper: archive.NewMapper(c.Prefix), Root: RootOf(&c), Log: e.Log.With(zap.String("source", c.Name)), Session: e,
	}
	at, answered := e.at(c)
	s.Real, s.there = at.Real, at.There
	if !e.Dry {
		o.OnThrottled, o.OnKey = s.throttled, s.keyMoved
	}
	var err error
	if s.Store, err = s3store.Open(ctx, o); err != nil {
		return nil, err
	}
	if e.DB == nil {
		return s, nil
	}
	if e.Removed != nil {
		s.State, err = e.DB.Source(ctx, *e.Removed)
	} else {
		s.State, err = continued(ctx, e.DB, state.SourceKey{Bucket: c.Bucket, Prefix: c.Prefix, RealPath: s.Real})
	}
	if err != nil {
		return nil, err
	}
	if !answered {
		s.Real = s.State.Path()
		s.Log.Warn("the directory of a source does not answer: it is taken for the one that it was", zap.String("path", c.Path), zap.String("was", s.Real))
	}
	s.Backlog = &Backlog{state: s.State, log: s.Log}
	s.Disk = &Disk{db: e.DB, dir: e.Config.StateDir, log: s.Log, writes: s.Release}
	s.known = CapabilitiesOf(&c, s.Store, e.DB, s.Log)
	s.provenAt, err = s.known.recall()
	return s, err
}

// at returns what is at the path of c, and whether its file system answered.
func (e *Session) at(c config.Source) (config.Look, bool) {
	if e.Found == nil {
		return fscheck.Path(c.Path)
	}
	l, ok := e.Found[c.Path]
	if !ok {
		l.Real = c.Path
	}
	return l, ok
}

// RootOf is the directory of a source.
func RootOf(c *config.Source) *safefs.Root {
	return safefs.NewRoot(c.Path, safefs.RootOptions{
		Follow: c.Symlinks == archive.SymlinksFollow, CrossMounts: c.CrossMounts, SizeMtime: c.Identity == "size-mtime",
	})
}

// Pending counts the paths of a source that are on their way.
type Pending struct {
	Settling, Queued, InFlight, Delayed int

	Oldest time.Time // when the oldest was first seen to have changed; zero: none
}

// Total is all of them.
func (p Pending) Total() int64 { return int64(p.Settling + p.Queued + p.InFlight + p.Delayed) }

// Pending asks the watcher first: a path moves from there to the queue, so that
// none is missed on its way.
func (s *Source) Pending() Pending {
	var p Pending
	if s.Watch != nil {
		p.Settling, p.Oldest = s.Watch.Dirty(), s.Watch.OldestDirty()
	}
	q := s.Session.Queue.Source(s.Config.Name)
	p.Queued, p.InFlight, p.Delayed = q.Depth()
	if t := q.Oldest(); !t.IsZero() && (p.Oldest.IsZero() || t.Before(p.Oldest)) {
		p.Oldest = t
	}
	return p
}

// A file that is gone within this many times settle, and at least this soon, after
// its last change need not have been uploaded.
const (
	shortLifeSettles = 10
	shortLifeLeast   = time.Minute
)

// Uploads is what the pool needs to know of s.
func (s *Source) Uploads() uploader.Source {
	instance := s.Session.Config.Instance
	return uploader.Source{
		Name: s.Config.Name, Instance: instance, Bucket: s.Config.Bucket, RealPath: s.Config.Path,
		Mapper: s.Mapper, Root: s.Root, Objects: s.Store, Multipart: s.Store, State: s.State,
		Accept:                    s.Store.KeyVerdict,
		HeadForbiddenMeansUnknown: func() bool { return s.Store.Capabilities().ListDenied },
		Proven:                    !s.provenAt.IsZero(),
		ProvenAt:                  s.provenAt,
		OnProven:                  s.proven,
		OnStopped:                 s.stopped,
		Claim:                     s.claim,
		Hardlinks:                 safefs.LinkPolicy(s.Config.Hardlinks),
		Deletes:                   s.Config.Deletes,
		Host:                      host.ID(host.MachineID(), host.Name(), instance),
		Fetch:                     s.Fetch,
		Ended:                     newEndings(s).ended,
		ShortLife:                 max(shortLifeLeast, shortLifeSettles*s.Config.Settle),
		Intact:                    s.intact,
		LeftOut:                   s.leftOut,
		Requeue:                   s.requeue,
	}
}
