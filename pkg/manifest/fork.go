package manifest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// forkedError says that another document stands under a sealed document's key,
// or the same one without the key that it was sent under.
type forkedError struct {
	doc   state.Doc
	seen  string // the SHA-256 of what stands there
	plain bool   // it is the same, and not encrypted as it was sent
}

func (e *forkedError) Error() string {
	if e.plain {
		return e.doc.Key + " stands there without the configured encryption, and is never overwritten"
	}
	return fmt.Sprintf("another %s stands under %s: sha256 %s, sealed as %s", e.doc.Kind, e.doc.Key, e.seen, e.doc.SHA256)
}

// lostError says that the local copy of a sealed document is gone or changed,
// so that the bytes that were sealed cannot be sent.
type lostError struct {
	doc state.Doc
	err error
}

func (e *lostError) Error() string {
	return fmt.Sprintf("the sealed bytes of %s are lost: %v", e.doc.Key, e.err)
}

func (e *lostError) Unwrap() error { return e.err }

// leave is a chain that is given up, and why.
type leave struct {
	begins   state.Begins
	old      state.Chain // what is known of it; Manifests are those that no digest names
	from     uint64      // its digests from this sequence number on are not in the trail
	head     string      // the SHA-256 of the last digest that is, or of another chain's that is followed
	abandons string      // the chain that is followed, "": old
	note     *state.Note // nil: begins says enough
	further  bool        // the chain may have digests behind head, which cannot be looked for
	known    bool        // the local directory may hold manifests of a run that went on: they are in the trail
}

// mend deals with an error of publishing that no retry can mend. It returns nil
// when the outbox should be looked at again, else the error for a later try.
func (f *Flusher) mend(ctx context.Context, err error) error {
	if fork, ok := errors.AsType[*forkedError](err); ok {
		f.m.forked.Inc()
		f.log.Error("the chain has forked; its records go to another chain", zap.Error(err))
		l := leave{begins: state.BeginsForked, known: true}
		if fork.doc.Kind == state.KindDigest {
			if err := f.forkedAt(ctx, fork, &l); err != nil {
				return err
			}
		}
		return f.abandon(ctx, l, fork.doc, fork.Error())
	}
	if lost, ok := errors.AsType[*lostError](err); ok {
		f.m.forked.Inc()
		f.log.Error("a sealed document is lost; the records that are left go to another chain", zap.Error(err))
		return f.abandon(ctx, leave{begins: state.BeginsStateLost}, lost.doc, err.Error())
	}
	return err
}

// forkedAt says where a chain is left because another digest stands under the key
// of its next one: at that digest, or where this host's key should have signed it
// and did not, before it; at none where the signer gives no answer.
func (f *Flusher) forkedAt(ctx context.Context, fork *forkedError, l *leave) error {
	own := len(f.known.keys) == 0
	if !own {
		var err error
		if _, own, err = f.known.digest(ctx, fork.doc.Key); err != nil {
			return err
		}
	}
	switch {
	case own:
		l.head, l.further = fork.seen, !f.claim.current()
	case f.known.silent(ctx):
		l.further = true
	}
	return f.st.DoubtAll(ctx)
}

// abandon gives up the chain of d, which cannot be published. The records of
// every manifest that no acknowledged digest names go to another chain. The
// chain is left at l.head; "" is the last acknowledged digest.
func (f *Flusher) abandon(ctx context.Context, l leave, d state.Doc, detail string) error {
	f.sealing.Lock()
	defer f.sealing.Unlock()
	if d.Kind == state.KindConfig {
		return f.dropConfig(ctx, d, detail)
	}
	ch, err := f.st.Chain()
	if err != nil {
		return fmt.Errorf("read chain of %s: %w", f.o.Source, err)
	}
	name, ok := trail.ParseName(d.Key)
	if !ok {
		return fmt.Errorf("%s is no name of a document", d.Key)
	}
	if name.Chain != ch.ID { // The chain was given up already, but not all that belongs to it.
		return f.reissue(ctx, leave{old: state.Chain{ID: name.Chain, Sequence: ^uint64(0)}, from: d.Sequence}, nil)
	}
	switch {
	case l.further:
		l.head = ""
	case l.head == "":
		if l.head, err = f.local.acknowledgedHead(ch); err != nil {
			return err
		}
	}
	l.old, l.from = ch, d.Sequence
	l.note = &state.Note{Kind: state.NoteGap, Time: f.o.Now(), Detail: detail}
	return f.leaveChain(ctx, l)
}

// loseChain leaves the chain because a manifest that no digest names yet is lost.
// The caller holds f.sealing.
func (f *Flusher) loseChain(ctx context.Context, ch state.Chain, lost *lostError) error {
	f.m.forked.Inc()
	f.log.Error("a sealed manifest is lost; the records that are left go to another chain", zap.Error(lost))
	head, err := f.local.acknowledgedHead(ch)
	if err != nil {
		return err
	}
	return f.leaveChain(ctx, leave{
		begins: state.BeginsStateLost, old: ch, from: ch.Sequence, head: head,
		note: &state.Note{Kind: state.NoteGap, Time: f.o.Now(), Detail: lost.Error()},
	})
}

