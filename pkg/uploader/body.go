package uploader

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

	"github.com/s3syncd/s3syncd/pkg/state"
)

// errShort: the file ended before the bytes that were announced.
var errShort = errors.New("the file is shorter than when it was opened")

// flight is one file in hand, for the progress that InFlight reports.
type flight struct {
	source, path string
	started      time.Time
	size, sent   atomic.Int64
	hashed       atomic.Int64
	phase        atomic.Value
}

func (f *flight) enter(p Phase) { f.phase.Store(p) }

// body is what a request sends: it counts, keeps to the bandwidth limit, and
// says itself what went wrong with the file. One request reads it at a time.
type body struct {
	r       io.ReadSeeker
	size    int64
	burst   int             // The most that is read at once, 0 for no limit.
	wait    func(int) error // Blocks until so many bytes may be sent.
	sent    *atomic.Int64
	sum     hash.Hash // nil: what is read is not compared with want
	want    [32]byte
	summed  int64 // Bytes from the start that are in sum.
	pos     int64
	counted int64
	peak    int64 // The farthest that any attempt came.
	progress
	failed atomic.Pointer[error]
}

// newBody wraps size bytes of r, sent under ctx at the pace of limit.
func newBody(ctx context.Context, r io.ReadSeeker, size int64, limit *rate.Limiter, sent *atomic.Int64) *body {
	b := &body{r: r, size: size, sent: sent, wait: func(int) error { return nil }}
	if limit != nil {
		b.burst = limit.Burst()
		b.wait = func(n int) error { return limit.WaitN(ctx, n) }
	}
	return b
}

// comparing makes b fail with errMoved unless the SHA-256 of what it sends is
// want. The last bytes are held back then, so that the request does not end well.
func (b *body) comparing(want [32]byte) *body {
	b.sum, b.want = sha256.New(), want
	return b
}

// compare takes in what was read last and returns how much of it may be sent.
func (b *body) compare(p []byte) (int, error) {
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
		return 0, changed("read")
	}
	return len(p), nil
}

// Read reads on, at the pace of the limit.
func (b *body) Read(p []byte) (int, error) {
	if b.burst > 0 && len(p) > b.burst {
		p = p[:b.burst]
	}
	n, err := b.r.Read(p)
	b.pos += int64(n)
	if some, moved := b.compare(p[:n]); moved != nil {
		b.failed.Store(&moved)
		return some, moved
	}
	if b.pos > b.peak {
		b.peak = b.pos
		b.moved.Store(time.Now().UnixNano())
	}
	b.sent.Add(b.pos - b.counted)
	b.counted = b.pos
	switch {
	case errors.Is(err, io.EOF) && b.pos < b.size:
		err = state.Classified(state.ClassChanged, "read", errShort)
		b.failed.Store(&err)
	case err != nil && !errors.Is(err, io.EOF):
		err = unreadable("read", err)
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
func (b *body) Seek(offset int64, whence int) (int64, error) {
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

// err returns what went wrong with the file while it was sent, nil for nothing.
func (b *body) err() error {
	if e := b.failed.Load(); e != nil {
		return *e
	}
	return nil
}

// newLimiter returns a limiter for perSecond bytes, nil for none.
func newLimiter(perSecond int64) *rate.Limiter {
	if perSecond <= 0 {
		return nil
	}
	burst := min(max(perSecond/8, 4<<10), 256<<10)
	return rate.NewLimiter(rate.Limit(perSecond), int(burst))
}
