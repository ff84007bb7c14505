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

	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// askTimeout bounds what Begin asks the bucket: a start does not wait for an
// outage to end.
const askTimeout = 10 * time.Second

// Begin makes sure that the source has a chain to record in. Call it once after
// New, before anything is committed. It looks at the bucket once: a chain that
// goes on may have been continued by another run, one that begins may follow an
// older one of this instance. An answer that does not come within seconds is no
// error: a chain that goes on asks again before anything is written, one that
// begins does so as unknown.
func (f *Flusher) Begin(ctx context.Context, report state.Report) error {
	if err := f.goOn(ctx, report); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	err := f.ask(limited)
	if ctx.Err() != nil {
		return fmt.Errorf("begin chain of %s: %w", f.o.Source, ctx.Err())
	}
	if err != nil {
		f.log.Info("the bucket gave no answer; it is asked before anything is written", zap.Error(err))
	}
	return nil
}

// goOn begins a chain where there is none, or where the last one cannot go on.
func (f *Flusher) goOn(ctx context.Context, report state.Report) error {
	f.sealing.Lock()
	defer f.sealing.Unlock()
	if err := settle(ctx, f.st, &f.o, f.log); err != nil {
		return err
	}
	ch, err := f.st.Chain()
	if err != nil {
		return fmt.Errorf("read chain of %s: %w", f.o.Source, err)
	}
	if ch.ID == "" {
		return f.beginFirst(ctx, report)
	}
	if err := f.reissueStrays(ctx, ch); err != nil {
		return err
	}
	if ch, err = f.st.Chain(); err != nil {
		return fmt.Errorf("read chain of %s: %w", f.o.Source, err)
	}
	f.claim.begin(ch.LastNamed, false)
	if f.st.HostChanged() {
		return f.leaveHost(ctx, ch)
	}
	ended, err := f.local.ended(ctx, f.remote, ch)
	if err != nil || !ended {
		return err
	}
	return f.leaveChain(ctx, leave{begins: state.BeginsReconfigured, old: ch, from: ch.Sequence, head: ch.PrevSHA256, note: f.o.changed()})
}

// changed is the event of a changed destination, nil where it did not change.
func (o *Options) changed() *state.Note {
	if o.Before == "" {
		return nil
	}
	return &state.Note{Kind: state.NoteDestinationChanged, Time: o.Now(), Detail: o.Before}
}

