package app

import (
	"sync/atomic"
	"time"

	"github.com/s3syncd/s3syncd/internal/s3store"
)

// clock is the host's clock corrected by what the servers' answers say, for the
// timestamps of the trail. The zero value is the host's clock.
type clock struct {
	stores atomic.Pointer[[]*s3store.Store]
}

// follow takes the corrections of these sources from now on.
func (c *clock) follow(sources []*source) {
	stores := make([]*s3store.Store, 0, len(sources))
	for _, s := range sources {
		stores = append(stores, s.store)
	}
	c.stores.Store(&stores)
}

// now returns the time that the first server with another opinion than the host
// has.
func (c *clock) now() time.Time {
	now := time.Now()
	if stores := c.stores.Load(); stores != nil {
		for _, s := range *stores {
			if off := s.ClockOffset(); off != 0 {
				return now.Add(off)
			}
		}
	}
	return now
}
