package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/s3syncd/s3syncd/internal/anchor"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

const (
	// MaxChains is how many chains are checked: those that something outside names,
	// then those with the most digests.
	MaxChains = 10_000
	// A configuration object.
	maxConfigBytes = 64 << 20
	// MaxUnlisted is how many manifests of a trail that a digest names and the
	// listing does not have are asked for one by one.
	MaxUnlisted = 1000
	// A digest may be published so much later than its predecessor promised.
	silenceGrace = 5 * time.Minute
	// A digest that has to be signed may wait for so long, and the first
	// manifests of a chain for their digest.
	signatureGrace = 24 * time.Hour
)

// Options are what the trail is checked against.
type Options struct {
	Bucket   string             // where it was read from; "": not known
	Instance string             // this instance alone; "": all
	Now      time.Time          // by the verifier's clock
	MaxAge   time.Duration      // the oldest head of a chain that continues; 0: any
	Keys     []*trail.PublicKey // that signatures must come from; none: the first of each instance
	Anchors  []anchor.Anchor
	// Again returns what the host knows once everything was read: the trail may
	// have grown since Anchors were. nil: the same.
	Again func(ctx context.Context) ([]anchor.Anchor, error)
	// Signing is the instance whose configuration signs: its digests must be
	// signed though no key was given. "": none is known to.
	Signing string
	// Server returns the time by the server's clock, once it has answered; nil: no
	// server is asked.
	Server func() time.Time
	// Waits is why the host has not published everything that it has seen; "": it
	// has.
	Waits string
	// Progress receives how many documents of how many were read; nil: it is not reported.
	// It is called from one goroutine at a time.
	Progress func(done, total int64)
}

// ChainSummary is one chain as it was found.
type ChainSummary struct {
	Instance      string         `json:"instance"`
	Source        string         `json:"source"`
	Chain         string         `json:"chain"`
	Begins        archive.Begins `json:"begins,omitempty"`
	AbandonsChain string         `json:"abandons_chain,omitempty"`
	FirstSequence uint64         `json:"first_sequence"`
	LastSequence  uint64         `json:"last_sequence"`
	Digests       int64          `json:"digests"`
	Manifests     int64          `json:"manifests"`
	Records       int64          `json:"records"`
	Counts        trail.Counts   `json:"counts"`
	HeadKey       string         `json:"head_key,omitempty"`
	HeadSHA256    string         `json:"head_sha256,omitempty"`
	HeadTime      string         `json:"head_end_time,omitempty"`
	HeadReason    string         `json:"head_reason,omitempty"`
	NextDigestDue string         `json:"next_digest_due,omitempty"`
	Signed        int64          `json:"signed"` // digests with a signature that holds
	SignedTo      uint64         `json:"signed_to"`
	SignedBy      []string       `json:"signed_by"`   // fingerprints
	AnchoredTo    uint64         `json:"anchored_to"` // 0: by nothing
}

// Result is what was found.
type Result struct {
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

	// Vouched says which digests may be believed.
	Vouched *Vouched `json:"-"`
}

// verifier checks one trail.
type verifier struct {
	t     *trail.Trail
	o     Options
	index trail.Index
	ring  *keyring

	found, noted Findings
	chains       []trail.ChainKey // in the order of the trail
	all          map[trail.ChainKey]*chainCheck
	vouched      *Vouched
	known        []anchor.Anchor // what the host knew in the end, where it was asked again
	unlisted     atomic.Int64    // manifests that were asked for though the listing does not have them
	configs      map[string]bool // by SHA-256: they are there
	done, total  int64
	reading      readings
}

