package verify

import (
	"context"
	"fmt"
	"maps"

	"github.com/s3syncd/s3syncd/internal/anchor"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// know records what a digest vouches for, where it is in its place.
func (c *chainCheck) know(d *digestCheck) {
	says := &d.d
	if d.fault != nil || d.at.Name.Says(says) != nil || says.Prefix != c.v.t.Prefix {
		says = nil
	}
	c.v.vouched.add(c.key, d.at.Name.Sequence, d.sha, d.at.Since(), says)
}

// vouch finds out what signatures and anchors vouch for. The chains are known.
func (v *verifier) vouch(ctx context.Context) error {
	by := byOwnKey
	if v.ring.given {
		by = ByKey | byOwnKey
	}
	for _, k := range v.chains {
		for _, sha := range v.all[k].signed {
			v.vouched.vouch(k, sha, by)
		}
	}
	v.vouchFor(v.o.Anchors)
	if v.o.Again != nil && len(v.beyond()) > 0 {
		more, err := v.o.Again(ctx)
		if err != nil {
			return err
		}
		v.known = more
		v.vouchFor(more)
	}
	for _, k := range v.chains {
		v.all[k].sum.AnchoredTo = v.vouched.to(k, ByAnchor|seen)
	}
	return nil
}

func (v *verifier) vouchFor(anchors []anchor.Anchor) {
	for _, a := range anchors {
		if c := v.holder(a); c != nil {
			by := ByAnchor
			if a.Unvouched {
				by = seen
			}
			v.vouched.vouch(c.key, a.SHA256, by)
		}
	}
}

// beyond returns the newest digest that the host knows of each chain that has
// more of them. What another chain that is vouched for says it follows is known
// through that.
func (v *verifier) beyond() map[trail.ChainKey]uint64 {
	ends := map[trail.ChainKey]uint64{}
	for _, list := range [][]anchor.Anchor{v.o.Anchors, v.known} {
		for _, a := range list {
			if a.Local {
				k := trail.ChainKey{Instance: a.Instance, ID: a.Chain}
				ends[k] = max(ends[k], a.Sequence)
			}
		}
	}
	maps.DeleteFunc(ends, func(k trail.ChainKey, end uint64) bool {
		c := v.all[k]
		return c == nil || c.leftOpen || c.sum.LastSequence <= max(end, v.vouched.to(k, ByAnchor))
	})
	return ends
}

// checkBeyond finds digests of the host's chains that the host did not write: it
// writes each to its disk before it sends it.
func (v *verifier) checkBeyond() {
	ends := v.beyond()
	for _, k := range v.chains {
		if end := ends[k]; end > 0 {
			c := v.all[k]
			c.fault(FindingAnchor, end+1, c.sum.HeadKey, fmt.Sprintf("the host has written %d digests of this chain, and there are %d: it did not write the rest", end, c.sum.LastSequence))
		}
	}
}

// holder returns the chain that has the digest of a, nil for none.
func (v *verifier) holder(a anchor.Anchor) *chainCheck {
	if a.Instance != "" {
		c := v.all[trail.ChainKey{Instance: a.Instance, ID: a.Chain}]
		if c == nil {
			return nil
		}
		if d := v.vouched.digest(c.key, a.SHA256); d == nil || a.Sequence != 0 && d.sequence != a.Sequence {
			return nil
		}
		return c
	}
	for _, k := range v.chains {
		if v.vouched.digest(k, a.SHA256) != nil {
			return v.all[k]
		}
	}
	return nil
}

// checkSuccession checks every chain that another one says it follows. Only a
// chain that something outside vouches for takes the place of another: by its
// own word anybody who can write the bucket could end a chain.
func (v *verifier) checkSuccession() {
	current := map[trail.ChainKey]bool{}
	for _, a := range v.o.Anchors {
		if a.Current {
			current[trail.ChainKey{Instance: a.Instance, ID: a.Chain}] = true
		}
	}
	for _, k := range v.chains {
		c := v.all[k]
		if c.sum.AbandonsChain == "" {
			continue
		}
		left := v.all[trail.ChainKey{Instance: k.Instance, ID: c.sum.AbandonsChain}]
		if left == nil || left == c {
			c.fault(FindingChainMissing, 1, c.firstKey, fmt.Sprintf("it follows chain %s, which is not there", c.sum.AbandonsChain))
			continue
		}
		at, ok := left.numberOf(c.leavesAt)
		if c.leavesAt != "" && !ok && len(left.unread) == 0 { // Else it may be one of those.
			c.fault(FindingChainMissing, 1, c.firstKey, fmt.Sprintf("it follows chain %s at the digest %s, which is not in that chain", left.sum.Chain, c.leavesAt))
		}
		c.leave(left, at, current[left.key])
	}
}

// leave checks what c says: that it follows the chain left, behind the digest
// numbered at (0: it is not known which).
func (c *chainCheck) leave(left *chainCheck, at uint64, current bool) {
	vouched := c.v.vouched.to(c.key, ByKey|ByAnchor) > 0
	if vouched {
		left.leftBy = append(left.leftBy, c.sum.Chain)
		left.leftAt = max(left.leftAt, at)
		left.leftOpen = left.leftOpen || c.leavesAt == ""
	} else {
		left.claims = append(left.claims, c.sum.Chain)
	}
	switch {
	case c.wentOn(left, at):
	case vouched:
	case current:
		c.fault(FindingAbandoned, 1, c.firstKey, fmt.Sprintf("it says that it follows chain %s, which this host goes on with; the host did not write it", left.sum.Chain))
	default:
		c.note(NoteAbandoned, 1, c.firstKey, fmt.Sprintf("it says that it follows chain %s; nothing outside the trail vouches for it, so that chain counts as one that goes on", left.sum.Chain))
	}
}

// wentOn reports whether the chain left has digests behind the one where c left
// it, or where that is not named, later than c's first.
func (c *chainCheck) wentOn(left *chainCheck, at uint64) bool {
	if at == 0 && (c.leavesAt != "" || !left.end.After(c.firstEnd.Add(ClockGrace))) || at >= left.sum.LastSequence {
		return false
	}
	detail := fmt.Sprintf("chain %s left it here (%s), and it went on to digest %d, until %s", c.sum.Chain, c.sum.Begins, left.sum.LastSequence, archive.FormatTime(left.end))
	if left.sum.HeadReason == trail.ReasonFinal || c.sum.HeadReason == trail.ReasonFinal {
		left.note(NoteAbandoned, at, "", detail+"; one of them has ended")
	} else {
		left.fault(FindingAbandoned, at, "", detail+": two hosts archive as one instance, or one of the chains is forged")
	}
	return true
}

// numberOf returns the number of the digest with a SHA-256.
func (c *chainCheck) numberOf(sha string) (uint64, bool) {
	if d := c.v.vouched.digest(c.key, sha); d != nil {
		return d.sequence, true
	}
	return 0, false
}

// checkAnchors compares the trail with what is known of it elsewhere.
func (v *verifier) checkAnchors() {
	for _, a := range v.o.Anchors {
		switch {
		case a.Instance != "" && v.o.Instance != "" && a.Instance != v.o.Instance:
		case v.holder(a) != nil, v.unknowable(a):
		case a.Instance == "":
			v.found.Add(Finding{Kind: FindingAnchor, Detail: fmt.Sprintf("%s: no digest has the SHA-256 %s", a.From, a.SHA256)})
		default:
			v.missing(a)
		}
	}
}

// unknowable reports whether the digest of an anchor may be one that could not
// be read, which is a finding already.
func (v *verifier) unknowable(a anchor.Anchor) bool {
	if a.Instance != "" {
		c := v.all[trail.ChainKey{Instance: a.Instance, ID: a.Chain}]
		return c != nil && c.unread[a.Sequence]
	}
	for _, c := range v.all {
		if len(c.unread) > 0 {
			return true
		}
	}
	return false
}

// missing says what it means that the digest of a is not there.
func (v *verifier) missing(a anchor.Anchor) {
	c := v.all[trail.ChainKey{Instance: a.Instance, ID: a.Chain}]
	f := Finding{Kind: FindingAnchor, Instance: a.Instance, Chain: a.Chain, Sequence: a.Sequence}
	last := uint64(0)
	if c != nil {
		last = c.sum.LastSequence
	}
	switch {
	case a.Local && c != nil && c.unpublished(a):
		return
	case a.Waiting && a.Sequence > last:
		f.Kind, f.Detail = NoteUnpublished, fmt.Sprintf("%s: digest %d waits on the host", a.From, a.Sequence)
		v.noted.Add(f)
		return
	case c == nil:
		f.Kind, f.Detail = FindingChainMissing, fmt.Sprintf("%s: the chain had %d digests; it is not there", a.From, a.Sequence)
	case a.Sequence > last:
		f.Detail = fmt.Sprintf("%s: the chain had %d digests, the newest that is there is %d: its end was removed", a.From, a.Sequence, last)
	default:
		f.Detail = fmt.Sprintf("%s: digest %d has the SHA-256 %s; the one that is there has another", a.From, a.Sequence, a.SHA256)
	}
	v.found.Add(f)
}

// unpublished reports whether a digest that the host has is one that it never
// published: its chain was left before it, or at another digest of its number.
func (c *chainCheck) unpublished(a anchor.Anchor) bool {
	if len(c.leftBy) == 0 {
		return false
	}
	if c.leftAt == 0 {
		return a.Sequence > c.sum.LastSequence
	}
	return a.Sequence >= c.leftAt
}
