package uploader

// tiny is the largest file that a path with a too small MTU lets through.
const tiny = 1 << 10

// laneOf is the lane of a file or a body of size bytes.
func laneOf(size, singleMax int64) lane {
	switch {
	case size <= tiny:
		return laneTiny
	case size <= headAlways:
		return laneSmall
	case size <= singleMax:
		return laneWhole
	}
	return laneLarge
}

// spare is how many requests there are beyond Options.Workers: one for each lane
// that is before laneWhole.
const spare = int64(laneWhole)

// capacity is what all sources share.
type capacity struct {
	looks    *shares
	requests *shares
	parts    *shares
	large    *shares
	buffers  *buffers
	smallMax int64 // Files up to this size are read into memory.
}

// newCapacity divides what o allows among sources.
func newCapacity(o Options, sources []string) capacity {
	n := int64(max(1, len(sources)))
	workers := max(int64(o.Workers), n)
	own := min(max(workers/(2*n), 1), spare)
	c := capacity{
		looks:    newShares(ahead*(workers+spare), ahead*own, sources...),
		requests: newShares(workers+spare, own, sources...),
		parts:    newShares(max(workers, partsAtOnce), 1, sources...),
		large:    newShares(max(int64(o.Workers)/2, n), 1, sources...),
	}
	c.buffers = newBuffers(o.MemoryLimit, c.looks.all()*headAlways, sources...)
	c.smallMax = min(bufferMax, c.buffers.largest(), o.SinglePutMax)
	return c
}
