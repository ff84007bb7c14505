package verify

import (
	"encoding/hex"
	"time"

	"github.com/s3syncd/s3syncd/pkg/trail"
)

// Voucher says what vouches for a digest: something that a writer of the
// bucket cannot make. The values are bits.
type Voucher uint8

const (
	// ByKey says that a trusted key has signed it, or a digest behind it.
	ByKey Voucher = 1 << iota
	// ByAnchor says that the host, --expect-head or --anchor knows it, or a digest that
	// leads to it.
	ByAnchor
	// Like ByKey, where no key was given: the first key of the instance
	// signed it. That proves order, and vouches for nothing.
	byOwnKey
	// Like ByAnchor, where nothing vouched for the chain when it was seen.
	seen
)

// Vouched says which digests of a trail something outside of it vouches for. A
// digest that is vouched for vouches for the one whose SHA-256 it names, and so
// on to the first of its chain, and for the chain that this one says it follows,
// up to the digest that it names. What a digest says of itself vouches for
// nothing.
type Vouched struct {
	keys, anchors bool // they were given
	chains        map[trail.ChainKey]*vouchedChain
}

// vouchedChain is the digests of one chain by their SHA-256, two of one number
// included.
type vouchedChain struct {
	digests map[[32]byte]*vouchedDigest
	order   [][32]byte // in the order of the trail
}

type vouchedDigest struct {
	sequence uint64
	since    time.Time // the server has it since then
	placed   bool      // it is what its name says
	by       Voucher
	follows  [32]byte       // the digest before it; zero: it is the first
	leaves   trail.ChainKey // the first of a chain: the one that it says it follows
}

func newVouched(keys, anchors bool) *Vouched {
	return &Vouched{keys: keys, anchors: anchors, chains: map[trail.ChainKey]*vouchedChain{}}
}

// Anchored reports whether a key or a head was given that could vouch for
// anything. Without one the whole trail may be invented.
func (w *Vouched) Anchored() bool { return w.keys || w.anchors }

// Of returns what vouches for a digest; 0 is nothing.
func (w *Vouched) Of(instance, chain string, sequence uint64, sha string) Voucher {
	if d := w.digest(trail.ChainKey{Instance: instance, ID: chain}, sha); d != nil && d.sequence == sequence {
		return d.by & (ByKey | ByAnchor)
	}
	return 0
}

// Believe reports whether a digest may be believed: with keys, what a trusted
// signature covers; with heads alone, what one of them covers; with neither,
// nothing.
func (w *Vouched) Believe(instance, chain string, sequence uint64, sha string) bool {
	by := w.Of(instance, chain, sequence, sha)
	if w.keys {
		return by&ByKey != 0
	}
	return by != 0
}

func (w *Vouched) digest(k trail.ChainKey, sha string) *vouchedDigest {
	c := w.chains[k]
	raw, ok := rawSHA(sha)
	if c == nil || !ok {
		return nil
	}
	return c.digests[raw]
}

// rawSHA returns the bytes of a SHA-256 in hex.
func rawSHA(s string) (raw [32]byte, ok bool) {
	n, err := hex.Decode(raw[:], []byte(s[:min(len(s), 2*len(raw))]))
	return raw, err == nil && n == len(raw) && len(s) == 2*len(raw)
}

// add records a digest as it is in the trail. Where its bytes are no digest
// of its place d is nil, and nothing vouches for it.
func (w *Vouched) add(k trail.ChainKey, sequence uint64, sha string, since time.Time, d *trail.Digest) {
	c := w.chains[k]
	if c == nil {
		c = &vouchedChain{digests: map[[32]byte]*vouchedDigest{}}
		w.chains[k] = c
	}
	raw, _ := rawSHA(sha)
	n := c.digests[raw]
	switch {
	case n == nil:
		n = &vouchedDigest{}
		c.digests[raw] = n
		c.order = append(c.order, raw)
	case n.placed || d == nil:
		return // The same bytes under two names.
	}
	n.sequence, n.since, n.placed = sequence, since, d != nil
	switch {
	case d == nil:
	case d.PreviousDigestSHA256 != nil:
		n.follows, _ = rawSHA(*d.PreviousDigestSHA256)
	case d.AbandonsChain != "":
		n.leaves = trail.ChainKey{Instance: k.Instance, ID: d.AbandonsChain}
		n.follows, _ = rawSHA(d.AbandonsDigestSHA256)
	}
}

// vouch notes that something vouches for a digest, and for all that it names.
func (w *Vouched) vouch(k trail.ChainKey, sha string, by Voucher) {
	raw, ok := rawSHA(sha)
	for c := w.chains[k]; ok && c != nil; c = w.chains[k] {
		d := c.digests[raw]
		if d == nil || !d.placed || d.by&by == by {
			return // It is not there, not in its place, or what it names is known.
		}
		d.by |= by
		if d.leaves != (trail.ChainKey{}) {
			if by == seen {
				return
			}
			k = d.leaves
		}
		raw = d.follows
	}
}

// to returns the highest number of a digest of k that any of by vouches for.
func (w *Vouched) to(k trail.ChainKey, by Voucher) (last uint64) {
	if c := w.chains[k]; c != nil {
		for _, d := range c.digests {
			if d.by&by != 0 {
				last = max(last, d.sequence)
			}
		}
	}
	return last
}
