package manifest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/s3syncd/s3syncd/pkg/state"
)

const (
	// A digest may be published so much later than its predecessor promised.
	silenceGrace = 5 * time.Minute
	// A chain's newest digests may stay unsigned for so long once keys are
	// known, and its first manifests without a digest.
	signatureGrace = 24 * time.Hour
)

// Anchor is a digest that something outside the trail knows.
type Anchor struct {
	Instance string `json:"instance,omitempty"` // "": of whatever chain has it
	Chain    string `json:"chain,omitempty"`
	Sequence uint64 `json:"sequence,omitempty"`
	SHA256   string `json:"sha256"`
	// Waiting: it may not be published yet.
	Waiting bool `json:"-"`
	// Local: it is the host's copy, which for a chain that was left may be one
	// that was never published.
	Local bool `json:"-"`
	// From says who knows it, for people.
	From string `json:"-"`
}

// VerifyOptions are what the trail is checked against.
type VerifyOptions struct {
	Bucket   string // where it was read from; "": not known
	Instance string // this instance alone; "": all
	Now      time.Time
	MaxAge   time.Duration // the oldest head of a chain that goes on; 0: any
	Keys     []*PublicKey  // that signatures must lead to; none: the first of each instance
	Anchors  []Anchor
	// Progress is told how many documents of how many were read; nil: nobody.
	// It is called from one goroutine at a time.
	Progress func(done, total int64)
}

// ChainSummary is one chain as it was found.
type ChainSummary struct {
	Instance      string       `json:"instance"`
	Source        string       `json:"source"`
	Chain         string       `json:"chain"`
	Begins        state.Begins `json:"begins,omitempty"`
	AbandonsChain string       `json:"abandons_chain,omitempty"`
	FirstSequence uint64       `json:"first_sequence"`
	LastSequence  uint64       `json:"last_sequence"`
	Digests       int64        `json:"digests"`
	Manifests     int64        `json:"manifests"`
	Records       int64        `json:"records"`
	Counts        Counts       `json:"counts"`
	HeadKey       string       `json:"head_key,omitempty"`
	HeadSHA256    string       `json:"head_sha256,omitempty"`
	HeadTime      string       `json:"head_end_time,omitempty"`
	HeadReason    string       `json:"head_reason,omitempty"`
	Signed        int64        `json:"signed"` // digests with a signature that holds
	SignedTo      uint64       `json:"signed_to"`
	SignedBy      []string     `json:"signed_by"`   // fingerprints
	AnchoredTo    uint64       `json:"anchored_to"` // 0: by nothing
}

// Verification is what was found.
type Verification struct {
	Bucket    string         `json:"bucket,omitempty"`
	Prefix    string         `json:"prefix"`
	CheckedAt string         `json:"checked_at"`
	Clean     bool           `json:"clean"`
	Unchecked int64          `json:"unchecked"` // of the findings: what could not be read
	First     *Finding       `json:"first"`     // the claim that failed first, in the order of the trail
	Findings  []Finding      `json:"findings"`
	FoundBy   []KindCount    `json:"finding_counts"`
	Notes     []Finding      `json:"notes"`
	NotedBy   []KindCount    `json:"note_counts"`
	Chains    []ChainSummary `json:"chains"`
	Objects   *ObjectSummary `json:"objects"`   // null: objects were not asked for
	Tree      *SourceSummary `json:"directory"` // null: the tree was not asked for
}

// verifier checks one trail.
type verifier struct {
	t     *Trail
	o     VerifyOptions
	index Index
	ring  *keyring

	found, noted findings
	chains       []chainKey // in the order of the trail
	all          map[chainKey]*chainCheck
	configs      map[string]bool // by SHA-256: they are there
	done, total  int64
	reading      readings
}

// Verify checks everything that the trail claims about itself: names, hashes,
// links, sequence, counts, records, times, signatures and keys, and the anchors
// that o names. It blocks until all documents were read. What is wrong with the
// trail are findings, and so is each document that could not be read. An error
// says that nothing could be read. Documents are streamed: beside names, memory
// grows by 100 bytes a digest.
//
// CheckObjects and CheckSource go on from its result. Without anything to check
// it returns ErrNoTrail.
func Verify(ctx context.Context, t *Trail, o VerifyOptions) (*Verification, error) {
	v := &verifier{t: t, o: o, ring: newKeyring(o.Keys), all: map[chainKey]*chainCheck{}, configs: map[string]bool{}}
	var err error
	if v.index, err = t.Index(ctx); err != nil {
		return nil, err
	}
	if o.Instance != "" {
		v.index.Chains = slices.DeleteFunc(v.index.Chains, func(c ChainIndex) bool { return c.Instance != o.Instance })
	}
	if len(v.index.Chains) == 0 && len(o.Anchors) == 0 {
		return nil, fmt.Errorf("%w%s stands under %s: is it the right prefix?", ErrNoTrail, ofInstance(o.Instance), t.root())
	}
	for i := range v.index.Chains {
		v.total += int64(len(v.index.Chains[i].Digests) + len(v.index.Chains[i].Manifests))
	}
	if err := v.ring.load(ctx, t, v.index.Keys, v.fileFinding, v.unread); err != nil {
		return nil, err
	}
	if err := v.checkConfigs(ctx); err != nil {
		return nil, err
	}
	if err := v.checkInstances(ctx); err != nil {
		return nil, err
	}
	if err := v.reading.nothing(); err != nil {
		return nil, err
	}
	v.checkSuccession()
	v.checkAnchors()
	for _, k := range v.chains {
		v.checkEnd(v.all[k])
	}
	v.checkStrays()
	return v.result(), nil
}

