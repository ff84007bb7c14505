package manifest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// askTimeout bounds what Begin asks the bucket: a start does not wait for an
// outage to end.
const askTimeout = 10 * time.Second

// Begin makes sure that the source has a chain to record in. Call it once after
// New, before anything is committed. A chain that goes on costs no request after
// a clean end, and one look at the bucket after an unclean one. A chain that
// begins looks for an older one of this instance; an answer that does not come
// within seconds is no error, the chain then begins as unknown.
func (f *Flusher) Begin(ctx context.Context, report state.Report) error {
	f.sealing.Lock()
	defer f.sealing.Unlock()
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
	if f.st.HostChanged() {
		return f.leaveChain(ctx, leave{begins: state.BeginsHostChanged, old: ch, from: ch.Sequence, head: ch.PrevSHA256})
	}
	if d, err := readDigest(f.localOf(ch.PrevKey)); ch.PrevKey != "" && err == nil && d.Reason == ReasonFinal {
		return f.leaveChain(ctx, leave{begins: state.BeginsReconfigured, old: ch, from: ch.Sequence, head: ch.PrevSHA256})
	}
	newer, sha, err := f.newerHead(ctx, ch, report.Unclean)
	if err != nil {
		return err
	}
	if newer {
		f.log.Error("the trail is ahead of the state, which is a copy or an old one; another chain begins", zap.String("chain", ch.ID))
		return f.leaveChain(ctx, leave{begins: state.BeginsForked, old: ch, from: ch.Sequence, head: sha})
	}
	return f.removeOrphans(ch)
}

// beginFirst begins the chain of a source that has none.
func (f *Flusher) beginFirst(ctx context.Context, report state.Report) error {
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	old, err := f.newestHead(ask, time.Time{}, func(n Name) bool { return n.Instance == f.o.Instance })
	var d Digest
	var sha string
	if err == nil && old.key != "" {
		d, sha, err = f.fetchDigest(ask, old.key)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("begin chain of %s: %w", f.o.Source, ctx.Err())
	}
	var note *state.Note
	if err != nil {
		note = f.notAsked(err)
	}
	return f.beginChain(ctx, f.why(report, old, d, err), old.name.Chain, sha, note)
}

// The newest digest in the bucket, its content, and why the bucket could not be
// asked about them decide how a first chain begins.
func (f *Flusher) why(report state.Report, old head, d Digest, err error) state.Begins {
	switch {
	case report.SetAside != "":
		return state.BeginsStateLost
	case f.o.Reconfigured && (old.key == "" || d.Reason == ReasonFinal):
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
	if errors.Is(err, fs.ErrPermission) && state.ClassOf(err) != state.ClassCredentials {
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
	if note != nil {
		if err := f.st.AddNote(ctx, *note); err != nil {
			return fmt.Errorf("note in chain %s of %s: %w", chain, f.o.Source, err)
		}
	}
	f.m.sequence.Set(0)
	f.log.Info("chain begins", zap.String("chain", chain), zap.String("begins", string(begins)), zap.String("abandons", abandons))
	return nil
}

// newerHead reports whether a digest of ch exists that ch does not know: the
// state is a clone or was rolled back. The local directory is always looked at,
// the bucket only when ask is set.
func (f *Flusher) newerHead(ctx context.Context, ch state.Chain, ask bool) (newer bool, sha string, err error) {
	ahead := func(n Name) bool { return n.Chain == ch.ID && n.Sequence >= ch.Sequence }
	local, err := f.newestLocal(func(n Name) bool { return n.Digest && n.Chain == ch.ID && n.Sequence > ch.Sequence })
	if err != nil {
		return false, "", err
	}
	if local != "" {
		sha, err := fileSHA(local)
		return true, sha, err
	}
	if !ask {
		return false, "", nil
	}
	limited, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	h, err := f.newestHead(limited, ch.LastNamed, ahead)
	if err == nil && h.key != "" {
		_, sha, err = f.fetchDigest(limited, h.key)
	}
	if err != nil {
		if ctx.Err() != nil {
			return false, "", fmt.Errorf("begin chain of %s: %w", f.o.Source, ctx.Err())
		}
		f.log.Info("the bucket was not asked for a newer head", zap.Error(err))
	}
	return h.key != "", sha, nil
}

// head is a digest in the bucket.
type head struct {
	name Name
	key  string // "": none
}

// newestHead returns the newest digest that keep accepts, of those named after
// the given time, in either layout.
func (f *Flusher) newestHead(ctx context.Context, after time.Time, keep func(Name) bool) (head, error) {
	var best head
	trail := f.o.Mapper.TrailPrefix()
	for _, prefix := range []string{trail + "digest_", trail + digestDirHive + "/digest_"} {
		from := ""
		if !after.IsZero() {
			from = prefix + after.UTC().Format(stampFormat)
		}
		err := f.pub.List(ctx, prefix, from, func(o state.Object) error {
			n, ok := ParseName(o.Key)
			if ok && n.Digest && keep(n) && (best.key == "" || newer(n, best.name)) {
				best = head{name: n, key: o.Key}
			}
			return nil
		})
		if err != nil {
			return head{}, fmt.Errorf("list %s: %w", prefix, err)
		}
	}
	return best, nil
}

// newer reports whether digest a is newer than b: by sequence within a chain,
// by time between chains.
func newer(a, b Name) bool {
	if a.Chain == b.Chain {
		return a.Sequence > b.Sequence
	}
	return a.Time.After(b.Time)
}

// fetchDigest returns a digest and the SHA-256 of its bytes. A digest that
// cannot be read as one still has its hash.
func (f *Flusher) fetchDigest(ctx context.Context, key string) (d Digest, sha string, err error) {
	body, _, err := f.pub.Get(ctx, key)
	if err != nil {
		return d, "", fmt.Errorf("get %s: %w", key, err)
	}
	s := newSums()
	d, parse := ParseDigest(teeReader{r: body, s: s})
	err = body.Close()
	if parse != nil && !errors.Is(parse, ErrFormat) && !errors.Is(parse, ErrNewerFormat) {
		err = errors.Join(parse, err)
	}
	if err != nil {
		return d, "", fmt.Errorf("get %s: %w", key, err)
	}
	return d, s.sha(), nil
}

// localOf returns the local copy of the document under key.
func (f *Flusher) localOf(key string) string {
	n, ok := ParseName(key)
	if !ok {
		return f.localPath(path.Base(key))
	}
	// A digest's name is the same in both layouts; its directory tells them apart.
	n.Hive = n.Hive || path.Base(path.Dir(key)) == digestDirHive
	return filepath.Clean(f.localPath(n.Path()))
}
