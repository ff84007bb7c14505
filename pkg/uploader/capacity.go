package uploader

import (
	"github.com/s3syncd/s3syncd/pkg/queue"
)

// tiny is the largest file that a path with a too small MTU lets through.
const tiny = 1 << 10

// laneOf is the lane of a file or a body of size bytes.
func laneOf(size, singleMax int64) queue.Lane {
	switch {
	case size <= tiny:
		return queue.LaneTiny
	case size <= headAlways:
		return queue.LaneSmall
	case size <= singleMax:
		return queue.LaneWhole
	}
	return queue.LaneLarge
}

// spare is how many requests there are beyond Options.Workers: one for each lane
// that is before laneWhole.
const spare = int64(queue.LaneWhole)

// capacity is what all sources share.
type capacity struct {
	looks    *queue.Shares
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
		looks:    queue.NewShares(queue.Ahead*(workers+spare), queue.Ahead*own, sources...),
		requests: queue.NewShares(workers+spare, own, sources...),
		parts:    queue.NewShares(max(workers, partsAtOnce), 1, sources...),
		large:    queue.NewShares(max(int64(o.Workers)/2, n), 1, sources...),
	}
	c.buffers = newBuffers(o.MemoryLimit, c.looks.Total()*headAlways, sources...)
	c.smallMax = min(bufferMax, c.buffers.largest(), o.SinglePutMax)
	return c
}
