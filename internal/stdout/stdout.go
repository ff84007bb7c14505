// Package stdout writes to standard output, whose reader may pause or leave.
package stdout

import (
	"bytes"
	"context"
	"errors"
	"io"
	"syscall"
	"time"
)

const (
	// leaveAfter is how long a stuck write may last once the command has to end.
	leaveAfter = 2 * time.Second
	// takePause is the wait before a descriptor that takes nothing now is tried again.
	takePause = 20 * time.Millisecond
)

// errStuck is a write that was given up.
var errStuck = errors.New("standard output takes nothing, and the command was told to end")

// Writer is standard output. A reader that closes a pipe has read what it wanted:
// every later write succeeds and is dropped, so that the command continues and its
// exit code says how it went. A reader that pauses is waited for until the context
// ends. Only one goroutine may write.
type Writer struct {
	ctx  context.Context //nolint:containedctx // An io.Writer is handed none.
	w    io.Writer
	gone bool // the reader has left, or the last write is stuck
}

// New returns a Writer to w that waits for its reader until ctx ends.
func New(ctx context.Context, w io.Writer) *Writer { return &Writer{ctx: ctx, w: w} }

// Write implements io.Writer. It fails when a write is stuck while ctx ends.
func (o *Writer) Write(p []byte) (int, error) {
	if o.gone {
		return len(p), nil
	}
	done := make(chan error, 1)
	kept := bytes.Clone(p) // A write that is stuck outlives this call.
	go func() { done <- o.writeAll(kept) }()
	var err error
	select {
	case err = <-done:
	case <-o.ctx.Done():
		t := time.NewTimer(leaveAfter)
		defer t.Stop()
		select {
		case err = <-done:
		case <-t.C:
			o.gone = true
			return 0, errStuck
		}
	}
	if errors.Is(err, syscall.EPIPE) {
		o.gone = true
		err = nil
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// writeAll writes p. Another process may have made the descriptor non-blocking.
func (o *Writer) writeAll(p []byte) error {
	for {
		n, err := o.w.Write(p)
		if p = p[max(n, 0):]; !errors.Is(err, syscall.EAGAIN) {
			return err
		}
		time.Sleep(takePause) //nolint:forbidigo // The descriptor is not one that the runtime can wait for.
	}
}
