package logsink

import (
	"bytes"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const within = 30 * time.Second

// gate is a writer that blocks while it is shut.
type gate struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (g *gate) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.buf.Write(p)
}

func (g *gate) String() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.buf.String()
}

func TestLinesAreWrittenInOrder(t *testing.T) {
	var g gate
	s := New(&g)
	var want strings.Builder
	for i := range 10_000 {
		_, _ = fmt.Fprintf(s, "line %d\n", i)
		_, _ = fmt.Fprintf(&want, "line %d\n", i)
		if i%1000 == 0 {
			s.Wait(within)
		}
	}
	s.Close(within)
	if g.String() != want.String() || s.Lost() != 0 {
		t.Errorf("got %d bytes, lost %d, want %d bytes in order", len(g.String()), s.Lost(), want.Len())
	}
}

func TestAReaderThatReadsNothingHoldsNobodyUp(t *testing.T) {
	var g gate
	s := New(&g)
	g.mu.Lock() // Every write blocks.
	line := strings.Repeat("x", 999) + "\n"
	const n = 5000
	for range n {
		if m, err := s.Write([]byte(line)); m != len(line) || err != nil {
			t.Fatalf("Write = %d, %v, want %d, nil", m, err, len(line))
		}
	}
	lost := s.Lost()
	if lost < n/2 || lost >= n {
		t.Errorf("lost %d of %d lines, want about what does not fit", lost, n)
	}
	s.Wait(time.Millisecond) // It returns.
	g.mu.Unlock()
	s.Close(within)
	got := g.String()
	if !strings.Contains(got, fmt.Sprintf("s3syncd: %d lines could not be written here\n", lost)) {
		t.Errorf("the loss of %d lines is not told at the end: %q", lost, got[max(0, len(got)-200):])
	}
	if written := int64(strings.Count(got, "x\n")); written+lost != n {
		t.Errorf("written %d, lost %d, want %d in all", written, lost, n)
	}
}

func TestAPipeWithoutAReaderIsSurvived(t *testing.T) {
	signal.Ignore(syscall.SIGPIPE)
	defer signal.Reset(syscall.SIGPIPE)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	s := New(w)
	for range 10 {
		_, _ = s.Write([]byte("line\n"))
		s.Wait(within)
	}
	if s.Lost() != 10 {
		t.Errorf("lost %d, want 10", s.Lost())
	}
}

// A descriptor that another process has made non-blocking after the start says
// EAGAIN when the pipe is full.
func TestAPipeThatTakesNothingAtPresentIsAskedAgain(t *testing.T) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], 0); err != nil {
		t.Fatal(err)
	}
	w := os.NewFile(uintptr(fds[1]), "w") // Not with the runtime's poller.
	r := os.NewFile(uintptr(fds[0]), "r")
	defer func() { _, _ = w.Close(), r.Close() }()
	if err := unix.SetNonblock(fds[1], true); err != nil {
		t.Fatal(err)
	}
	s := New(w)
	line := strings.Repeat("y", 99) + "\n"
	const n = 3000
	for range n {
		_, _ = s.Write([]byte(line))
	}
	s.Wait(time.Millisecond)
	got := 0
	for buf := make([]byte, 64<<10); got < n*len(line); {
		m, err := r.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got += m
	}
	s.Close(within)
	if s.Lost() != 0 {
		t.Errorf("lost %d lines, want none", s.Lost())
	}
}

type torn struct {
	gate

	full bool
}

func (w *torn) Write(p []byte) (int, error) {
	if w.full {
		_, _ = w.gate.Write(p[:3])
		return 3, syscall.ENOSPC
	}
	return w.gate.Write(p)
}

func TestALineThatWasCutIsEnded(t *testing.T) {
	w := &torn{full: true}
	s := New(w)
	_, _ = s.Write([]byte("first\n"))
	s.Wait(within)
	w.full = false
	_, _ = s.Write([]byte("second\n"))
	s.Close(within)
	if want := "fir\nsecond\ns3syncd: 1 lines could not be written here\n"; w.String() != want {
		t.Errorf("got %q, want %q", w.String(), want)
	}
}
