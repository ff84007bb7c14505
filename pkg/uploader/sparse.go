package uploader

import (
	"errors"
	"os"
	"syscall"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	// HoleWarn is from how many bytes of holes on the log says that a file is
	// sparse.
	holeWarn = 1 << 30
	// HashDrain is how much of a file may be left to hash when the pool ends: what
	// has more left is begun again by the next run.
	hashDrain = 1 << 30
)

// sparse reads a file without reading its holes: they are zeros. It is used by
// one goroutine, and moves the offset of the descriptor, which nobody else uses.
type sparse struct {
	file     *os.File
	size     int64
	from, to int64 // What is known: a hole or data.
	hole     bool
	holes    int64 // Bytes in holes that were found.
	blind    bool  // The file system does not tell.
}

// ReadAt fills p from off on. It fails with io.EOF where the file ends before.
func (s *sparse) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		at := off + int64(n)
		s.locate(at)
		chunk := p[n:]
		if left := s.to - at; left < int64(len(chunk)) {
			chunk = chunk[:left]
		}
		if s.hole {
			clear(chunk)
			n += len(chunk)
			continue
		}
		m, err := s.file.ReadAt(chunk, at)
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// locate finds out what is at off.
func (s *sparse) locate(off int64) {
	if s.blind || off >= s.from && off < s.to {
		return
	}
	data, err := s.file.Seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, syscall.ENXIO) && off < s.size:
		data = s.size // A hole up to the end, or the file is shorter by now: its fence tells.
	case err != nil, data < off:
		s.blind, s.hole, s.from, s.to = true, false, 0, 1<<62 // It is read as it is.
		return
	}
	if s.hole = data > off; s.hole {
		s.from, s.to = off, min(data, s.size)
		s.holes += s.to - s.from
		return
	}
	end, err := s.file.Seek(off, unix.SEEK_HOLE)
	if err != nil || end <= off {
		end = 1 << 62 // The rest is read as data.
	}
	s.from, s.to = off, end
}

// sayHoles warns of a file that is mostly nothing.
func (l *look) sayHoles(holes int64) {
	l.log.Warn("file is sparse, its holes are archived as zeros",
		zap.String("path", l.job.Path), zap.Int64("size", l.fence.Size), zap.Int64("bytes_in_holes", holes))
}

// errEnding: the pool ends, and too much of the file is left to hash.
var errEnding = errors.New("the pool ends")

// hashing follows the progress of a reading, and ends it where the pool ends and
// much is left.
type hashing struct {
	cut  func() error    // An error ends it at once.
	stop <-chan struct{} // Closed when the pool takes nothing new; nil: never.
	done func(n int64)   // May be nil.
	hole func(n int64)   // Called once when so much was found to be holes that it is worth saying; may be nil.
}

// step notes that n more bytes were hashed, left are to come, and so many so far
// are in holes.
func (h *hashing) step(n, left, holes int64) error {
	if h.hole != nil && holes >= holeWarn {
		h.hole(holes)
		h.hole = nil
	}
	if h.done != nil {
		h.done(n)
	}
	if err := h.cut(); err != nil || left <= hashDrain || h.stop == nil {
		return err
	}
	select {
	case <-h.stop:
		return errEnding
	default:
		return nil
	}
}
