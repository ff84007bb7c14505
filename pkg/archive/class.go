package archive

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Class says what kind of failure an error is. What a class means is in its row
// of the table below and nowhere else: a new class is a constant and a row here,
// and the answers in internal/s3conn/errors.go that have it. The values are the
// manifest's error_class and the label class of the metrics.
type Class string

// The classes, as docs/OPERATIONS.md explains them.
const (
	ClassTransient     Class = "transient"     // the network, a 5xx, a timeout
	ClassThrottled     Class = "throttled"     // 503 or 429
	ClassCredentials   Class = "credentials"   // no, expired or refused credentials
	ClassConfiguration Class = "configuration" // no such bucket or key, wrong region, denied
	ClassEncryption    Class = "encryption"    // the server did not confirm the configured key
	ClassFile          Class = "file"          // this file alone: unreadable, its name refused, too large
	ClassChanged       Class = "changed"       // the file changed while it was read
	ClassConflict      Class = "conflict"      // the object under this key belongs to another instance
)

// Remedy is what ends a failure.
type Remedy uint8

// The remedies. The zero value is that of a class without a row.
const (
	RemedyOperator Remedy = iota // an operator: it is recorded, and tried again slowly
	RemedyWait                   // time: it is retried with a growing wait
	RemedyReread                 // another attempt at the file once it has stopped changing
)

// Effect is what a failure does to the destination.
type Effect uint8

// The effects.
const (
	EffectNone  Effect = iota // none: it answered
	EffectFails               // counts as no answer: a series of them opens the circuit breaker
	EffectSlows               // fewer requests are sent at once
	EffectParks               // it is parked, unless the canary shows that the failure concerns one file
	EffectStops               // it is stopped at once: nothing more is sent
)

// Meaning is a row of the table of classes.
type Meaning struct {
	Class  Class
	Remedy Remedy
	Effect Effect

	// EveryRequest: every request fails alike until the credentials are renewed.
	EveryRequest bool
	// Refused: a write that ended with it was certainly not carried out.
	Refused bool
	// Advice tells an operator what to do. The class's row in docs/OPERATIONS.md
	// begins with it.
	Advice string
}

// meanings is the table of classes.
func meanings() [8]Meaning {
	return [...]Meaning{
		{
			Class: ClassTransient, Remedy: RemedyWait, Effect: EffectFails,
			Advice: "Nothing: it is tried again for ever. If it lasts, check whether this host reaches the endpoint (proxy, firewall, VPC endpoint).",
		},
		{
			Class: ClassThrottled, Remedy: RemedyWait, Effect: EffectSlows,
			Advice: "Nothing at first. If it lasts: bucket_key: true, fewer upload.workers, or a higher KMS quota.",
		},
		{
			Class: ClassCredentials, Effect: EffectParks, EveryRequest: true,
			Advice: "Check that the role is attached or the key is valid. A new static key needs a restart, a role does not.",
		},
		{
			Class: ClassConfiguration, Effect: EffectParks,
			Advice: "Compare bucket, region, kms_key_id and the policies with the error. It is asked again at least every minute and continues by itself.",
		},
		{
			Class: ClassEncryption, Effect: EffectStops, Refused: true,
			Advice: "Stop and look: the answer did not name your key. Check the bucket and the endpoint, then the object that the log names.",
		},
		{
			Class: ClassFile, Refused: true,
			Advice: "Mend or exclude this file; a rescan looks at it again.",
		},
		{
			Class: ClassChanged, Remedy: RemedyReread, Refused: true,
			Advice: "Nothing: it is uploaded once it is quiet. If it never is, archive a snapshot or a rotated copy instead.",
		},
		{
			Class:  ClassConflict,
			Advice: "Another instance or host owns this object: give each host its own instance and prefix; if that host is gone, name its chain in takes_over.",
		},
	}
}

// Classes lists every class once, for metrics that exist at zero.
func Classes() []Class {
	var all []Class
	for _, m := range meanings() {
		all = append(all, m.Class)
	}
	return all
}

// Meaning returns the row of c, or one that needs an operator for a class that
// has none.
func (c Class) Meaning() Meaning {
	for _, m := range meanings() {
		if m.Class == c {
			return m
		}
	}
	return Meaning{Class: c}
}

// Passes reports whether waiting alone ends a failure of class c.
func (c Class) Passes() bool { return c.Meaning().Remedy == RemedyWait }

// Rereads reports whether a failure of class c ends when the file stops changing.
func (c Class) Rereads() bool { return c.Meaning().Remedy == RemedyReread }

// NeedsOperator reports whether only an operator ends a failure of class c.
func (c Class) NeedsOperator() bool { return c.Meaning().Remedy == RemedyOperator }

// Throttles reports whether c asks for fewer requests at once.
func (c Class) Throttles() bool { return c.Meaning().Effect == EffectSlows }

// Parks reports whether c parks a destination.
func (c Class) Parks() bool { return c.Meaning().Effect == EffectParks }

// Stops reports whether c stops a destination.
func (c Class) Stops() bool { return c.Meaning().Effect == EffectStops }

// Alone reports whether a failure of class c concerns one file and says nothing
// about the destination.
func (c Class) Alone() bool { return c.NeedsOperator() && c.Meaning().Effect == EffectNone }

// OutOfService reports whether c parks or stops a destination.
func (c Class) OutOfService() bool { return c.Parks() || c.Stops() }

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
// else transient, because what no rule classifies is retried and never dropped.
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
