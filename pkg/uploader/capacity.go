package uploader

import (
	"context"
	"sync"

	"golang.org/x/time/rate"

	"github.com/s3syncd/s3syncd/pkg/localfile"
	"github.com/s3syncd/s3syncd/pkg/queue"
)

// spare is how many requests there are beyond Options.Workers: one for each lane
// that is before queue.LaneWhole.
const spare = int64(queue.LaneWhole)

// capacity is what all sources share.
type capacity struct {
	attempts *queue.Shares
	requests *queue.Shares
	parts    *queue.Shares
	large    *queue.Shares
	buffers  *buffers
	smallMax int64 // Files up to this size are read into memory.
}

// newCapacity divides what o allows among sources.
func newCapacity(o Options, sources []string) capacity {
	n := int64(max(1, len(sources)))
	workers := max(int64(o.Workers), n)
	own := min(max(workers/(2*n), 1), spare)
	c := capacity{
		attempts: queue.NewShares(queue.Ahead*(workers+spare), queue.Ahead*own, sources...),
		requests: queue.NewShares(workers+spare, own, sources...),
		parts:    queue.NewShares(max(workers, partsAtOnce), 1, sources...),
		large:    queue.NewShares(max(int64(o.Workers)/2, n), 1, sources...),
	}
	c.buffers = newBuffers(o.MemoryLimit, c.attempts.Total()*queue.SmallMax, sources...)
	c.smallMax = min(bufferMax, c.buffers.largest(), o.SinglePutMax)
	return c
}

// newLimiter returns a limiter for perSecond bytes, nil for none.
func newLimiter(perSecond int64) *rate.Limiter {
	if perSecond <= 0 {
		return nil
	}
	burst := min(max(perSecond/8, 4<<10), 256<<10)
	return rate.NewLimiter(rate.Limit(perSecond), int(burst))
}

// bufferMin is the smallest buffer; every class is four times the one before,
// up to the largest that is asked for.
const bufferMin = 16 << 10

// bufferMax is the size up to which a file is read once, into memory.
const bufferMax = 8 << 20

// buffers lends memory below one limit for all borrowers together. What is
// returned is kept for the next borrower as long as there is room for it. Small
// buffers have a part of the memory for themselves, and each source has a part of
// the rest.
type buffers struct {
	limit int64
	small *queue.Shares // Up to queue.SmallMax; nil: there is too little to divide.
	rest  *queue.Shares

	mu   sync.Mutex
	free map[int64][][]byte
	held int64 // Lent and free together.
}

// newBuffers lends up to limit bytes, of which about small are for small buffers.
func newBuffers(limit, small int64, sources ...string) *buffers {
	b := &buffers{limit: limit, free: map[int64][][]byte{}}
	if small = min(small, limit/4); small >= queue.SmallMax*int64(max(1, len(sources))) && limit-small >= 4*localfile.ChunkSize {
		b.small = queue.NewShares(small, queue.SmallMax, sources...)
		limit -= small
	}
	b.rest = queue.NewShares(limit, 2*bufferMax, sources...)
	return b
}

// largest is the size of the largest buffer that a source gets whatever the
// others have.
func (b *buffers) largest() int64 { return b.rest.Least() }

// class is the size of the buffer that n bytes get.
func (b *buffers) class(n int64) int64 {
	c := int64(bufferMin)
	for c < n {
		c *= 4
	}
	if most := min(b.largest(), bufferMax); c > most {
		c = max(n, most)
	}
	return c
}

// from returns what buffers of class c are a part of.
func (b *buffers) from(c int64) *queue.Shares {
	if c <= queue.SmallMax && b.small != nil {
		return b.small
	}
	return b.rest
}

// get returns a buffer of n bytes, which must not be over the largest, and
// blocks while source has its part.
func (b *buffers) get(ctx context.Context, source string, n int64) ([]byte, error) {
	c := b.class(n)
	if err := b.from(c).Acquire(ctx, source, c); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if l := b.free[c]; len(l) > 0 {
		buf := l[len(l)-1]
		b.free[c] = l[:len(l)-1]
		return buf[:n], nil
	}
	b.evict(c)
	b.held += c
	return make([]byte, n, c), nil
}

// evict drops free buffers of other classes until c more bytes fit.
func (b *buffers) evict(c int64) {
	for class, l := range b.free {
		for len(l) > 0 && b.held+c > b.limit {
			l[len(l)-1] = nil
			l = l[:len(l)-1]
			b.held -= class
		}
		b.free[class] = l
	}
}

// put returns a buffer that get lent to source.
func (b *buffers) put(source string, buf []byte) {
	c := int64(cap(buf))
	b.mu.Lock()
	b.free[c] = append(b.free[c], buf[:0])
	b.mu.Unlock()
	b.from(c).Release(source, c)
}
