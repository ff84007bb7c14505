package trail

import (
	"bytes"
	"context"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// HistoryQuery chooses the records that History tells.
type HistoryQuery struct {
	Match    func(*archive.Record) bool // of the file that is meant
	At       time.Time                  // up to then; zero: all
	Instance string                     // "": of all
	TempDir  string                     // for large manifests; "": the directory for temporary files
	// Distrust receives each document that cannot be read, after asking again for
	// about a minute, or not be believed, and why; its error ends the query, nil
	// continues without the document.
	Distrust func(key string, err error) error
}

// HistoryItem is one record and its place in the trail.
type HistoryItem struct {
	Record   archive.Record
	Raw      []byte              // its bytes in the manifest
	Manifest archive.ManifestRef // SHA256 is "" where no digest names it yet
	Digest   Entry               // that names the manifest; its Key is "" for none
	Chain    *ChainIndex
	Index    int // of Digest in the chain
}

// History calls fn for every record of one file, oldest first: instance by
// instance, their chains as they follow one another. It holds one record in
// memory. Of a manifest whose hash is not the one that its digest names fn sees
// nothing.
func (t *Trail) History(ctx context.Context, q HistoryQuery, fn func(HistoryItem) error) error {
	chains, err := t.Chains(ctx)
	if err != nil {
		return err
	}
	h := &historian{t: t, q: q, fn: fn}
	for len(chains) > 0 {
		n := 1
		for n < len(chains) && chains[n].Instance == chains[0].Instance {
			n++
		}
		if q.Instance == "" || q.Instance == chains[0].Instance {
			ordered, err := t.Succession(ctx, chains[:n], h.distrust)
			if err != nil {
				return err
			}
			for i := range ordered {
				if err := h.chain(ctx, &ordered[i]); err != nil {
					return err
				}
			}
		}
		chains = chains[n:]
	}
	return nil
}

// historian looks for the records of one file.
type historian struct {
	t  *Trail
	q  HistoryQuery
	fn func(HistoryItem) error
}

// distrust asks whether to go on without a document.
func (h *historian) distrust(ctx context.Context, key string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return h.q.Distrust(key, err)
}

func (h *historian) chain(ctx context.Context, ch *ChainIndex) error {
	at := map[string]int{}
	for i := range ch.Digests {
		at[ch.Digests[i].Key] = i
	}
	err := h.t.digests(ctx, ch.Digests, nil, func(e Entry, d *Digest, _ string, err error) error {
		if err != nil {
			return h.distrust(ctx, e.Key, err)
		}
		return h.manifests(ctx, d.Manifests, HistoryItem{Digest: e, Chain: ch, Index: at[e.Key]})
	})
	if err != nil {
		return err
	}
	var refs []archive.ManifestRef
	for _, e := range ch.Tail() {
		refs = append(refs, archive.ManifestRef{S3Key: e.Key})
	}
	return h.manifests(ctx, refs, HistoryItem{Chain: ch})
}

func (h *historian) manifests(ctx context.Context, refs []archive.ManifestRef, where HistoryItem) error {
	fetch := func(ctx context.Context, i int) (*spooled, error) {
		return h.t.fetch(ctx, refs[i].S3Key, refs[i].SHA256, h.q.TempDir)
	}
	return InOrder(ctx, len(refs), fetch, (*spooled).close, func(i int, s *spooled, err error) error {
		if err != nil {
			return h.distrust(ctx, refs[i].S3Key, err)
		}
		defer s.close()
		// Of a manifest that breaks off, nothing is told.
		if err := s.records(func(*archive.Record, []byte) error { return nil }); err != nil {
			return h.distrust(ctx, refs[i].S3Key, err)
		}
		where.Manifest = refs[i]
		return s.records(func(r *archive.Record, raw []byte) error { return h.record(r, raw, where) })
	})
}

func (h *historian) record(r *archive.Record, raw []byte, where HistoryItem) error {
	if !h.q.Match(r) || (!h.q.At.IsZero() && recordTime(r).After(h.q.At)) {
		return nil
	}
	where.Record, where.Raw = *r, bytes.Clone(raw)
	return h.fn(where)
}

// Latest keeps, of the records of one file in their order, the one that says
// what S3 holds: what was stored or deleted last, or a later skip that found
// another content. The zero value has none.
type Latest struct {
	Item HistoryItem
	OK   bool
}

// Add takes the next record.
func (l *Latest) Add(it HistoryItem) {
	switch it.Record.Status {
	case archive.StatusUploaded, archive.StatusRekeyed, archive.StatusDeleted:
	case archive.StatusSkipped:
		if l.OK && l.Item.Record.Status != archive.StatusDeleted && sameContent(&l.Item.Record, &it.Record) {
			return
		}
	default:
		return // A failure says nothing of S3.
	}
	l.Item, l.OK = it, true
}
