package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// report notes what is found of one chain.
type report struct {
	v               *verifier
	instance, chain string
}

func (r *report) finding(kind FindingKind, seq uint64, key, detail string) Finding {
	return Finding{Kind: kind, Instance: r.instance, Chain: r.chain, Sequence: seq, Key: key, Detail: detail}
}

func (r *report) fault(kind FindingKind, seq uint64, key, detail string) {
	r.v.found.Add(r.finding(kind, seq, key, detail))
}

func (r *report) note(kind FindingKind, seq uint64, key, detail string) {
	r.v.noted.Add(r.finding(kind, seq, key, detail))
}

// unchecked notes a document of the chain that could not be read.
func (r *report) unchecked(seq uint64, key string, err error) {
	r.v.unread(r.finding(FindingUnchecked, seq, key, ""), err)
}

// chainCheck is one chain while it is checked, digest by digest.
type chainCheck struct {
	report

	index  *trail.ChainIndex
	sum    ChainSummary
	key    trail.ChainKey
	named  map[string]bool // manifests that a digest names
	unread map[uint64]bool // sequence numbers of digests that could not be read
	signed []string        // digests with a signature that holds, by SHA-256

	// Of the digest before.
	prev     *digestCheck
	end, due time.Time
	firstEnd time.Time // of the first digest
	lastID   uint64

	firstKey, leavesAt string
	leftBy             []string // chains that follow this one, and are vouched for
	leftAt             uint64   // the digest at which they left it; 0: not known
	leftOpen           bool     // one of them could not find out where it ends
	claims             []string // chains that say so, and are not vouched for

	signers  map[string]bool
	signedAt digestEnd // the newest digest that is signed
	unsigned []uint64  // since the last signed digest
	began    bool      // a digest before was signed
}

// digestEnd is what a digest says of its end.
type digestEnd struct {
	sequence uint64
	end, due time.Time
}

// digestCheck is what was read for one digest.
type digestCheck struct {
	at        trail.Entry
	d         trail.Digest
	sha       string
	fault     error // it is no digest
	gone      bool
	unread    error // it could not be read
	manifests []ManifestCheck
	signature *trail.Signature
	sigFault  error // it is no signature, or it does not hold
	sigUnread error // it, or its key, could not be read
	keyThere  bool
	trusted   bool // the signature holds, and its key is trusted
}

// checkChain checks the digests of one chain and what they name.
func (v *verifier) checkChain(ctx context.Context, x *trail.ChainIndex) error {
	c := &chainCheck{
		report: report{v: v, instance: x.Instance, chain: x.ID},
		index:  x, key: trail.ChainKey{Instance: x.Instance, ID: x.ID}, named: map[string]bool{}, unread: map[uint64]bool{}, signers: map[string]bool{},
		sum: ChainSummary{Instance: x.Instance, Chain: x.ID, SignedBy: []string{}},
	}
	v.all[c.key] = c
	v.chains = append(v.chains, c.key)
	c.names()
	fetch := func(ctx context.Context, i int) (*digestCheck, error) { return v.read(ctx, x, i) }
	err := trail.EachEntry(ctx, x.Digests, fetch, func(*digestCheck) {}, func(_ int, d *digestCheck, err error) error {
		if err != nil {
			return err
		}
		n := 1 + int64(len(d.manifests))
		c.digest(d)
		v.progress(n)
		return ctx.Err()
	})
	c.sum.SignedBy = append(c.sum.SignedBy, slices.Sorted(maps.Keys(c.signers))...)
	return err
}

// read reads a digest, its signature and its manifests.
func (v *verifier) read(ctx context.Context, x *trail.ChainIndex, i int) (*digestCheck, error) {
	e := x.Digests[i]
	c := &digestCheck{at: e}
	data, err := v.t.Read(ctx, e.Key, trail.MaxDigestBytes)
	if errors.Is(err, fs.ErrNotExist) {
		c.gone = true
		return c, nil
	}
	if err != nil {
		c.unread = err
		return c, ctx.Err()
	}
	c.sha = trail.SumOf(data)
	if sig, ok := x.Signatures[e.Key]; ok {
		v.readSignature(ctx, c, sig.Key, data)
	}
	if c.d, c.fault = trail.DecodeDigest(data); c.fault != nil {
		c.d = trail.Digest{} // Nothing of it is believed.
	}
	if i > 0 && x.Digests[i-1].Name.Sequence == e.Name.Sequence {
		return c, nil // A fork: its manifests are not followed.
	}
	c.manifests = make([]ManifestCheck, len(c.d.Manifests))
	fetch := func(ctx context.Context, i int) (ManifestCheck, error) {
		if !v.worth(x, c, i) {
			return ManifestCheck{gone: true}, nil
		}
		return ScanManifest(ctx, v.t, &c.d, c.d.Manifests[i])
	}
	return c, trail.InOrder(ctx, len(c.d.Manifests), fetch, func(ManifestCheck) {}, func(i int, m ManifestCheck, err error) error {
		m.unread = err
		c.manifests[i] = m
		return ctx.Err()
	})
}

