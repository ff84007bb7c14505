package localfile

import (
	"errors"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// Failure is a failure to read one file: of its disk, or of the server that it
// is on. It says nothing about the destination.
type Failure struct{ err *state.Error }

// Error is that of the cause, with its operation.
func (f *Failure) Error() string { return f.err.Error() }

// Unwrap returns the cause, a *state.Error.
func (f *Failure) Unwrap() error { return f.err }

// Unreadable marks err as a Failure that may pass.
func Unreadable(op string, err error) error {
	return &Failure{state.Classified(state.ClassTransient, op, err)}
}

// Broken marks err as a Failure that an operator has to mend.
func Broken(err error) error {
	return &Failure{state.Classified(state.ClassFile, "read", err)}
}

// ErrChanged: the file is not what it was when it was opened.
var ErrChanged = errors.New("the file changed while it was read")

// errIdentity: size and mtime are the same, the rest of what identifies a file is not.
var errIdentity = errors.New("the file's inode or ctime changed while it was read")

// errShort: the file ended before the bytes that were expected.
var errShort = errors.New("the file is shorter than when it was opened")

// Changed is ErrChanged with its class.
func Changed(op string) error { return state.Classified(state.ClassChanged, op, ErrChanged) }
