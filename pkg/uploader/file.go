package uploader

import (
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/localfile"
	"github.com/s3syncd/s3syncd/pkg/remote"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// file is what an attempt knows of the file at its path.
type file struct {
	opened *safefs.Opened // Nil: none was opened, or what is known is of no file.
	fence  state.Fence
	attrs  state.Attributes
	racy   bool
	read   localfile.Reading
}

// take makes f that of an opened file.
func (f *file) take(o *safefs.Opened) {
	f.opened, f.fence, f.attrs = o, localfile.FenceOf(o.Stat), localfile.AttributesOf(o.Stat)
}

// none makes f that of no file, for an object of size bytes.
func (f *file) none(size int64) { f.opened, f.fence = nil, state.Fence{Size: size} }

// checkLinks applies the policy for files with several names. It fails with
// safefs.ErrLinkSkipped for one that is left out without a failure.
func (f *file) checkLinks(p safefs.LinkPolicy, x *index) error {
	e := &x.entry
	archived := x.stored() && f.fence.Ino != 0 && e.Fence.Ino == f.fence.Ino && e.Attributes.UID == f.attrs.UID
	if err := p.Check(f.opened.Stat, f.opened.Dir, archived); err != nil {
		return local(state.ClassFile, "open", err)
	}
	return nil
}

// entry is the index entry of what was read, held in S3 as o.
func (f *file) entry(o state.Object) state.Entry {
	return state.Entry{
		Fence: f.fence, Attributes: f.attrs, Racy: f.racy, Stored: true, MD5: f.read.MD5, SHA256: f.read.SHA256,
		ETag: o.ETag, VersionID: o.VersionID, SSE: o.SSE, KMSKeyID: o.KMSKeyID,
	}
}

// index is what the index knows of a path.
type index struct {
	entry state.Entry
	known bool
}

// stored reports whether the index has an object of the path.
func (x *index) stored() bool { return x.known && x.entry.Stored }

// sameTimes reports whether size and times of f are those of the index.
func (x *index) sameTimes(f *file) bool { return x.stored() && x.entry.Fence.SameContent(f.fence) }

// unchanged reports whether the index alone shows that S3 holds f.
func (x *index) unchanged(f *file) bool {
	return x.sameTimes(f) && !x.entry.Racy && !x.entry.Doubted
}

// sameContent reports whether c is the content that the index has.
func (x *index) sameContent(c localfile.Content) bool {
	return x.stored() && !x.entry.Doubted && remote.Holds(&x.entry, c)
}

// believed is what S3 holds under the key as far as the index knows.
func (x *index) believed() remote.State {
	e := &x.entry
	if !x.stored() || e.Doubted || e.Attempt == 0 || e.ETag == "" {
		return remote.State{}
	}
	return remote.State{Present: true, Object: state.Object{ETag: e.ETag, VersionID: e.VersionID}}
}
