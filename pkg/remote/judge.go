package remote

import (
	"cmp"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/localfile"
)

// Rounds is how often one attempt asks what S3 holds under its key.
const Rounds = 4

// ErrUnsteady says that S3 held something else under the key at each request.
var ErrUnsteady = errors.New("the object under this key keeps changing")

// unsteady is ErrUnsteady as a failure that passes and is not the destination's.
func unsteady() error { return localfile.Local(archive.ClassTransient, "compare", ErrUnsteady) }

// errConflict: the object under the key carries another writer's id.
var errConflict = errors.New("the object was written by another instance")

// errNamesake: it carries this instance's id, and another host's.
var errNamesake = errors.New("the object was written by another host with this instance's name, which is not known to have ended")

// Fetch reads the object under key, of which the server said o.
type Fetch func(ctx context.Context, key string, o archive.Object) (io.ReadCloser, archive.Object, error)

// Judge finds out what Decide cannot know from one answer: what an object's
// bytes are, and whether the chain that wrote it has ended.
type Judge struct {
	Self   Writer
	Memory Memory
	// Read compares the bytes of o with c, as ReadObject does. It fails with
	// ErrUnsteady where another object is there by now.
	Read func(ctx context.Context, o archive.Object, c localfile.Content) (Bytes, error)
	// Ended, optional, reports whether the chain that o names, of this instance but
	// not this host's, has ended: then its objects may be replaced.
	Ended func(ctx context.Context, o archive.Object) (bool, error)
}

// NewJudge returns a Judge of objects in the place of entry, for a source whose
// chain is c.
func NewJudge(instance, host string, c archive.Chain, entry archive.Entry) Judge {
	return Judge{
		Self:   Writer{Instance: instance, Chain: c.ID, Host: host},
		Memory: Memory{Entry: entry, Succeeds: c.AbandonsChain != "" || c.Begins == archive.BeginsStateLost},
	}
}

// Decide is the decision about c in the place of s: Write or Skip. It reads the
// object where nothing else proves what it holds. S becomes stale where that has
// changed since; then there is no decision.
func (j *Judge) Decide(ctx context.Context, c localfile.Content, s *State) (Decision, error) {
	for range Rounds {
		d := Decide(c, *s, j.Memory, j.Self)
		switch d.Act {
		case Read:
			b, err := j.Read(ctx, s.Object, c)
			if errors.Is(err, ErrUnsteady) {
				*s = State{Stale: true}
				return Decision{}, nil
			}
			if err != nil {
				return d, err
			}
			s.Bytes = b
		case Conflict:
			stranger, err := j.Stranger(ctx, s.Object)
			if err := cmp.Or(err, stranger); err != nil {
				return d, err
			}
			s.Ours = true
		case Write, Skip:
			return d, nil
		}
	}
	return Decision{}, unsteady()
}

// Stranger returns why an object may not be replaced: another writer left it.
// It is nil for one of an earlier chain that has ended: this host takes its place.
func (j *Judge) Stranger(ctx context.Context, o archive.Object) (why, err error) {
	id := o.Metadata[archive.MetaID]
	switch j.Self.owner(o) {
	case ownerSelf:
		return nil, nil
	case ownerOther:
		return archive.Classified(archive.ClassConflict, "compare", fmt.Errorf("%w: %s", errConflict, id)), nil
	case ownerNamesake:
	}
	if j.Ended != nil {
		ended, err := j.Ended(ctx, o)
		if ended || err != nil {
			return nil, err
		}
	}
	return archive.Classified(archive.ClassConflict, "compare", fmt.Errorf("%w: %s", errNamesake, id)), nil
}

// Proves reports whether o holds what in announced, by its bytes: anybody who can
// write the bucket can write the metadata of an announced object, too.
func (j *Judge) Proves(ctx context.Context, o archive.Object, in *archive.Intent) (bool, error) {
	if !shows(o, in, j.Self.Instance) {
		return false, nil
	}
	b, err := j.Read(ctx, o, localfile.Content{Size: in.Fence.Size, MD5: in.MD5, SHA256: in.SHA256})
	return b == BytesEqual, err
}

// Readable reports whether reading o can show that it holds c.
func Readable(fetch Fetch, o archive.Object, c localfile.Content) bool {
	known := c.MD5 != [16]byte{} || c.SHA256 != [32]byte{}
	return fetch != nil && known && o.Size == c.Size
}

// ReadObject compares the bytes of o, which is Readable, with c, and notes in p
// how far it came. Bytes that may not be read prove nothing. It fails with
// ErrUnsteady where another object is there by now.
func ReadObject(ctx context.Context, fetch Fetch, o archive.Object, c localfile.Content, p *localfile.Progress) (Bytes, error) {
	body, got, err := fetch(ctx, o.Key, o)
	switch {
	case errors.Is(err, archive.ErrPrecondition), errors.Is(err, fs.ErrNotExist):
		return BytesUnread, unsteady()
	case errors.Is(err, fs.ErrPermission), err != nil && archive.ClassOf(err).Alone():
		return BytesOther, nil
	case err != nil:
		return BytesUnread, err
	}
	defer func() { _ = body.Close() }() // It was only read.
	if !sameObject(o, got) {
		return BytesOther, nil
	}
	m, s := md5.New(), sha256.New()
	n, err := io.Copy(io.MultiWriter(m, s), io.LimitReader(p.Watched(body), c.Size+1))
	if err != nil {
		return BytesUnread, err
	}
	if !c.Agrees(localfile.Content{Size: n, MD5: [16]byte(m.Sum(nil)), SHA256: [32]byte(s.Sum(nil))}) {
		return BytesOther, nil
	}
	return BytesEqual, nil
}
