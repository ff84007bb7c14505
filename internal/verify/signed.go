package verify

import (
	"fmt"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// The signatures of a chain are made in order: a digest without one before one
// that has one is not waiting for it.
func (c *chainCheck) signatures(d *digestCheck) {
	seq := d.at.Name.Sequence
	if d.sigUnread != nil {
		c.unchecked(seq, c.index.Signatures[d.at.Key].Key, d.sigUnread)
		return
	}
	if d.signature == nil {
		c.unsigned = append(c.unsigned, seq)
		return
	}
	for _, missing := range c.unsigned {
		if c.began {
			c.fault(FindingSignatureGone, missing, "", "digests before and behind it are signed, and it is not")
		}
	}
	if n := len(c.unsigned); n > 0 && !c.began {
		c.note(NoteUnsigned, c.unsigned[n-1], "", fmt.Sprintf("signatures begin with digest %d", seq))
	}
	c.unsigned, c.began = nil, true
	c.judge(d, c.index.Signatures[d.at.Key].Key)
}

// judge checks the signature that a digest has.
func (c *chainCheck) judge(d *digestCheck, key string) {
	seq, ring := d.at.Name.Sequence, c.v.ring
	fingerprint := d.signature.PublicKeyFingerprint
	switch {
	case d.sigFault != nil:
		c.fault(FindingSignature, seq, key, d.sigFault.Error())
		return
	case !d.keyThere:
		c.fault(FindingForeignKey, seq, key, fmt.Sprintf("its key %s is not there", fingerprint))
		return
	case !ring.given && !ring.begun[c.sum.Instance]:
		ring.begun[c.sum.Instance] = true
		ring.trust(fingerprint)
		c.note(NoteKeyUntrusted, seq, key, fmt.Sprintf("signed by the key %s: compare it with what you know of it, or give it as --public-key", fingerprint))
	}
	if !ring.trusts(fingerprint) {
		c.fault(FindingForeignKey, seq, key, fmt.Sprintf("signed by the key %s, which no trusted key has announced", fingerprint))
		return
	}
	c.sum.Signed++
	c.sum.SignedTo = seq
	c.signers[fingerprint] = true
	c.signed = append(c.signed, d.sha)
	d.trusted = true
}

// mustBeSigned reports whether every digest of the chain has to be signed: keys
// were given, or the configuration of its instance signs.
func (c *chainCheck) mustBeSigned() bool {
	return c.v.ring.given || c.v.o.Signing != "" && c.v.o.Signing == c.sum.Instance
}

// uncovered is the digests of a chain that no signature covers, neither one of
// their own nor one of a digest behind it.
type uncovered struct {
	n, late int    // late: for longer than they may be
	first   uint64 // the lowest number
	since   time.Time
}

// uncovered counts the digests that none of by covers. How long one waits for a
// signature is what the server says, not the digest.
func (c *chainCheck) uncovered(by Voucher) (u uncovered) {
	x := c.v.vouched.chains[c.key]
	for _, sha := range x.order {
		d := x.digests[sha]
		if d.by&by != 0 {
			continue
		}
		if u.n++; u.n == 1 || d.sequence < u.first {
			u.first = d.sequence
		}
		if u.since.IsZero() || d.since.Before(u.since) {
			u.since = d.since
		}
		if c.v.o.Now.Sub(d.since) > signatureGrace {
			u.late++
		}
	}
	return u
}

// signedEnd judges the digests that no signature covers.
func (c *chainCheck) signedEnd() {
	by := byOwnKey
	if c.v.ring.given {
		by = ByKey
	}
	u := c.uncovered(by)
	since := archive.FormatTime(u.since)
	switch {
	case u.n == 0:
	case c.mustBeSigned() && !c.signedAt.due.IsZero() && c.v.o.Now.Sub(c.signedAt.due) > signatureGrace:
		// A digest that is written again each day is young for ever.
		c.fault(FindingSignatureGone, u.first, "", fmt.Sprintf("the newest signed digest is %d, the one behind it was due at %s, and no signature covers what is there", c.signedAt.sequence, archive.FormatTime(c.signedAt.due)))
	case c.mustBeSigned() && u.late > 0:
		c.fault(FindingSignatureGone, u.first, "", fmt.Sprintf("%d digests are neither signed nor followed by a signed one, %d of them for more than %v, since %s", u.n, u.late, signatureGrace, since))
	case c.v.ring.given || c.began:
		c.note(NoteSignaturePending, u.first, "", fmt.Sprintf("%d digests are not signed yet, since %s", u.n, since))
	default:
		c.note(NoteUnsigned, u.first, "", "no digest of the chain is signed")
	}
}
