package trail

import (
	"context"
	"errors"
	"math"
	"strings"
	"time"

	"github.com/s3syncd/s3syncd/internal/extsort"
	"github.com/s3syncd/s3syncd/pkg/archive"
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
	// Unproven, where set, receives the key of each manifest that is used though
	// no digest names it yet.
	Unproven func(key string)
	// Distrust, where set, receives each document that cannot be read or
	// believed, and why; its error ends the query, nil continues without the
	// document. Where it is not set, the first such document ends the query.
	Distrust func(key string, err error) error
	// Each, where set, receives every record before it is sorted.
	Each func(*archive.Record)
	// Pending, where set, says whether a manifest that no digest names is used.
	Pending func(Entry) bool
}

// Held is what the records of one key come to.
type Held struct {
	// Record is the newest one that says what S3 holds: uploaded, rekeyed or
	// deleted, with the attributes of later skips, or a skip where the trail tells
	// of no upload. A rekeyed record has what the record before it says of the
	// content. Its Basis is metadata where only the object's own metadata says
	// what its content is.
	Record archive.Record
	// Gone: no record says that the file is there. That is for uploaded, skipped
	// and deleted to say; a rekeyed record is about the object alone.
	Gone bool
	// Kept is what S3 held when the file went, where its object was left there;
	// Record is the deletion then.
	Kept *archive.Record
}

// Newest calls fn once for each key of the trail, in the order of the keys'
// bytes, with what its records come to. Failures say nothing of S3 and are left
// out.
//
// Records of one instance are in the order of its chains, which follow one
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
	srt := extsort.NewSorter(q.TempDir, q.Memory)
	defer srt.Close()
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
	sort *extsort.Sorter
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
	ordered, err := c.t.Succession(ctx, chains, c.distrust)
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
	var refs []archive.ManifestRef
	for _, e := range ch.Tail() {
		if c.q.Pending != nil && !c.q.Pending(e) {
			continue
		}
		c.q.Unproven(e.Key)
		refs = append(refs, archive.ManifestRef{S3Key: e.Key})
	}
	return c.manifests(ctx, refs)
}

// manifests collects the records of some manifests, in their order.
func (c *collector) manifests(ctx context.Context, refs []archive.ManifestRef) error {
	fetch := func(ctx context.Context, i int) (*spooled, error) {
		return c.t.fetch(ctx, refs[i].S3Key, refs[i].SHA256, c.q.TempDir)
	}
	return InOrder(ctx, len(refs), fetch, (*spooled).close, func(i int, s *spooled, err error) error {
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
		if err := s.records(func(*archive.Record, []byte) error { return nil }); err != nil {
			return err
		}
	}
	return s.records(func(r *archive.Record, raw []byte) error {
		if c.q.Each != nil {
			c.q.Each(r)
		}
		at := recordTime(r)
		c.last = max(c.last, sortTime(at))
		if r.Status == archive.StatusFailed || r.S3Key == "" || !strings.HasPrefix(r.S3Key, c.q.KeyPrefix) || strings.HasPrefix(r.S3Key, c.t.Root()) {
			return nil
		}
		if !c.q.At.IsZero() && at.After(c.q.At) {
			return nil
		}
		if err := c.sort.Add(r.S3Key, c.last, raw); err != nil {
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
func recordTime(r *archive.Record) time.Time {
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
