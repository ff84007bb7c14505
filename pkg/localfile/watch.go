package localfile

import "errors"

const (
	// holeWarn is from how many bytes of holes on a file counts as sparse.
	holeWarn = 1 << 30
	// hashDrain is how much of a file may be left to hash when the process ends:
	// what has more left is started again by the next run.
	hashDrain = 1 << 30
)

// ErrEnding says that the process ends, and too much of the file is left to hash.
var ErrEnding = errors.New("the pool ends")

// Watch follows the progress of a reading, and ends it early where the process
// ends and much is left.
type Watch struct {
	Cut    func() error    // An error ends the reading at once.
	Stop   <-chan struct{} // Closed when nothing new is started; nil: never.
	Hashed func(n int64)   // Is called with each n bytes that were hashed; may be nil.
	Sparse func(n int64)   // Is called once if 1 GiB of holes were found; may be nil.
}

// step notes that n more bytes were hashed, left are to come, and holes of them
// so far are in holes.
func (w *Watch) step(n, left, holes int64) error {
	if w.Sparse != nil && holes >= holeWarn {
		w.Sparse(holes)
		w.Sparse = nil
	}
	if w.Hashed != nil {
		w.Hashed(n)
	}
	if err := w.Cut(); err != nil || left <= hashDrain || w.Stop == nil {
		return err
	}
	select {
	case <-w.Stop:
		return ErrEnding
	default:
		return nil
	}
}
