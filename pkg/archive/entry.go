package archive

import (
	"time"
)

// Entry is what the index knows of one path.
type Entry struct {
	Fence      Fence
	Attributes Attributes
	// Racy: the file was modified so shortly before it was read that an equal
	// fence proves nothing (git's "racily clean" rule). A scan looks again.
	Racy bool

	// What is in S3 under this path's key. Stored is false for a path that only
	// has a failure.
	Stored    bool
	MD5       [16]byte
	SHA256    [32]byte // zero: not known (adopted from an older tool)
	ETag      string
	VersionID string
	SSE       string
	KMSKeyID  string // the key that the object is encrypted under, as the server names it
	Attempt   uint64 // of the write, 0: not written by this chain
	// Suspect: a listing did not show the object as it is described here. The next
	// look asks S3 and puts it back.
	Suspect bool

	// The last failure that needs an operator, so that it is recorded once for each
	// class and content. FailClass is "" when there is none.
	FailClass Class
	FailFence Fence
}

// Failure is a failure that needs an operator, and the content that it concerns.
type Failure struct {
	Class Class
	Fence Fence
}

// Item is one entry with its path.
type Item struct {
	Path  string // raw bytes below the source, slash-separated
	Entry Entry
}

// Op says what a write that an Intent announces does.
type Op string

// The operations.
const (
	OpPut       Op = "put"
	OpMultipart Op = "multipart"
	OpDelete    Op = "delete"
	OpCopy      Op = "copy" // the object onto itself, under another key
)

// Intent announces one write. It is durable before the request is sent, so that
// a write whose answer was lost can be recognized by its attempt number.
type Intent struct {
	Attempt    uint64 // drawn by Begin
	Chain      string // in the object's id, together with Attempt: the chain when it was announced
	Op         Op
	Path       string
	Key        string
	Fence      Fence
	Attributes Attributes
	Racy       bool
	MD5        [16]byte
	SHA256     [32]byte
	Trigger    Trigger
	DetectedAt time.Time
	Replaces   Object // what stood there and is replaced: VersionID and ETag only
	Unresolved bool   // its outcome is not known: kept until the next acknowledged write of Key
	// Rekey: the content stays as it is, only its encryption changes. The record
	// is a `rekeyed` one.
	Rekey bool
	// Reread: the content changed and the times of the file did not.
	Reread   bool
	UploadID string // OpMultipart, OpCopy in parts: set once the server has opened the upload
	PartSize int64  // OpMultipart
}

// Outcome is what Commit makes durable in one transaction.
type Outcome struct {
	Path   string
	Entry  *Entry // nil: the index entry stays as it is
	Remove bool   // the index entry goes (a `deleted` record with policy keep or mirror)
	// Failure, where set, is noted in the entry that is stored when the outcome is:
	// nothing else of it changes. Without an entry there is one that only fails.
	Failure *Failure
	// Unasked: S3 was not asked, so that an entry that is suspect by now stays so.
	Unasked bool
	Record  *Record // nil: nothing for the trail
	// Settles is the attempt number of the intent on Key that this outcome
	// ends, 0 for none.
	Settles uint64
	Key     string
}

// DocKind tells the documents of the trail apart.
type DocKind string

// The kinds, in the order in which they are published.
const (
	KindConfig   DocKind = "config"
	KindManifest DocKind = "manifest"
	KindDigest   DocKind = "digest"
)

// Doc is one sealed document: its bytes are on disk and fixed, and it waits for
// its PUT. Published in order of Number.
type Doc struct {
	Number  uint64 // drawn by Seal
	Kind    DocKind
	Key     string // of the object
	File    string // the local copy, an absolute path
	SHA256  string // hex, of the stored bytes
	Size    int64
	MD5     [16]byte
	Records int64 // manifests only
	// LastRecord is the number of the last record that this manifest, or the
	// manifests that this digest names, account for.
	LastRecord uint64
	Sequence   uint64 // of the digest
	Final      bool   // a digest with which its chain ends; only SealDigest reads it
}

// ManifestRef is a manifest as its digest names it.
type ManifestRef struct {
	S3Key     string `json:"s3_key"`
	SHA256    string `json:"sha256"`
	SizeBytes int64  `json:"size_bytes"`
	Records   int64  `json:"records"`
}

// NoteKind names what happened to a source or daemon, for the next digest.
type NoteKind string

// The notes of spec section 5.
const (
	NoteStart      NoteKind = "start"
	NoteCleanStop  NoteKind = "clean-stop"
	NoteUncleanEnd NoteKind = "unclean-end"
	NoteReload     NoteKind = "reload"
	NoteGap        NoteKind = "gap"
	NoteSourceGone NoteKind = "source-gone"
	NoteSourceBack NoteKind = "source-back"
	// NoteRemoteCheck: the listing of the bucket was compared with the index.
	NoteRemoteCheck NoteKind = "remote-check"
	// What an operator changed: the directory of a source, its bucket or prefix,
	// and that it left the configuration.
	NotePathChanged        NoteKind = "path-changed"
	NoteDestinationChanged NoteKind = "destination-changed"
	NoteSourceRemoved      NoteKind = "source-removed"
	// NoteClockBack: the trail's time went back, because it had been wrong.
	NoteClockBack NoteKind = "clock-back"
)

