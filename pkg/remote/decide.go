// Package remote knows what S3 holds under a key, and what follows from it for a
// file: whether the object has its content already, may be replaced, or belongs
// to somebody else. Each writer of the bucket can write an object's metadata:
// what is believed of it, and what only its bytes prove, is decided here.
package remote

import (
	"encoding/hex"
	"strings"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/localfile"
)

// State is what S3 is believed or known to hold under a key.
type State struct {
	Asked   bool // The server said so just now.
	Stale   bool // It is another object by now: ask again.
	Present bool
	Guessed bool               // That it is absent is a guess: the server refused to say.
	Object  archive.Object     // ETag and VersionID only, unless Asked.
	Key     archive.KeyVerdict // How Object is encrypted, when Asked.
	Bytes   Bytes              // What its bytes are, compared with the file's.
	Ours    bool               // Another writer's object, whose place this host takes.
}

// Bytes is what reading an object has shown of a content.
type Bytes uint8

// The results of reading an object.
const (
	BytesUnread Bytes = iota
	BytesEqual
	BytesOther // Or they may not be read.
)

// Memory is what this host knows of a key without asking.
type Memory struct {
	Entry archive.Entry // Stored is false where the index does not know the key.
	// Succeeds: another chain of this source came before this one, so that what
	// the index does not know may still be s3syncd's.
	Succeeds bool
}

// Action is what is to be done with a file.
type Action uint8

// The actions.
const (
	Write    Action = iota // Send it under Decision.Cond.
	Skip                   // S3 holds it.
	Conflict               // Another writer's object is in its place.
	Read                   // Read the object: nothing else proves its content.
)

// Decision is what follows from a file and from what is in its place.
type Decision struct {
	Act      Action
	Basis    archive.Basis
	Cond     archive.Condition
	Replaces archive.Object
}

// Replace is the decision to write in the place of o, if o is still there.
func Replace(o archive.Object) Decision {
	return Decision{
		Cond:     archive.Condition{ETag: o.ETag},
		Replaces: archive.Object{ETag: o.ETag, VersionID: o.VersionID},
	}
}

// Decide compares what was read with what S3 holds under its key. Every write is
// conditional on what is believed to be there. Equal content under the right KMS
// key is skipped; under another key it is sent again; an object that another
// writer left is never replaced.
func Decide(c localfile.Content, s State, m Memory, self Writer) Decision {
	if !s.Present {
		return Decision{Cond: archive.Condition{Absent: true}}
	}
	if !s.Asked {
		return Replace(s.Object)
	}
	basis, equal := compare(c, s, m)
	switch {
	case equal == BytesEqual && s.Key == archive.KeyOK:
		return Decision{Act: Skip, Basis: basis}
	case equal == BytesUnread && s.Key == archive.KeyOK:
		return Decision{Act: Read}
	case !s.Ours && self.owner(s.Object) != ownerSelf:
		return Decision{Act: Conflict}
	default:
		return Replace(s.Object)
	}
}

// compare says whether an object holds c, and what proves it; BytesUnread means
// that only its bytes can. Metadata is believed only of an object that s3syncd
// has never written. Of one that the index knows, nothing but the very version
// or ETag is.
func compare(c localfile.Content, s State, m Memory) (archive.Basis, Bytes) {
	o := s.Object
	switch {
	case o.Size != c.Size:
		return "", BytesOther
	case m.Entry.Stored && Identified(&m.Entry):
		if Describes(&m.Entry, o) && Holds(&m.Entry, c) {
			return archive.BasisETag, BytesEqual
		}
		return "", BytesOther
	case s.Bytes != BytesUnread:
		return archive.BasisMetadata, s.Bytes
	}
	basis, equal := claims(c, o)
	switch {
	case !equal:
		return "", BytesOther
	case basis == archive.BasisETag:
		return basis, BytesEqual // The server made it.
	case o.Metadata[archive.MetaID] != "" || m.Entry.Stored || m.Succeeds:
		return "", BytesUnread
	}
	return basis, BytesEqual
}

