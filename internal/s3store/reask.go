package s3store

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// reaskInterval bounds how often a refused HEAD is asked again as a GET.
const reaskInterval = time.Minute

// reasker remembers why HEAD requests are refused: their answers have no body.
type reasker struct {
	mu   sync.Mutex
	when time.Time
	last *state.Error
}

// explain finds the code behind a HEAD that was refused without one, by a GET
// of one byte, at most once a minute.
func (s *Store) explain(ctx context.Context, key string, err error) error {
	e, ok := errors.AsType[*state.Error](err)
	if !ok || e.Status != http.StatusForbidden && e.Status != http.StatusBadRequest {
		return err
	}
	s.reask.mu.Lock()
	defer s.reask.mu.Unlock()
	if now := time.Now(); now.Sub(s.reask.when) >= reaskInterval {
		s.reask.when, s.reask.last = now, s.ask(ctx, key, e.Status)
	}
	if why := s.reask.last; why != nil && why.Status == e.Status {
		return &state.Error{Class: why.Class, Op: opHead, Code: why.Code, Status: e.Status, RequestID: e.RequestID, Err: why.Err}
	}
	return err
}

// ask returns the error of a GET, nil for none.
func (s *Store) ask(ctx context.Context, key string, status int) *state.Error {
	out, err := s.client.GetObject(ctx, &s3.GetObjectInput{
		Bucket: aws.String(s.o.Bucket), Key: aws.String(key), ExpectedBucketOwner: s.owner(), Range: aws.String("bytes=0-0"),
	})
	if err == nil {
		_ = out.Body.Close() // One byte that nobody wants.
		return nil
	}
	if e, ok := errors.AsType[*state.Error](s.fault(ctx, opGet, key, err)); ok && e.Status == status {
		return e
	}
	return nil
}
