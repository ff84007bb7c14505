package s3conn

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// reaskInterval bounds how often a refused HEAD is asked again as a GET, and
// mendedFor how long one that was not refused counts for other requests that
// were under way.
const (
	reaskInterval = time.Minute
	mendedFor     = 5 * time.Second
)

// Reasker remembers why HEAD requests are refused: their answers have no body.
type Reasker struct {
	mu       sync.Mutex
	when     time.Time
	answered time.Time
	mended   bool // The GET was not refused.
	last     *archive.Error
}

// Explain finds the code behind a HEAD that was refused without one, by a GET
// of one byte, at most once per minute. Again is true where the GET was not
// refused: what was in the way, a token that had expired or this host's clock,
// has been put right by it.
func (c *Conn) Explain(ctx context.Context, key string, err error) (again bool, why error) {
	e, ok := errors.AsType[*archive.Error](err)
	if !ok || e.Status != http.StatusForbidden && e.Status != http.StatusBadRequest {
		return false, err
	}
	c.Reask.mu.Lock()
	defer c.Reask.mu.Unlock()
	if now := time.Now(); now.Sub(c.Reask.when) >= reaskInterval {
		c.Reask.when = now
		c.Reask.last, c.Reask.mended = c.ask(ctx, key, e.Status)
		c.Reask.answered = time.Now()
	}
	if why := c.Reask.last; why != nil && why.Status == e.Status {
		return false, &archive.Error{Class: why.Class, Op: OpHead, Code: why.Code, Status: e.Status, RequestID: e.RequestID, Err: why.Err}
	}
	return c.Reask.mended && time.Since(c.Reask.answered) < mendedFor, err
}

// ask returns the error of a GET that was refused as the HEAD was, nil for
// another. Mended: it was not refused.
func (c *Conn) ask(ctx context.Context, key string, status int) (why *archive.Error, mended bool) {
	out, err := c.Client.GetObject(ctx, &s3.GetObjectInput{
		Bucket: aws.String(c.o.Bucket), Key: aws.String(key), ExpectedBucketOwner: c.Owner(), Range: aws.String("bytes=0-0"),
	})
	if err == nil {
		_ = out.Body.Close() // The body is one byte, asked for to get the status.
		return nil, true
	}
	err = c.Fault(ctx, OpGet, key, err)
	if e, ok := errors.AsType[*archive.Error](err); ok && e.Status == status {
		return e, false
	}
	return nil, errors.Is(err, fs.ErrNotExist)
}
