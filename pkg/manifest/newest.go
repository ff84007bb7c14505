package manifest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// defaultQueryMemory is what a Query without a bound may take.
const defaultQueryMemory = 64 << 20

// Query chooses what Newest tells.
type Query struct {
	At        time.Time // as of then; zero: now
	KeyPrefix string    // keys that begin so
	Instance  string    // of this instance alone; "": of all
	TempDir   string    // for runs of the sort, in unnamed files; "": the directory for temporary files
	Memory    int64     // bytes for the sort, about; 0: 64 MiB

	// Believe, where set, says why a digest that is one is not to be believed, nil
	// if it is. What only such a digest names is left out.
	Believe func(e Entry, d *Digest, sha string) error
	// ProvenOnly leaves out the manifests that no digest names yet.
	ProvenOnly bool
	// Unproven, where set, is told the key of each manifest that is used though
	// no digest names it yet.
	Unproven func(key string)
	// Distrust, where set, is told each document that cannot be read or
	// believed, and why; its error ends the query, nil goes on without the
	// document. Where it is not set, the first such document ends the query.
	Distrust func(key string, err error) error
	// each, where set, is told every record before it is sorted.
	each func(*state.Record)
	// pending, where set, says whether a manifest that no digest names is used.
	pending func(Entry) bool
}

// Held is what the records of one key come to.
type Held struct {
	// Record is the newest one that says what S3 holds: uploaded, rekeyed or
	// deleted, with the attributes of later skips, or a skip where the trail tells
	// of no upload. A rekeyed record has what the record before it says of the
	// content. Its Basis is metadata where only the object's own metadata says
	// what its content is.
	Record state.Record
	// Gone: no record says that the file is there. That is for uploaded, skipped
	// and deleted to say; a rekeyed record is about the object alone.
	Gone bool
	// Kept is what S3 held when the file went, where its object was left there;
	// Record is the deletion then.
	Kept *state.Record
}

// Newest calls fn once for each key of the trail, in the order of the keys'
// bytes, with what its records come to. Failures say nothing of S3 and are left
// out.
//
// Records of one instance stand in the order of its chains, which follow one
// another as abandons_chain says, and of their ids; those of different
// instances by time, s3_time where there is one.
//
// A manifest whose hash differs from its digest's is never used. Manifests
// behind the last digest are, unless q.ProvenOnly is set. Neither the links
// between digests nor signatures are checked: that is what verifying is for, and
// q.Believe knows what it found.
// Memory does not grow with the number of records; the disk below q.TempDir
// takes about as much as the trail's records that match.
func (t *Trail) Newest(ctx context.Context, q Query, fn func(Held) error) error {
	if q.Memory <= 0 {
		q.Memory = defaultQueryMemory
	}
	if q.Distrust == nil {
		q.Distrust = func(_ string, err error) error { return err }
	}
	if q.Unproven == nil {
		q.Unproven = func(string) {}
	}
	chains, err := t.Chains(ctx)
	if err != nil {
		return err
	}
	srt := newSorter(q.TempDir, q.Memory)
	defer srt.close()
	c := &collector{t: t, q: q, sort: srt}
	for len(chains) > 0 {
		n := 1
		for n < len(chains) && chains[n].Instance == chains[0].Instance {
			n++
		}
		if q.Instance == "" || chains[0].Instance == q.Instance {
			if err := c.instance(ctx, chains[:n]); err != nil {
				return err
			}
		}
		chains = chains[n:]
	}
	return fold(ctx, srt, fn)
}

// collector puts the records that a query asks for into a sorter.
type collector struct {
	t    *Trail
	q    Query
	sort *sorter
	last int64 // the instance's newest time so far, in nanoseconds
}

// instance collects the records of the chains of one instance.
func (c *collector) instance(ctx context.Context, chains []ChainIndex) error {
	c.last = 0
	if c.q.Believe != nil {
		for i := range chains {
			if err := c.first(ctx, &chains[i]); err != nil {
				return err
			}
		}
	}
	ordered, err := c.t.succession(ctx, chains, c.distrust)
	if err != nil {
		return err
	}
	for i := range ordered {
		if err := c.chain(ctx, &ordered[i]); err != nil {
			return err
		}
	}
	return nil
}

