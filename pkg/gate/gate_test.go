package gate

import (
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"io"
	"io/fs"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/breaker"
	"github.com/s3syncd/s3syncd/pkg/localfile"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/remote"
)

// server answers every request with err, and counts them.
type server struct {
	requests atomic.Int64
	err      error
}

func (s *server) answer() error {
	s.requests.Add(1)
	return s.err
}

func (s *server) Head(context.Context, string) (archive.Object, error) {
	return archive.Object{}, s.answer()
}

func (s *server) Put(context.Context, archive.Put) (archive.Object, error) {
	return archive.Object{}, s.answer()
}

func (s *server) Delete(context.Context, string, archive.Condition) (archive.Object, error) {
	return archive.Object{}, s.answer()
}

func (s *server) Ping(context.Context) error  { return s.answer() }
func (s *server) Probe(context.Context) error { return s.answer() }

func (s *server) Create(context.Context, string, map[string]string) (string, archive.Object, error) {
	return "u", archive.Object{}, s.answer()
}

func (s *server) UploadPart(context.Context, string, string, int32, io.ReadSeeker, int64, uint32) (archive.Part, error) {
	return archive.Part{}, s.answer()
}

func (s *server) Complete(context.Context, archive.Complete) (archive.Object, error) {
	return archive.Object{}, s.answer()
}

func (s *server) Abort(context.Context, string, string) error { return s.answer() }

func (s *server) ListParts(context.Context, string, string) ([]archive.Part, error) {
	return nil, s.answer()
}

// effects are of no interest here.
type effects struct{}

func (effects) Changed(breaker.Status, bool) {}
func (effects) Limit(int)                    {}
func (effects) Proven()                      {}
func (effects) Works(bool)                   {}
func (effects) Stopped()                     {}

// rig is the gate of one destination that works, before a server.
type rig struct {
	*Gate

	server *server
	slots  *queue.Shares
}

func newRig(slots int64, log *zap.Logger) rig {
	s := &server{}
	b := breaker.New(breaker.Options{Proven: true, Attempts: 8}, s, effects{}, zap.NewNop())
	b.Begin(time.Now())
	all := queue.NewShares(slots, 1, "data")
	store := &Store{Objects: s, Multipart: s, Copy: func(context.Context, archive.Copy) (archive.Object, error) {
		return archive.Object{}, s.answer()
	}}
	return rig{New("data", store, b, all, log), s, all}
}

// open has the breaker open, as requests without an answer do.
func (r rig) open() {
	for r.breaker.AllowLate() == nil {
		r.breaker.Observe(archive.Classified(archive.ClassTransient, "Head", errors.New("no answer")))
	}
}

func body(ctx context.Context, size int64) *localfile.Body {
	return localfile.NewBody(ctx, bytes.NewReader(nil), size, nil, new(atomic.Int64))
}

// calls are all requests but the abort of an upload.
func (r rig) calls(ctx context.Context) map[string]func() error {
	in := &archive.Intent{Key: "k", UploadID: "u"}
	return map[string]func() error{
		"Head":       func() error { _, err := r.Head(ctx, "k"); return err },
		"Put":        func() error { _, err := r.Put(ctx, archive.Put{Key: "k"}, body(ctx, 1)); return err },
		"Delete":     func() error { _, err := r.Delete(ctx, "k", archive.Condition{}); return err },
		"Copy":       func() error { _, err := r.Copy(ctx, archive.Copy{Key: "k"}); return err },
		"Create":     func() error { _, err := r.Create(ctx, "k", nil); return err },
		"UploadPart": func() error { _, err := r.UploadPart(ctx, in, 1, body(ctx, 1), 0); return err },
		"ListParts":  func() error { _, err := r.ListParts(ctx, in); return err },
		"Complete":   func() error { _, err := r.Complete(ctx, archive.Complete{Key: "k"}); return err },
	}
}

func TestNothingIsSentToADestinationThatIsStopped(t *testing.T) {
	r := newRig(4, zap.NewNop())
	r.breaker.Observe(archive.Classified(archive.ClassEncryption, "Put", errors.New("another key")))
	for name, call := range r.calls(t.Context()) {
		if err := call(); !errors.Is(err, breaker.ErrHeld) {
			t.Errorf("%s = %v, want ErrHeld", name, err)
		}
	}
	if n := r.server.requests.Load(); n != 0 {
		t.Errorf("%d requests were sent, want none", n)
	}
	if _, err := r.Abort(t.Context(), &archive.Intent{UploadID: "u"}); err != nil || r.server.requests.Load() != 1 {
		t.Errorf("Abort = %v after %d requests, want it to be sent", err, r.server.requests.Load())
	}
}

func TestARequestThatWaitedIsNotSentToADestinationOutOfService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(1, zap.NewNop())
		if !r.slots.Take("data", 1) {
			t.Fatal("the only slot is taken")
		}
		late := make(chan error)
		go func() {
			_, err := r.Head(t.Context(), "k")
			late <- err
		}()
		synctest.Wait()
		r.open()
		r.slots.Release("data", 1)
		if err := <-late; !errors.Is(err, breaker.ErrHeld) {
			t.Errorf("Head = %v after it waited, want ErrHeld", err)
		}
		if _, err := r.Head(t.Context(), "k"); err != nil {
			t.Errorf("Head = %v without waiting, want it to be sent", err)
		}
		if n := r.server.requests.Load(); n != 1 {
			t.Errorf("%d requests were sent, want 1", n)
		}
	})
}

