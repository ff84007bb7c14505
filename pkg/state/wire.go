package state

import (
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// Names in the file. Each source has a bucket below bucketSources, named by the
// hash of its SourceKey.
const (
	bucketMeta    = "meta"
	bucketFacts   = "facts"
	bucketSources = "sources"

	bucketFiles   = "files"   // path → entry
	bucketRecords = "records" // epoch and number → status and line
	bucketIntents = "intents" // key and attempt → intent
	bucketOutbox  = "outbox"  // number → document

	keyFormat   = "format"
	keyInstance = "instance"
	keyMachine  = "machine"
	keyClean    = "clean"
	keySetAside = "set-aside"
	keySum      = "sum" // the checksum of all the others, in every format

	keySource = "source"
	keyHead   = "head"
	keyNews   = "news"
)

// head is a source's chain and totals. A value that others can see is never
// changed: a transaction works on a clone.
type head struct {
	ledger
	news
}

// ledger is the part of a head that every commit rewrites.
type ledger struct {
	ID             string                   `json:"id,omitempty"`
	Begins         archive.Begins           `json:"begins,omitempty"`
	AbandonsChain  string                   `json:"abandons_chain,omitempty"`
	AbandonsSHA256 string                   `json:"abandons_sha256,omitempty"`
	NextRecord     uint64                   `json:"next_record"`
	SealedTo       uint64                   `json:"sealed_to"`
	Sequence       uint64                   `json:"sequence"`
	PrevKey        string                   `json:"prev_key,omitempty"`
	PrevSHA256     string                   `json:"prev_sha256,omitempty"`
	LastNamed      time.Time                `json:"last_named,omitzero"`
	LastDigest     time.Time                `json:"last_digest,omitzero"`
	Counts         map[archive.Status]int64 `json:"counts,omitempty"`
	IndexSkips     int64                    `json:"index_skips,omitempty"`
	ConfigSHA      string                   `json:"config_sha256,omitempty"`
	Unpublished    int64                    `json:"unpublished,omitempty"`

	Epoch       uint32    `json:"epoch"` // of the chain: the first part of its records' keys
	Moved       []segment `json:"moved,omitempty"`
	Files       int64     `json:"files"`
	Bytes       int64     `json:"bytes"`
	NextAttempt uint64    `json:"next_attempt"`
	NextDoc     uint64    `json:"next_doc"`
	Ended       bool      `json:"ended,omitempty"`     // a final digest is sealed
	LookedTo    time.Time `json:"looked_to,omitzero"`  // see Chain
	LastStamp   time.Time `json:"last_stamp,omitzero"` // the newest timestamp that was filled in
	HostChanged bool      `json:"host_changed,omitempty"`
}

// news is the part that only the next digest needs. It changes rarely.
type news struct {
	Manifests []archive.ManifestRef `json:"manifests,omitempty"`
	Scans     []archive.ScanNote    `json:"scans,omitempty"`
	Notes     []archive.Note        `json:"notes,omitempty"`
}

// segment is a run of records that an earlier chain left unsealed. They stay
// where they are stored and count as the current chain's first records: the
// record stored under number n has the number n - Shift.
type segment struct {
	Epoch uint32 `json:"epoch"`
	After uint64 `json:"after"` // stored numbers in (After, Last]
	Last  uint64 `json:"last"`
	Shift uint64 `json:"shift"`
}

// newHead returns the head of a source without a chain.
func newHead() *head {
	return &head{ledger: ledger{NextRecord: 1, Sequence: 1, NextAttempt: 1, NextDoc: 1}}
}

// clone returns a head that may be changed. Its slices are shared: they are
// replaced, never written to.
func (h *head) clone() *head {
	c := *h
	c.Counts = maps.Clone(h.Counts)
	return &c
}

// chain returns h as callers see it, sharing nothing.
func (h *head) chain() archive.Chain {
	counts := maps.Clone(h.Counts)
	if counts == nil {
		counts = map[archive.Status]int64{}
	}
	return archive.Chain{
		ID: h.ID, Begins: h.Begins, AbandonsChain: h.AbandonsChain, AbandonsSHA256: h.AbandonsSHA256,
		NextRecord: h.NextRecord, SealedTo: h.SealedTo, Sequence: h.Sequence,
		PrevKey: h.PrevKey, PrevSHA256: h.PrevSHA256, LastNamed: h.LastNamed, LastDigest: h.LastDigest,
		Manifests: slices.Clone(h.Manifests), Counts: counts, IndexSkips: h.IndexSkips,
		Scans: slices.Clone(h.Scans), Notes: slices.Clone(h.Notes),
		ConfigSHA: h.ConfigSHA, Unpublished: h.Unpublished, Ended: h.Ended, LookedTo: h.LookedTo,
	}
}

// count adds n outcomes of one status.
func (h *head) count(status archive.Status, n int64) {
	if h.Counts == nil {
		h.Counts = map[archive.Status]int64{}
	}
	h.Counts[status] += n
	if h.Counts[status] == 0 {
		delete(h.Counts, status)
	}
}

// segments lists where the chain's records are stored, in the order of their
// numbers, which is also the order of their keys.
func (h *head) segments() []segment {
	return append(slices.Clip(h.Moved), segment{Epoch: h.Epoch, Last: h.NextRecord - 1})
}

// stored returns the storage key of record number n of the chain.
func (h *head) stored(n uint64) []byte {
	for _, s := range h.Moved {
		if n+s.Shift <= s.Last {
			return recordKey(s.Epoch, n+s.Shift)
		}
	}
	return recordKey(h.Epoch, n)
}

// begin makes h the head of a new chain. What no manifest of the old one holds
// moves over.
func (h *head) begin(id string, begins archive.Begins, abandonsChain, abandonsSHA string) {
	var moved []segment
	for _, s := range h.segments() {
		s.After = max(s.After, s.Shift+h.SealedTo)
		s.Shift += h.SealedTo
		if s.After < s.Last {
			moved = append(moved, s)
		}
	}
	h.Moved = moved
	h.NextRecord -= h.SealedTo
	h.SealedTo = 0
	h.Epoch++
	h.ID, h.Begins, h.AbandonsChain, h.AbandonsSHA256 = id, begins, abandonsChain, abandonsSHA
	h.Sequence, h.PrevKey, h.PrevSHA256, h.LastDigest = 1, "", "", time.Time{}
	h.Manifests, h.HostChanged, h.Ended = nil, false, false
	h.LookedTo = time.Time{}
}

func recordKey(epoch uint32, n uint64) []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 12), epoch)
	return binary.BigEndian.AppendUint64(b, n)
}

