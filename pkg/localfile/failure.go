package localfile

import (
	"errors"
	"syscall"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// Failure is a failure of this host: it says nothing about the destination.
type Failure struct { //nolint:errname // It is the noun.
	err  *archive.Error
	file bool // It is about reading one file.
}

// Error is that of the cause, with its operation.
func (f *Failure) Error() string { return f.err.Error() }

// Unwrap returns the cause, an *archive.Error.
func (f *Failure) Unwrap() error { return f.err }

// Local marks err as a Failure of class c.
func Local(c archive.Class, op string, err error) error {
	return &Failure{err: archive.Classified(c, op, err)}
}

// Unreadable marks err as a Failure to read one file that may pass: its disk, or
// the server that it is on, may recover.
func Unreadable(op string, err error) error {
	return &Failure{err: archive.Classified(archive.ClassTransient, op, err), file: true}
}

// Broken marks err as a Failure to read one file that an operator has to mend.
func Broken(err error) error {
	return &Failure{err: archive.Classified(archive.ClassFile, "read", err), file: true}
}

// IsLocal reports whether err is a Failure.
func IsLocal(err error) bool {
	_, ok := errors.AsType[*Failure](err)
	return ok
}

// IsUnreadable reports whether err is a Failure to read one file.
func IsUnreadable(err error) bool {
	f, ok := errors.AsType[*Failure](err)
	return ok && f.file && !HostBusy(err)
}

// HostBusy reports whether this host lacks something for the moment: room for the
// state, descriptors, memory. To try again costs next to nothing.
func HostBusy(err error) bool {
	if !IsLocal(err) {
		return false
	}
	for _, lacking := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG} {
		if errors.Is(err, lacking) {
			return true
		}
	}
	return false
}

// ErrChanged says that the file is not what it was when it was opened.
var ErrChanged = errors.New("the file changed while it was read")

// errIdentity: size and mtime are the same, the rest of what identifies a file is not.
var errIdentity = errors.New("the file's inode or ctime changed while it was read")

// errShort: the file ended before the bytes that were expected.
var errShort = errors.New("the file is shorter than when it was opened")

// Changed is ErrChanged with its class.
func Changed(op string) error { return archive.Classified(archive.ClassChanged, op, ErrChanged) }
