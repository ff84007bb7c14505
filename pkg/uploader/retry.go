package uploader

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/s3syncd/s3syncd/pkg/state"
)

const (
	backoffFirst = 5 * time.Second
	backoffMax   = 15 * time.Minute

	// BreakerStreak failures in a row, without an answer between them, open a
	// destination's breaker.
	breakerStreak = 5
	// RefusalStreak is how many refused files in a row say that a destination
	// is at fault although its canary has just passed.
	refusalStreak = 5
	// ProvenFor is how long after a good canary a refusal is taken to concern
	// one file.
	provenFor = time.Minute
	// ChangedTries looks at a file that moved each time make it a failure.
	changedTries = 5

	pingFirst = time.Second
	pingMax   = 15 * time.Second
	probeMax  = time.Minute

	// HostBusyMax is the longest wait for something that this host lacks.
	hostBusyMax = 20 * time.Second

	// HeldEvery is how often one file of each cause that holds files is tried.
	heldEvery = 50 * time.Second
	// HeldSpread is what each held file adds to the time after which all of
	// them come back by themselves, so that many cost few requests.
	heldSpread = 10 * time.Second
	// SuspicionMax bounds how often refusalStreak is doubled.
	suspicionMax = 20
)

// backoff returns how long a file waits after its n-th failure in a row: full
// jitter below a ceiling that doubles from 5 s to 15 min.
func backoff(n int) time.Duration {
	return time.Duration(rand.Int64N(int64(ceiling(backoffFirst, backoffMax, n)))) + time.Millisecond
}

// slow returns how long a file that needs a person waits when n others do: 15
// min, spread, and longer where that would be more than a request in 10 s.
func slow(n int) time.Duration {
	limit := max(backoffMax, time.Duration(n)*heldSpread)
	return limit - time.Duration(rand.Int64N(int64(limit/10)))
}

// probeWait returns how long a destination in state h waits after its n-th
// probe that failed: never more than 15 s while it does not answer, or 60 s.
func probeWait(h Health, n int) time.Duration {
	top := ceiling(pingFirst, pingMax, n)
	switch h {
	case HealthParked:
		top = ceiling(pingFirst, probeMax, 2*n)
	case HealthStopped:
		top = probeMax
	case HealthOK, HealthWaiting:
	}
	return top - time.Duration(rand.Int64N(int64(top)/4+1))
}

// ceiling is first doubled n-1 times, at most limit.
func ceiling(first, limit time.Duration, n int) time.Duration {
	d := first
	for i := 1; i < n && d < limit; i++ {
		d *= 2
	}
	return min(d, limit)
}

// window is the number of looks that a destination bears at once: it grows by
// one for each window of answers and halves when it is throttled, once for all
// that was under way at that moment.
type window struct {
	size float64
	most float64
	late int // Answers still to come to what was sent before it was last halved.
}

func newWindow(most int) window { return window{size: float64(most), most: float64(most)} }

// limit is the window in whole looks.
func (w *window) limit() int { return max(1, int(w.size)) }

// grew takes in an answer and reports whether the limit changed.
func (w *window) grew() bool {
	w.answered()
	before := w.limit()
	w.size = min(w.most, w.size+1/max(1, w.size))
	return w.limit() != before
}

// answered takes in the end of one request.
func (w *window) answered() { w.late = max(0, w.late-1) }

// halved takes in a throttled answer and reports whether the limit changed.
func (w *window) halved() bool {
	if w.late > 0 {
		return false
	}
	before := w.limit()
	w.late, w.size = before, max(1, w.size/2)
	return w.limit() != before
}

// answer says what a request's end tells about its destination.
type answer uint8

const (
	answerGood      answer = iota // It answered, whatever it said.
	answerNone                    // The transport or the server failed.
	answerThrottled               // It asked for less.
	answerUnsafe                  // It did not confirm the key.
	answerNothing                 // The request was cut off here.
)

// answerOf judges the error of one request.
func answerOf(err error) answer {
	e, _ := errors.AsType[*state.Error](err)
	switch {
	case err == nil, isAnswer(err):
		return answerGood
	case e != nil && e.Class.Stops():
		return answerUnsafe
	case errors.Is(err, context.Canceled), errors.Is(err, errHeldBack), isLocal(err):
		return answerNothing
	case e == nil:
		return answerNone
	}
	switch e.Class.Meaning().Effect {
	case state.EffectSlows:
		return answerThrottled
	case state.EffectFails:
		return answerNone
	default:
		return answerGood
	}
}

// errHeldBack: the destination was stopped before the request was sent.
var errHeldBack = errors.New("destination is stopped")

// localError is a failure of this host: it says nothing about the destination.
type localError struct {
	err  error
	file bool // It is about one file.
}

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

// local marks err as a failure of this host, of class c.
func local(c state.Class, op string, err error) error {
	return &localError{err: state.Classified(c, op, err)}
}

// hostBusy reports whether this host lacks something for the moment: room for the
// state, descriptors, memory. To try again costs next to nothing.
func hostBusy(err error) bool {
	if !isLocal(err) {
		return false
	}
	for _, lacking := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG} {
		if errors.Is(err, lacking) {
			return true
		}
	}
	return false
}

func isLocal(err error) bool {
	_, ok := errors.AsType[*localError](err)
	return ok
}

// isAnswer reports whether err is one of the answers that are no failures by
// themselves.
func isAnswer(err error) bool {
	return errors.Is(err, state.ErrPrecondition) || errors.Is(err, state.ErrConcurrent) ||
		errors.Is(err, state.ErrNoUpload) || errors.Is(err, fs.ErrNotExist) && !isLocal(err)
}
