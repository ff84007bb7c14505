package uploader

import (
	"encoding/hex"
	"strings"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// content is what was read of a file.
type content struct {
	size   int64
	md5    [16]byte
	sha256 [32]byte
}

// agrees reports whether d is what c knows of a content: a hash that is zero is not
// known.
func (c content) agrees(d content) bool {
	md5, sha := c.md5 == [16]byte{} || c.md5 == d.md5, c.sha256 == [32]byte{} || c.sha256 == d.sha256
	return c.size == d.size && md5 && sha
}

// standing is what is believed or known to stand under a key.
type standing struct {
	asked   bool // The server said so just now.
	stale   bool // It is another object by now: to be asked for again.
	present bool
	refused bool               // That it is absent is a guess: the server refused to say.
	object  state.Object       // ETag and VersionID only, unless asked.
	key     archive.KeyVerdict // How object is encrypted, when asked.
	bytes   verdict            // What its bytes are, compared with the file's.
	ours    bool               // Another writer's object, whose place this host takes.
}

// verdict is what reading an object's bytes has shown.
type verdict uint8

const (
	bytesUnread verdict = iota
	bytesEqual
	bytesOther // Or they may not be read.
)

// memory is what this host knows of a key without asking.
type memory struct {
	entry state.Entry // Stored is false where the index does not know the key.
	// Succeeds: another chain of this source came before this one, so that what
	// the index does not know may still be s3syncd's.
	succeeds bool
}

// action is what is to be done with a file.
type action uint8

const (
	actWrite    action = iota // Send it under decision.cond.
	actSkip                   // S3 holds it.
	actConflict               // Another writer's object is in its place.
	actRead                   // Read the object: nothing else proves its content.
)

// decision is what decide makes of a file and of what stands in its place.
type decision struct {
	act      action
	basis    state.Basis
	cond     state.Condition
	replaces state.Object
}

// decide compares what was read with what stands under its key. Every write is
// conditional on what is believed to stand there. Equal content under the right
// key is skipped; under another key it is sent again; an object that another
// writer left is never replaced.
func decide(c content, s standing, m memory, self writer) decision {
	if !s.present {
		return decision{cond: state.Condition{Absent: true}}
	}
	replace := decision{
		cond:     state.Condition{ETag: s.object.ETag},
		replaces: state.Object{ETag: s.object.ETag, VersionID: s.object.VersionID},
	}
	if !s.asked {
		return replace
	}
	basis, equal := compare(c, s, m)
	switch {
	case equal == bytesEqual && s.key == archive.KeyOK:
		return decision{act: actSkip, basis: basis}
	case equal == bytesUnread && s.key == archive.KeyOK:
		return decision{act: actRead}
	case !s.ours && self.owner(s.object) != ownerSelf:
		return decision{act: actConflict}
	default:
		return replace
	}
}

// compare says whether an object holds c, and what proves it; bytesUnread means
// that only its bytes can. Who can write the bucket can write any metadata, so
// metadata is believed only of an object that s3syncd has never written. Of one
// that the index knows, nothing but the very version or ETag is.
func compare(c content, s standing, m memory) (state.Basis, verdict) {
	o := s.object
	switch {
	case o.Size != c.size:
		return "", bytesOther
	case m.entry.Stored && Identified(&m.entry):
		if Describes(&m.entry, o) && holds(&m.entry, c) {
			return state.BasisETag, bytesEqual
		}
		return "", bytesOther
	case s.bytes != bytesUnread:
		return state.BasisMetadata, s.bytes
	}
	basis, equal := claims(c, o)
	switch {
	case !equal:
		return "", bytesOther
	case basis == state.BasisETag:
		return basis, bytesEqual // The server made it.
	case o.Metadata[state.MetaID] != "" || m.entry.Stored || m.succeeds:
		return "", bytesUnread
	}
	return basis, bytesEqual
}

// claims reports whether o says that it holds c, and how. An equal ETag is an
// equal MD5 whatever the encryption; a different ETag proves nothing.
func claims(c content, o state.Object) (state.Basis, bool) {
	sum := hex.EncodeToString(c.md5[:])
	sha := o.Metadata[state.MetaSHA256]
	switch {
	case sha != "" && !strings.EqualFold(sha, hex.EncodeToString(c.sha256[:])):
		return "", false
	case strings.EqualFold(o.ETag, sum):
		return state.BasisETag, true
	case strings.EqualFold(o.Metadata[state.MetaMD5], sum):
		return state.BasisMetadata, true
	default:
		return "", false
	}
}

// versioned reports whether id names one version for ever: what unversioned and
// suspended buckets call null is overwritten.
func versioned(id string) bool { return id != "" && id != "null" }

// Identified reports whether e says which object it describes.
func Identified(e *state.Entry) bool { return e.ETag != "" || versioned(e.VersionID) }

// Describes reports whether o is the very object that e describes: the version
// that was acknowledged, or where there are no versions the ETag.
func Describes(e *state.Entry, o state.Object) bool {
	return sameObject(state.Object{ETag: e.ETag, VersionID: e.VersionID}, o)
}

// sameObject reports whether two answers of a server speak of one object: the
// same version, or where there are none the same ETag.
func sameObject(a, b state.Object) bool {
	if versioned(a.VersionID) && versioned(b.VersionID) {
		return a.VersionID == b.VersionID
	}
	return a.ETag != "" && a.ETag == b.ETag
}

// holds reports whether c is the content that e describes.
func holds(e *state.Entry, c content) bool {
	return e.Fence.Size == c.size && e.MD5 == c.md5 && (e.SHA256 == [32]byte{} || e.SHA256 == c.sha256)
}

// writer is who writes the objects of a source.
type writer struct {
	instance string
	chain    string
	host     string // "": this machine has no identity
}

// owner says whose an object is.
type owner uint8

const (
	ownerSelf     owner = iota // This host's, or nobody's.
	ownerNamesake              // Of this instance, by another host or an earlier chain.
	ownerOther                 // Another instance's.
)

// owner reads who wrote o. Hosts that share an instance's name are told apart by
// the host's hash; an object without it, from a release or a machine that has
// none, by its chain.
func (w writer) owner(o state.Object) owner {
	raw := o.Metadata[state.MetaID]
	if raw == "" {
		return ownerSelf
	}
	id, ok := state.ParseObjectID(raw)
	host := o.Metadata[state.MetaHost]
	switch {
	case !ok || id.Instance != w.instance:
		return ownerOther
	case id.Chain == w.chain, host != "" && host == w.host:
		return ownerSelf
	}
	return ownerNamesake
}

// shows reports whether o says that it is the object that in announced. Another
// state of the same instance, by mistake or after a loss, draws the same numbers:
// only the chain tells its objects from ours. It is what the object says: its
// bytes prove it.
func shows(o state.Object, in *state.Intent, instance string) bool {
	id, ok := state.ParseObjectID(o.Metadata[state.MetaID])
	want := state.ObjectID{Instance: instance, Chain: in.Chain, Attempt: in.Attempt}
	if !ok || id != want || o.Size != in.Fence.Size {
		return false
	}
	unhashed := in.Op == state.OpCopy && in.MD5 == [16]byte{} // Nobody knows the content's MD5.
	return unhashed || strings.EqualFold(o.Metadata[state.MetaMD5], hex.EncodeToString(in.MD5[:]))
}
