package uploader

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// beside adds a second source with a store of its own to the rig.
func (r *rig) beside(hangs *Source) (dir string, other Source) {
	r.t.Helper()
	dir = r.t.TempDir()
	other = r.src
	other.Name, other.Root, other.RealPath, other.Mapper = "other", safefs.NewRoot(dir, safefs.RootOptions{}), dir, archive.NewMapper("x")
	var err error
	if other.State, err = r.db.Source(r.t.Context(), state.SourceKey{Bucket: "b", Prefix: "x", RealPath: dir}); err != nil {
		r.t.Fatal(err)
	}
	if err := other.State.BeginChain(r.t.Context(), "0a1b2c3e", archive.BeginsNew, "", ""); err != nil {
		r.t.Fatal(err)
	}
	r.q = queue.New(1000)
	if r.p, err = New(r.q, []Source{*hangs, other}, r.o); err != nil {
		r.t.Fatal(err)
	}
	return dir, other
}

// Whatever a source has on its way to a destination that takes nothing, another
// source's files pass: small ones and such as need a slot or much memory.
func TestASlowDestinationLeavesOthersTheirShare(t *testing.T) {
	for name, c := range map[string]struct {
		files int
		size  int
	}{
		"files in parts":         {16, 600 << 10},
		"files that fill memory": {40, 200 << 10},
		"many small files":       {200, 4 << 10},
		"many tiny files":        {200, 10},
	} {
		for _, workers := range []int{1, 2, 4, 16} {
			t.Run(fmt.Sprintf("%s, %d workers", name, workers), func(t *testing.T) {
				r := newRig(t, func(s *Source, o *Options) {
					s.Proven, o.Workers, o.MemoryLimit, o.Drain = true, workers, 4<<20, time.Millisecond
				})
				hangs := r.src
				hangs.Objects = &picky{r.store, func(ctx context.Context, _ archive.Put) error { <-ctx.Done(); return ctx.Err() }}
				hangs.Multipart = &slowParts{store: r.store, let: make(chan struct{})}
				dir, _ := r.beside(&hangs)
				for i := range c.files {
					path := fmt.Sprintf("f%d", i)
					r.write(path, pattern(c.size, byte(i)))
					r.offer(archive.TriggerStartup, path)
				}
				r.start()
				r.until("the first source has attempts under way", func() bool { _, in, _ := r.q.Source("data").Depth(); return in > 0 })
				for path, size := range map[string]int{"tiny": 10, "small": 30 << 10, "whole": 200 << 10, "parts": 700 << 10} {
					if err := os.WriteFile(filepath.Join(dir, path), pattern(size, 1), 0o600); err != nil {
						t.Fatal(err)
					}
					r.offerJob(queue.Job{Source: "other", Path: path, Trigger: archive.TriggerEvent})
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if err := r.q.Source("other").Wait(ctx); err != nil {
					t.Errorf("the other source waits for %v: %v", r.q.Source("other").Paths(), err)
				}
			})
		}
	}
}

// Where nothing of some size gets through, smaller files of the same source do.
func TestSmallFilesPassStalledOnes(t *testing.T) {
	for _, limit := range []int64{queue.TinyMax, queue.SmallMax, 200 << 10} {
		for _, workers := range []int{1, 2, 16} {
			t.Run(fmt.Sprintf("%d bytes, %d workers", limit, workers), func(t *testing.T) {
				r := newRig(t, func(s *Source, o *Options) {
					s.Proven, o.Workers, o.MemoryLimit, o.Drain = true, workers, 4<<20, time.Millisecond
				})
				r.p.dests["data"].store.Objects = &picky{r.store, func(ctx context.Context, p archive.Put) error {
					if p.Size <= limit {
						return nil
					}
					<-ctx.Done()
					return ctx.Err()
				}}
				r.p.dests["data"].store.Multipart = &slowParts{store: r.store, let: make(chan struct{})}
				for i := range 100 {
					path := fmt.Sprintf("stalled%d", i)
					r.write(path, pattern(int(limit)+1+i, byte(i)))
					r.offer(archive.TriggerStartup, path)
				}
				r.start()
				r.until("requests are stalled", func() bool { _, in, _ := r.q.Source("data").Depth(); return in > 0 })
				for i := range 10 {
					path := fmt.Sprintf("small%d", i)
					r.write(path, pattern(300, byte(i)))
					r.offer(archive.TriggerEvent, path)
				}
				r.until("the small ones are there", func() bool {
					n := 0
					for i := range 10 {
						if _, _, ok := r.store.object(fmt.Sprintf("pre/small%d", i)); ok {
							n++
						}
					}
					return n == 10
				})
			})
		}
	}
}