func TestEverySlotComesBack(t *testing.T) {
	r := newRig(4, zap.NewNop())
	for _, err := range []error{nil, archive.ErrPrecondition, archive.Classified(archive.ClassEncryption, "Put", errors.New("another key"))} {
		r.server.err = err
		for name, call := range r.calls(t.Context()) {
			_ = call() // Whatever comes of it.
			if !r.slots.Take("data", r.slots.Most()) {
				t.Fatalf("%s with the answer %v keeps a slot", name, err)
			}
			r.slots.Release("data", r.slots.Most())
		}
	}
}

func TestACallerThatEndsLeavesTheQueueOfSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(1, zap.NewNop())
		if !r.slots.Take("data", 1) {
			t.Fatal("the only slot is taken")
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			_, err := r.Put(ctx, archive.Put{}, body(ctx, 1<<20))
			ended <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Put = %v, want that it was canceled", err)
		}
		r.slots.Release("data", 1)
		next, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := r.Put(next, archive.Put{}, body(ctx, 1<<20)); err != nil {
			t.Errorf("the next Put = %v, want nil", err)
		}
	})
}

// A failure of this host must not take the destination out of service.
func TestOnlyTheServersFailuresReachTheBreaker(t *testing.T) {
	for name, c := range map[string]struct {
		err error
		out bool
	}{
		"the server's": {archive.Classified(archive.ClassTransient, "Head", errors.New("no answer")), true},
		"this host's":  {localfile.Local(archive.ClassTransient, "read", errors.New("no descriptors")), false},
		"absence":      {fs.ErrNotExist, false},
	} {
		r := newRig(4, zap.NewNop())
		r.server.err = c.err
		for range 20 {
			if _, err := r.Head(t.Context(), "k"); !errors.Is(err, c.err) {
				t.Fatalf("%s: Head = %v", name, err)
			}
		}
		if out := r.breaker.AllowLate() != nil; out != c.out {
			t.Errorf("%s: the destination is out of service: %v, want %v", name, out, c.out)
		}
	}
}

func TestAStoreThatCannotCopySaysSo(t *testing.T) {
	r := newRig(4, zap.NewNop())
	r.store.Copy = nil
	_, err := r.Copy(t.Context(), archive.Copy{})
	if !errors.Is(err, errors.ErrUnsupported) || archive.ClassOf(err) != archive.ClassConfiguration || !localfile.IsLocal(err) {
		t.Errorf("Copy = %v, want a local failure of the configuration", err)
	}
}

func TestAnAbortSaysWhatBecameOfTheUpload(t *testing.T) {
	broken := archive.Classified(archive.ClassTransient, "Abort", errors.New("no answer"))
	for name, c := range map[string]struct {
		answer error
		gone   bool
		err    error
		logged int
	}{
		"aborted":       {nil, false, nil, 0},
		"not there":     {archive.ErrNoUpload, true, nil, 0},
		"not permitted": {fs.ErrPermission, false, nil, 1},
		"not supported": {archive.ErrUnsupported, false, nil, 1},
		"no answer":     {broken, false, broken, 0},
	} {
		core, logs := observer.New(zap.WarnLevel)
		r := newRig(4, zap.New(core))
		r.server.err = c.answer
		gone, err := r.Abort(t.Context(), &archive.Intent{Key: "k", UploadID: "u"})
		if gone != c.gone || !errors.Is(err, c.err) || logs.FilterMessageSnippet("cannot be aborted").Len() != c.logged {
			t.Errorf("%s: Abort = %v, %v with %d lines of the log, want %v, %v and %d", name, gone, err, logs.Len(), c.gone, c.err, c.logged)
		}
	}
}

func TestPartsThatMayNotBeListedAreNone(t *testing.T) {
	for _, refusal := range []error{fs.ErrPermission, archive.ErrUnsupported} {
		r := newRig(4, zap.NewNop())
		r.server.err = refusal
		if list, err := r.ListParts(t.Context(), &archive.Intent{UploadID: "u"}); len(list) != 0 || err != nil {
			t.Errorf("ListParts = %v, %v for %v, want none", list, err, refusal)
		}
	}
}

// An object that is read to compare its bytes is a request, too.
func TestAStalledReadIsSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(4, zap.NewNop())
		answer, server := io.Pipe()
		r.store.Fetch = func(_ context.Context, _ string, o archive.Object) (io.ReadCloser, archive.Object, error) {
			return answer, o, nil
		}
		c := localfile.Content{Size: 7, MD5: md5.Sum([]byte("content"))}
		result := make(chan remote.Bytes, 1)
		go func() {
			v, _ := r.Compare(t.Context(), archive.Object{Key: "pre/a", ETag: "1", Size: c.Size}, c)
			result <- v
		}()
		synctest.Wait()
		begun := time.Now()
		if n, _ := r.Monitor.Stalled(begun.Add(time.Minute)); n != 1 {
			t.Errorf("%d requests are stalled, want the read", n)
		}
		<-time.After(time.Second)
		if _, err := server.Write([]byte("con")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, since := r.Monitor.Stalled(begun.Add(time.Minute)); !since.After(begun) {
			t.Errorf("no progress since %v, want since the bytes that came", since)
		}
		if _, err := server.Write([]byte("tent")); err != nil {
			t.Fatal(err)
		}
		_ = server.Close() // A pipe's end never fails.
		if v := <-result; v != remote.BytesEqual {
			t.Errorf("Compare = %v, want BytesEqual", v)
		}
		if n, _ := r.Monitor.Stalled(begun.Add(time.Hour)); n != 0 {
			t.Errorf("%d requests are stalled after the read", n)
		}
	})
}
