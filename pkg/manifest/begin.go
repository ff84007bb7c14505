package manifest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/copies"
	surveypkg "github.com/s3syncd/s3syncd/internal/survey"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// Begin makes sure that the source has a chain to record in. Call it once after
// New, before anything is committed. It searches the bucket once: a chain that
// continues may have been extended by another run, one that begins may follow an
// older one of this instance. An answer that does not come within seconds is no
// error: a chain that continues asks again before anything is written, one that
// begins does so as unknown.
func (f *Flusher) Begin(ctx context.Context, report state.Report) error {
	if err := f.beginning.goOn(ctx, report); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, surveypkg.AskTimeout)
	defer cancel()
	err := f.chains.ask(limited)
	if ctx.Err() != nil {
		return fmt.Errorf("begin chain of %s: %w", f.o.Source, ctx.Err())
	}
	if err != nil {
		f.log.Info("the bucket gave no answer; it is asked before anything is written", zap.Error(err))
	}
	return nil
}

// beginning gives a source a chain to record in.
type beginning struct {
	st     *state.Source
	o      *Options
	log    *zap.Logger
	local  copies.Copies
	remote surveypkg.Bucket
	known  known
	claim  *claim
	chains *succession
}

// goOn begins a chain where there is none, or where the last one cannot continue.
func (b *beginning) goOn(ctx context.Context, report state.Report) error {
	b.chains.sealer.mu.Lock()
	defer b.chains.sealer.mu.Unlock()
	if err := b.local.Settle(ctx, b.o.Bucket, b.o.Mapper.Prefix()); err != nil {
		return err
	}
	ch, err := b.st.Chain()
	if err != nil {
		return fmt.Errorf("read chain of %s: %w", b.o.Source, err)
	}
	if ch.ID == "" {
		return b.beginFirst(ctx, report)
	}
	if err := b.chains.reissueStrays(ctx, ch); err != nil {
		return err
	}
	if ch, err = b.st.Chain(); err != nil {
		return fmt.Errorf("read chain of %s: %w", b.o.Source, err)
	}
	b.claim.begin(ch.LastNamed, false)
	if b.st.HostChanged() {
		return b.leaveHost(ctx, ch)
	}
	ended, err := b.local.Ended(ctx, b.remote, ch)
	if err != nil || !ended {
		return err
	}
	return b.chains.leaveChain(ctx, leave{begins: archive.BeginsReconfigured, old: ch, from: ch.Sequence, head: ch.PrevSHA256, note: b.o.changed()})
}

// changed is the event of a changed destination, nil where it did not change.
func (o *Options) changed() *archive.Note {
	if o.Before == "" {
		return nil
	}
	return &archive.Note{Kind: archive.NoteDestinationChanged, Time: o.Now(), Detail: o.Before}
}