func numberKey(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// intentPrefix begins the keys of all intents on one object key. Its length
// comes first, so that no key's intents stand among another's.
func intentPrefix(key string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(key))), key...)
}

func intentKey(key string, attempt uint64) []byte {
	return binary.BigEndian.AppendUint64(intentPrefix(key), attempt)
}

type fenceWire struct {
	Dev   uint64 `json:"dev,omitempty"`
	Ino   uint64 `json:"ino,omitempty"`
	Size  int64  `json:"size"`
	Mtime int64  `json:"mtime_ns,omitempty"`
	Ctime int64  `json:"ctime_ns,omitempty"`
	Far   int64  `json:"mtime_s,omitempty"`
}

// intentWire is an Intent in the file.
type intentWire struct {
	Attempt     uint64          `json:"attempt"`
	Chain       string          `json:"chain,omitempty"`
	Op          archive.Op      `json:"op"`
	Path        []byte          `json:"path"`
	Key         string          `json:"key"`
	Fence       fenceWire       `json:"fence"`
	Mode        uint32          `json:"mode,omitempty"`
	UID         uint32          `json:"uid,omitempty"`
	GID         uint32          `json:"gid,omitempty"`
	Racy        bool            `json:"racy,omitempty"`
	MD5         []byte          `json:"md5,omitempty"`
	SHA256      []byte          `json:"sha256,omitempty"`
	Trigger     archive.Trigger `json:"trigger,omitempty"`
	DetectedAt  time.Time       `json:"detected_at,omitzero"`
	ReplacesVID string          `json:"replaces_version_id,omitempty"`
	ReplacesTag string          `json:"replaces_etag,omitempty"`
	Unresolved  bool            `json:"unresolved,omitempty"`
	Rekey       bool            `json:"rekey,omitempty"`
	Reread      bool            `json:"reread,omitempty"`
	UploadID    string          `json:"upload_id,omitempty"`
	PartSize    int64           `json:"part_size,omitempty"`
}

