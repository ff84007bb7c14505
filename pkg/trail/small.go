package trail

import (
	"bytes"
	"context"
	"io"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// Small reads a document that is never large.
func (t *Trail) Small(ctx context.Context, key string) ([]byte, error) {
	return t.Read(ctx, key, MaxSignatureBytes)
}

// Read returns the first bytes of a document, at most one more than limit.
func (t *Trail) Read(ctx context.Context, key string, limit int64) (data []byte, err error) {
	err = t.Get(ctx, key, func(body io.Reader, o state.Object) (err error) {
		data, err = readUpTo(body, o.Size, limit)
		return err
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}

// readUpTo reads at most one byte more than limit. Where size is right it takes
// no more memory than that.
func readUpTo(r io.Reader, size, limit int64) ([]byte, error) {
	b := bytes.NewBuffer(make([]byte, 0, max(0, min(size, limit))+bytes.MinRead))
	_, err := b.ReadFrom(io.LimitReader(r, limit+1))
	return b.Bytes(), err
}