// first leaves one first digest of ch, where there are several: the one that is
// believed says which chain ch follows.
func (c *collector) first(ctx context.Context, ch *ChainIndex) error {
	n := 0
	for n < len(ch.Digests) && ch.Digests[n].Name.Sequence == 1 {
		n++
	}
	if n < 2 {
		return nil
	}
	list := ch.Digests[:n]
	return c.t.digests(ctx, list, c.q.Believe, func(e Entry, _ *Digest, _ string, err error) error {
		if err != nil {
			return c.distrust(ctx, e.Key, err)
		}
		ch.Digests = append([]Entry{e}, ch.Digests[n:]...)
		return nil
	})
}

// distrust asks whether to go on without a document. That the query was
// interrupted, or that a server gave no answer, is no fault of the document.
func (c *collector) distrust(ctx context.Context, key string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return c.q.Distrust(key, err)
}

func (c *collector) chain(ctx context.Context, ch *ChainIndex) error {
	err := c.t.digests(ctx, ch.Digests, c.q.Believe, func(e Entry, d *Digest, _ string, err error) error {
		if err != nil {
			return c.distrust(ctx, e.Key, err)
		}
		return c.manifests(ctx, d.Manifests)
	})
	if err != nil || c.q.ProvenOnly {
		return err
	}
	var refs []state.ManifestRef
	for _, e := range ch.Tail() {
		if c.q.pending != nil && !c.q.pending(e) {
			continue
		}
		c.q.Unproven(e.Key)
		refs = append(refs, state.ManifestRef{S3Key: e.Key})
	}
	return c.manifests(ctx, refs)
}

// manifests collects the records of some manifests, in their order.
func (c *collector) manifests(ctx context.Context, refs []state.ManifestRef) error {
	fetch := func(ctx context.Context, i int) (*spooled, error) {
		return c.t.fetch(ctx, refs[i].S3Key, refs[i].SHA256, c.q.TempDir)
	}
	return inOrder(ctx, len(refs), fetch, (*spooled).close, func(i int, s *spooled, err error) error {
		if err == nil {
			err = c.records(s, refs[i].SHA256 != "")
			s.close()
		}
		if own, ok := errors.AsType[*ownError](err); ok {
			return own.err
		}
		if err != nil {
			return c.distrust(ctx, refs[i].S3Key, err)
		}
		return nil
	})
}

// ownError is a failure of ours, not of the document that is read.
type ownError struct{ err error }

func (e *ownError) Error() string { return e.err.Error() }

func (e *ownError) Unwrap() error { return e.err }

// records collects the records of one manifest. One that no digest names is
// read to its end first.
func (c *collector) records(s *spooled, proven bool) error {
	if !proven {
		if err := s.records(func(*state.Record, []byte) error { return nil }); err != nil {
			return err
		}
	}
	return s.records(func(r *state.Record, raw []byte) error {
		if c.q.each != nil {
			c.q.each(r)
		}
		at := recordTime(r)
		c.last = max(c.last, sortTime(at))
		if r.Status == state.StatusFailed || r.S3Key == "" || !strings.HasPrefix(r.S3Key, c.q.KeyPrefix) || strings.HasPrefix(r.S3Key, c.t.root()) {
			return nil
		}
		if !c.q.At.IsZero() && at.After(c.q.At) {
			return nil
		}
		if err := c.sort.add(r.S3Key, c.last, raw); err != nil {
			return &ownError{err}
		}
		return nil
	})
}

// clockWrong is how far a timestamp may be from s3_time, which has whole seconds.
const clockWrong = 5 * time.Second

// recordTime returns when S3 held what r says: its timestamp, which tells two
// writes within a second apart, unless s3_time says that the host's clock was
// wrong. 1970 where neither can be read.
func recordTime(r *state.Record) time.Time {
	at, err := time.Parse(time.RFC3339Nano, r.Timestamp)
	s3, s3err := time.Parse(time.RFC3339Nano, r.S3Time)
	switch {
	case s3err == nil && (err != nil || at.Sub(s3).Abs() > clockWrong):
		return s3
	case err == nil:
		return at
	}
	return time.Unix(0, 0)
}

// sortTime returns a time in nanoseconds, or the nearest one that they can hold.
func sortTime(t time.Time) int64 {
	switch ns := t.UnixNano(); {
	case time.Unix(0, ns).Equal(t):
		return ns
	case t.Unix() < 0:
		return math.MinInt64
	default:
		return math.MaxInt64
	}
}