func toIntentWire(in *archive.Intent) intentWire {
	return intentWire{
		Attempt: in.Attempt, Chain: in.Chain, Op: in.Op, Path: []byte(in.Path), Key: in.Key, Fence: fenceWire{
			Dev: in.Fence.Dev, Ino: in.Fence.Ino, Size: in.Fence.Size, Mtime: in.Fence.MtimeNs, Ctime: in.Fence.CtimeNs, Far: in.Fence.MtimeSec,
		},
		Mode: in.Attributes.Mode, UID: in.Attributes.UID, GID: in.Attributes.GID, Racy: in.Racy,
		MD5: in.MD5[:], SHA256: in.SHA256[:], Trigger: in.Trigger, DetectedAt: in.DetectedAt,
		ReplacesVID: in.Replaces.VersionID, ReplacesTag: in.Replaces.ETag,
		Unresolved: in.Unresolved, Rekey: in.Rekey, Reread: in.Reread, UploadID: in.UploadID, PartSize: in.PartSize,
	}
}

func (w *intentWire) intent() archive.Intent {
	in := archive.Intent{
		Attempt: w.Attempt, Chain: w.Chain, Op: w.Op, Path: string(w.Path), Key: w.Key, Fence: archive.Fence{
			Dev: w.Fence.Dev, Ino: w.Fence.Ino, Size: w.Fence.Size, MtimeNs: w.Fence.Mtime, CtimeNs: w.Fence.Ctime, MtimeSec: w.Fence.Far,
		},
		Attributes: archive.Attributes{Mode: w.Mode, UID: w.UID, GID: w.GID}, Racy: w.Racy,
		Trigger: w.Trigger, DetectedAt: w.DetectedAt, Replaces: archive.Object{VersionID: w.ReplacesVID, ETag: w.ReplacesTag},
		Unresolved: w.Unresolved, Rekey: w.Rekey, Reread: w.Reread, UploadID: w.UploadID, PartSize: w.PartSize,
	}
	copy(in.MD5[:], w.MD5)
	copy(in.SHA256[:], w.SHA256)
	return in
}

// docWire is a Doc in the outbox, and what its acknowledgment changes.
type docWire struct {
	Kind       archive.DocKind `json:"kind"`
	Key        string          `json:"key"`
	File       []byte          `json:"file"`
	SHA256     string          `json:"sha256"`
	Size       int64           `json:"size"`
	MD5        []byte          `json:"md5"`
	Records    int64           `json:"records,omitempty"`
	LastRecord uint64          `json:"last_record,omitempty"`
	Sequence   uint64          `json:"sequence,omitempty"`

	Covers  uint64 `json:"covers,omitempty"`  // manifest: record numbers that are published with it
	Deletes []byte `json:"deletes,omitempty"` // digest: records up to this storage key are done with
}

func toDocWire(d *archive.Doc) docWire {
	return docWire{
		Kind: d.Kind, Key: d.Key, File: []byte(d.File), SHA256: d.SHA256, Size: d.Size, MD5: d.MD5[:],
		Records: d.Records, LastRecord: d.LastRecord, Sequence: d.Sequence,
	}
}

func (w *docWire) doc(number uint64) archive.Doc {
	d := archive.Doc{
		Number: number, Kind: w.Kind, Key: w.Key, File: string(w.File), SHA256: w.SHA256, Size: w.Size,
		Records: w.Records, LastRecord: w.LastRecord, Sequence: w.Sequence,
	}
	copy(d.MD5[:], w.MD5)
	return d
}