// worth reports whether to ask for a manifest that a digest names: it is listed,
// or has not been asked for too often. One that belongs to another digest is not
// asked for: a made-up digest could name a large one as often as it likes.
func (v *verifier) worth(x *trail.ChainIndex, c *digestCheck, i int) bool {
	n, ok := v.manifestOf(&c.d, i)
	if !ok {
		return false
	}
	at, found := slices.BinarySearchFunc(x.Manifests, n, func(e trail.Entry, n trail.Name) int {
		return cmp.Or(cmp.Compare(e.Name.Sequence, n.Sequence), cmp.Compare(e.Name.N, n.N))
	})
	for ; found && at < len(x.Manifests) && x.Manifests[at].Name.N == n.N && x.Manifests[at].Name.Sequence == n.Sequence; at++ {
		if x.Manifests[at].Key == c.d.Manifests[i].S3Key {
			return true
		}
	}
	return v.unlisted.Add(1) <= MaxUnlisted
}

// manifestOf reads the name of the manifest i of d, and reports whether it is
// the name of one of d.
func (v *verifier) manifestOf(d *trail.Digest, i int) (trail.Name, bool) {
	n, ok := trail.DocumentAt(trimRoot(d.Manifests[i].S3Key, v.t.Root()))
	return n, ok && !n.Digest && n.Instance == d.Instance && n.Chain == d.Chain && n.Sequence == d.Sequence && n.N == i+1
}

// readSignature reads and checks the signature of a digest.
func (v *verifier) readSignature(ctx context.Context, c *digestCheck, key string, digest []byte) {
	data, err := v.t.Small(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		return // As if it had not been listed.
	}
	if err != nil {
		c.sigUnread = err
		return
	}
	sig, sigFault := trail.ParseSignature(data)
	c.signature, c.sigFault = &sig, sigFault
	k := v.ring.keys[sig.PublicKeyFingerprint]
	c.keyThere = k != nil
	switch {
	case k != nil && sigFault == nil:
		c.sigFault = k.Verify(sig, digest)
	case k == nil:
		c.sigUnread = v.ring.unread[sig.PublicKeyFingerprint]
	}
}

// digest checks the next digest.
func (c *chainCheck) digest(d *digestCheck) {
	seq := d.at.Name.Sequence
	if d.gone {
		c.fault(FindingDigestMissing, seq, d.at.Key, "it was listed, and is not there")
		return
	}
	if d.unread != nil {
		c.sequence(d)
		c.unreadable(d)
		return
	}
	c.v.reading.read()
	c.know(d)
	c.sequence(d)
	if c.prev != nil && c.prev.at.Name.Sequence == seq {
		for _, ref := range d.d.Manifests {
			c.named[ref.S3Key] = true
		}
		return // A fork was found; its first digest is the one that is followed.
	}
	c.signatures(d)
	switch {
	case errors.Is(d.fault, trail.ErrNewerFormat):
		c.fault(FindingNewerFormat, seq, d.at.Key, d.fault.Error())
	case d.fault != nil:
		c.fault(FindingFormat, seq, d.at.Key, d.fault.Error())
	default:
		c.content(d)
		c.refs(d)
		for _, e := range d.d.Events {
			if e.Kind == archive.NoteGap {
				c.note(NoteGap, seq, d.at.Key, e.Detail)
			}
		}
	}
	if d.trusted {
		c.signedAt = digestEnd{seq, c.end, c.due}
	}
	c.sum.Digests++
	c.sum.LastSequence, c.sum.HeadKey, c.sum.HeadSHA256 = seq, d.at.Key, d.sha
	c.sum.HeadTime, c.sum.HeadReason, c.sum.NextDigestDue = d.d.EndTime, d.d.Reason, ""
	if d.d.NextDigestDue != nil {
		c.sum.NextDigestDue = *d.d.NextDigestDue
	}
	d.manifests = nil
	d.d.Manifests, d.d.Scans, d.d.Events = nil, nil, nil
	c.prev = d
}