// leaveHost leaves a chain that another host has begun, at its newest digest as
// far as that can be found out.
func (b *beginning) leaveHost(ctx context.Context, ch archive.Chain) error {
	l := leave{begins: archive.BeginsHostChanged, old: ch, from: ch.Sequence, head: ch.PrevSHA256, known: true}
	ask, cancel := context.WithTimeout(ctx, surveypkg.AskTimeout)
	defer cancel()
	waiting, err := b.local.Waiting(ch)
	if err != nil {
		return err
	}
	s, err := b.remote.Survey(ask, ch, func(n trail.Name) bool { return b.claim.foreign(n, ch, waiting) })
	if err == nil && len(s.Ahead) > 0 {
		at := l
		at.head = ""
		if err = b.chains.leftAt(ask, ch, s.Ahead, &at); err == nil {
			l = at
			l.from = min(s.From, l.from)
			err = b.st.SuspectAll(ctx)
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("begin chain of %s: %w", b.o.Source, ctx.Err())
	}
	if err != nil {
		b.log.Info("the chain of the other host is left where this state knows it", zap.Error(err))
	}
	return b.chains.leaveChain(ctx, l)
}

// beginFirst begins the chain of a source that has none.
func (b *beginning) beginFirst(ctx context.Context, report state.Report) error {
	ask, cancel := context.WithTimeout(ctx, surveypkg.AskTimeout)
	defer cancel()
	old, err := b.follows(ask)
	if ctx.Err() != nil {
		return fmt.Errorf("begin chain of %s: %w", b.o.Source, ctx.Err())
	}
	var note *archive.Note
	if err != nil {
		note = b.notAsked(err)
	}
	begins := b.why(report, old, err)
	if begins == archive.BeginsReconfigured {
		note = b.o.changed()
	}
	return b.chains.beginChain(ctx, begins, old.Name.Chain, old.sha, note)
}

// followTries is how many chains a lost state may check for one that is its own.
const followTries = 32

// follows returns the newest digest of the chain that a first chain follows, and
// its SHA-256 where that may be named: the newest chain of those that this host
// knows. Where it knows none, and could tell, it follows the newest and vouches
// for nothing in it.
func (b *beginning) follows(ctx context.Context) (at followed, err error) {
	chains, err := b.remote.Chains(ctx)
	if err != nil || len(chains) == 0 {
		return at, err
	}
	proves, err := b.known.proves()
	if err != nil {
		return at, err
	}
	for _, t := range chains[:min(len(chains), followTries)] {
		if at.own && !t[0].Name.Time.Equal(at.Name.Time) {
			break
		}
		next, err := b.candidate(ctx, t, proves)
		if err != nil {
			return at, err
		}
		// Names have whole seconds: what ended last is in the digests.
		if next.own && (!at.own || next.end.After(at.end)) {
			at = next
		}
	}
	if !at.own {
		b.log.Error("the newest chain of this instance in the bucket is none that this host can know as its own: nothing in it is vouched for", zap.String("chain", chains[0][0].Name.Chain))
		return b.candidate(ctx, chains[0], true)
	}
	return at, nil
}

// followed is the digest at which a first chain follows another one.
type followed struct {
	surveypkg.Head
	sha    string // "": it is not named
	own    bool   // it counts as the host's
	reason string
	end    time.Time
}

// candidate judges the newest digests of a chain. Where nothing proves which
// digests are the host's they all count.
func (b *beginning) candidate(ctx context.Context, t surveypkg.Newest, proves bool) (followed, error) {
	at := followed{Head: t[0]}
	d, sha, err := b.remote.Digest(ctx, at.Key)
	if err != nil {
		return at, err
	}
	at.reason = d.Reason
	at.end, _ = time.Parse(time.RFC3339Nano, d.EndTime) // A digest that says none is no later than others.
	if !proves {
		at.sha, at.own = sha, true
		return at, nil
	}
	at.sha, at.own, err = b.known.head(ctx, t)
	return at, err
}

// The newest digest in the bucket, its content, and why the bucket could not be
// asked about them decide how a first chain begins.
func (b *beginning) why(report state.Report, old followed, err error) archive.Begins {
	switch {
	case report.SetAside != "":
		return archive.BeginsStateLost
	case b.o.Before != "" && (old.Key == "" || old.reason == trail.ReasonFinal):
		return archive.BeginsReconfigured
	case old.Key != "":
		return archive.BeginsStateLost
	case err != nil:
		return archive.BeginsUnknown
	}
	return archive.BeginsNew
}

// notAsked logs that the bucket gave no answer, and returns the note that says
// so, or nil where it is a missing right, which `unknown` says by itself.
func (b *beginning) notAsked(err error) *archive.Note {
	if errors.Is(err, fs.ErrPermission) && !archive.ClassOf(err).Meaning().EveryRequest {
		b.log.Info("no right to search the bucket for an older chain", zap.Error(err))
		return nil
	}
	b.log.Warn("the chain begins without a search for an older one", zap.Error(err))
	return &archive.Note{
		Kind: archive.NoteGap, Time: b.o.Now(),
		Detail: "the bucket could not be asked for an older chain: " + string(archive.ClassOf(err)),
	}
}

// beginChain begins a chain under a new name. The caller holds f.sealing.
func (c *succession) beginChain(ctx context.Context, begins archive.Begins, abandons, sha string, note *archive.Note) error {
	var id [4]byte
	if _, err := rand.Read(id[:]); err != nil {
		return fmt.Errorf("draw chain id: %w", err)
	}
	chain := hex.EncodeToString(id[:])
	if err := c.st.BeginChain(ctx, chain, begins, abandons, sha); err != nil {
		return fmt.Errorf("begin chain of %s: %w", c.o.Source, err)
	}
	if err := c.st.Looked(ctx, c.o.Now().Add(-lookMargin)); err != nil {
		return fmt.Errorf("begin chain of %s: %w", c.o.Source, err)
	}
	if note != nil {
		if err := c.st.AddNote(ctx, *note); err != nil {
			return fmt.Errorf("note in chain %s of %s: %w", chain, c.o.Source, err)
		}
	}
	c.claim.begin(time.Time{}, true)
	c.m.sequence.Set(0)
	c.log.Info("chain begins", zap.String("chain", chain), zap.String("begins", string(begins)), zap.String("abandons", abandons))
	return nil
}
