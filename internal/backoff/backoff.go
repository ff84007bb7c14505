// Package backoff computes how long to wait before something is tried again.
package backoff

import "time"

// Doubled returns first doubled n-1 times, at most limit: the ceiling of the
// wait after the n-th failure in a row.
func Doubled(first, limit time.Duration, n int) time.Duration {
	d := first
	for i := 1; i < n && d < limit; i++ {
		d *= 2
	}
	return min(d, limit)
}
