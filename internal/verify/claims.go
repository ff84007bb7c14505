package verify

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

const (
	// S3 dates an object in whole seconds, and so before the digest that the host
	// wrote a moment earlier.
	writeGrace = time.Second
	// A digest that is due is published so soon, while its host lives.
	publishGrace = time.Minute
	// More numbers a second than any host draws for its attempts, and how many a
	// chain may have drawn at once.
	drawRate  = 10_000
	drawBurst = 10_000
)

// claims judges objects that are not what the trail says, by the s3syncd-id in
// their metadata. Anybody who may write to the bucket can write that, so it is
// believed only as far as the chain that it names could have written the object
// since its newest digest.
type claims struct {
	now    time.Time
	chains map[trail.ChainKey]*chainClaim
}

// chainClaim is what one chain can have written that its digests do not name.
type chainClaim struct {
	ended  string    // why it can have written nothing
	opens  time.Time // what was written before stands in its records
	closes time.Time // by then a digest has named what was written before
	drawn  attemptSet
}

// claims returns what the chains of a trail can have written, as far as v knows
// them. The numbers that they have drawn are added later.
func (v *Result) claims(ctx context.Context, t *trail.Trail, x *trail.Index) (*claims, error) {
	now, err := time.Parse(time.RFC3339Nano, v.CheckedAt)
	if err != nil {
		return nil, err
	}
	c := &claims{now: now, chains: map[trail.ChainKey]*chainClaim{}}
	for i := range x.Chains {
		ch := &x.Chains[i]
		at := slices.IndexFunc(v.Chains, func(s ChainSummary) bool { return s.Instance == ch.Instance && s.Chain == ch.ID })
		if at < 0 {
			c.chains[trail.ChainKey{Instance: ch.Instance, ID: ch.ID}] = unnamedClaim(ch)
			continue
		}
		claim, err := v.claim(ctx, t, &v.Chains[at], ch)
		if err != nil {
			return nil, err
		}
		c.chains[trail.ChainKey{Instance: ch.Instance, ID: ch.ID}] = claim
	}
	return c, nil
}

// claim returns what a chain can have written since its newest digest.
func (v *Result) claim(ctx context.Context, t *trail.Trail, s *ChainSummary, ch *trail.ChainIndex) (*chainClaim, error) {
	for i := range v.Chains {
		if o := &v.Chains[i]; o.Instance == s.Instance && o.AbandonsChain == s.Chain {
			return &chainClaim{ended: "chain " + o.Chain + " follows it"}, nil
		}
	}
	if s.HeadKey == "" {
		return unnamedClaim(ch), nil
	}
	d, sha, err := t.Digest(ctx, s.HeadKey)
	if err != nil || sha != s.HeadSHA256 {
		return &chainClaim{ended: "its newest digest could not be read"}, ctx.Err()
	}
	return digestClaim(&d), nil
}

// digestClaim returns what a chain can have written since its newest digest d.
func digestClaim(d *trail.Digest) *chainClaim {
	end, err := time.Parse(time.RFC3339Nano, d.EndTime)
	switch {
	case err != nil:
		return &chainClaim{ended: "its newest digest has no time"}
	case d.Reason == trail.ReasonStop || d.Reason == trail.ReasonFinal || d.NextDigestDue == nil:
		return &chainClaim{ended: fmt.Sprintf("it ended at %s (%s)", d.EndTime, d.Reason)}
	}
	due, err := time.Parse(time.RFC3339Nano, *d.NextDigestDue)
	if err != nil {
		return &chainClaim{ended: "its newest digest has no time"}
	}
	c := &chainClaim{opens: end, closes: due}
	if d.OldestPendingSince != nil {
		if at, err := time.Parse(time.RFC3339Nano, *d.OldestPendingSince); err == nil && at.Before(end) {
			c.opens = at // It may have been on its way while the digest was written.
		}
	}
	return c
}

// unnamedClaim is the claim of a chain that has no digest yet.
func unnamedClaim(ch *trail.ChainIndex) *chainClaim {
	if len(ch.Manifests) == 0 {
		return &chainClaim{ended: "none of its documents can be believed"}
	}
	first := ch.Manifests[0]
	at := first.Name.Time
	if at.After(first.LastModified) && !first.LastModified.IsZero() {
		at = first.LastModified
	}
	return &chainClaim{opens: at.Add(-signatureGrace), closes: at.Add(signatureGrace)}
}

// pending reports whether the chain of a manifest that no digest names yet can
// have written it.
func (c *claims) pending(e trail.Entry) bool {
	ch := c.chains[trail.ChainKey{Instance: e.Name.Instance, ID: e.Name.Chain}]
	return ch != nil && ch.ended == "" && !c.now.After(ch.closes.Add(publishGrace))
}

// record notes the number that a record's attempt has drawn.
func (c *claims) record(r *archive.Record) {
	if r.Attempt == 0 {
		return
	}
	if ch := c.chains[trail.ChainKey{Instance: r.Instance, ID: r.Chain}]; ch != nil {
		ch.drawn.add(r.Attempt)
	}
}

// known reports whether the chain of id is there.
func (c *claims) known(id archive.ObjectID) bool {
	return c.chains[trail.ChainKey{Instance: id.Instance, ID: id.Chain}] != nil
}

// refuted says why the chain that id names cannot have written an object since
// its newest digest; "" where it can.
func (c *claims) refuted(id archive.ObjectID, o *archive.Object) string {
	ch := c.chains[trail.ChainKey{Instance: id.Instance, ID: id.Chain}]
	switch {
	case ch == nil:
		return "that chain is not there"
	case ch.ended != "":
		return ch.ended
	case ch.drawn.has(id.Attempt):
		return fmt.Sprintf("its attempt %d is that of another record", id.Attempt)
	case id.Attempt == 0 || id.Attempt > ch.most(c.now):
		return fmt.Sprintf("its newest known attempt is %d", ch.drawn.last)
	case o.LastModified.Before(ch.opens.Add(-writeGrace)):
		return fmt.Sprintf("S3 has it since %s, and the digest that ends later does not name it", archive.FormatTime(o.LastModified))
	case c.now.After(ch.closes.Add(publishGrace)):
		return "a digest that names it was due at " + archive.FormatTime(ch.closes)
	}
	return ""
}

// most returns the highest number that the chain can have drawn by now.
func (c *chainClaim) most(now time.Time) uint64 {
	seconds := uint64(min(max(now.Sub(c.opens).Seconds(), 0), math.MaxInt32))
	return c.drawn.last + drawBurst + drawRate*seconds
}

// attemptSet is numbers that were drawn one after the other: a bit each, in
// blocks. What does not fit into its bound is left out; the highest is always
// known.
type attemptSet struct {
	last   uint64
	blocks map[uint64]*[attemptBlock / 64]uint64
}

const (
	attemptBlock  = 1 << 14
	attemptBlocks = 1 << 15 // 64 MiB; half a billion numbers without gaps
)

func (s *attemptSet) add(n uint64) {
	s.last = max(s.last, n)
	b := s.blocks[n/attemptBlock]
	if b == nil {
		if len(s.blocks) == attemptBlocks {
			return
		}
		if s.blocks == nil {
			s.blocks = map[uint64]*[attemptBlock / 64]uint64{}
		}
		b = new([attemptBlock / 64]uint64)
		s.blocks[n/attemptBlock] = b
	}
	b[n%attemptBlock/64] |= 1 << (n % 64)
}

func (s *attemptSet) has(n uint64) bool {
	b := s.blocks[n/attemptBlock]
	return b != nil && b[n%attemptBlock/64]&(1<<(n%64)) != 0
}
