package localfile

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// sparse reads a file without reading its holes: they are zeros. It is used by
// one goroutine, and moves the offset of the descriptor, which nothing else uses.
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
