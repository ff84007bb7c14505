package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"syscall"
	"time"
)

const (
	// LeaveAfter is how long a write that is stuck may go on once the process was
	// told to end.
	leaveAfter = 2 * time.Second
	// TakePause is how long a writer that takes nothing at present is left alone.
	takePause = 20 * time.Millisecond
)

// errStuck is a write that was given up.
var errStuck = errors.New("standard output takes nothing, and the command was told to end")

// output is standard output. A reader that closes a pipe has read what it wanted:
// the command continues, and its exit code says how it went. A reader that pauses
// is waited for, until ctx ends.
type output struct {
	ctx  context.Context //nolint:containedctx // An io.Writer is handed none.
	w    io.Writer
	gone bool // nobody reads any more, or the last write is stuck
}

// Write implements io.Writer. It is not for concurrent use.
func (o *output) Write(p []byte) (int, error) {
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
func (o *output) writeAll(p []byte) error {
	for {
		n, err := o.w.Write(p)
		if p = p[max(n, 0):]; !errors.Is(err, syscall.EAGAIN) {
			return err
		}
		time.Sleep(takePause) //nolint:forbidigo // The descriptor is not one that the runtime can wait for.
	}
}
