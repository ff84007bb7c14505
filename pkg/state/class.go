package state

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Class says what an error asks for: waiting, a person, or another look at the
// file. Every retry decision is made from it. The values are the manifest's
// error_class and the label class of the metrics.
type Class string

// The classes of spec section 5 (and conflict of section 8).
const (
	ClassTransient     Class = "transient"     // the network, a 5xx, a timeout: retried for ever
	ClassThrottled     Class = "throttled"     // 503 or 429: retried, with less concurrency
	ClassCredentials   Class = "credentials"   // no, expired or refused credentials: the destination is parked
	ClassConfiguration Class = "configuration" // no such bucket or key, wrong region, denied: the destination is parked
	ClassEncryption    Class = "encryption"    // the server did not confirm the configured key: the destination is stopped
	ClassFile          Class = "file"          // this file alone: unreadable, its name refused, too large
	ClassChanged       Class = "changed"       // the file moved while it was read: looked at again
	ClassConflict      Class = "conflict"      // another instance's object stands under this key
)

// Classes lists every class once, for metrics that exist at zero.
func Classes() []Class {
	return []Class{
		ClassTransient, ClassThrottled, ClassCredentials, ClassConfiguration,
		ClassEncryption, ClassFile, ClassChanged, ClassConflict,
	}
}

// Answers of a server that are not failures by themselves. They are matched
// with errors.Is. An absent object is io/fs.ErrNotExist and a refused request
// (403) is io/fs.ErrPermission.
var (
	// ErrPrecondition: If-Match or If-None-Match did not hold (412).
	ErrPrecondition = errors.New("precondition did not hold")
	// ErrConcurrent: another request for the same key is under way (409).
	ErrConcurrent = errors.New("conflicting request under way")
	// ErrNoUpload: the multipart upload is not known (404 NoSuchUpload). After
	// an ambiguous Complete it may mean success.
	ErrNoUpload = errors.New("no such multipart upload")
	// ErrUnsupported: the server does not know this operation or header (501).
	ErrUnsupported = errors.New("not supported by the server")
)

// Error is a classified failure. Err is never nil.
type Error struct {
	Class     Class
	Op        string // PutObject, open, …
	Code      string // the S3 or KMS error code, "" for local errors
	Status    int    // the HTTP status, 0 when there was no answer
	RequestID string
	Err       error
}

// Error joins operation, code and cause: "PutObject: AccessDenied (403): …".
func (e *Error) Error() string {
	var b strings.Builder
	if e.Op != "" {
		b.WriteString(e.Op + ": ")
	}
	switch {
	case e.Code != "" && e.Status != 0:
		fmt.Fprintf(&b, "%s (%d): ", e.Code, e.Status)
	case e.Code != "":
		b.WriteString(e.Code + ": ")
	}
	b.WriteString(e.Err.Error())
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Classified wraps err as a failure of class c in operation op.
func Classified(c Class, op string, err error) *Error {
	return &Error{Class: c, Op: op, Err: err}
}

// ClassOf returns the class of err: that of the outermost *Error in its chain,
// else transient, because what nobody classified is retried and never dropped.
func ClassOf(err error) Class {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Class
	}
	return ClassTransient
}

// Interrupted reports whether err only says that the process is stopping.
func Interrupted(ctx context.Context, err error) bool {
	return err != nil && ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded))
}
