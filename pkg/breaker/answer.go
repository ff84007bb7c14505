package breaker

import (
	"context"
	"errors"
	"io/fs"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// answer is what the result of a request says about its destination.
type answer uint8

const (
	answerGood      answer = iota // It answered, whatever it said.
	answerNone                    // The transport or the server failed.
	answerThrottled               // It asked for fewer requests.
	answerUnsafe                  // It did not confirm the KMS key.
	answerNothing                 // The request was cut off here.
)

// answerOf judges the error of one request.
func answerOf(err error) answer {
	e, _ := errors.AsType[*archive.Error](err)
	switch {
	case err == nil, errors.Is(err, archive.ErrPrecondition), errors.Is(err, archive.ErrConcurrent),
		errors.Is(err, archive.ErrNoUpload), errors.Is(err, fs.ErrNotExist):
		return answerGood
	case e != nil && e.Class.Stops():
		return answerUnsafe
	case errors.Is(err, context.Canceled), errors.Is(err, ErrHeld):
		return answerNothing
	case e == nil:
		return answerNone
	}
	switch e.Class.Meaning().Effect {
	case archive.EffectSlows:
		return answerThrottled
	case archive.EffectFails:
		return answerNone
	default:
		return answerGood
	}
}
