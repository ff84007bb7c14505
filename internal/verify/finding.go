package verify

import (
	"cmp"
	"slices"
	"strings"
)

// FindingKind names a claim of the trail that did not hold, or something that
// an auditor should know. The values are stable.
type FindingKind string

// Findings: claims that did not hold.
const (
	FindingFormat          FindingKind = "format"           // a document is not one
	FindingNewerFormat     FindingKind = "newer-format"     // written by a release that this one cannot check
	FindingName            FindingKind = "name"             // a document is not what its name or place says
	FindingDigestMissing   FindingKind = "digest-missing"   // a sequence number without its digest
	FindingDigestHash      FindingKind = "digest-hash"      // its successor names another SHA-256
	FindingLink            FindingKind = "link"             // a digest does not follow the one before it
	FindingFork            FindingKind = "fork"             // two digests of one sequence number
	FindingTime            FindingKind = "time"             // times that go back
	FindingManifestMissing FindingKind = "manifest-missing" // a digest names it
	FindingManifestHash    FindingKind = "manifest-hash"    // its digest names another SHA-256 or size
	FindingCounts          FindingKind = "counts"           // numbers of records that do not agree
	FindingRecord          FindingKind = "record"           // a record that cannot stand where it does
	FindingUnnamed         FindingKind = "unnamed-manifest" // no digest names it, and nothing explains it
	FindingConfig          FindingKind = "config"           // a configuration object is missing or not its name
	FindingSignature       FindingKind = "signature"        // it does not hold
	FindingSignatureGone   FindingKind = "signature-missing"
	FindingForeignKey      FindingKind = "foreign-key"   // signed by a key that nothing vouches for
	FindingKey             FindingKind = "key"           // a public key or announcement is not what its name says
	FindingChainMissing    FindingKind = "chain-missing" // something names a chain that is not there
	FindingAnchor          FindingKind = "anchor"        // the trail is not what was seen or kept elsewhere
	FindingSilent          FindingKind = "silent"        // past next_digest_due without a word
	FindingStale           FindingKind = "stale"         // the head is older than was asked for
	FindingLimit           FindingKind = "limit"         // there is more than is checked
	FindingStopped         FindingKind = "stopped"       // it stopped longer ago than was asked for
	FindingAbandoned       FindingKind = "abandoned-chain"
	FindingDeleted         FindingKind = "delete-marker" // under _manifests/
	FindingReplaced        FindingKind = "noncurrent-version"

	FindingObjectMissing  FindingKind = "object-missing"
	FindingObjectContent  FindingKind = "object-content"    // size, hash, ETag or metadata are others
	FindingObjectVersion  FindingKind = "object-version"    // another version is current
	FindingObjectKey      FindingKind = "object-encryption" // other encryption than the record says
	FindingObjectChain    FindingKind = "object-chain"      // written by a chain that is not there
	FindingObjectUnlisted FindingKind = "object-unlisted"   // ours by its metadata, and in no record
	FindingSource         FindingKind = "source"            // the tree has something else

	FindingUnchecked FindingKind = "unchecked" // it could not be read: what it claims is not known
)

// Notes: what is no fault.
const (
	NoteUnanchored       FindingKind = "tail-unanchored"   // nothing outside the trail knows its newest digest
	NoteUnsigned         FindingKind = "unsigned"          // no digest of the chain is signed
	NoteSignaturePending FindingKind = "signature-pending" // the newest digests are not signed yet
	NoteKeyUntrusted     FindingKind = "key-untrusted"     // signatures hold; it is not known whose key it is
	NotePending          FindingKind = "manifest-pending"  // behind the last digest
	NoteLeftBehind       FindingKind = "left-behind"       // belongs to a chain that was left
	NoteAbandoned        FindingKind = "abandoned-chain"
	NoteStopped          FindingKind = "stopped"      // it ended with a clean stop, and was not started again
	NoteClock            FindingKind = "clock"        // the server's and the verifier's differ
	NoteLate             FindingKind = "late"         // silence in the past
	NoteGap              FindingKind = "gap"          // the host said so itself
	NoteForeignObject    FindingKind = "foreign-file" // no document of this format
	NoteElsewhere        FindingKind = "other-bucket" // the documents speak of another bucket
	NoteUnpublished      FindingKind = "unpublished"  // the host has documents that wait
	NoteUnchecked        FindingKind = "unchecked"    // there is nothing to check it with
	NoteChangedSince     FindingKind = "changed-since"
	NoteForeignData      FindingKind = "foreign-object" // under the prefix, and not ours
)

// Finding is one claim that did not hold, or one note.
type Finding struct {
	Kind     FindingKind `json:"kind"`
	Instance string      `json:"instance,omitempty"`
	Chain    string      `json:"chain,omitempty"`
	Sequence uint64      `json:"sequence,omitempty"`
	Key      string      `json:"key,omitempty"`
	Detail   string      `json:"detail"`
}

// maxFindings bounds what a Verification keeps of each list; the rest is
// counted.
const maxFindings = 10_000

// Findings is a bounded list.
type Findings struct {
	List   []Finding
	counts map[FindingKind]int64
}

// Add adds one finding; those beyond the limit are only counted.
func (f *Findings) Add(x Finding) {
	if f.counts == nil {
		f.counts = map[FindingKind]int64{}
	}
	f.counts[x.Kind]++
	if len(f.List) < maxFindings {
		x.Key, x.Detail = clipped(x.Key), clipped(x.Detail)
		f.List = append(f.List, x)
	}
}

// KindCount is how often something was found.
type KindCount struct {
	Kind  FindingKind `json:"kind"`
	Count int64       `json:"count"`
}

// kinds returns the counts, the most frequent first.
func (f *Findings) kinds() []KindCount {
	list := make([]KindCount, 0, len(f.counts))
	for k, n := range f.counts {
		list = append(list, KindCount{k, n})
	}
	slices.SortFunc(list, func(a, b KindCount) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Kind, b.Kind))
	})
	return list
}

// MaxDetailBytes is how much of a document a finding quotes.
const MaxDetailBytes = 2000

// clipped returns the first bytes of a text.
func clipped(s string) string {
	if len(s) <= MaxDetailBytes {
		return s
	}
	return strings.ToValidUTF8(s[:MaxDetailBytes], "") + "…"
}