// digests calls fn for each of some digests that are sorted by sequence. One
// that is not what its name says is ErrFormat. Of several with one sequence,
// only the one that follows its predecessor is shown, else the first; believe,
// where it is set, says which are not to be believed.
func (t *Trail) digests(ctx context.Context, list []Entry, believe believer, fn func(e Entry, d *Digest, sha string, err error) error) error {
	fetch := func(ctx context.Context, i int) (*candidate, error) {
		d, sha, err := t.Digest(ctx, list[i].Key)
		if err == nil {
			err = list[i].Name.says(&d)
		}
		if err == nil && believe != nil {
			err = believe(list[i], &d, sha)
		}
		return &candidate{at: list[i], d: d, sha: sha}, err
	}
	var best *candidate // of the sequence number that is looked at
	prev := ""
	tell := func() error {
		if best == nil {
			return nil
		}
		if best.err != nil {
			return fn(best.at, nil, "", best.err)
		}
		prev = best.sha
		return fn(best.at, &best.d, best.sha, nil)
	}
	err := eachEntry(ctx, list, fetch, func(*candidate) {}, func(i int, c *candidate, err error) error {
		if err != nil {
			c = &candidate{at: list[i], err: err}
		}
		if best != nil && best.at.Name.Sequence != c.at.Name.Sequence {
			if err := tell(); err != nil {
				return err
			}
			best = nil
		}
		if c.betterThan(best, prev) {
			best = c
		}
		return nil
	})
	if err != nil {
		return err
	}
	return tell()
}

// believer says why a digest is not to be believed, as Query.Believe does.
type believer = func(e Entry, d *Digest, sha string) error

// candidate is a digest that may be the one of its sequence number.
type candidate struct {
	at  Entry
	d   Digest
	sha string
	err error
}

// betterThan reports whether c takes the place of best: it can be read, and
// best cannot or does not follow prev as c does.
func (c *candidate) betterThan(best *candidate, prev string) bool {
	switch {
	case best == nil:
		return true
	case c.err != nil:
		return false
	case best.err != nil:
		return true
	}
	return c.follows(prev) && !best.follows(prev)
}

func (c *candidate) follows(prev string) bool {
	return c.d.PreviousDigestSHA256 != nil && *c.d.PreviousDigestSHA256 == prev
}

// says reports as ErrFormat that a digest is not what its name says.
func (n Name) says(d *Digest) error {
	if d.Instance != n.Instance || d.Chain != n.Chain || d.Sequence != n.Sequence {
		return fmt.Errorf("%w: %s is digest %d of chain %s of %s", ErrFormat, n, d.Sequence, d.Chain, d.Instance)
	}
	return nil
}

// succession returns the chains of one instance in the order in which they
// follow one another: by time, and none before the one that it leaves.
func (t *Trail) succession(ctx context.Context, chains []ChainIndex, distrust func(ctx context.Context, key string, err error) error) ([]ChainIndex, error) {
	if len(chains) < 2 {
		return chains, nil
	}
	at, leaves := map[string]int{}, map[string]string{}
	var firsts []Entry
	for i := range chains {
		at[chains[i].ID] = i
		if d := chains[i].Digests; len(d) > 0 && d[0].Name.Sequence == 1 {
			firsts = append(firsts, d[0])
		}
	}
	fetch := func(ctx context.Context, i int) (string, error) {
		d, _, err := t.Digest(ctx, firsts[i].Key)
		return d.AbandonsChain, err
	}
	err := eachEntry(ctx, firsts, fetch, func(string) {}, func(i int, left string, err error) error {
		if err != nil {
			return distrust(ctx, firsts[i].Key, err)
		}
		leaves[firsts[i].Name.Chain] = left
		return nil
	})
	if err != nil {
		return nil, err
	}
	ordered := make([]ChainIndex, 0, len(chains))
	placed := map[string]bool{}
	for i := range chains {
		var before []int // the chain, the one that it leaves, and so on
		for id := chains[i].ID; !placed[id]; id = leaves[id] {
			j, ok := at[id]
			if !ok {
				break
			}
			placed[id] = true
			before = append(before, j)
		}
		for _, j := range slices.Backward(before) {
			ordered = append(ordered, chains[j])
		}
	}
	return ordered, nil
}

