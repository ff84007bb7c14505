package uploader

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/localfile"
	"github.com/s3syncd/s3syncd/pkg/remote"
)

// Files that fail again and again do not keep new ones waiting: not when their
// retries hang, and not when there are a great many of them.
func TestRetriesDoNotStarveNewChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bad = 200
		var hang atomic.Bool
		r := pickyRig(t, 0, nil)
		r.p.dests["data"].store.Objects = &picky{r.store, func(ctx context.Context, p archive.Put) error {
			if !strings.HasPrefix(p.Key, "pre/bad/") {
				return nil
			}
			if hang.Load() {
				<-ctx.Done()
				return ctx.Err()
			}
			return remoteError(archive.ClassTransient, "InternalError", 500, errors.New("this key's shard is down"))
		}}
		r.start()
		for i := range bad {
			p := fmt.Sprintf("bad/f%03d", i)
			r.write(p, []byte("x"))
			r.offer(archive.TriggerStartup, p)
		}
		time.Sleep(2 * time.Hour)
		for i := range 20 {
			hang.Store(i >= 10)
			p := fmt.Sprintf("new%02d", i)
			r.write(p, []byte(p))
			r.offer(archive.TriggerEvent, p)
			start := time.Now()
			r.until("the new file is there", func() bool { _, _, ok := r.store.object("pre/" + p); return ok })
			if took := time.Since(start); took > 16*time.Second {
				t.Errorf("the %d. new file waited %v behind the retries, want no more than one probe", i+1, took)
			}
			time.Sleep(time.Minute)
		}
	})
}

// A file that fails for long for a cause that may pass is a state, then a record;
// nobody who waits for the others waits for it, and it goes on being tried.
func TestAFileThatKeepsFailingIsSeen(t *testing.T) {
	for name, c := range map[string]struct {
		err      error
		class    archive.Class
		passes   time.Duration // until a barrier passes it
		recorded time.Duration
	}{
		"EIO":         {localfile.Unreadable("read", syscall.EIO), archive.ClassFile, 0, 20 * time.Minute},
		"ESTALE":      {localfile.Unreadable("open", syscall.ESTALE), archive.ClassFile, 0, 20 * time.Minute},
		"504":         {remoteError(archive.ClassTransient, "GatewayTimeout", 504, errors.New("no")), archive.ClassTransient, 20 * time.Minute, 3 * time.Hour},
		"409 forever": {archive.ErrConcurrent, archive.ClassTransient, 20 * time.Minute, 3 * time.Hour},
		"412 forever": {localfile.Local(archive.ClassTransient, "compare", remote.ErrUnsteady), archive.ClassTransient, 20 * time.Minute, 3 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := pickyRig(t, 0, nil)
				healed := atomic.Bool{}
				r.p.dests["data"].store.Objects = &picky{r.store, func(_ context.Context, p archive.Put) error {
					if p.Key != "pre/bad" || healed.Load() {
						return nil
					}
					return c.err
				}}
				r.start()
				r.write("bad", []byte("x"))
				r.write("good", []byte("y"))
				r.offer(archive.TriggerEvent, "bad", "good")
				time.Sleep(time.Second)
				time.Sleep(c.passes)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if err := r.q.Source("data").Barrier(ctx); err != nil {
					t.Errorf("a barrier waits for the file after %v: %v", c.passes, err)
				}
				time.Sleep(20 * time.Minute)
				f := r.p.Failing("data")
				if f.Files != 1 || f.Since.IsZero() {
					t.Errorf("Failing = %+v, want the file", f)
				}
				time.Sleep(c.recorded)
				if n := r.p.Parked("data")[c.class]; n != 1 {
					t.Errorf("%v are parked, want one of class %s", r.p.Parked("data"), c.class)
				}
				healed.Store(true)
				time.Sleep(16 * time.Minute)
				if f := r.p.Failing("data"); f.Files != 0 || len(r.p.Parked("data")) != 0 {
					t.Errorf("Failing = %+v, parked %v after it was taken, want none", f, r.p.Parked("data"))
				}
				r.wantTrail("uploaded", "failed/"+string(c.class), "uploaded")
			})
		})
	}
}

// An outage makes no records of failures, however long it is.
func TestAnOutageIsNoFailureOfAFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, proven)
		down := fault{op: "Put", times: 1 << 20, err: reset()}
		r.store.plan(down)
		r.store.plan(fault{op: "Head", times: 1 << 20, err: reset()})
		r.store.plan(fault{op: "Ping", times: 1 << 20, err: reset()})
		r.start()
		for i := range 30 {
			p := fmt.Sprintf("f%02d", i)
			r.write(p, []byte(p))
			r.offer(archive.TriggerEvent, p)
		}
		time.Sleep(12 * time.Hour)
		if n := len(r.trail()); n != 0 {
			t.Errorf("%d records, want none", n)
		}
		r.store.heal()
		time.Sleep(time.Hour)
		if n := len(r.trail()); n != 30 {
			t.Errorf("%d records after the outage, want 30", n)
		}
		if f := r.p.Failing("data"); f.Files != 0 {
			t.Errorf("Failing = %+v, want none", f)
		}
	})
}
