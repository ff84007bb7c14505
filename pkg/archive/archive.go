// Package archive is the vocabulary that the stages share: records, index
// entries, objects, keys, fences and error classes, and the words in which the
// watcher, the uploader, the trail, the store and the wiring between them speak of
// one path. Every stage imports it, and it imports none, so that each of these
// types exists once and is never converted.
package archive

// Kind says what a change asks for.
type Kind uint8

// The kinds of changes.
const (
	Look    Kind = iota // open the file, and upload it if its content is not in S3
	Gone                // the index has the path, the source does not
	Refused             // it cannot be archived; the change's Err says why
	// Rekey brings the object under the configured key. The content stays: the
	// file is sent only where it is the same, and the index stays the file's.
	Rekey
	// Reread compares the content of a file whose times did not change, and
	// uploads it where it is another: a store through a mapping may leave the
	// times as they are, and so does a disk that decays.
	Reread
	// Settle finishes an interrupted write of the path. Only the queue itself offers it.
	Settle
)

// String names the kind.
func (k Kind) String() string {
	switch k {
	case Look:
		return "look"
	case Gone:
		return "gone"
	case Refused:
		return "refused"
	case Rekey:
		return "rekey"
	case Reread:
		return "reread"
	case Settle:
		return "settle"
	default:
		return "unknown"
	}
}

// Trigger says why an attempt at a path, or a scan began.
type Trigger string

// The triggers, as docs/FORMAT.md lists them.
const (
	TriggerStartup Trigger = "startup"
	TriggerEvent   Trigger = "event"
	TriggerRescan  Trigger = "rescan"
	TriggerHangup  Trigger = "hangup"
	TriggerSync    Trigger = "sync"
	TriggerPoll    Trigger = "poll"
)

// KeyVerdict says how the encryption of an object that is already in the bucket
// compares with the configuration. The zero value accepts nothing.
type KeyVerdict uint8

// The verdicts.
const (
	KeyMissing KeyVerdict = iota // not encrypted under a KMS key at all
	KeyOther                     // under a key, or with an algorithm, that is not accepted
	KeyOK                        // under the configured or an accepted key
)

// What becomes of the object of a deleted file, as the configuration spells it.
const (
	DeletesKeep   = "keep"
	DeletesMirror = "mirror"
)

// What a symbolic link stands for, as the configuration spells it.
const (
	SymlinksSkip   = "skip"
	SymlinksFollow = "follow"
)
