package breaker

import "time"

const (
	// believedFor is how long after a canary has passed a refusal counts as the
	// file's own.
	believedFor = time.Minute
	// refusedInARow is how many refused files in a row suspect a destination
	// although its canary has just passed.
	refusedInARow = 5
	// doubledMax bounds how often refusedInARow is doubled.
	doubledMax = 20
)

// Refusal is the history of one file's refusals. The zero value is that of a file
// that was never refused.
type Refusal struct {
	Asked time.Time // When the first refusal asked for a canary; one that passed later clears the destination.
	Alone bool      // The last refusal concerned this file alone.
}

// doubt weighs refused files against the canary.
type doubt struct {
	passed   time.Time // When the canary that last passed was sent; zero: none has.
	refusals int       // Files in a row that were refused.
	doubled  int       // Times the canary passed although files in a row were refused.
}

// alone reports whether a refusal concerns one file: the canary has passed since
// the file was first refused. A canary that passed shortly before the refusal
// counts, too, for believedFor; later refusals ask for another canary.
func (d *doubt) alone(r *Refusal, now time.Time) bool {
	if !r.Asked.IsZero() && d.passed.After(r.Asked) {
		return true
	}
	if !r.Alone {
		d.refusals++
	}
	if r.Asked.IsZero() {
		r.Asked = now
	}
	if !d.passed.IsZero() && now.Sub(d.passed) < believedFor && d.refusals <= refusedInARow<<d.doubled {
		return true
	}
	r.Asked = now
	return false
}

// acquitted notes that the canary passed although refused files had cast suspicion
// on the destination.
func (d *doubt) acquitted() { d.doubled = min(d.doubled+1, doubledMax) }