// ErrNoTrail says that there is nothing to verify.
var ErrNoTrail = errors.New("no audit trail")

func ofInstance(instance string) string {
	if instance == "" {
		return ""
	}
	return " of instance " + instance
}

func (v *verifier) result() *Verification {
	r := &Verification{
		Bucket: v.o.Bucket, Prefix: v.t.prefix, CheckedAt: state.FormatTime(v.o.Now), Chains: []ChainSummary{},
	}
	for _, k := range v.chains {
		r.Chains = append(r.Chains, v.all[k].sum)
	}
	r.conclude(&v.found, &v.noted)
	return r
}

// conclude adds findings and notes to v.
func (v *Verification) conclude(found, noted *findings) {
	v.Findings = append(append([]Finding{}, v.Findings...), found.list...)
	v.Notes = append(append([]Finding{}, v.Notes...), noted.list...)
	v.FoundBy = mergeCounts(v.FoundBy, found)
	v.NotedBy = mergeCounts(v.NotedBy, noted)
	v.Clean = len(v.Findings) == 0
	v.Unchecked += found.counts[FindingUnchecked]
	v.First = nil
	if !v.Clean {
		v.First = &v.Findings[0]
	}
}

func mergeCounts(have []KindCount, more *findings) []KindCount {
	all := findings{counts: map[FindingKind]int64{}}
	for _, k := range have {
		all.counts[k.Kind] += k.Count
	}
	for k, n := range more.counts {
		all.counts[k] += n
	}
	return all.kinds()
}

// fileFinding adds what is wrong with a file outside the chains.
func (v *verifier) fileFinding(kind FindingKind, key, detail string) {
	f := Finding{Kind: kind, Key: key, Detail: detail}
	if kind == NoteForeignObject {
		v.noted.add(f)
		return
	}
	v.found.add(f)
}

// progress notes that n more documents were read.
func (v *verifier) progress(n int64) {
	v.done += n
	if v.o.Progress != nil {
		v.o.Progress(min(v.done, v.total), v.total)
	}
}

// checkConfigs compares the configuration objects with their names.
func (v *verifier) checkConfigs(ctx context.Context) error {
	list := v.index.Configs
	fetch := func(ctx context.Context, i int) ([]byte, error) { return v.t.read(ctx, list[i].Key, maxDigestBytes) }
	return inOrder(ctx, len(list), fetch, func([]byte) {}, func(i int, data []byte, err error) error {
		name := strings.TrimSuffix(strings.TrimPrefix(list[i].Key, v.t.root()+"config_"), ".json")
		if err != nil {
			v.configs[name] = true // It was listed.
			v.unread(Finding{Key: list[i].Key}, err)
			return ctx.Err()
		}
		v.reading.read()
		if sha := hashOf(data); sha != name {
			v.fileFinding(FindingConfig, list[i].Key, "it has the SHA-256 "+sha)
			return nil
		}
		v.configs[name] = true
		if err := unambiguousConfig(data); err != nil {
			v.fileFinding(FindingFormat, list[i].Key, err.Error())
		}
		return nil
	})
}

// checkInstances checks the chains of one instance after the other.
func (v *verifier) checkInstances(ctx context.Context) error {
	list := v.index.Chains
	for len(list) > 0 {
		n := 1
		for n < len(list) && list[n].Instance == list[0].Instance {
			n++
		}
		ignore := func(ctx context.Context, _ string, _ error) error {
			return ctx.Err() // The document is found again when its chain is checked.
		}
		ordered, err := v.t.succession(ctx, list[:n], ignore)
		if err != nil {
			return err
		}
		for i := range ordered {
			if err := v.checkChain(ctx, &ordered[i]); err != nil {
				return err
			}
		}
		list = list[n:]
	}
	return nil
}