// leaveHost leaves a chain that another host has begun, at its newest digest as
// far as that can be found out.
func (f *Flusher) leaveHost(ctx context.Context, ch state.Chain) error {
	l := leave{begins: state.BeginsHostChanged, old: ch, from: ch.Sequence, head: ch.PrevSHA256, known: true}
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	waiting, err := f.local.waiting(ch)
	if err != nil {
		return err
	}
	s, err := f.remote.survey(ask, ch, func(n trail.Name) bool { return f.claim.foreign(n, ch, waiting) })
	if err == nil && len(s.ahead) > 0 {
		at := l
		at.head = ""
		if err = f.leftAt(ask, ch, s.ahead, &at); err == nil {
			l = at
			l.from = min(s.from, l.from)
			err = f.st.DoubtAll(ctx)
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("begin chain of %s: %w", f.o.Source, ctx.Err())
	}
	if err != nil {
		f.log.Info("the chain of the other host is left where this state knows it", zap.Error(err))
	}
	return f.leaveChain(ctx, l)
}

// leaveLocal leaves the chain if a local copy is of a later digest: the state is
// older than the copies, although the bucket does not show it.
func (f *Flusher) leaveLocal(ctx context.Context) error {
	ch, err := f.st.Chain()
	if err != nil {
		return fmt.Errorf("read chain of %s: %w", f.o.Source, err)
	}
	file, err := f.local.newest(func(n trail.Name) bool { return n.Digest && n.Chain == ch.ID && n.Sequence > ch.Sequence })
	if err != nil || file == "" {
		return err
	}
	head, err := f.local.publishedHead(ctx, f.remote, ch, file)
	if err != nil {
		return err
	}
	f.log.Error("the copies of the trail are ahead of the state, which is an old one; another chain begins", zap.String("chain", ch.ID))
	return f.leaveBehind(ctx, ch, leave{begins: state.BeginsForked, old: ch, from: ch.Sequence, head: head})
}

// beginFirst begins the chain of a source that has none.
func (f *Flusher) beginFirst(ctx context.Context, report state.Report) error {
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	old, err := f.follows(ask)
	if ctx.Err() != nil {
		return fmt.Errorf("begin chain of %s: %w", f.o.Source, ctx.Err())
	}
	var note *state.Note
	if err != nil {
		note = f.notAsked(err)
	}
	begins := f.why(report, old, err)
	if begins == state.BeginsReconfigured {
		note = f.o.changed()
	}
	return f.beginChain(ctx, begins, old.name.Chain, old.sha, note)
}

// followTries is how many chains a lost state may look at for one that is its own.
const followTries = 32

// follows returns the newest digest of the chain that a first chain follows, and
// its SHA-256 where that may be named: the newest chain of those that this host
// knows. Where it knows none, and could tell, it follows the newest and vouches
// for nothing in it.
func (f *Flusher) follows(ctx context.Context) (at followed, err error) {
	chains, err := f.remote.chains(ctx)
	if err != nil || len(chains) == 0 {
		return at, err
	}
	proves, err := f.known.proves()
	if err != nil {
		return at, err
	}
	for _, t := range chains[:min(len(chains), followTries)] {
		if at.own && !t[0].name.Time.Equal(at.name.Time) {
			break
		}
		next, err := f.candidate(ctx, t, proves)
		if err != nil {
			return at, err
		}
		// Names have whole seconds: what ended last is in the digests.
		if next.own && (!at.own || next.end.After(at.end)) {
			at = next
		}
	}
	if !at.own {
		f.log.Error("the newest chain of this instance in the bucket is none that this host can know as its own: nothing in it is vouched for", zap.String("chain", chains[0][0].name.Chain))
		return f.candidate(ctx, chains[0], true)
	}
	return at, nil
}

// followed is the digest at which a first chain follows another one.
type followed struct {
	head
	sha    string // "": it is not named
	own    bool   // it counts as the host's
	reason string
	end    time.Time
}

// candidate looks at the newest digests of a chain. Where nothing proves which
// digests are the host's they all count.
func (f *Flusher) candidate(ctx context.Context, t tops, proves bool) (followed, error) {
	at := followed{head: t[0]}
	d, sha, err := f.remote.digest(ctx, at.key)
	if err != nil {
		return at, err
	}
	at.reason = d.Reason
	at.end, _ = time.Parse(time.RFC3339Nano, d.EndTime) // A digest that says none is no later than others.
	if !proves {
		at.sha, at.own = sha, true
		return at, nil
	}
	at.sha, at.own, err = f.known.head(ctx, t)
	return at, err
}

// The newest digest in the bucket, its content, and why the bucket could not be
// asked about them decide how a first chain begins.
func (f *Flusher) why(report state.Report, old followed, err error) state.Begins {
	switch {
	case report.SetAside != "":
		return state.BeginsStateLost
	case f.o.Before != "" && (old.key == "" || old.reason == trail.ReasonFinal):
		return state.BeginsReconfigured
	case old.key != "":
		return state.BeginsStateLost
	case err != nil:
		return state.BeginsUnknown
	}
	return state.BeginsNew
}

// notAsked logs that the bucket gave no answer, and returns the note that says
// so, or nil where it is a missing right, which `unknown` says by itself.
func (f *Flusher) notAsked(err error) *state.Note {
	if errors.Is(err, fs.ErrPermission) && !state.ClassOf(err).Meaning().EveryRequest {
		f.log.Info("no right to look for an older chain", zap.Error(err))
		return nil
	}
	f.log.Warn("the chain begins without a look for an older one", zap.Error(err))
	return &state.Note{
		Kind: state.NoteGap, Time: f.o.Now(),
		Detail: "the bucket could not be asked for an older chain: " + string(state.ClassOf(err)),
	}
}

// beginChain begins a chain under a new name. The caller holds f.sealing.
func (f *Flusher) beginChain(ctx context.Context, begins state.Begins, abandons, sha string, note *state.Note) error {
	var id [4]byte
	if _, err := rand.Read(id[:]); err != nil {
		return fmt.Errorf("draw chain id: %w", err)
	}
	chain := hex.EncodeToString(id[:])
	if err := f.st.BeginChain(ctx, chain, begins, abandons, sha); err != nil {
		return fmt.Errorf("begin chain of %s: %w", f.o.Source, err)
	}
	if err := f.st.Looked(ctx, f.o.Now().Add(-lookMargin)); err != nil {
		return fmt.Errorf("begin chain of %s: %w", f.o.Source, err)
	}
	if note != nil {
		if err := f.st.AddNote(ctx, *note); err != nil {
			return fmt.Errorf("note in chain %s of %s: %w", chain, f.o.Source, err)
		}
	}
	f.claim.begin(time.Time{}, true)
	f.m.sequence.Set(0)
	f.log.Info("chain begins", zap.String("chain", chain), zap.String("begins", string(begins)), zap.String("abandons", abandons))
	return nil
}
