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

	"github.com/s3syncd/s3syncd/internal/copies"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// forkedError says that another document is under a sealed document's key,
// or the same one without the key that it was sent under.
type forkedError struct {
	doc   archive.Doc
	seen  string // the SHA-256 of what is there
	plain bool   // it is the same, and not encrypted as it was sent
}

func (e *forkedError) Error() string {
	if e.plain {
		return e.doc.Key + " stands there without the configured encryption, and is never overwritten"
	}
	return fmt.Sprintf("another %s stands under %s: sha256 %s, sealed as %s", e.doc.Kind, e.doc.Key, e.seen, e.doc.SHA256)
}

// leave is a chain that is given up, and why.
type leave struct {
	begins   archive.Begins
	old      archive.Chain // what is known of it; Manifests are those that no digest names
	from     uint64        // its digests from this sequence number on are not in the trail
	head     string        // the SHA-256 of the last digest that is, or of another chain's that is followed
	abandons string        // the chain that is followed, "": old
	note     *archive.Note // nil: begins says enough
	further  bool          // the chain may have digests behind head, which cannot be searched for
	known    bool          // the local directory may hold manifests of a run that went on: they are in the trail
}

// mend deals with an error of publishing that no retry can mend. It returns nil
// when the outbox should be tried again, else the error for a later try.
func (c *succession) mend(ctx context.Context, err error) error {
	if fork, ok := errors.AsType[*forkedError](err); ok {
		c.m.forked.Inc()
		c.log.Error("the chain has forked; its records go to another chain", zap.Error(err))
		l := leave{begins: archive.BeginsForked, known: true}
		if fork.doc.Kind == archive.KindDigest {
			if err := c.forkedAt(ctx, fork, &l); err != nil {
				return err
			}
		}
		return c.abandon(ctx, l, fork.doc, fork.Error())
	}
	if lost, ok := errors.AsType[*copies.LostError](err); ok {
		c.m.forked.Inc()
		c.log.Error("a sealed document is lost; the records that are left go to another chain", zap.Error(err))
		return c.abandon(ctx, leave{begins: archive.BeginsStateLost}, lost.Doc, err.Error())
	}
	return err
}

// forkedAt says where a chain is left because another digest is under the key
// of its next one: at that digest, or where this host's key should have signed it
// and did not, before it; at none where the signer gives no answer.
func (c *succession) forkedAt(ctx context.Context, fork *forkedError, l *leave) error {
	own := len(c.known.keys) == 0
	if !own {
		var err error
		if _, own, err = c.known.digest(ctx, fork.doc.Key); err != nil {
			return err
		}
	}
	switch {
	case own:
		l.head, l.further = fork.seen, !c.claim.current()
	case c.known.silent(ctx):
		l.further = true
	}
	return c.st.SuspectAll(ctx)
}

// abandon gives up the chain of d, which cannot be published. The records of
// every manifest that no acknowledged digest names go to another chain. The
// chain is left at l.head; "" is the last acknowledged digest.
func (c *succession) abandon(ctx context.Context, l leave, d archive.Doc, detail string) error {
	c.sealer.mu.Lock()
	defer c.sealer.mu.Unlock()
	if d.Kind == archive.KindConfig {
		return c.dropConfig(ctx, d, detail)
	}
	ch, err := c.st.Chain()
	if err != nil {
		return fmt.Errorf("read chain of %s: %w", c.o.Source, err)
	}
	name, ok := trail.ParseName(d.Key)
	if !ok {
		return fmt.Errorf("%s is no name of a document", d.Key)
	}
	if name.Chain != ch.ID { // The chain was given up already, but not all that belongs to it.
		return c.reissue(ctx, leave{old: archive.Chain{ID: name.Chain, Sequence: ^uint64(0)}, from: d.Sequence}, nil)
	}
	switch {
	case l.further:
		l.head = ""
	case l.head == "":
		if l.head, err = c.local.AcknowledgedHead(ch); err != nil {
			return err
		}
	}
	l.old, l.from = ch, d.Sequence
	l.note = &archive.Note{Kind: archive.NoteGap, Time: c.o.Now(), Detail: detail}
	return c.leaveChain(ctx, l)
}

// loseChain leaves the chain because a manifest that no digest names yet is lost.
// The caller holds f.sealing.
func (c *succession) loseChain(ctx context.Context, lost *copies.LostError) error {
	ch, err := c.st.Chain()
	if err != nil {
		return fmt.Errorf("read chain of %s: %w", c.o.Source, err)
	}
	c.m.forked.Inc()
	c.log.Error("a sealed manifest is lost; the records that are left go to another chain", zap.Error(lost))
	head, err := c.local.AcknowledgedHead(ch)
	if err != nil {
		return err
	}
	return c.leaveChain(ctx, leave{
		begins: archive.BeginsStateLost, old: ch, from: ch.Sequence, head: head,
		note: &archive.Note{Kind: archive.NoteGap, Time: c.o.Now(), Detail: lost.Error()},
	})
}

// dropConfig gives up a configuration object that cannot be published: it is in
// no chain.
func (c *succession) dropConfig(ctx context.Context, d archive.Doc, detail string) error {
	if err := c.st.Published(ctx, d.Number); err != nil {
		return fmt.Errorf("drop %s: %w", d.Key, err)
	}
	return c.st.AddNote(ctx, archive.Note{Kind: archive.NoteGap, Time: c.o.Now(), Detail: detail})
}