// sequence checks that d is where it should be.
func (c *chainCheck) sequence(d *digestCheck) {
	seq, last := d.at.Name.Sequence, uint64(0)
	if c.prev != nil {
		last = c.prev.at.Name.Sequence
	} else {
		c.sum.FirstSequence, c.firstKey = seq, d.at.Key
	}
	switch {
	case c.prev != nil && seq == last:
		c.fault(FindingFork, seq, d.at.Key, "another digest has the same number: "+c.prev.at.Key)
	case seq == last+2:
		c.fault(FindingDigestMissing, last+1, "", fmt.Sprintf("digest %d is not there", last+1))
	case seq > last+2:
		c.fault(FindingDigestMissing, last+1, "", fmt.Sprintf("the digests %d to %d are not there", last+1, seq-1))
	}
	if c.prev != nil && d.at.Name.Time.Before(c.prev.at.Name.Time) && !d.goesBack() {
		c.fault(FindingTime, seq, d.at.Key, "its name's time lies before its predecessor's")
	}
}

// content checks what a digest says of itself and its predecessor.
func (c *chainCheck) content(d *digestCheck) {
	seq, key := d.at.Name.Sequence, d.at.Key
	if err := d.at.Name.Says(&d.d); err != nil {
		c.fault(FindingName, seq, key, err.Error())
	} else if d.d.Prefix != c.v.t.Prefix {
		c.fault(FindingName, seq, key, fmt.Sprintf("it belongs under the prefix %q", d.d.Prefix))
	} else if c.v.o.Bucket != "" && d.d.Bucket != c.v.o.Bucket && (c.prev == nil || c.prev.d.Bucket != d.d.Bucket) {
		c.note(NoteElsewhere, seq, key, fmt.Sprintf("it speaks of the bucket %q", d.d.Bucket))
	}
	if c.prev == nil {
		c.sum.Source, c.sum.Begins, c.sum.AbandonsChain = d.d.Source, d.d.Begins, d.d.AbandonsChain
		c.leavesAt = d.d.AbandonsDigestSHA256
	}
	c.link(d)
	c.times(d)
	if d.d.ConfigSHA256 != "" && !c.v.configs[d.d.ConfigSHA256] && (c.prev == nil || c.prev.d.ConfigSHA256 != d.d.ConfigSHA256) {
		c.fault(FindingConfig, seq, key, fmt.Sprintf("the configuration %s that it names is not there", d.d.ConfigSHA256))
	}
}

// link checks the link between d and the digest before it.
func (c *chainCheck) link(d *digestCheck) {
	seq, key := d.at.Name.Sequence, d.at.Key
	first := d.d.PreviousDigestS3Key == nil
	switch {
	case first != (seq == 1):
		c.fault(FindingLink, seq, key, "only the first digest of a chain has no predecessor")
	case first != (d.d.Begins != ""):
		c.fault(FindingLink, seq, key, "the first digest of a chain, and no other, says why it begins")
	case first || c.prev == nil || c.prev.at.Name.Sequence+1 != seq || c.prev.unread != nil:
	case *d.d.PreviousDigestSHA256 != c.prev.sha:
		c.fault(FindingDigestHash, seq-1, c.prev.at.Key, fmt.Sprintf("it has the SHA-256 %s, digest %d names %s", c.prev.sha, seq, *d.d.PreviousDigestSHA256))
	case *d.d.PreviousDigestS3Key != c.prev.at.Key:
		c.fault(FindingLink, seq, key, "it follows "+*d.d.PreviousDigestS3Key)
	}
}

// refs checks the manifests that a digest names.
func (c *chainCheck) refs(d *digestCheck) {
	seq := d.at.Name.Sequence
	var counts trail.Counts
	var records int64
	known := true
	for i, ref := range d.d.Manifests {
		records += ref.Records
		c.named[ref.S3Key] = true
		if _, ok := c.v.manifestOf(&d.d, i); !ok {
			c.fault(FindingName, seq, d.at.Key, fmt.Sprintf("it names %s as its manifest %d", ref.S3Key, i+1))
			known = false
			continue
		}
		m := &d.manifests[i]
		c.manifest(d, ref, m)
		known = known && m.sound(ref)
		counts.Plus(m.counts)
	}
	c.sum.Manifests += int64(len(d.d.Manifests))
	c.sum.Records += records
	c.sum.Counts.Plus(d.d.Counts)
	if d.d.Counts.Total() != records || known && counts != d.d.Counts {
		c.fault(FindingCounts, seq, d.at.Key, fmt.Sprintf("it counts %d records, its manifests hold %d", d.d.Counts.Total(), records))
	}
}

