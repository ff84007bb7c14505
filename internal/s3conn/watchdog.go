package s3conn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// StalledError is the cause of an ended attempt that made no progress. It is a
// timeout, so it is tried again.
type StalledError struct{ limit time.Duration }

func (e *StalledError) Error() string { return fmt.Sprintf("no progress for %v", e.limit) }

// Timeout says that the attempt took too long.
func (e *StalledError) Timeout() bool { return true }

// Temporary says that it may be tried again.
func (e *StalledError) Temporary() bool { return true }

// watchdog ends an attempt whose body moves no byte, or whose answer does not
// begin, for too long. However long an attempt takes as a whole, it is left
// alone while bytes move.
type watchdog struct {
	next     http.RoundTripper
	stall    time.Duration
	complete time.Duration // for the answers to CompleteMultipartUpload and copies
}

// RoundTrip sends one attempt.
func (w *watchdog) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	t := &stallTimer{limit: w.stall, answer: w.stall}
	if completes(req) {
		t.answer = w.complete
	}
	t.expire = func(limit time.Duration) { cancel(&StalledError{limit}) }
	r := req.WithContext(ctx)
	if req.Body != nil && req.Body != http.NoBody {
		r.Body = &watchedUpload{ReadCloser: req.Body, timer: t}
		t.arm(t.limit)
	} else {
		t.arm(t.answer)
	}
	resp, err := w.next.RoundTrip(r)
	t.disarm()
	if err != nil {
		err = stallCause(ctx, err)
		cancel(nil)
		return nil, err
	}
	resp.Body = &watchedDownload{ReadCloser: resp.Body, timer: t.again(), ctxErr: func(err error) error { return stallCause(ctx, err) }, cancel: cancel}
	return resp, nil
}

// completes reports whether the server has to move a whole object, or a large
// part of it, before it can answer req: the end of a multipart upload, or a copy.
func completes(req *http.Request) bool {
	return req.Header.Get("X-Amz-Copy-Source") != "" || req.Method == http.MethodPost && req.URL.Query().Has("uploadId")
}

// stallCause replaces err by the stall that caused it.
func stallCause(ctx context.Context, err error) error {
	if s, ok := errors.AsType[*StalledError](context.Cause(ctx)); ok {
		return s
	}
	return err
}

// stallTimer fires when it was armed for longer than its limit. After disarm
// it never fires again.
type stallTimer struct {
	limit, answer time.Duration
	expire        func(limit time.Duration)

	mu    sync.Mutex
	timer *time.Timer
	done  bool
}

// again returns a fresh timer with the same limits.
func (t *stallTimer) again() *stallTimer {
	return &stallTimer{limit: t.limit, answer: t.answer, expire: t.expire}
}

func (t *stallTimer) arm(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stop()
	if !t.done {
		t.timer = time.AfterFunc(d, func() { t.expire(d) })
	}
}

// pause stops the time while something else than the network is waited for.
func (t *stallTimer) pause() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stop()
}

func (t *stallTimer) disarm() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stop()
	t.done = true
}

func (t *stallTimer) stop() {
	if t.timer != nil {
		t.timer.Stop()
		t.timer = nil
	}
}

// watchedUpload is a request's body: the time runs while the network holds the
// bytes, and stands still while the source is read.
type watchedUpload struct {
	io.ReadCloser

	timer *stallTimer
}

func (b *watchedUpload) Read(p []byte) (int, error) {
	b.timer.pause()
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.timer.arm(b.timer.answer) // The last bytes are on their way; the answer is next.
	} else {
		b.timer.arm(b.timer.limit)
	}
	return n, err
}

// watchedDownload is an answer's body: the time runs while the network is
// waited for.
type watchedDownload struct {
	io.ReadCloser

	timer  *stallTimer
	ctxErr func(error) error
	cancel context.CancelCauseFunc
}

func (b *watchedDownload) Read(p []byte) (int, error) {
	b.timer.arm(b.timer.limit)
	n, err := b.ReadCloser.Read(p)
	b.timer.pause()
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.ctxErr(err)
	}
	return n, err
}

func (b *watchedDownload) Close() error {
	b.timer.disarm()
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}
