package uploader

import (
	"encoding/hex"
	"strings"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// content is what was read of a file.
type content struct {
	size   int64
	md5    [16]byte
	sha256 [32]byte
}

// standing is what is believed or known to stand under a key.
type standing struct {
	asked   bool // The server said so just now.
	present bool
	refused bool         // That it is absent is a guess: the server refused to say.
	object  state.Object // ETag and VersionID only, unless asked.
	key     KeyVerdict   // How object is encrypted, when asked.
}

// action is what is to be done with a file.
type action uint8

const (
	actWrite    action = iota // Send it under decision.cond.
	actSkip                   // S3 holds it.
	actConflict               // Another instance's object is in its place.
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
// instance wrote is never replaced.
func decide(c content, s standing, instance string) decision {
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
	basis, equal := sameContent(c, s.object)
	switch {
	case equal && s.key == KeyOK:
		return decision{act: actSkip, basis: basis}
	case foreign(s.object, instance):
		return decision{act: actConflict}
	default:
		return replace
	}
}

// sameContent reports whether o holds c, and what proves it. The size comes
// first: it catches objects with copied metadata. An equal ETag is an equal MD5
// whatever the encryption; a different ETag proves nothing.
func sameContent(c content, o state.Object) (state.Basis, bool) {
	if o.Size != c.size {
		return "", false
	}
	sum := hex.EncodeToString(c.md5[:])
	sha := o.Metadata[state.MetaSHA256]
	switch {
	case sha != "" && !strings.EqualFold(sha, hex.EncodeToString(c.sha256[:])):
		return "", false
	case strings.EqualFold(o.Metadata[state.MetaMD5], sum):
		return state.BasisMetadata, true
	case strings.EqualFold(o.ETag, sum):
		return state.BasisETag, true
	default:
		return "", false
	}
}

// foreign reports whether o says that somebody else than instance wrote it. An
// object that says nothing may be replaced.
func foreign(o state.Object, instance string) bool {
	raw := o.Metadata[state.MetaID]
	if raw == "" {
		return false
	}
	id, ok := state.ParseObjectID(raw)
	return !ok || id.Instance != instance
}

// shows reports whether o is the object that in announced. Another state of the
// same instance, by mistake or after a loss, draws the same numbers: only the
// chain tells its objects from ours.
func shows(o state.Object, in *state.Intent, instance string) bool {
	id, ok := state.ParseObjectID(o.Metadata[state.MetaID])
	want := state.ObjectID{Instance: instance, Chain: in.Chain, Attempt: in.Attempt}
	if !ok || id != want || o.Size != in.Fence.Size {
		return false
	}
	unhashed := in.Op == state.OpCopy && in.MD5 == [16]byte{} // Nobody knows the content's MD5.
	return unhashed || strings.EqualFold(o.Metadata[state.MetaMD5], hex.EncodeToString(in.MD5[:]))
}