// Run checks everything that the trail claims about itself: names, hashes,
// links, sequence, counts, records, times, signatures and keys, and the anchors
// that o names. It blocks until all documents were read. What is wrong with the
// trail are findings, and so is each document that could not be read. An error
// says that nothing could be read. Documents are streamed: beside names, memory
// grows by 100 bytes a digest.
//
// CheckObjects and CheckSource go on from its result. Without anything to check
// it returns ErrNoTrail.
func Run(ctx context.Context, t *trail.Trail, o Options) (*Result, error) {
	v := &verifier{
		t: t, o: o, ring: newKeyring(o.Keys), all: map[trail.ChainKey]*chainCheck{}, configs: map[string]bool{},
		vouched: newVouched(len(o.Keys) > 0, len(o.Anchors) > 0),
	}
	var err error
	if v.index, err = t.Index(ctx); err != nil {
		return nil, err
	}
	v.setNow()
	if o.Instance != "" {
		v.index.Chains = slices.DeleteFunc(v.index.Chains, func(c trail.ChainIndex) bool { return c.Instance != o.Instance })
	}
	if len(v.index.Chains) == 0 && len(o.Anchors) == 0 {
		return nil, fmt.Errorf("%w%s stands under %s: is it the right prefix?", ErrNoTrail, ofInstance(o.Instance), t.Root())
	}
	v.limit()
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
	if err := v.vouch(ctx); err != nil {
		return nil, err
	}
	v.checkSuccession()
	v.checkAnchors()
	v.checkBeyond()
	for _, k := range v.chains {
		v.checkEnd(v.all[k])
	}
	v.checkStrays()
	if o.Waits != "" {
		v.noted.Add(Finding{Kind: NoteUnpublished, Detail: "the daemon has not published all that changed: " + o.Waits})
	}
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

func (v *verifier) result() *Result {
	r := &Result{
		Bucket: v.o.Bucket, Prefix: v.t.Prefix, CheckedAt: archive.FormatTime(v.o.Now), Chains: []ChainSummary{}, Vouched: v.vouched,
	}
	for _, k := range v.chains {
		r.Chains = append(r.Chains, v.all[k].sum)
	}
	r.conclude(&v.found, &v.noted)
	return r
}

// conclude adds findings and notes to v.
func (v *Result) conclude(found, noted *Findings) {
	v.Findings = append(append([]Finding{}, v.Findings...), found.List...)
	v.Notes = append(append([]Finding{}, v.Notes...), noted.List...)
	v.FoundBy = mergeCounts(v.FoundBy, found)
	v.NotedBy = mergeCounts(v.NotedBy, noted)
	v.Clean = len(v.Findings) == 0
	v.Unchecked += found.counts[FindingUnchecked]
	v.First = nil
	if !v.Clean {
		v.First = &v.Findings[0]
	}
}

func mergeCounts(have []KindCount, more *Findings) []KindCount {
	all := Findings{counts: map[FindingKind]int64{}}
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
		v.noted.Add(f)
		return
	}
	v.found.Add(f)
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
	fetch := func(ctx context.Context, i int) ([]byte, error) {
		if list[i].Size > maxConfigBytes {
			return nil, nil
		}
		return v.t.Read(ctx, list[i].Key, maxConfigBytes)
	}
	return trail.EachEntry(ctx, list, fetch, func([]byte) {}, func(i int, data []byte, err error) error {
		name := strings.TrimSuffix(strings.TrimPrefix(list[i].Key, v.t.Root()+"config_"), ".json")
		if err != nil {
			v.configs[name] = true // It was listed.
			v.unread(Finding{Key: list[i].Key}, err)
			return ctx.Err()
		}
		v.reading.read()
		if list[i].Size > maxConfigBytes {
			v.fileFinding(FindingConfig, list[i].Key, fmt.Sprintf("it has %d bytes, which are not read", list[i].Size))
			return nil
		}
		if sha := trail.SumOf(data); sha != name {
			v.fileFinding(FindingConfig, list[i].Key, "it has the SHA-256 "+sha)
			return nil
		}
		v.configs[name] = true
		if err := trail.UnambiguousConfig(data); err != nil {
			v.fileFinding(FindingFormat, list[i].Key, err.Error())
		}
		return nil
	})
}

// limit names what the index omits, and leaves out chains beyond maxChains. A
// host begins one per loss of its state: that many are made up.
func (v *verifier) limit() {
	for _, kind := range slices.Sorted(maps.Keys(v.index.Omitted)) {
		v.found.Add(Finding{Kind: FindingLimit, Detail: fmt.Sprintf("there are %d %s more than are checked", v.index.Omitted[kind], kind)})
	}
	list := v.index.Chains
	if len(list) <= MaxChains {
		return
	}
	named := map[trail.ChainKey]bool{}
	for _, a := range v.o.Anchors {
		named[trail.ChainKey{Instance: a.Instance, ID: a.Chain}] = true
	}
	slices.SortStableFunc(list, func(a, b trail.ChainIndex) int {
		x, y := named[trail.ChainKey{Instance: a.Instance, ID: a.ID}], named[trail.ChainKey{Instance: b.Instance, ID: b.ID}]
		switch {
		case x && !y:
			return -1
		case y && !x:
			return 1
		}
		return cmp.Compare(len(b.Digests), len(a.Digests))
	})
	v.found.Add(Finding{Kind: FindingLimit, Detail: fmt.Sprintf("%d chains are there, and %d of them were not checked: no more than %d are", len(list), len(list)-MaxChains, MaxChains)})
	v.index.Chains = slices.Clone(list[:MaxChains])
	slices.SortFunc(v.index.Chains, trail.ByBeginning)
}

// checkInstances checks the chains of one instance after the other. An error says
// that nothing could be read.
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
		ordered, err := v.t.Succession(ctx, list[:n], ignore)
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
	return v.reading.nothing()
}

// checkStrays reports what belongs to no chain.
func (v *verifier) checkStrays() {
	for _, e := range v.index.Signatures {
		if v.o.Instance != "" && e.Name.Instance != v.o.Instance {
			continue
		}
		v.found.Add(Finding{
			Kind: FindingDigestMissing, Instance: e.Name.Instance, Chain: e.Name.Chain, Sequence: e.Name.Sequence, Key: e.Key,
			Detail: "the signature of a digest that is not there",
		})
	}
	for _, e := range v.index.Others {
		v.fileFinding(NoteForeignObject, e.Key, "no document of this format; it proves nothing")
	}
}

// Heads returns the newest digest of each chain, to be kept as anchors.
func (v *Result) Heads() []anchor.Anchor {
	heads := []anchor.Anchor{}
	for i := range v.Chains {
		if c := &v.Chains[i]; c.HeadSHA256 != "" {
			heads = append(heads, anchor.Anchor{
				Instance: c.Instance, Chain: c.Chain, Sequence: c.LastSequence, SHA256: c.HeadSHA256,
				Unvouched: v.Vouched.to(trail.ChainKey{Instance: c.Instance, ID: c.Chain}, ByKey|ByAnchor) == 0,
			})
		}
	}
	return heads
}
