package breaker

import (
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// position is the state of a Breaker, as the package comment draws it.
type position uint8

const (
	closed    position = iota // Requests are sent.
	unproven                  // The canary has not passed yet.
	open                      // The server does not answer.
	suspected                 // Files were refused; the canary decides whether it is the destination.
	parked                    // The canary was refused, too: an operator is needed.
	stopped                   // An answer did not confirm the KMS key.
)

// health is what operators see of p.
func (p position) health() Health {
	switch p {
	case closed:
		return HealthOK
	case unproven, open:
		return HealthWaiting
	case suspected, parked:
		return HealthParked
	case stopped:
	}
	return HealthStopped
}

// needsCanary reports whether only the canary closes the breaker.
func (p position) needsCanary() bool { return p != closed && p != open }

// Health is a state of a destination in metrics, in the status and in the log.
type Health string

// The states of a destination.
const (
	HealthOK      Health = "ok"
	HealthWaiting Health = "waiting" // It does not answer, or is not proven yet: it is probed until it does.
	HealthParked  Health = "parked"  // An operator is needed: it is probed slowly.
	HealthStopped Health = "stopped" // It did not confirm the KMS key: nothing is sent there.
)

// Healths lists every Health, for metrics that exist at zero.
func Healths() []Health {
	return []Health{HealthOK, HealthWaiting, HealthParked, HealthStopped}
}

// Status is what is known of a destination.
type Status struct {
	State     Health
	Class     archive.Class // Why it is not ok.
	Err       error
	Since     time.Time
	NextProbe time.Time
	Answered  bool // It has worked at least once in this run.
	// Proven: the canary has passed, and since then every answer has confirmed the key.
	Proven bool

	// Stalled requests under way have made no progress since StalledSince. A
	// Monitor counts them; a Breaker leaves both empty.
	Stalled      int
	StalledSince time.Time
}