// dropConfig gives up a configuration object that cannot be published: it is in
// no chain.
func (f *Flusher) dropConfig(ctx context.Context, d state.Doc, detail string) error {
	if err := f.st.Published(ctx, d.Number); err != nil {
		return fmt.Errorf("drop %s: %w", d.Key, err)
	}
	return f.st.AddNote(ctx, state.Note{Kind: state.NoteGap, Time: f.o.Now(), Detail: detail})
}

// leaveChain begins another chain and moves over what the old one could not
// publish. The caller holds f.sealing.
func (f *Flusher) leaveChain(ctx context.Context, l leave) error {
	files, err := f.unnamed(ctx, l)
	if err != nil {
		return err
	}
	dropped, err := f.skips.restart(func() error { return f.beginChain(ctx, l.begins, cmp.Or(l.abandons, l.old.ID), l.head, l.note) })
	if dropped > 0 {
		f.log.Warn("skips that were not sealed are not listed", zap.Int64("records", dropped))
	}
	if err != nil {
		return err
	}
	return f.reissue(ctx, l, files)
}

// unnamed lists, in order, the local copies of the old chain's manifests that no
// digest in the trail names. Those that are published and lost here are fetched.
func (f *Flusher) unnamed(ctx context.Context, l leave) ([]string, error) {
	refs, err := f.local.sealedRefs(l)
	if err != nil {
		return nil, err
	}
	for _, ref := range refs {
		err := f.local.recall(ctx, f.remote, ref)
		if _, lost := errors.AsType[*lostError](err); err != nil && !lost {
			f.log.Warn("a manifest of the chain that is left was not fetched", zap.Error(err))
		}
	}
	if l.known {
		var files []string
		for _, ref := range refs {
			files = append(files, f.local.of(ref.S3Key))
		}
		return files, nil
	}
	files, err := f.local.manifests(func(n trail.Name) bool {
		return n.Chain == l.old.ID && n.Sequence >= l.from && n.Sequence < l.old.Sequence
	})
	for _, m := range l.old.Manifests {
		files = append(files, f.local.of(m.S3Key))
	}
	return files, err
}

// reissue writes the records of the old chain's manifests into the current
// chain, under new numbers, seals them and takes the old chain's documents out
// of the outbox. A crash before the seal leaves the outbox as it is, so that it
// is done again; one behind it may repeat records, and loses none. Without
// files it takes all manifests that are left.
func (f *Flusher) reissue(ctx context.Context, l leave, files []string) (err error) {
	if files == nil && !l.known {
		if files, err = f.unnamed(ctx, l); err != nil {
			return err
		}
	}
	for _, file := range files {
		if err := f.reissueFile(ctx, file); err != nil {
			return fmt.Errorf("move the records of %s to another chain: %w", file, err)
		}
	}
	if err := f.sealRecords(ctx); err != nil {
		return err
	}
	return f.local.drop(ctx, l)
}

// reissueFile streams one manifest's records into the current chain. A manifest
// that is lost is noted: its records cannot be had any more.
func (f *Flusher) reissueFile(ctx context.Context, file string) error {
	r, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		f.log.Error("a manifest's records are lost", zap.String("path", file))
		return f.st.AddNote(ctx, state.Note{Kind: state.NoteGap, Time: f.o.Now(), Detail: "the records of a manifest are lost: " + file})
	}
	if err != nil {
		return err
	}
	err = trail.ReadManifest(r, func(rec state.Record) error { return f.skips.Write(ctx, rec) })
	if errors.Is(err, trail.ErrFormat) {
		f.log.Error("a manifest's records are lost from here on", zap.String("path", file), zap.Error(err))
		err = f.st.AddNote(ctx, state.Note{Kind: state.NoteGap, Time: f.o.Now(), Detail: "records of a manifest are lost: " + file})
	}
	return errors.Join(err, r.Close())
}

// reissueStrays finishes what a crash interrupted after a chain was given up:
// manifests of an older chain in the outbox that no digest follows.
func (f *Flusher) reissueStrays(ctx context.Context, ch state.Chain) error {
	box, err := f.st.Outbox()
	if err != nil {
		return fmt.Errorf("read outbox of %s: %w", f.o.Source, err)
	}
	var stray []trail.Name
	for _, d := range box {
		n, ok := trail.ParseName(d.Key)
		switch {
		case !ok || n.Chain == ch.ID:
		case n.Digest:
			stray = slices.DeleteFunc(stray, func(m trail.Name) bool { return m.Chain == n.Chain })
		default:
			stray = append(stray, n)
		}
	}
	for len(stray) > 0 {
		n := stray[0]
		if err := f.reissue(ctx, leave{old: state.Chain{ID: n.Chain, Sequence: ^uint64(0)}, from: n.Sequence}, nil); err != nil {
			return err
		}
		stray = slices.DeleteFunc(stray, func(m trail.Name) bool { return m.Chain == n.Chain })
	}
	return nil
}

// readDigest reads a local copy.
func readDigest(file string) (trail.Digest, error) {
	r, err := os.Open(file)
	if err != nil {
		return trail.Digest{}, err
	}
	d, err := trail.ParseDigest(r)
	return d, errors.Join(err, r.Close())
}
