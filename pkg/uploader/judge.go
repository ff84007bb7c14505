package uploader

import (
	"cmp"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// Fetch reads the object under key, of which the server said o.
type Fetch func(ctx context.Context, key string, o state.Object) (io.ReadCloser, state.Object, error)

// errConflict: the object under the key carries another writer's id.
var errConflict = errors.New("the object was written by another instance")

// errNamesake: it carries this instance's id, and another host's.
var errNamesake = errors.New("the object was written by another host with this instance's name, which is not known to have ended")

// judge finds out what decide cannot know from one answer: what an object's
// bytes are, and whether whoever wrote it has ended.
type judge struct {
	d      *destination
	self   writer
	memory memory
}

// judgeOf returns a judge of objects in the place of entry.
func (d *destination) judgeOf(entry state.Entry) (judge, error) {
	c, err := d.State.Chain()
	if err != nil {
		return judge{}, local(state.ClassTransient, "read the chain", err)
	}
	return judge{
		d:      d,
		self:   writer{instance: d.Instance, chain: c.ID, host: d.Host},
		memory: memory{entry: entry, succeeds: c.AbandonsChain != "" || c.Begins == state.BeginsStateLost},
	}, nil
}

// decide is the decision about c in the place of s. It reads the object where
// nothing else proves what it holds. The standing becomes stale where that has
// changed since.
func (j *judge) decide(ctx context.Context, c content, s *standing) (decision, error) {
	for range rounds {
		d := decide(c, *s, j.memory, j.self)
		switch d.act {
		case actRead:
			v, err := j.read(ctx, s.object, c)
			if errors.Is(err, errUnsteady) {
				*s = standing{stale: true}
				return decision{}, nil
			}
			if err != nil {
				return d, err
			}
			s.bytes = v
		case actConflict:
			stranger, err := j.stranger(ctx, s.object)
			if err := cmp.Or(err, stranger); err != nil {
				return d, err
			}
			s.ours = true
		case actWrite, actSkip:
			return d, nil
		}
	}
	return decision{}, local(state.ClassTransient, "compare", errUnsteady)
}

// stranger returns why an object may not be replaced: another writer left it.
// It is nil for one of an earlier chain that has ended: this host takes its place.
func (j *judge) stranger(ctx context.Context, o state.Object) (why, err error) {
	id := o.Metadata[state.MetaID]
	switch j.self.owner(o) {
	case ownerSelf:
		return nil, nil
	case ownerOther:
		return state.Classified(state.ClassConflict, "compare", fmt.Errorf("%w: %s", errConflict, id)), nil
	case ownerNamesake:
	}
	if j.d.Ended != nil {
		ended, err := j.d.Ended(ctx, o)
		if ended || err != nil {
			return nil, err
		}
	}
	return state.Classified(state.ClassConflict, "compare", fmt.Errorf("%w: %s", errNamesake, id)), nil
}

// proves reports whether o holds what in announced, by its bytes: whoever can
// write the bucket can write the metadata of an announced object, too.
func (j *judge) proves(ctx context.Context, o state.Object, in *state.Intent) (bool, error) {
	if !shows(o, in, j.self.instance) {
		return false, nil
	}
	v, err := j.read(ctx, o, content{size: in.Fence.Size, md5: in.MD5, sha256: in.SHA256})
	return v == bytesEqual, err
}

// read compares the bytes of o with c, whose SHA-256 may be unknown. Bytes that
// may not be read prove nothing. It fails with errUnsteady where another object
// stands there by now.
func (j *judge) read(ctx context.Context, o state.Object, c content) (verdict, error) {
	if !readable(j.d.Fetch, o, c) {
		return bytesOther, nil
	}
	leave, err := j.d.enter(ctx, o.Size)
	if err != nil {
		return bytesUnread, err
	}
	defer leave()
	p := new(progress)
	defer j.d.traffic.begin(p)()
	v, err := readObject(ctx, j.d.Fetch, o, c, p)
	if !errors.Is(err, errUnsteady) {
		j.d.observe(err)
	}
	return v, err
}

// readable reports whether reading o can show that it holds c.
func readable(fetch Fetch, o state.Object, c content) bool {
	known := c.md5 != [16]byte{} || c.sha256 != [32]byte{}
	return fetch != nil && known && o.Size == c.size
}

// readObject does what judge.read does, without its destination.
func readObject(ctx context.Context, fetch Fetch, o state.Object, c content, p *progress) (verdict, error) {
	body, got, err := fetch(ctx, o.Key, o)
	if err != nil {
		return unread(err)
	}
	defer func() { _ = body.Close() }() // It was only read.
	if !sameObject(o, got) {
		return bytesOther, nil
	}
	m, s := md5.New(), sha256.New()
	n, err := io.Copy(io.MultiWriter(m, s), io.LimitReader(p.watched(body), c.size+1))
	if err != nil {
		return bytesUnread, err
	}
	if !c.agrees(content{size: n, md5: [16]byte(m.Sum(nil)), sha256: [32]byte(s.Sum(nil))}) {
		return bytesOther, nil
	}
	return bytesEqual, nil
}

// unread is the verdict where an object was not read, because of err.
func unread(err error) (verdict, error) {
	switch {
	case errors.Is(err, state.ErrPrecondition), errors.Is(err, fs.ErrNotExist) && !isLocal(err):
		return bytesUnread, local(state.ClassTransient, "compare", errUnsteady)
	case errors.Is(err, fs.ErrPermission), state.ClassOf(err).Alone():
		return bytesOther, nil
	}
	return bytesUnread, err
}
