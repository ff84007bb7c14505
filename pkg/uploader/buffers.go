package uploader

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// bufferMin is the smallest buffer; every class is four times the one before,
// up to the largest that is asked for.
const bufferMin = 16 << 10

// buffers lends memory below one limit for all borrowers together. What is
// returned is kept for the next borrower as long as there is room for it.
type buffers struct {
	sem   *semaphore.Weighted
	limit int64

	mu   sync.Mutex
	free map[int64][][]byte
	held int64 // Lent and free together.
}

func newBuffers(limit int64) *buffers {
	return &buffers{sem: semaphore.NewWeighted(limit), limit: limit, free: map[int64][][]byte{}}
}

// class is the size of the buffer that n bytes get.
func (b *buffers) class(n int64) int64 {
	c := int64(bufferMin)
	for c < n {
		c *= 4
	}
	if c > b.limit || c > bufferMax {
		c = max(n, min(b.limit, bufferMax))
	}
	return c
}

// get returns a buffer of n bytes, which must not be over the limit, and blocks
// while the limit is reached.
func (b *buffers) get(ctx context.Context, n int64) ([]byte, error) {
	c := b.class(n)
	if err := b.sem.Acquire(ctx, c); err != nil {
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

// put returns a buffer that get lent.
func (b *buffers) put(buf []byte) {
	c := int64(cap(buf))
	b.mu.Lock()
	b.free[c] = append(b.free[c], buf[:0])
	b.mu.Unlock()
	b.sem.Release(c)
}
