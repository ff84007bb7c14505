package queue

// Lane says how much of a destination's time a file is likely to take. Each lane
// leaves workers, slots and memory to those before it: small files pass large
// ones, also where nothing large gets through.
type Lane uint8

// The lanes, from the quickest to the slowest.
const (
	LaneTiny  Lane = iota // fits into a packet or two; needs no slot
	LaneSmall             // cheaper to send than to ask for
	LaneWhole             // sent in one request
	LaneLarge             // sent in parts
	Lanes                 // how many there are
)

// Ahead is how many attempts there are for each request at a time: while one
// waits for the server, another reads its file or waits for the disk that its
// intent or its record is written to.
const Ahead = 3

const (
	// TinyMax is the largest file that a path with a too small MTU lets through.
	TinyMax = 1 << 10
	// SmallMax is the size above which asking S3 for an object costs less than a
	// body that is sent in vain.
	SmallMax = 64 << 10
)

// LaneOf is the lane of a file or a body of size bytes; larger ones than wholeMax
// are sent in parts.
func LaneOf(size, wholeMax int64) Lane {
	switch {
	case size <= TinyMax:
		return LaneTiny
	case size <= SmallMax:
		return LaneSmall
	case size <= wholeMax:
		return LaneWhole
	}
	return LaneLarge
}
