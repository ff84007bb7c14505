package remote

import (
	"context"
	"encoding/hex"
	"errors"
	"strconv"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/localfile"
)

// Archived is what the index or the trail knows of an object: which it is, what
// it holds, and of which file. Nothing of it comes from the object's metadata.
type Archived struct {
	localfile.Content

	Object     archive.Object // ETag and VersionID.
	Mtime      time.Time      // Zero: not known.
	Attributes archive.Attributes
}

// ErrUnarchived says that neither the index nor the trail knows an object.
var ErrUnarchived = errors.New("neither the index nor the trail knows this object: it is not taken for what was archived")

// ArchivedEntry is what the index knows.
func ArchivedEntry(e *archive.Entry) Archived {
	return Archived{
		Content:    localfile.Content{Size: e.Fence.Size, MD5: e.MD5, SHA256: e.SHA256},
		Object:     archive.Object{ETag: e.ETag, VersionID: e.VersionID},
		Mtime:      e.Fence.Mtime(),
		Attributes: e.Attributes,
	}
}

// archivedRecord is what a record of the trail says.
func archivedRecord(r *archive.Record) Archived {
	a := Archived{Content: localfile.Content{Size: -1}, Object: archive.Object{ETag: r.ETag, VersionID: r.VersionID}}
	if r.SizeBytes != nil {
		a.Size = *r.SizeBytes
	}
	decodeHash(a.MD5[:], r.MD5)
	decodeHash(a.SHA256[:], r.SHA256)
	mtime, terr := time.Parse(time.RFC3339Nano, r.MTime)
	mode, merr := strconv.ParseUint(r.Mode, 8, 32)
	if terr == nil && merr == nil && r.UID != nil && r.GID != nil {
		a.Mtime, a.Attributes = mtime, archive.Attributes{Mode: uint32(mode), UID: *r.UID, GID: *r.GID}
	}
	return a
}

// decodeHash decodes a hash in hex, and leaves to as it is where s is not one.
func decodeHash(to []byte, s string) {
	if b, err := hex.DecodeString(s); err == nil && len(b) == len(to) {
		copy(to, b)
	}
}

// Holds reports whether c is the content that a knows.
func (a *Archived) Holds(c localfile.Content) bool {
	hashed := a.SHA256 == c.SHA256 || a.SHA256 == [32]byte{} && a.MD5 == c.MD5
	return a.Size == c.Size && hashed
}

// Find returns what the index (e) or the trail (r, nil: nothing) knows of o: by
// its version or ETag, or by its bytes, which read compares. It fails with
// ErrUnarchived where neither knows it.
func Find(o archive.Object, e *archive.Entry, r *archive.Record, read func(localfile.Content) (Bytes, error)) (Archived, error) {
	var known []Archived
	if e.Stored {
		known = append(known, ArchivedEntry(e))
	}
	if r != nil {
		known = append(known, archivedRecord(r))
	}
	for i := range known {
		if sameObject(known[i].Object, o) {
			return known[i], nil
		}
	}
	for i := range known {
		switch b, err := read(known[i].Content); {
		case err != nil:
			return Archived{}, err
		case b == BytesEqual:
			return known[i], nil
		}
	}
	return Archived{}, archive.Classified(archive.ClassConflict, "compare", ErrUnarchived)
}

// CheckArchived returns why a rekey does not move o, of which the index knows e
// and the trail r (nil: nothing). It returns nil where it does.
func CheckArchived(ctx context.Context, fetch Fetch, o archive.Object, e *archive.Entry, r *archive.Record) error {
	_, err := Find(o, e, r, func(c localfile.Content) (Bytes, error) {
		if !Readable(fetch, o, c) {
			return BytesOther, nil
		}
		return ReadObject(ctx, fetch, o, c, new(localfile.Progress))
	})
	return err
}
