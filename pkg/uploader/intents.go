package uploader

import (
	"context"
	"errors"
	"sync"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/breaker"
	"github.com/s3syncd/s3syncd/pkg/journal"
	"github.com/s3syncd/s3syncd/pkg/localfile"
	"github.com/s3syncd/s3syncd/pkg/remote"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// intents writes the intents of one key and resolves them. An intent is durable
// before its request is sent, and goes when what the request did is recorded. One
// whose answer was lost stays, and the next attempt at the key resolves it by
// what S3 holds.
type intents struct {
	d       *destination
	key     string
	remote  *keyState
	journal *journal.Attempt
	resume  *archive.Intent // An open multipart upload of the key.
}

// resolve resolves the open intents of the key by asking what S3 holds. A write
// that the object shows is recorded as recovered; a multipart upload that is still
// open is left in w.resume; any other write stays unresolved until the next
// acknowledged one, because the server may still finish it.
func (w *intents) resolve(ctx context.Context) error {
	list, err := w.list()
	if err != nil {
		return err
	}
	if len(list) == 0 {
		w.d.open.remove(w.key)
		return nil
	}
	if err := w.claim(ctx); err != nil {
		return err
	}
	s, err := w.remote.ask(ctx, false)
	if err != nil {
		return err
	}
	w.remote.seen = s
	open, unresolved := 0, 0
	for i := range list {
		kept, err := w.resolveOne(ctx, &list[i], s)
		if err != nil {
			return err
		}
		if !kept {
			continue
		}
		open++
		if list[i].Op != archive.OpMultipart {
			unresolved++
		}
	}
	if open == 0 {
		w.d.open.remove(w.key)
	} else {
		w.d.open.set(w.key, unresolved)
	}
	return nil
}

// resolveOne resolves one intent, given what S3 holds under its key.
func (w *intents) resolveOne(ctx context.Context, in *archive.Intent, s remote.State) (kept bool, err error) {
	if in.Op == archive.OpDelete {
		if s.Present || s.Guessed {
			return false, w.discard(ctx, in)
		}
		return false, w.journal.Deleted(ctx, in, archive.Object{})
	}
	taken, err := w.taken(ctx, in, s)
	switch {
	case err != nil:
		return true, err
	case taken:
		return false, w.journal.Stored(ctx, in, s.Object, true)
	case in.Op == archive.OpCopy:
		return false, w.discard(ctx, in) // The next rekey sees for itself.
	case in.Op == archive.OpMultipart && in.UploadID != "" && w.resume == nil:
		w.resume = in
		return true, nil
	case in.Op == archive.OpMultipart:
		if in.UploadID == "" {
			// The listing of a bucket does not say who opened an upload and for what:
			// it is not searched for, because it could be another program's.
			w.d.log.Info("a multipart upload may have been opened whose id is not known: it has no parts, and a lifecycle rule removes it",
				zap.String("key", in.Key))
		}
		return false, w.discard(ctx, in)
	case in.Unresolved:
		return true, nil
	}
	err = w.d.src.State.Attempt(context.WithoutCancel(ctx), in.Attempt, in.Key, func(i *archive.Intent) { i.Unresolved = true })
	if err != nil {
		return true, localfile.Local(archive.ClassTransient, "note the unresolved write", err)
	}
	return true, nil
}

// write writes the intent in. It returns another one in its place where that
// announces the same content: an open multipart upload, which is resumed, or an
// unresolved write. Whichever of the two requests the server takes, the object
// shows it, and an outage of days leaves one intent a key.
func (w *intents) write(ctx context.Context, in *archive.Intent) (*archive.Intent, error) {
	if err := w.claim(ctx); err != nil {
		return nil, err
	}
	if r := w.resume; r != nil && r.UploadID != "" && r.PartSize > 0 && r.PartSize == in.PartSize &&
		r.Fence.SameContent(in.Fence) && r.MD5 == in.MD5 && r.SHA256 == in.SHA256 {
		w.resume = nil
		return r, nil
	}
	if err := w.dropResume(ctx); err != nil {
		return nil, err
	}
	if in.Op == archive.OpPut && w.d.open.has(w.key) {
		list, err := w.list()
		if err != nil {
			return nil, err
		}
		for i := range list {
			e := &list[i]
			if e.Op == archive.OpPut && e.Unresolved && e.Fence == in.Fence && e.MD5 == in.MD5 && e.SHA256 == in.SHA256 {
				return e, w.d.breaker.Allow()
			}
		}
	}
	return in, w.begin(ctx, in)
}

// begin makes in durable and draws its number. The caller has called claim.
func (w *intents) begin(ctx context.Context, in *archive.Intent) error {
	if err := w.d.breaker.Allow(); err != nil {
		return err
	}
	chain, err := w.d.src.State.Chain()
	if err != nil {
		return localfile.Local(archive.ClassTransient, "read the chain", err)
	}
	in.Chain = chain.ID
	n, err := w.d.src.State.Begin(ctx, *in)
	if errors.Is(err, state.ErrKeyBusy) {
		w.d.open.set(in.Key, 0) // The next attempt resolves it.
	}
	if err != nil {
		return localfile.Local(archive.ClassTransient, "announce the write", err)
	}
	in.Attempt = n
	w.d.open.add(in.Key, false)
	return nil
}

// claim asks whether this run may write.
func (w *intents) claim(ctx context.Context) error {
	if w.d.src.Claim == nil {
		return nil
	}
	if err := w.d.src.Claim(ctx); err != nil {
		return localfile.Local(archive.ClassTransient, "claim the trail", err) // The objects of the destination are not at fault.
	}
	return nil
}

// stored records a write that the server acknowledged. What was read is in the
// record, whatever the file is by now.
func (w *intents) stored(ctx context.Context, in *archive.Intent, o archive.Object) error {
	w.remote.flight.enter(PhaseCommit)
	if err := w.journal.Stored(ctx, in, o, false); err != nil {
		return err
	}
	w.journal.Sent()
	return w.forget(ctx, in)
}

// surprised finds out what S3 holds after a condition did not hold or a multipart
// upload was not there, and resolves in. The object may be that of in, whose
// first answer was lost, and then done is true; or of an earlier write, which is
// recorded. Present: something is certainly there.
func (w *intents) surprised(ctx context.Context, in *archive.Intent, present bool) (done bool, now remote.State, err error) {
	if now, err = w.remote.ask(ctx, present); err != nil {
		return false, now, err
	}
	taken, err := w.taken(ctx, in, now)
	if err != nil {
		return false, now, err
	}
	if taken {
		if err := w.journal.Stored(ctx, in, now.Object, true); err != nil {
			return false, now, err
		}
		w.journal.Sent()
		return true, now, w.forget(ctx, in)
	}
	earlier, err := w.list()
	if err != nil {
		return false, now, err
	}
	for i := range earlier {
		e := &earlier[i]
		if e.Attempt == in.Attempt || e.Op == archive.OpDelete {
			continue
		}
		if taken, err = w.taken(ctx, e, now); taken {
			err = w.journal.Stored(ctx, e, now.Object, true)
		}
		if err != nil {
			return false, now, err
		}
		if taken {
			break
		}
	}
	return false, now, w.discard(ctx, in)
}

// taken reports whether the server has taken the write that in announces: its
// object, and its bytes, are under the key.
func (w *intents) taken(ctx context.Context, in *archive.Intent, now remote.State) (bool, error) {
	if !now.Present || now.Key != archive.KeyOK {
		return false, nil
	}
	j, err := w.d.judge(w.journal.Index.Entry)
	if err != nil {
		return false, err
	}
	return j.Proves(ctx, now.Object, in)
}

// forget drops what is left of other writes of the key after in was
// acknowledged: they were conditional, and cannot be taken any more.
func (w *intents) forget(ctx context.Context, in *archive.Intent) error {
	ctx = context.WithoutCancel(ctx)
	left, err := w.list()
	if err != nil {
		return err
	}
	for i := range left {
		if left[i].Attempt == in.Attempt {
			continue
		}
		if err := w.discard(ctx, &left[i]); err != nil {
			return err
		}
	}
	w.d.open.remove(in.Key)
	return nil
}

// dropResume gives up a multipart upload that this attempt did not resume.
func (w *intents) dropResume(ctx context.Context) error {
	in := w.resume
	if in == nil {
		return nil
	}
	w.resume = nil
	return w.discard(ctx, in)
}

// discard gives a write up: its multipart upload is aborted and its intent
// dropped. An upload that the server does not let go yet keeps its intent. One
// that the server does not know any more may have been completed after its key
// was asked for: it is then recorded as recovered.
func (w *intents) discard(ctx context.Context, in *archive.Intent) error {
	ctx = context.WithoutCancel(ctx)
	taken, err := w.abort(ctx, in)
	if err != nil {
		return err
	}
	if !taken {
		err := w.d.src.State.DropIntent(ctx, in.Key, in.Attempt)
		if err != nil && !errors.Is(err, state.ErrNoIntent) {
			return localfile.Local(archive.ClassTransient, "drop intent", err)
		}
	}
	if left, err := w.list(); err == nil && len(left) == 0 {
		w.d.open.remove(in.Key)
	}
	return nil
}

// abort gives the multipart upload of in up. It reports whether the upload had
// been completed, and was recorded.
func (w *intents) abort(ctx context.Context, in *archive.Intent) (taken bool, err error) {
	if in.UploadID == "" {
		return false, nil
	}
	gone, err := w.d.gate.Abort(ctx, in)
	if err != nil || !gone {
		return false, err
	}
	now, err := w.remote.ask(ctx, false)
	if err != nil {
		return false, err
	}
	if taken, err = w.taken(ctx, in, now); err != nil || !taken {
		return false, err
	}
	w.remote.seen = now
	return true, w.journal.Stored(ctx, in, now.Object, true)
}

// list returns the open intents of the key.
func (w *intents) list() ([]archive.Intent, error) {
	list, err := w.d.src.State.Intent(w.key)
	if err != nil {
		return nil, localfile.Local(archive.ClassTransient, "read intents", err)
	}
	return list, nil
}

// ambiguous reports whether a write that failed with err may have been taken.
func ambiguous(err error) bool {
	if errors.Is(err, archive.ErrConcurrent) {
		return false
	}
	e, ok := errors.AsType[*archive.Error](err)
	return !ok || errors.Is(err, breaker.ErrHeld) || !e.Class.Meaning().Refused
}

// openKeys are the keys of a source that have open intents, with how many of
// those are unresolved.
type openKeys struct {
	mu         sync.Mutex
	unresolved map[string]int
}

func (k *openKeys) has(key string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.unresolved[key]
	return ok
}

func (k *openKeys) set(key string, unresolved int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.unresolved[key] = unresolved
}

// add notes one more intent of key.
func (k *openKeys) add(key string, unresolved bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.unresolved[key]
	if unresolved {
		n++
	}
	k.unresolved[key] = n
}

func (k *openKeys) remove(key string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.unresolved, key)
}

// sum is how many intents of all keys are unresolved.
func (k *openKeys) sum() (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, unresolved := range k.unresolved {
		n += unresolved
	}
	return n
}