// ClockBack is how far the clock has to lie behind the trail's time for that to
// go back with it. Below, the trail's time stands still until the clock is there.
const ClockBack = time.Minute

// GoesBack reports whether the trail's time goes back from last to now.
func GoesBack(last, now time.Time) bool { return last.Sub(now) > ClockBack }

// ClockNote is the event of the trail's time going back.
func ClockNote(last, now time.Time) Note {
	return Note{Kind: NoteClockBack, Time: now.UTC(), Detail: "from " + FormatTime(last) + " to " + FormatTime(now)}
}

// Note is one event for the next digest.
type Note struct {
	Kind   NoteKind  `json:"event"`
	Time   time.Time `json:"time"`
	Detail string    `json:"detail,omitempty"`
}

// ScanNote is one completed scan for the next digest.
type ScanNote struct {
	Trigger    Trigger   `json:"trigger"`
	Start      time.Time `json:"start_time"`
	End        time.Time `json:"end_time"`
	Complete   bool      `json:"complete"`
	Files      int64     `json:"files"`
	New        int64     `json:"new"`
	Changed    int64     `json:"changed"`
	Unchanged  int64     `json:"unchanged"`
	Gone       int64     `json:"gone"`
	Excluded   int64     `json:"excluded"`
	Unreadable int64     `json:"unreadable"`
	Special    int64     `json:"special"`

	// Hardlinks is how many files the policy for hard links refused or skipped.
	Hardlinks int64 `json:"hardlinks,omitempty"`
	// Pseudo are the file systems of the kernel that were not entered, Limited the
	// directories that a limit keeps out, and DeletesWithheld the missing files
	// that may be out of sight: the source, or a mount inside it, is not what it
	// was.
	Pseudo          int64 `json:"pseudo,omitempty"`
	Limited         int64 `json:"limited,omitempty"`
	DeletesWithheld int64 `json:"deletes_withheld,omitempty"`
	// DeletesHeld: a mirrored source lost so many files that nothing is deleted
	// until an operator confirms it.
	DeletesHeld int64 `json:"deletes_held,omitempty"`
	// IgnoreFiles are the ignore files that were honored, at most
	// MaxIgnoreFiles; IgnoreFilesOmitted counts the rest.
	IgnoreFiles        []IgnoreFile `json:"ignore_files,omitempty"`
	IgnoreFilesOmitted int64        `json:"ignore_files_omitted,omitempty"`
}

// MaxIgnoreFiles is how many ignore files a ScanNote names.
const MaxIgnoreFiles = 1000

// IgnoreFile names one ignore file that a scan honored.
type IgnoreFile struct {
	Path    string `json:"path"`               // below the source
	PathB64 string `json:"path_b64,omitempty"` // base64 of the raw path, where it is not UTF-8
	SHA256  string `json:"sha256"`
}

// Begins says why a chain began.
type Begins string

// The reasons of spec sections 5 and 8.
const (
	BeginsNew          Begins = "new"
	BeginsReconfigured Begins = "reconfigured"
	BeginsStateLost    Begins = "state-lost"
	BeginsUnknown      Begins = "unknown"
	BeginsHostChanged  Begins = "host-changed"
	BeginsForked       Begins = "forked"
)

// Chain is the head of a source's audit chain and what the next digest needs.
type Chain struct {
	ID             string // 8 hex digits; "" until BeginChain
	Begins         Begins
	AbandonsChain  string
	AbandonsSHA256 string

	NextRecord  uint64 // the number that the next record gets, from 1
	SealedTo    uint64 // records up to this number are in a sealed manifest
	Sequence    uint64 // of the next digest, from 1
	PrevKey     string // the last sealed digest, "" for none
	PrevSHA256  string
	LastNamed   time.Time     // the time in the last document's name; goes back only by more than ClockBack
	LastDigest  time.Time     // end_time of the last sealed digest, zero: none
	Manifests   []ManifestRef // sealed since the last digest
	Counts      map[Status]int64
	IndexSkips  int64 // skips that the index alone decided since the last digest
	Scans       []ScanNote
	Notes       []Note
	ConfigSHA   string // the configuration object that was last published
	Unpublished int64  // records that no acknowledged manifest holds yet
	Ended       bool   // its last sealed digest is final
	// LookedTo: until then the bucket was searched for chains that left this one;
	// zero: never.
	LookedTo time.Time
}