// leaveChain begins another chain and moves over what the old one could not
// publish. The caller holds f.sealing.
func (c *succession) leaveChain(ctx context.Context, l leave) error {
	files, err := c.unnamed(ctx, l)
	if err != nil {
		return err
	}
	dropped, err := c.skips.Restart(func() error { return c.beginChain(ctx, l.begins, cmp.Or(l.abandons, l.old.ID), l.head, l.note) })
	if dropped > 0 {
		c.log.Warn("skips that were not sealed are not listed", zap.Int64("records", dropped))
	}
	if err != nil {
		return err
	}
	return c.reissue(ctx, l, files)
}

// unnamed lists, in order, the local copies of the old chain's manifests that no
// digest in the trail names. Those that are published and lost here are fetched.
func (c *succession) unnamed(ctx context.Context, l leave) ([]string, error) {
	refs, err := c.local.SealedRefs(l.old, l.from)
	if err != nil {
		return nil, err
	}
	for _, ref := range refs {
		err := c.local.Recall(ctx, c.remote, ref)
		if _, lost := errors.AsType[*copies.LostError](err); err != nil && !lost {
			c.log.Warn("a manifest of the chain that is left was not fetched", zap.Error(err))
		}
	}
	if l.known {
		var files []string
		for _, ref := range refs {
			files = append(files, c.local.Of(ref.S3Key))
		}
		return files, nil
	}
	files, err := c.local.Manifests(func(n trail.Name) bool {
		return n.Chain == l.old.ID && n.Sequence >= l.from && n.Sequence < l.old.Sequence
	})
	for _, m := range l.old.Manifests {
		files = append(files, c.local.Of(m.S3Key))
	}
	return files, err
}

// reissue writes the records of the old chain's manifests into the current
// chain, under new numbers, seals them and takes the old chain's documents out
// of the outbox. A crash before the seal leaves the outbox as it is, so that it
// is done again; one behind it may repeat records, and loses none. Without
// files it takes all manifests that are left.
func (c *succession) reissue(ctx context.Context, l leave, files []string) (err error) {
	if files == nil && !l.known {
		if files, err = c.unnamed(ctx, l); err != nil {
			return err
		}
	}
	for _, file := range files {
		if err := c.reissueFile(ctx, file); err != nil {
			return fmt.Errorf("move the records of %s to another chain: %w", file, err)
		}
	}
	if err := c.sealer.sealRecords(ctx); err != nil {
		return err
	}
	return c.local.Drop(ctx, l.old.ID, l.from)
}

// reissueFile streams one manifest's records into the current chain. A manifest
// that is lost is noted: its records cannot be had any more.
func (c *succession) reissueFile(ctx context.Context, file string) error {
	r, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		c.log.Error("a manifest's records are lost", zap.String("path", file))
		return c.st.AddNote(ctx, archive.Note{Kind: archive.NoteGap, Time: c.o.Now(), Detail: "the records of a manifest are lost: " + file})
	}
	if err != nil {
		return err
	}
	err = trail.ReadManifest(r, func(rec archive.Record) error { return c.skips.Write(ctx, rec) })
	if errors.Is(err, trail.ErrFormat) {
		c.log.Error("a manifest's records are lost from here on", zap.String("path", file), zap.Error(err))
		err = c.st.AddNote(ctx, archive.Note{Kind: archive.NoteGap, Time: c.o.Now(), Detail: "records of a manifest are lost: " + file})
	}
	return errors.Join(err, r.Close())
}

// reissueStrays finishes what a crash interrupted after a chain was given up:
// manifests of an older chain in the outbox that no digest follows.
func (c *succession) reissueStrays(ctx context.Context, ch archive.Chain) error {
	box, err := c.st.Outbox()
	if err != nil {
		return fmt.Errorf("read outbox of %s: %w", c.o.Source, err)
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
		if err := c.reissue(ctx, leave{old: archive.Chain{ID: n.Chain, Sequence: ^uint64(0)}, from: n.Sequence}, nil); err != nil {
			return err
		}
		stray = slices.DeleteFunc(stray, func(m trail.Name) bool { return m.Chain == n.Chain })
	}
	return nil
}

// leaveLocal leaves the chain if a local copy is of a later digest: the state is
// older than the copies, although the bucket does not show it.
func (c *succession) leaveLocal(ctx context.Context) error {
	ch, err := c.st.Chain()
	if err != nil {
		return fmt.Errorf("read chain of %s: %w", c.o.Source, err)
	}
	file, err := c.local.Newest(func(n trail.Name) bool { return n.Digest && n.Chain == ch.ID && n.Sequence > ch.Sequence })
	if err != nil || file == "" {
		return err
	}
	head, err := c.local.PublishedHead(ctx, c.remote, ch, file)
	if err != nil {
		return err
	}
	c.log.Error("the copies of the trail are ahead of the state, which is an old one; another chain begins", zap.String("chain", ch.ID))
	return c.leaveBehind(ctx, ch, leave{begins: archive.BeginsForked, old: ch, from: ch.Sequence, head: head})
}
