package s3store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// supported returns c without what the server does not know; emulate has
// checked that part.
func (s *Store) supported(c state.Condition) state.Condition {
	caps := s.Capabilities()
	if !caps.IfNoneMatch {
		c.Absent = false
	}
	if !caps.IfMatch {
		c.ETag = ""
	}
	return c
}

// conditions renders c for a request.
func conditions(c state.Condition) (ifMatch, ifNoneMatch *string) {
	if c.ETag != "" {
		ifMatch = aws.String(quoted(c.ETag))
	}
	if c.Absent {
		ifNoneMatch = aws.String(ifAbsent)
	}
	return ifMatch, ifNoneMatch
}

// emulate checks c by a HEAD where the server would ignore it. A write of
// someone else between the two is not noticed; there is no better on such a
// server.
func (s *Store) emulate(ctx context.Context, op, key string, c state.Condition) error {
	caps := s.Capabilities()
	if (!c.Absent || caps.IfNoneMatch) && (c.ETag == "" || caps.IfMatch) {
		return nil
	}
	return s.compare(ctx, op, key, c)
}

// compare checks c by a HEAD.
func (s *Store) compare(ctx context.Context, op, key string, c state.Condition) error {
	o, err := s.Head(ctx, key)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if c.Absent {
			return nil
		}
		return err
	case err != nil:
		return err
	case c.Absent, o.ETag != c.ETag:
		return &state.Error{Class: state.ClassTransient, Op: op, Err: fmt.Errorf("%q: %w", key, state.ErrPrecondition)}
	}
	return nil
}
