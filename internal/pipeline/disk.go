package pipeline

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// stateReserve is how much room the state's file system must have for an upload
// to begin: what is acknowledged must be recorded.
const stateReserve = 4 << 20

// errStateFull reports less room for the state than stateReserve.
var errStateFull = errors.New("no room")

// Trouble is why the state cannot be written.
type Trouble struct {
	Err   error
	Since time.Time
}

// Disk is whether the state can be written, as one source sees it. Its methods may
// be called concurrently.
type Disk struct {
	db      *state.DB
	dir     string
	log     *zap.Logger
	writes  func() // called when the state can be written again
	trouble atomic.Pointer[Trouble]
	checked atomic.Int64 // Unix nanoseconds
}

// Trouble returns what the last check found, nil when all was well.
func (d *Disk) Trouble() *Trouble { return d.trouble.Load() }

// check returns why nothing can be recorded at present, nil when all is well. It is
// asked for every file, and checks at most once per second: a disk that has failed is
// tried by a small change, and what waited for it is let go as soon as that is
// durable. The log says so once each time that it begins or ends.
func (d *Disk) check() *Trouble {
	now, last := time.Now(), d.checked.Load()
	if now.UnixNano()-last < int64(time.Second) || !d.checked.CompareAndSwap(last, now.UnixNano()) {
		return d.trouble.Load()
	}
	before := d.trouble.Load()
	err := d.fault()
	if err == nil {
		d.trouble.Store(nil)
		if before != nil {
			d.log.Info("the state can be written again, uploads continue", zap.Duration("after", now.Sub(before.Since)))
			d.writes()
		}
		return nil
	}
	t := &Trouble{Err: err, Since: now}
	if before != nil {
		t.Since = before.Since
	} else {
		d.log.Error("the state cannot be written: uploads pause until it can be, changes are still watched",
			zap.String("state_dir", d.dir), zap.Error(err))
	}
	d.trouble.Store(t)
	return t
}

// fault returns what keeps the state from being written.
func (d *Disk) fault() error {
	if free, err := d.db.FreeBytes(); err == nil && free < stateReserve {
		return fmt.Errorf("%w: %d bytes free, %d needed", errStateFull, free, stateReserve)
	}
	if d.db.Failing() == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), noteTimeout)
	defer cancel()
	return d.db.Try(ctx)
}

// Backlog is how many records of a source no acknowledged manifest holds. Its
// methods may be called concurrently.
type Backlog struct {
	state  *state.Source
	log    *zap.Logger
	last   atomic.Int64
	readAt atomic.Int64 // Unix nanoseconds
}

// Last returns what the state said when it was last read.
func (b *Backlog) Last() int64 { return b.last.Load() }

// Records reads the state, at most once per second.
func (b *Backlog) Records() int64 {
	now := time.Now().UnixNano()
	last := b.readAt.Load()
	if now-last < int64(time.Second) || !b.readAt.CompareAndSwap(last, now) {
		return b.last.Load()
	}
	c, err := b.state.Chain()
	if err != nil {
		b.log.Warn("the chain's head is unreadable, uploads continue", zap.Error(err))
		return b.last.Load()
	}
	b.last.Store(c.Unpublished)
	return c.Unpublished
}
