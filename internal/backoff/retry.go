package backoff

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// Pause waits for d and reports whether ctx allowed it.
func Pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// Jittered returns the wait before try n+1: full jitter up to a second, doubled
// each time up to a minute. What waiting alone does not mend is tried slowly.
func Jittered(n int, c archive.Class) time.Duration {
	most := backoffMost
	if n < 6 {
		most = backoffFirst << n
	}
	if c.OutOfService() {
		return backoffMost/2 + rand.N(backoffMost/2)
	}
	return rand.N(most) + 1
}

// The waits between tries to publish.
const (
	backoffFirst = time.Second
	backoffMost  = time.Minute
)
