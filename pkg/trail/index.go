package trail

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// ChainKey names a chain: ids are unique within an instance only.
type ChainKey struct{ Instance, ID string }

// Indexer sorts names into an Index.
type Indexer struct {
	Root   string
	x      Index
	Chains map[ChainKey]*ChainIndex
	sigs   []Entry

	Documents int // digests and manifests
}

// signatureOf returns the document that rel is the signature of, or rel.
func signatureOf(rel string) (document string, isSig bool) {
	base, isSig := strings.CutSuffix(rel, SignatureSuffix)
	if isSig && !strings.HasPrefix(rel, KeysDir+"/") {
		return base + ".json", true
	}
	return rel, isSig
}

// document adds a digest or manifest.
func (in *Indexer) document(e Entry) {
	in.Documents++
	c := in.chain(e.Name)
	if e.Name.Digest {
		c.Digests = append(c.Digests, e)
	} else {
		c.Manifests = append(c.Manifests, e)
	}
}

// What an Index may omit.
const (
	OmittedDocuments = "digests and manifests"
	omittedConfigs   = "configuration objects"
	omittedKeys      = "public keys and announcements"
	omittedOthers    = "other objects"
)

// full reports whether no more of what is at rel is kept, and counts it.
func (in *Indexer) full(known, isSig bool, rel string) bool {
	kind, have, most := omittedOthers, len(in.x.Others), MaxAside
	switch {
	case known && isSig:
		kind, have, most = OmittedDocuments, len(in.sigs), MaxDocuments
	case known:
		kind, have, most = OmittedDocuments, in.Documents, MaxDocuments
	case ConfigPattern.MatchString(rel):
		kind, have = omittedConfigs, len(in.x.Configs)
	case strings.HasPrefix(rel, KeysDir+"/"):
		kind, have = omittedKeys, len(in.x.Keys)
	}
	if have < most {
		return false
	}
	if in.x.Omitted == nil {
		in.x.Omitted = map[string]int64{}
	}
	in.x.Omitted[kind]++
	return true
}

// Index lists everything under the trail but the canaries. It makes one LIST
// and keeps names only.
func (t *Trail) Index(ctx context.Context) (Index, error) {
	in := &Indexer{Root: t.Root(), Chains: map[ChainKey]*ChainIndex{}}
	err := t.Retrier.List(ctx, t.lib, in.Root, "", func(o archive.Object) error {
		in.Add(o)
		return nil
	})
	if err != nil {
		return Index{}, fmt.Errorf("list %s: %w", in.Root, err)
	}
	return in.Index(), nil
}

// Add adds one object of a listing.
func (in *Indexer) Add(o archive.Object) {
	e := Entry{Key: o.Key, Size: o.Size, LastModified: o.LastModified}
	rel, isSig := signatureOf(strings.TrimPrefix(o.Key, in.Root))
	name, known := DocumentAt(rel)
	known = known && (name.Digest || !isSig)
	e.Name = name
	if strings.HasPrefix(rel, CanaryDir) || in.full(known, isSig, rel) {
		return
	}
	switch {
	case known && isSig:
		in.sigs = append(in.sigs, e)
	case known:
		in.document(e)
	case ConfigPattern.MatchString(rel):
		in.x.Configs = append(in.x.Configs, e)
	case strings.HasPrefix(rel, KeysDir+"/"):
		in.x.Keys = append(in.x.Keys, e)
	default:
		in.x.Others = append(in.x.Others, e)
	}
}

// CanaryDir holds the objects of the start-up check.
const CanaryDir = ".canary/"

// DocumentAt reads the name at rel below a trail, and reports whether a
// document of this name is there in one of the layouts.
func DocumentAt(rel string) (Name, bool) {
	n, ok := ParseName(rel)
	if !ok {
		return Name{}, false
	}
	if n.Digest && path.Dir(rel) == DigestDirHive {
		n.Hive = true
	}
	return n, n.Path() == rel
}

func (in *Indexer) chain(n Name) *ChainIndex {
	k := ChainKey{n.Instance, n.Chain}
	c := in.Chains[k]
	if c == nil {
		c = &ChainIndex{Instance: n.Instance, ID: n.Chain, Signatures: map[string]Entry{}}
		in.Chains[k] = c
	}
	return c
}

// Index returns what was added, sorted.
func (in *Indexer) Index() Index {
	digests := map[string]*ChainIndex{}
	for _, c := range in.Chains {
		for _, list := range [][]Entry{c.Digests, c.Manifests} {
			slices.SortFunc(list, func(a, b Entry) int {
				return cmp.Or(cmp.Compare(a.Name.Sequence, b.Name.Sequence), cmp.Compare(a.Name.N, b.Name.N), strings.Compare(a.Key, b.Key))
			})
		}
		for _, d := range c.Digests {
			digests[d.Key] = c
		}
	}
	for _, e := range in.sigs {
		digest := strings.TrimSuffix(e.Key, SignatureSuffix) + ".json"
		if c := digests[digest]; c != nil {
			c.Signatures[digest] = e
		} else {
			in.x.Signatures = append(in.x.Signatures, e)
		}
	}
	for _, c := range in.Chains {
		in.x.Chains = append(in.x.Chains, *c)
	}
	slices.SortFunc(in.x.Chains, ByBeginning)
	return in.x
}

// ByBeginning orders chains by instance, then by the time in their first name.
func ByBeginning(a, b ChainIndex) int {
	return cmp.Or(strings.Compare(a.Instance, b.Instance), a.first().Compare(b.first()), strings.Compare(a.ID, b.ID))
}

// What verifying spends on one document or trail, no matter who wrote it.
const (
	// The elements of all lists of a digest together. An element takes some
	// hundred bytes of memory where it takes two of the digest.
	maxDigestElements = 200_000
	// A document from this size on is read when its turn comes, alone.
	LargeDocument = 1 << 20
	// Digests and manifests, and objects of each other kind, that are kept of a
	// listing: some hundred bytes each.
	MaxDocuments = 5_000_000
	MaxAside     = 10_000
	// A key has at most 1,024 bytes, and no other text of a digest more.
	maxTextBytes = 1024
)
