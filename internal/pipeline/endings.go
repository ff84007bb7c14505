package pipeline

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/remote"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

const (
	// endedAfter is how long a chain's next digest must be overdue until its host
	// counts as gone: longer than an outage that is repaired the same day.
	endedAfter = 24 * time.Hour
	// endedKept is how long an answer about a chain counts. A host that was stopped
	// may start again.
	endedKept = 10 * time.Minute
	// endedMost bounds the chains that are remembered: objects can name any.
	endedMost = 1000
)

// endings knows which chains of this instance, other hosts' or of a lost state,
// have ended. It is safe for concurrent use.
type endings struct {
	trail    *trail.Trail
	instance string
	taken    []string // an operator says so
	now      func() time.Time
	log      *zap.Logger

	mu     sync.Mutex
	asked  time.Time // when chains was listed
	chains []trail.ChainIndex
	known  map[string]ending
}

// ending is what was found out about one chain.
type ending struct {
	at   time.Time
	over bool
}

// newEndings returns what is known of the chains beside that of s.
func newEndings(s *Source) *endings {
	return &endings{
		trail: trail.NewTrail(s.Store, s.Mapper.Prefix()), instance: s.Session.Config.Instance, taken: s.Config.TakesOver, now: s.Store.Now, log: s.Log,
		known: map[string]ending{},
	}
}

// ended reports whether the chain that o names has ended, so that its objects may
// be replaced. Callers that ask at the same time wait for one answer.
func (e *endings) ended(ctx context.Context, o archive.Object) (bool, error) {
	id, ok := archive.ParseObjectID(o.Metadata[archive.MetaID])
	if !ok || id.Instance != e.instance {
		return false, nil
	}
	if slices.Contains(e.taken, id.Chain) {
		return true, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now()
	if k, ok := e.known[id.Chain]; ok && now.Sub(k.at).Abs() < endedKept {
		return k.over, nil
	}
	why, err := e.ask(ctx, id.Chain, o.LastModified, now)
	if errors.Is(err, fs.ErrPermission) {
		err = nil // What may not be read says nothing.
	}
	if err != nil {
		return false, err
	}
	if len(e.known) >= endedMost {
		clear(e.known)
	}
	e.known[id.Chain] = ending{at: now, over: why != ""}
	if why != "" {
		e.log.Warn("objects of an earlier chain of this instance are taken over", zap.String("chain", id.Chain), zap.String("why", why))
	} else {
		e.log.Error("another host writes under this instance's name, or one that ended without a word did: its objects are not replaced",
			zap.String("chain", id.Chain), zap.String("host", o.Metadata[archive.MetaHost]),
			zap.String("advice", "give each host its own instance; if that host is gone for good, name its chain in takes_over"))
	}
	return why != "", nil
}

// ask reads the chain's newest digest. It returns why the chain has ended, ""
// where nothing says so. A chain without any digest ended when it could have
// published one since it wrote the object.
func (e *endings) ask(ctx context.Context, chain string, wrote, now time.Time) (why string, err error) {
	if now.Sub(e.asked).Abs() >= endedKept {
		if e.chains, err = e.trail.Chains(ctx); err != nil {
			return "", err
		}
		e.asked = now
	}
	i := slices.IndexFunc(e.chains, func(c trail.ChainIndex) bool { return c.ID == chain && c.Instance == e.instance })
	var head trail.Entry
	if i >= 0 {
		head, _ = e.chains[i].Head()
	}
	if head.Key == "" {
		if !wrote.IsZero() && now.Sub(wrote) > 2*endedAfter {
			return "it never published a digest", nil
		}
		return "", nil
	}
	d, _, err := e.trail.Digest(ctx, head.Key)
	if errors.Is(err, trail.ErrFormat) || errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return whyEnded(&d, now), err
}

// whyEnded says why no digest is to come after d, "" where one is.
func whyEnded(d *trail.Digest, now time.Time) string {
	switch {
	case d.Reason == trail.ReasonFinal || d.Reason == trail.ReasonStop:
		return "its last digest says " + d.Reason
	case d.NextDigestDue == nil:
		return ""
	}
	due, err := time.Parse(time.RFC3339Nano, *d.NextDigestDue)
	if err != nil || now.Sub(due) <= endedAfter {
		return ""
	}
	return "its next digest has been overdue since " + *d.NextDigestDue
}

// Fetch reads the object that o describes.
func (s *Source) Fetch(ctx context.Context, key string, o archive.Object) (io.ReadCloser, archive.Object, error) {
	return s.Store.GetFrom(ctx, key, "", 0, o.ETag)
}

var _ remote.Fetch = (*Source)(nil).Fetch
