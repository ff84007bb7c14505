package s3conn

import (
	"errors"
	"fmt"
)

// ErrOptions is what Open, OpenReader and OpenKMS refuse in their options and in
// the AWS environment: it has to be corrected, another try would not help.
var ErrOptions = errors.New("refused options")

// optionError is an ErrOptions with a text of its own.
type optionError struct{ error }

func (optionError) Is(target error) bool { return target == ErrOptions }

func (r optionError) Unwrap() error { return r.error }

// Invalid returns an error that says that an option cannot work: ErrOptions.
func Invalid(format string, args ...any) error {
	return optionError{fmt.Errorf("s3store: "+format, args...)}
}
