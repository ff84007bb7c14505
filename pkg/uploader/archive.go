package uploader

import (
	"context"
	"encoding/hex"
	"errors"
	"strconv"
	"time"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// archivedObject is what the index or the trail knows of an object: which it is, what
// it holds, and of which file. Nothing of it comes from the object's metadata.
type archivedObject struct {
	content

	object     state.Object // ETag and VersionID
	mtime      time.Time    // zero: not known
	attributes state.Attributes
}

// ErrUnarchived says that neither the index nor the trail knows an object.
var ErrUnarchived = errors.New("neither the index nor the trail knows this object: it is not taken for what was archived")

// archiveOfEntry is what the index knows.
func archiveOfEntry(e *state.Entry) archivedObject {
	return archivedObject{
		content:    content{size: e.Fence.Size, md5: e.MD5, sha256: e.SHA256},
		object:     state.Object{ETag: e.ETag, VersionID: e.VersionID},
		mtime:      e.Fence.Mtime(),
		attributes: e.Attributes,
	}
}

// archiveOfRecord is what a record of the trail says.
func archiveOfRecord(r *state.Record) archivedObject {
	a := archivedObject{content: content{size: -1}, object: state.Object{ETag: r.ETag, VersionID: r.VersionID}}
	if r.SizeBytes != nil {
		a.size = *r.SizeBytes
	}
	hashOf(a.md5[:], r.MD5)
	hashOf(a.sha256[:], r.SHA256)
	mtime, terr := time.Parse(time.RFC3339Nano, r.MTime)
	mode, merr := strconv.ParseUint(r.Mode, 8, 32)
	if terr == nil && merr == nil && r.UID != nil && r.GID != nil {
		a.mtime, a.attributes = mtime, state.Attributes{Mode: uint32(mode), UID: *r.UID, GID: *r.GID}
	}
	return a
}

// holds reports whether c is the content that a knows.
func (a *archivedObject) holds(c content) bool {
	hashed := a.sha256 == c.sha256 || a.sha256 == [32]byte{} && a.md5 == c.md5
	return a.size == c.size && hashed
}

// find returns which of known describes o: by its version or ETag, or by its
// bytes, which read compares. Else the object is nobody's that this host knows.
func find(o state.Object, known []archivedObject, read func(content) (verdict, error)) (archivedObject, error) {
	for i := range known {
		if sameObject(known[i].object, o) {
			return known[i], nil
		}
	}
	for i := range known {
		switch v, err := read(known[i].content); {
		case err != nil:
			return archivedObject{}, err
		case v == bytesEqual:
			return known[i], nil
		}
	}
	return archivedObject{}, state.Classified(state.ClassConflict, "compare", ErrUnarchived)
}

// archives is what the index and the trail know of one key. Of the index, what is
// not stored says nothing.
func archives(e *state.Entry, r *state.Record) []archivedObject {
	var list []archivedObject
	if e.Stored {
		list = append(list, archiveOfEntry(e))
	}
	if r != nil {
		list = append(list, archiveOfRecord(r))
	}
	return list
}

// CheckArchived returns why a rekey does not move o, of which the index knows e
// and the trail r, nil where it does.
func CheckArchived(ctx context.Context, fetch Fetch, o state.Object, e *state.Entry, r *state.Record) error {
	_, err := find(o, archives(e, r), func(c content) (verdict, error) {
		if !readable(fetch, o, c) {
			return bytesOther, nil
		}
		return readObject(ctx, fetch, o, c, new(progress))
	})
	return err
}

// hashOf decodes a hash in hex, and leaves to as it is where it is none.
func hashOf(to []byte, s string) {
	if b, err := hex.DecodeString(s); err == nil && len(b) == len(to) {
		copy(to, b)
	}
}
