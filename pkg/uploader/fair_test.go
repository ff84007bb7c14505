package uploader

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/s3syncd/s3syncd/pkg/state"
)

// Files that fail again and again do not keep new ones waiting: not when their
// retries hang, and not when there are a great many of them.
func TestRetriesDoNotStarveNewChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bad = 200
		var hang atomic.Bool
		r := pickyRig(t, 0, nil)
		r.p.dests["data"].Objects = &picky{r.store, func(ctx context.Context, p state.Put) error {
			if !strings.HasPrefix(p.Key, "pre/bad/") {
				return nil
			}
			if hang.Load() {
				<-ctx.Done()
				return ctx.Err()
			}
			return remote(state.ClassTransient, "InternalError", 500, errors.New("this key's shard is down"))
		}}
		r.start()
		for i := range bad {
			p := fmt.Sprintf("bad/f%03d", i)
			r.write(p, []byte("x"))
			r.offer(state.TriggerStartup, p)
		}
		time.Sleep(2 * time.Hour)
		for i := range 20 {
			hang.Store(i >= 10)
			p := fmt.Sprintf("new%02d", i)
			r.write(p, []byte(p))
			r.offer(state.TriggerEvent, p)
			start := time.Now()
			r.until("the new file is there", func() bool { _, _, ok := r.store.object("pre/" + p); return ok })
			if took := time.Since(start); took > 16*time.Second {
				t.Errorf("the %d. new file waited %v behind the retries, want no more than one probe", i+1, took)
			}
			time.Sleep(time.Minute)
		}
	})
}