// manifest checks one manifest against the digest that names it.
func (c *chainCheck) manifest(d *digestCheck, ref archive.ManifestRef, m *ManifestCheck) {
	seq := d.at.Name.Sequence
	switch {
	case m.unread != nil:
		c.unchecked(seq, ref.S3Key, m.unread)
	case m.gone:
		c.fault(FindingManifestMissing, seq, ref.S3Key, "its digest names it, and it is not there")
	case m.sha != ref.SHA256:
		c.fault(FindingManifestHash, seq, ref.S3Key, fmt.Sprintf("it has the SHA-256 %s, its digest names %s", m.sha, ref.SHA256))
	case m.size != ref.SizeBytes:
		c.fault(FindingManifestHash, seq, ref.S3Key, fmt.Sprintf("it has %d bytes, its digest names %d", m.size, ref.SizeBytes))
	case m.Format != nil:
		c.fault(FindingFormat, seq, ref.S3Key, m.Format.Error())
	default:
		if m.Records != ref.Records {
			c.fault(FindingCounts, seq, ref.S3Key, fmt.Sprintf("it holds %d records, its digest names %d", m.Records, ref.Records))
		}
		if _, latest := c.v.latest(); m.newest > latest {
			c.fault(FindingTime, seq, ref.S3Key, fmt.Sprintf("a record in it is dated %s, which has not come yet", m.newest))
		}
		if m.first != 0 && m.first <= c.lastID {
			c.fault(FindingRecord, seq, ref.S3Key, fmt.Sprintf("its first record has the number %d, after %d", m.first, c.lastID))
		}
		for _, f := range m.Faults {
			c.fault(FindingRecord, seq, ref.S3Key, f)
		}
		c.lastID = max(c.lastID, m.last)
	}
}

// checkEnd checks the end of a chain, when all chains and anchors are known.
func (v *verifier) checkEnd(c *chainCheck) {
	for i := range c.index.Manifests {
		if e := &c.index.Manifests[i]; !c.named[e.Key] {
			c.pending(e)
		}
	}
	if c.prev == nil {
		return
	}
	c.silence()
	c.signedEnd()
	if c.sum.AnchoredTo < c.sum.LastSequence {
		detail := "nothing outside the trail knows its newest digest"
		if c.sum.AnchoredTo > 0 {
			detail = fmt.Sprintf("nothing outside the trail knows the digests behind %d", c.sum.AnchoredTo)
		}
		c.note(NoteUnanchored, c.sum.LastSequence, c.sum.HeadKey, detail)
	}
}

// pending judges a manifest that no digest names.
func (c *chainCheck) pending(e *trail.Entry) {
	seq, since := e.Name.Sequence, archive.FormatTime(e.Since())
	young := c.v.o.Now.Sub(e.Since()) <= signatureGrace
	switch {
	case len(c.leftBy) > 0:
		c.note(NoteLeftBehind, seq, e.Key, "no digest names it: its records are in chain "+c.leftBy[0])
	case c.unread[seq]: // Its digest may name it.
	case c.sum.HeadReason == trail.ReasonFinal:
		c.fault(FindingUnnamed, seq, e.Key, "no digest names it, and its chain has ended")
	case seq <= c.sum.LastSequence:
		c.fault(FindingUnnamed, seq, e.Key, "no digest names it, and the digest of its number is there")
	case young:
		c.note(NotePending, seq, e.Key, "no digest names it yet: nothing proves it")
	case c.prev == nil:
		c.fault(FindingSilent, seq, e.Key, "no digest of its chain is there, since "+since)
	case c.sum.HeadReason == trail.ReasonStop:
		c.fault(FindingSilent, seq, e.Key, "it was started again after its stop, and no digest followed since "+since)
	case c.mustBeSigned():
		c.fault(FindingUnnamed, seq, e.Key, "no digest names it, since "+since+": nothing proves it")
	default:
		c.note(NotePending, seq, e.Key, "no digest names it yet: nothing proves it")
	}
}
