package journal

import (
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/localfile"
	"github.com/s3syncd/s3syncd/pkg/remote"
)

// entryOf is the index entry of what was read, held in S3 as o.
func entryOf(f *localfile.File, o archive.Object) archive.Entry {
	return archive.Entry{
		Fence: f.Fence, Attributes: f.Attributes, Racy: f.Racy, Stored: true, MD5: f.Reading.MD5, SHA256: f.Reading.SHA256,
		ETag: o.ETag, VersionID: o.VersionID, SSE: o.SSE, KMSKeyID: o.KMSKeyID,
	}
}

// Index is what the index knows of a path.
type Index struct {
	Entry archive.Entry
	Known bool
}

// Stored reports whether the index has an object of the path.
func (x *Index) Stored() bool { return x.Known && x.Entry.Stored }

// SameTimes reports whether size and times of f are those of the index.
func (x *Index) SameTimes(f *localfile.File) bool {
	return x.Stored() && x.Entry.Fence.SameContent(f.Fence)
}

// Unchanged reports whether the index alone shows that S3 holds f.
func (x *Index) Unchanged(f *localfile.File) bool {
	return x.SameTimes(f) && !x.Entry.Racy && !x.Entry.Suspect
}

// SameContent reports whether c is the content that the index has.
func (x *Index) SameContent(c localfile.Content) bool {
	return x.Stored() && !x.Entry.Suspect && remote.Holds(&x.Entry, c)
}

// Believed is what S3 holds under the key as far as the index knows.
func (x *Index) Believed() remote.State {
	e := &x.Entry
	if !x.Stored() || e.Suspect || e.Attempt == 0 || e.ETag == "" {
		return remote.State{}
	}
	return remote.State{Present: true, Object: archive.Object{ETag: e.ETag, VersionID: e.VersionID}}
}

// CheckLinks applies the policy for files with several names to f. It fails with
// safefs.ErrLinkSkipped for one that is left out without a failure.
func (x *Index) CheckLinks(p safefs.LinkPolicy, f *localfile.File) error {
	e := &x.Entry
	archived := x.Stored() && f.Fence.Ino != 0 && e.Fence.Ino == f.Fence.Ino && e.Attributes.UID == f.Attributes.UID
	if err := p.Check(f.Opened.Stat, f.Opened.Dir, archived); err != nil {
		return localfile.Local(archive.ClassFile, "open", err)
	}
	return nil
}