// checkSuccession checks that every chain that is said to be left is there, up
// to the digest at which it was left.
func (v *verifier) checkSuccession() {
	for _, k := range v.chains {
		c := v.all[k]
		if c.sum.AbandonsChain == "" {
			continue
		}
		left := v.all[chainKey{c.sum.Instance, c.sum.AbandonsChain}]
		if left == nil || left == c {
			c.fault(FindingChainMissing, 1, c.firstKey, fmt.Sprintf("it follows chain %s, which is not there", c.sum.AbandonsChain))
			continue
		}
		left.leftBy = append(left.leftBy, c.sum.Chain)
		if c.leavesAt == "" {
			continue
		}
		at, ok := left.hashes[c.leavesAt]
		switch {
		case !ok && len(left.unread) > 0: // It may be one of those.
		case !ok:
			c.fault(FindingChainMissing, 1, c.firstKey, fmt.Sprintf("it follows chain %s at the digest %s, which is not in that chain", left.sum.Chain, c.leavesAt))
		case at < left.sum.LastSequence:
			left.anchor(at)
			left.note(NoteAbandoned, at, "", fmt.Sprintf("chain %s left it here (%s), and it went on to digest %d", c.sum.Chain, c.sum.Begins, left.sum.LastSequence))
		default:
			left.anchor(at)
		}
	}
}

// checkAnchors compares the trail with what is known of it elsewhere.
func (v *verifier) checkAnchors() {
	for _, a := range v.o.Anchors {
		switch {
		case a.Instance == "":
			v.checkAnywhere(a)
		case v.o.Instance != "" && a.Instance != v.o.Instance, v.unknowable(a):
		default:
			v.checkAnchor(a)
		}
	}
}

// unknowable reports whether the digest of an anchor could not be read, which is
// a finding already.
func (v *verifier) unknowable(a Anchor) bool {
	c := v.all[chainKey{a.Instance, a.Chain}]
	return c != nil && c.unread[a.Sequence]
}

// checkAnchor compares one digest with what is known of it.
func (v *verifier) checkAnchor(a Anchor) {
	c := v.all[chainKey{a.Instance, a.Chain}]
	last := uint64(0)
	if c != nil {
		last = c.sum.LastSequence
		if c.has(a.SHA256, a.Sequence) {
			c.anchor(a.Sequence)
			return
		}
	}
	f := Finding{Kind: FindingAnchor, Instance: a.Instance, Chain: a.Chain, Sequence: a.Sequence}
	switch {
	case a.Local && c != nil && len(c.leftBy) > 0:
		return
	case a.Waiting && a.Sequence > last:
		f.Kind, f.Detail = NoteUnpublished, fmt.Sprintf("%s: digest %d waits on the host", a.From, a.Sequence)
		v.noted.add(f)
		if c != nil {
			c.anchor(last)
		}
		return
	case c == nil:
		f.Kind, f.Detail = FindingChainMissing, fmt.Sprintf("%s: the chain had %d digests; it is not there", a.From, a.Sequence)
	case a.Sequence > last:
		f.Detail = fmt.Sprintf("%s: the chain had %d digests, the newest that is there is %d: its end was removed", a.From, a.Sequence, last)
	default:
		f.Detail = fmt.Sprintf("%s: digest %d has the SHA-256 %s; the one that is there has another", a.From, a.Sequence, a.SHA256)
	}
	v.found.add(f)
}

// checkAnywhere looks for a digest of which only the hash is known.
func (v *verifier) checkAnywhere(a Anchor) {
	for _, c := range v.all {
		if seq, ok := c.hashes[a.SHA256]; ok {
			c.anchor(seq)
			return
		}
	}
	for _, c := range v.all {
		if len(c.unread) > 0 {
			v.found.add(Finding{Kind: FindingUnchecked, Detail: fmt.Sprintf("%s: no digest that could be read has the SHA-256 %s", a.From, a.SHA256)})
			return
		}
	}
	v.found.add(Finding{Kind: FindingAnchor, Detail: fmt.Sprintf("%s: no digest has the SHA-256 %s", a.From, a.SHA256)})
}

// checkStrays looks at what belongs to no chain.
func (v *verifier) checkStrays() {
	for _, e := range v.index.Signatures {
		if v.o.Instance != "" && e.Name.Instance != v.o.Instance {
			continue
		}
		v.found.add(Finding{
			Kind: FindingDigestMissing, Instance: e.Name.Instance, Chain: e.Name.Chain, Sequence: e.Name.Sequence, Key: e.Key,
			Detail: "the signature of a digest that is not there",
		})
	}
	for _, e := range v.index.Others {
		v.fileFinding(NoteForeignObject, e.Key, "no document of this format; it proves nothing")
	}
}

// Heads returns the newest digest of each chain, to be kept as anchors.
func (v *Verification) Heads() []Anchor {
	heads := []Anchor{}
	for i := range v.Chains {
		if c := &v.Chains[i]; c.HeadSHA256 != "" {
			heads = append(heads, Anchor{Instance: c.Instance, Chain: c.Chain, Sequence: c.LastSequence, SHA256: c.HeadSHA256})
		}
	}
	return heads
}