// claims reports whether o says that it holds c, and how. An equal ETag is an
// equal MD5 whatever the encryption; a different ETag proves nothing.
func claims(c localfile.Content, o archive.Object) (archive.Basis, bool) {
	sum := hex.EncodeToString(c.MD5[:])
	sha := o.Metadata[archive.MetaSHA256]
	switch {
	case sha != "" && !strings.EqualFold(sha, hex.EncodeToString(c.SHA256[:])):
		return "", false
	case strings.EqualFold(o.ETag, sum):
		return archive.BasisETag, true
	case strings.EqualFold(o.Metadata[archive.MetaMD5], sum):
		return archive.BasisMetadata, true
	default:
		return "", false
	}
}

// versioned reports whether id names one version for ever: what unversioned and
// suspended buckets call null is overwritten.
func versioned(id string) bool { return id != "" && id != "null" }

// Identified reports whether e says which object it describes.
func Identified(e *archive.Entry) bool { return e.ETag != "" || versioned(e.VersionID) }

// Describes reports whether o is the very object that e describes: the version
// that was acknowledged, or where there are no versions the ETag.
func Describes(e *archive.Entry, o archive.Object) bool {
	return sameObject(Indexed(e), o)
}

// Indexed is the object that e describes.
func Indexed(e *archive.Entry) archive.Object {
	return archive.Object{ETag: e.ETag, VersionID: e.VersionID, SSE: e.SSE, KMSKeyID: e.KMSKeyID}
}

// sameObject reports whether two answers of a server speak of one object: the
// same version, or where there are none the same ETag.
func sameObject(a, b archive.Object) bool {
	if versioned(a.VersionID) && versioned(b.VersionID) {
		return a.VersionID == b.VersionID
	}
	return a.ETag != "" && a.ETag == b.ETag
}

// Holds reports whether c is the content that e describes.
func Holds(e *archive.Entry, c localfile.Content) bool {
	return e.Fence.Size == c.Size && e.MD5 == c.MD5 && (e.SHA256 == [32]byte{} || e.SHA256 == c.SHA256)
}

// Writer is who writes the objects of a source.
type Writer struct {
	Instance string
	Chain    string
	Host     string // "": this machine has no identity.
}

// owner says whose an object is.
type owner uint8

const (
	ownerSelf     owner = iota // This host's, or of no writer that left its name.
	ownerNamesake              // Of this instance, by another host or an earlier chain.
	ownerOther                 // Another instance's.
)

// owner reads who wrote o. Hosts that share an instance's name are told apart by
// the host's hash; an object without it, from a release or a machine that has
// none, by its chain.
func (w Writer) owner(o archive.Object) owner {
	raw := o.Metadata[archive.MetaID]
	if raw == "" {
		return ownerSelf
	}
	id, ok := archive.ParseObjectID(raw)
	host := o.Metadata[archive.MetaHost]
	switch {
	case !ok || id.Instance != w.Instance:
		return ownerOther
	case id.Chain == w.Chain, host != "" && host == w.Host:
		return ownerSelf
	}
	return ownerNamesake
}

// shows reports whether o says that it is the object that in announced. Another
// state of the same instance, by mistake or after a loss, draws the same numbers:
// only the chain tells its objects from ours. It is what the object says: its
// bytes prove it.
func shows(o archive.Object, in *archive.Intent, instance string) bool {
	id, ok := archive.ParseObjectID(o.Metadata[archive.MetaID])
	want := archive.ObjectID{Instance: instance, Chain: in.Chain, Attempt: in.Attempt}
	if !ok || id != want || o.Size != in.Fence.Size {
		return false
	}
	unhashed := in.Op == archive.OpCopy && in.MD5 == [16]byte{} // The content's MD5 was never known.
	return unhashed || strings.EqualFold(o.Metadata[archive.MetaMD5], hex.EncodeToString(in.MD5[:]))
}

// IsTrailDocument reports whether o is a document of a trail, of any instance.
// An object among the data that only says so is not.
func IsTrailDocument(o archive.Object) bool {
	return o.Metadata[metaTrail] != "" && strings.Contains("/"+o.Key, "/"+archive.ReservedDir+"/")
}

// metaTrail marks the documents of a trail.
const metaTrail = "s3syncd-instance"
