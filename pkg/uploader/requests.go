package uploader

import (
	"context"

	"github.com/s3syncd/s3syncd/pkg/state"
)

const (
	// HeadAlways is the size above which a HEAD costs less than a body sent in
	// vain.
	headAlways = 64 << 10
	// HeadStreak new files in a row that S3 did not hold end asking for each.
	headStreak = 16
)

// enter waits until one more request with a body of size bytes may run, and
// returns what ends it. One that had to wait does not begin at a destination that
// went out of service while it did.
func (d *destination) enter(ctx context.Context, size int64) (leave func(), err error) {
	waited, own := false, d.lanes[laneOf(size, size)]
	if own != nil && !own.TryAcquire(1) {
		waited = true
		if err := own.Acquire(ctx, 1); err != nil {
			return nil, err
		}
	}
	out := func() {
		if own != nil {
			own.Release(1)
		}
	}
	if !d.requests.Take(d.Name, 1) {
		waited = true
		if err := d.requests.Acquire(ctx, d.Name, 1); err != nil {
			out()
			return nil, err
		}
	}
	leave = func() {
		d.requests.Release(d.Name, 1)
		out()
	}
	if err = d.gate(); err == nil && waited && d.closed() {
		err = errHeldBack
	}
	if err != nil {
		leave()
		return nil, err
	}
	return leave, nil
}

// closed reports whether the destination is out of service and expected back.
func (d *destination) closed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.st.State != HealthOK && !d.gaveUp
}

// head is Objects.Head behind the gate.
func (d *destination) head(ctx context.Context, key string) (state.Object, error) {
	leave, err := d.enter(ctx, 0)
	if err != nil {
		return state.Object{}, err
	}
	defer leave()
	defer d.traffic.begin(nil)()
	o, err := d.Objects.Head(ctx, key)
	d.observe(err)
	return o, err
}

// put is Objects.Put behind the gate.
func (d *destination) put(ctx context.Context, p state.Put) (state.Object, error) {
	leave, err := d.enter(ctx, p.Size)
	if err != nil {
		return state.Object{}, err
	}
	defer leave()
	var sent *progress
	if b, ok := p.Body.(*body); ok {
		sent = &b.progress
	}
	defer d.traffic.begin(sent)()
	o, err := d.Objects.Put(ctx, p)
	d.observe(err)
	if err == nil {
		d.wrote()
	}
	return o, err
}

// remove is Objects.Delete behind the gate.
func (d *destination) remove(ctx context.Context, key string, cond state.Condition) (state.Object, error) {
	leave, err := d.enter(ctx, 0)
	if err != nil {
		return state.Object{}, err
	}
	defer leave()
	defer d.traffic.begin(nil)()
	o, err := d.Objects.Delete(ctx, key, cond)
	d.observe(err)
	return o, err
}

// complete is Multipart.Complete behind the gate.
func (d *destination) complete(ctx context.Context, c state.Complete) (state.Object, error) {
	leave, err := d.enter(ctx, 0)
	if err != nil {
		return state.Object{}, err
	}
	defer leave()
	o, err := d.Multipart.Complete(ctx, c)
	d.observe(err)
	if err == nil {
		d.wrote()
	}
	return o, err
}

// create is Multipart.Create behind the gate.
func (d *destination) create(ctx context.Context, key string, metadata map[string]string) (string, error) {
	leave, err := d.enter(ctx, 0)
	if err != nil {
		return "", err
	}
	defer leave()
	defer d.traffic.begin(nil)()
	id, _, err := d.Multipart.Create(ctx, key, metadata)
	d.observe(err)
	return id, err
}

// uploadPart is Multipart.UploadPart behind the gate.
func (d *destination) uploadPart(ctx context.Context, in *state.Intent, n int32, b *body, crc uint32) (state.Part, error) {
	if err := d.gate(); err != nil {
		return state.Part{}, err
	}
	defer d.traffic.begin(&b.progress)()
	part, err := d.Multipart.UploadPart(ctx, in.Key, in.UploadID, n, b, b.size, crc)
	if ferr := b.err(); err != nil && ferr != nil {
		err = ferr
	}
	d.observe(err)
	return part, err
}

// forbiddenIsAbsent reports whether a refused HEAD only says that the object
// is absent and listing is not granted.
func (d *destination) forbiddenIsAbsent() bool {
	return d.HeadForbiddenMeansUnknown != nil && d.HeadForbiddenMeansUnknown()
}

// headFirst decides whether a new file of size bytes is asked for before it is
// sent. It is, until a row of new files were absent: a destination that was
// filled before, by an older tool or by a state that was lost, costs a HEAD a
// file instead of a body in vain, and an empty one no HEADs.
func (d *destination) headFirst(size int64) bool {
	if size > headAlways {
		return true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.absent < headStreak
}

// found takes in whether S3 held what was asked for.
func (d *destination) found(present bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if present {
		d.absent = 0
		return
	}
	d.absent++
}

// isOpen reports whether a write of key is announced and not settled.
func (d *destination) isOpen(key string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.open[key]
	return ok
}

// setOpen notes n open intents of key, none of them unresolved unless so.
func (d *destination) setOpen(key string, unresolved int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open[key] = unresolved
}

// setClosed notes that no intent of key is open.
func (d *destination) setClosed(key string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.open, key)
}
