package state

import (
	"errors"
	"fmt"

	"github.com/s3syncd/s3syncd/internal/boltfile"
)

// Errors of the state itself, matched with errors.Is.
var (
	// ErrClosed: the DB has been closed. Nothing was read or stored.
	ErrClosed = errors.New("state is closed")
	// ErrDamaged: what the file holds cannot be what was stored. The next Open
	// examines the whole file and sets it aside if it is beyond use.
	ErrDamaged = boltfile.ErrDamaged
	// ErrNewerFormat: a newer release has written the file. It is left untouched.
	ErrNewerFormat = errors.New("state was written by a newer release of s3syncd")
	// ErrKeyBusy: a write of this key has been announced and is not resolved.
	ErrKeyBusy = errors.New("a write of this key is under way")
	// ErrNoIntent: no intent of this key and attempt is open.
	ErrNoIntent = errors.New("no such intent")
	// ErrNoChain: the source has no chain yet.
	ErrNoChain = errors.New("no chain has begun")
	// ErrStale: the chain has moved on since the caller read it.
	ErrStale = errors.New("the chain has moved on")
)

// LockedError says that another process holds the state directory.
type LockedError struct {
	Dir string
	PID int // of the holder, 0: not known
}

// Error names the directory and the holder.
func (e *LockedError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("state directory %s is in use by another process", e.Dir)
	}
	return fmt.Sprintf("state directory %s is in use by process %d", e.Dir, e.PID)
}
