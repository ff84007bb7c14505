// Package logsink writes lines to what may have no reader: a pipe, a
// terminal, a journal that hangs. It never holds up a caller that logs.
package logsink

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"
)

// Forever is for a Close or a Wait that something else bounds.
const Forever = 100 * 365 * 24 * time.Hour

const (
	// room is how much waits to be written at most; what comes then is lost.
	room = 1 << 20
	// chunk is how much one call writes at most.
	chunk = 32 << 10
	// pause is how long a writer that takes nothing at present (EAGAIN) is left alone.
	pause = 50 * time.Millisecond
)

// Sink is an io.Writer that takes whole lines and never blocks. A goroutine
// writes them in order; what there is no room for, and what cannot be written, is
// lost and counted. Its methods may be called concurrently.
type Sink struct {
	w io.Writer

	mu      sync.Mutex
	grown   *sync.Cond // something was added, or closed was set
	drained *sync.Cond // everything is written, or known to be lost
	queue   [][]byte
	size    int   // bytes in queue
	busy    bool  // the goroutine has taken a chunk
	lost    int64 // lines, in all
	untold  int64 // lost lines that tell has not been given
	torn    bool  // a line was cut in its middle
	closed  bool  // no more lines are taken
	tell    func(lines int64)
}

// New returns a sink in front of w. The caller ends it with Close.
func New(w io.Writer) *Sink {
	s := &Sink{w: w}
	s.grown, s.drained = sync.NewCond(&s.mu), sync.NewCond(&s.mu)
	s.tell = func(n int64) { _, _ = fmt.Fprintf(s, "s3syncd: %d lines could not be written here\n", n) } // Write never fails.
	go s.run()
	return s
}

// Behind returns what the sink writes to.
func (s *Sink) Behind() io.Writer { return s.w }

// Tell sets what reports lines that were lost, once writing works again. It is
// called from the sink's goroutine and may write to the sink.
func (s *Sink) Tell(tell func(lines int64)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tell = tell
}

// Lost returns how many lines were lost so far.
func (s *Sink) Lost() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

// Write takes p, which it copies. It never blocks and never fails.
func (s *Sink) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.size+len(p) > room {
		s.lose(p)
		return len(p), nil
	}
	s.size += len(p)
	if last := len(s.queue) - 1; last >= 0 && len(s.queue[last])+len(p) <= chunk {
		s.queue[last] = append(s.queue[last], p...)
	} else {
		s.queue = append(s.queue, bytes.Clone(p))
	}
	s.grown.Signal()
	return len(p), nil
}

// Wait returns once everything is written or lost, and after limit at the latest.
func (s *Sink) Wait(limit time.Duration) {
	expired := false
	t := time.AfterFunc(limit, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		expired = true
		s.drained.Broadcast()
	})
	defer t.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for !expired && (s.busy || len(s.queue) > 0) {
		s.drained.Wait()
	}
}

// Close waits as Wait does, and takes no more lines then. A write that is stuck is
// left behind.
func (s *Sink) Close(limit time.Duration) {
	s.Wait(limit)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.grown.Signal()
}

// lose counts the lines of p. The caller holds s.mu.
func (s *Sink) lose(p []byte) {
	n := int64(max(1, bytes.Count(p, []byte{'\n'})))
	s.lost += n
	s.untold += n
}

// run writes until the sink is closed and empty.
func (s *Sink) run() {
	for {
		p := s.take()
		if p == nil {
			return
		}
		n, err := s.write(p)
		s.wrote(p, n, err)
	}
}

// take returns what to write next, nil at the end.
func (s *Sink) take() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.queue) == 0 {
		if s.closed {
			return nil
		}
		s.grown.Wait()
	}
	p := s.queue[0]
	s.queue[0] = nil
	if s.queue = s.queue[1:]; len(s.queue) == 0 {
		s.queue = nil
	}
	s.size -= len(p)
	s.busy = true
	if s.torn {
		p = append([]byte{'\n'}, p...)
	}
	return p
}

// write writes p. A writer that takes nothing at present is asked again.
func (s *Sink) write(p []byte) (n int, err error) {
	for n < len(p) {
		var m int
		m, err = s.w.Write(p[n:])
		n += max(m, 0)
		switch {
		case err == nil && m > 0:
		case err == nil:
			return n, io.ErrShortWrite
		case errors.Is(err, syscall.EAGAIN):
			time.Sleep(pause) //nolint:forbidigo // The descriptor is not one that the runtime can wait for.
		default:
			return n, err
		}
	}
	return n, nil
}

// wrote notes how far p got, and tells of what was lost once that works.
func (s *Sink) wrote(p []byte, n int, err error) {
	s.mu.Lock()
	if n > 0 {
		s.torn = p[n-1] != '\n'
	}
	if err != nil {
		s.lose(p[n:])
	}
	report, tell := int64(0), s.tell
	if err == nil && s.untold > 0 && s.size <= room/2 {
		report, s.untold = s.untold, 0
	}
	s.mu.Unlock()
	if report > 0 {
		tell(report)
	}
	s.mu.Lock()
	s.busy = false
	if len(s.queue) == 0 {
		s.drained.Broadcast()
	}
	s.mu.Unlock()
}