// fold calls fn with what the records of each key come to.
func fold(ctx context.Context, srt *sorter, fn func(Held) error) error {
	var h holding
	key, begun := "", false
	tell := func() error {
		if !begun {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return fn(h.held())
	}
	err := srt.each(func(k, raw []byte) error {
		if !begun || string(k) != key {
			if err := tell(); err != nil {
				return err
			}
			h, key, begun = holding{}, string(k), true
		}
		r, err := parseRecord(raw)
		if err != nil {
			return err
		}
		h.add(&r)
		return nil
	})
	if err != nil {
		return err
	}
	return tell()
}

// holding is what S3 holds under one key, and whether the file is there, as its
// records say one by one.
type holding struct {
	has   bool
	rec   state.Record // what was stored last
	gone  *state.Record
	alive bool
}

// add brings h up to date with the next record.
func (h *holding) add(r *state.Record) {
	switch r.Status {
	case state.StatusDeleted:
		h.gone, h.alive = r, false
		if r.Attempt != 0 {
			h.has, h.rec = false, state.Record{} // The object was deleted, too.
		}
	case state.StatusUploaded:
		h.has, h.rec, h.gone, h.alive = true, *r, nil, true
	case state.StatusRekeyed:
		h.rekeyed(*r)
	case state.StatusSkipped:
		if h.has && sameContent(&h.rec, r) {
			observe(&h.rec, r)
		} else {
			h.has, h.rec = true, *r
		}
		h.gone, h.alive = nil, true
	case state.StatusFailed:
	}
}

// rekeyed takes in a record of a rekey, which says nothing of the file. That
// the content is the one before is known where the object is.
func (h *holding) rekeyed(next state.Record) {
	before := h.rec.ETag
	switch {
	case !h.has, before != "" && before != next.ReplacedETag && before != next.ETag:
		next.Basis = state.BasisMetadata
	default:
		next.Basis = h.rec.Basis
		fillContent(&next, &h.rec)
	}
	h.has, h.rec, h.gone = true, next, nil
}

// held returns what the records come to.
func (h *holding) held() Held {
	if h.gone == nil {
		return Held{Record: h.rec, Gone: !h.alive}
	}
	held := Held{Record: *h.gone, Gone: true}
	if h.has {
		kept := h.rec // h is used again.
		held.Kept = &kept
	}
	return held
}

// sameContent reports whether a skip says nothing else of the content than rec.
func sameContent(rec, skip *state.Record) bool {
	if rec.SizeBytes != nil && skip.SizeBytes != nil && *rec.SizeBytes != *skip.SizeBytes {
		return false
	}
	switch {
	case rec.SHA256 != "" && skip.SHA256 != "":
		return rec.SHA256 == skip.SHA256
	case rec.MD5 != "" && skip.MD5 != "":
		return rec.MD5 == skip.MD5
	case rec.ETag != "" && skip.ETag != "":
		return rec.ETag == skip.ETag
	}
	return true
}

// observe adds to rec what a later skip of the same content says.
func observe(rec, skip *state.Record) {
	if skip.MTime != "" {
		rec.MTime, rec.Mode, rec.UID, rec.GID = skip.MTime, skip.Mode, skip.UID, skip.GID
	}
	if skip.ETag != "" && skip.ETag != rec.ETag {
		// Someone stored the same content again: the object is not that upload's.
		rec.ETag, rec.VersionID, rec.Attempt, rec.RequestID = skip.ETag, skip.VersionID, 0, ""
		rec.Basis = skip.Basis
	}
	if skip.Basis == state.BasisETag {
		rec.Basis = skip.Basis // What metadata said is proven.
	}
	replace(&rec.VersionID, skip.VersionID)
	replace(&rec.KMSKeyID, skip.KMSKeyID)
	replace(&rec.SSE, skip.SSE)
	replace(&rec.SHA256, skip.SHA256)
	replace(&rec.MD5, skip.MD5)
	rec.LocalPath, rec.LocalPathB64 = skip.LocalPath, skip.LocalPathB64
}

// replace sets dst to v where v says something.
func replace(dst *string, v string) {
	if v != "" {
		*dst = v
	}
}

// fillContent adds to a rekeyed record what the one before it says of the
// content and the file.
func fillContent(next, before *state.Record) {
	if next.SizeBytes == nil {
		next.SizeBytes = before.SizeBytes
	}
	if next.MD5 == "" && next.SHA256 == "" {
		next.MD5, next.SHA256 = before.MD5, before.SHA256
	}
	if next.MTime == "" {
		next.MTime, next.Mode, next.UID, next.GID = before.MTime, before.Mode, before.UID, before.GID
	}
}
