package watcher

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"
)

// churn changes the tree in every way that has no events missing by design,
// until its context ends.
type churn struct {
	dir     string
	outside string
	rng     *rand.Rand
	ops     int
}

func (c *churn) somewhere() string {
	p := c.dir
	for range c.rng.IntN(4) {
		p = filepath.Join(p, fmt.Sprintf("d%d", c.rng.IntN(4)))
	}
	return p
}

func (c *churn) file() string { return filepath.Join(c.somewhere(), fmt.Sprintf("f%d", c.rng.IntN(8))) }

// step does one operation. Most errors are those of a race with the others.
func (c *churn) step() {
	c.ops++
	switch c.rng.IntN(12) {
	case 0, 1:
		p := c.somewhere()
		os.MkdirAll(p, 0o755)
		os.WriteFile(filepath.Join(p, "at-once"), []byte(strconv.Itoa(c.ops)), 0o644)
	case 2, 3, 4:
		os.WriteFile(c.file(), []byte(strconv.Itoa(c.ops)), 0o644)
	case 5:
		// The source itself can be moved: into a directory that another writer is
		// just moving out of it.
		if p := c.somewhere(); p != c.dir {
			os.Rename(p, c.somewhere())
		}
	case 6:
		os.Rename(c.file(), c.file())
	case 7:
		os.Remove(c.file())
	case 8:
		if p := c.somewhere(); p != c.dir {
			os.RemoveAll(p)
		}
	case 9:
		if p := c.somewhere(); p != c.dir {
			os.Rename(p, filepath.Join(c.outside, strconv.Itoa(c.rng.IntN(8))))
		}
	case 10:
		os.Rename(filepath.Join(c.outside, strconv.Itoa(c.rng.IntN(8))), c.somewhere()+"/d0")
	case 11:
		os.Chmod(c.file(), os.FileMode(0o600+c.rng.IntN(0o100)))
	}
}

// Four writers change the tree as fast as they can; no scan may help unless
// events were lost.
func TestStress(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := newRig(t, nil)
	outside := r.dir + "-outside"
	r.must(os.Mkdir(outside, 0o755))
	r.start()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	var ops [4]int
	for i := range ops {
		wg.Go(func() {
			c := &churn{dir: r.dir, outside: outside, rng: rand.New(rand.NewPCG(seed, uint64(i)))}
			for ctx.Err() == nil {
				c.step()
			}
			ops[i] = c.ops
		})
	}
	wg.Wait()
	r.agrees()
	if r.metric("event_overflows_total") == 0 {
		r.noScanHelped()
	}
	dirs := 0
	filepath.WalkDir(r.dir, func(_ string, e os.DirEntry, _ error) error {
		if e.IsDir() {
			dirs++
		}
		return nil
	})
	r.eventually("every directory is watched", func() bool { return r.metric("watched_directories") == float64(dirs) })
	wait(context.Background(), 1200*time.Millisecond) // Beyond eventMargin.
	for len(r.scans) > 0 {
		<-r.scans
	}
	if s := r.rescan(); s.Missed+s.New+s.Changed+s.Gone != 0 {
		t.Errorf("the rescan found new %d, changed %d, gone %d, missed %d", s.New, s.Changed, s.Gone, s.Missed)
	}
	t.Logf("%v operations, %v overflows", ops, r.metric("event_overflows_total"))
}
