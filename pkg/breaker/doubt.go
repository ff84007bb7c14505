package breaker

import "time"

const (
	// believedFor is how long after a canary that passed a refusal is taken to
	// concern one file.
	believedFor = time.Minute
	// refusedInARow is how many refused files in a row suspect a destination
	// although its canary has just passed.
	refusedInARow = 5
	// doubledMax bounds how often refusedInARow is doubled.
	doubledMax = 20
)

// Refusal is what one file has behind it that was refused. The zero value is
// that of a file that never was.
type Refusal struct {
	Asked time.Time // When it was first refused without a canary since that has an opinion.
	Alone bool      // The last refusal was taken to concern this file alone.
}

// doubt weighs refused files against the canary.
type doubt struct {
	passed   time.Time // When the canary that last passed was sent; zero: none has.
	refusals int       // Files in a row that were refused.
	doubled  int       // Times the canary passed although files in a row were refused.
}

// alone reports whether a refusal concerns one file: the canary has passed since
// the file was first refused. A canary that passed a moment before is believed
// for a while; after that the next refusal asks for another one.
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

// acquitted notes a canary that passed while files were suspected.
func (d *doubt) acquitted() { d.doubled = min(d.doubled+1, doubledMax) }
