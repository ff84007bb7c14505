package localfile

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// Progress is how far the body of a request or of its answer came. It may be
// read while the body is sent.
type Progress struct {
	moved atomic.Int64 // When it came there, in nanoseconds since 1970; 0: not yet.
	paced atomic.Bool  // It waits for the bandwidth limit.
}

// LastMoved returns when the body last moved, the zero time if it has not yet.
// One that waits for the bandwidth limit has moved now.
func (p *Progress) LastMoved(now time.Time) time.Time {
	if p.paced.Load() {
		return now
	}
	if ns := p.moved.Load(); ns != 0 {
		return time.Unix(0, ns)
	}
	return time.Time{}
}

// Watched returns the bytes of r and notes each step in p.
func (p *Progress) Watched(r io.Reader) io.Reader { return progressReader{r, p} }

type progressReader struct {
	r io.Reader
	p *Progress
}

func (r progressReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if n > 0 {
		r.p.moved.Store(time.Now().UnixNano())
	}
	return n, err
}

// Body is what a request sends: it counts, keeps to the bandwidth limit, and
// remembers what went wrong with the file. One request reads it at a time.
type Body struct {
	Progress

	r       io.ReadSeeker
	size    int64
	burst   int             // The most that is read at once, 0 for no limit.
	wait    func(int) error // Blocks until that many bytes may be sent.
	sent    *atomic.Int64
	sum     hash.Hash // Nil: what is read is not compared with want.
	want    [32]byte
	summed  int64 // Bytes from the start that are in sum.
	pos     int64
	counted int64
	peak    int64 // The farthest that any try came.
	failed  atomic.Pointer[error]
}

// NewBody wraps size bytes of r, sent under ctx at the pace of limit (nil: none).
// It adds what is sent to sent, and takes back what is sent again.
func NewBody(ctx context.Context, r io.ReadSeeker, size int64, limit *rate.Limiter, sent *atomic.Int64) *Body {
	b := &Body{r: r, size: size, sent: sent, wait: func(int) error { return nil }}
	if limit != nil {
		b.burst = limit.Burst()
		b.wait = func(n int) error { return limit.WaitN(ctx, n) }
	}
	return b
}

// Comparing makes b fail with ErrChanged unless the SHA-256 of what it sends is
// want. The last bytes are held back then, so that the request does not end well.
func (b *Body) Comparing(want [32]byte) *Body {
	b.sum, b.want = sha256.New(), want
	return b
}

// compare hashes what was read last and returns how much of it may be sent.
func (b *Body) compare(p []byte) (int, error) {
	if b.sum == nil {
		return len(p), nil
	}
	if b.summed == b.pos-int64(len(p)) {
		b.sum.Write(p)
		b.summed = b.pos
	}
	switch {
	case b.pos < b.size || len(p) == 0:
	case b.summed < b.size || [32]byte(b.sum.Sum(nil)) != b.want:
		return 0, Changed("read")
	}
	return len(p), nil
}

// Read reads on, at the pace of the limit.
func (b *Body) Read(p []byte) (int, error) {
	if b.burst > 0 && len(p) > b.burst {
		p = p[:b.burst]
	}
	n, err := b.r.Read(p)
	b.pos += int64(n)
	if some, changed := b.compare(p[:n]); changed != nil {
		b.failed.Store(&changed)
		return some, changed
	}
	if b.pos > b.peak {
		b.peak = b.pos
		b.moved.Store(time.Now().UnixNano())
	}
	b.sent.Add(b.pos - b.counted)
	b.counted = b.pos

	switch {
	case errors.Is(err, io.EOF) && b.pos < b.size:
		err = archive.Classified(archive.ClassChanged, "read", errShort)
		b.failed.Store(&err)
	case err != nil && !errors.Is(err, io.EOF):
		err = Unreadable("read", err)
		b.failed.Store(&err)
	}
	if n > 0 && b.burst > 0 {
		b.paced.Store(true)
		werr := b.wait(n)
		b.paced.Store(false)
		b.moved.Store(time.Now().UnixNano())
		if werr != nil {
			return n, werr
		}
	}
	return n, err
}

// Seek moves to where the next Read begins.
func (b *Body) Seek(offset int64, whence int) (int64, error) {
	pos, err := b.r.Seek(offset, whence)
	if err != nil {
		return 0, fmt.Errorf("seek in body: %w", err)
	}
	b.pos = pos
	if b.sum != nil && pos == 0 {
		b.sum.Reset()
		b.summed = 0
	}
	return pos, nil
}

// Size is how many bytes the body has.
func (b *Body) Size() int64 { return b.size }

// Err returns what went wrong with the file while it was sent, nil for nothing.
func (b *Body) Err() error {
	if e := b.failed.Load(); e != nil {
		return *e
	}
	return nil
}
