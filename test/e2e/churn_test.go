package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// churn is one writer: a sequence of operations on a tree that its seed alone
// decides, whatever the others do to the same names meanwhile.
type churn struct {
	dir, outside string // on one file system
	swaps        bool   // files take the place of directories and the other way
	rng          *rand.Rand
	n            int         // of the operation
	names        *sync.Mutex // of linked files; all writers have the same
}

// churnOps are the ways in which a tree changes. Most errors of an operation
// are those of a race with the other writers, and mean nothing.
func (c *churn) churnOps() []func() {
	ops := []func(){
		c.create, c.create, c.create, c.appendTo, c.truncate, c.renameFile, c.renameOver, c.remove,
		c.chmod, c.chain, c.renameDir, c.moveOut, c.moveIn, c.moveInNew, c.recreate, c.removeDir,
		c.link, c.unlink, c.writeLinked, c.symlink,
	}
	if c.swaps {
		ops = append(ops, c.dirToFile, c.dirToFile, c.fileToDir)
	}
	return ops
}

// step does the next operation.
func (c *churn) step() {
	c.n++
	ops := c.churnOps()
	ops[c.rng.IntN(len(ops))]()
}

// content is different for each operation of each writer.
func (c *churn) content() []byte {
	return []byte(strings.Repeat(fmt.Sprintf("%d %x\n", c.n, c.rng.Uint64()), 1+c.rng.IntN(20)))
}

// somewhere is one of some 300 directories, which may be there or not.
func (c *churn) somewhere() string {
	p := c.dir
	for range c.rng.IntN(4) {
		p = filepath.Join(p, []string{"d0", "d1", "d 2", "d3", "d\xff4"}[c.rng.IntN(5)])
	}
	return p
}

// below is somewhere, but not the source itself.
func (c *churn) below() string {
	for {
		if p := c.somewhere(); p != c.dir {
			return p
		}
	}
}

func (c *churn) file() string {
	return filepath.Join(c.somewhere(), []string{"f0", "f1", "f2", "f3.txt", ".f4", "f\xfe\n5", "ü6", "a%41"}[c.rng.IntN(8)])
}

// linked is a name for a file with several: in directories that never leave the
// source, because a write through a name outside of it tells nobody here.
func (c *churn) linked() string {
	return filepath.Join(c.dir, "links", strconv.Itoa(c.rng.IntN(3)), "l"+strconv.Itoa(c.rng.IntN(6)))
}

func (c *churn) away() string { return filepath.Join(c.outside, strconv.Itoa(c.rng.IntN(6))) }

func (c *churn) put(path string) {
	_ = os.WriteFile(path, c.content(), 0o644)
}

// populate makes a directory with files and subdirectories at once.
func (c *churn) populate(dir string) {
	for _, sub := range []string{"", "d0", "d1/d3"} {
		if os.MkdirAll(filepath.Join(dir, sub), 0o755) == nil {
			c.put(filepath.Join(dir, sub, "f0"))
			c.put(filepath.Join(dir, sub, "f"+strconv.Itoa(c.rng.IntN(3))))
		}
	}
}

func (c *churn) create() { c.put(c.file()) }

func (c *churn) appendTo() {
	if f, err := os.OpenFile(c.file(), os.O_WRONLY|os.O_APPEND, 0); err == nil {
		_, _ = f.Write(c.content())
		_ = f.Close()
	}
}

func (c *churn) truncate()   { _ = os.Truncate(c.file(), int64(c.rng.IntN(40))) }
func (c *churn) renameFile() { _ = os.Rename(c.file(), c.file()) }
func (c *churn) remove()     { _ = os.Remove(c.file()) }
func (c *churn) chmod()      { _ = os.Chmod(c.file(), os.FileMode(0o600+c.rng.IntN(0o100))) }

// renameOver is how editors and rsync write.
func (c *churn) renameOver() {
	to := c.file()
	tmp := fmt.Sprintf("%s.tmp%d", to, c.rng.IntN(1e6))
	c.put(tmp)
	_ = os.Rename(tmp, to)
}

func (c *churn) chain() {
	p := c.somewhere()
	if os.MkdirAll(p, 0o755) == nil {
		for ; strings.HasPrefix(p, c.dir); p = filepath.Dir(p) {
			c.put(filepath.Join(p, "at-once"))
		}
	}
}

func (c *churn) renameDir() { _ = os.Rename(c.below(), c.below()) }
func (c *churn) moveOut()   { _ = os.Rename(c.below(), c.away()) }
func (c *churn) moveIn()    { _ = os.Rename(c.away(), c.below()) }
func (c *churn) removeDir() { _ = os.RemoveAll(c.below()) }

func (c *churn) moveInNew() {
	tmp := filepath.Join(c.outside, fmt.Sprintf("new%d", c.rng.IntN(1e6)))
	c.populate(tmp)
	_ = os.Rename(tmp, c.below())
	_ = os.RemoveAll(tmp)
}

func (c *churn) recreate() {
	p := c.below()
	_ = os.RemoveAll(p)
	c.populate(p)
}

func (c *churn) link() {
	c.names.Lock()
	defer c.names.Unlock()
	to := c.linked()
	_ = os.MkdirAll(filepath.Dir(to), 0o755)
	if os.Link(c.linked(), to) != nil {
		c.put(to)
	}
}

// unlink removes a name only when the file has not been touched for a while. A
// name that is gone before it was looked at tells nobody whose other name it
// was, so a write through it would be found by the next scan alone.
func (c *churn) unlink() {
	c.names.Lock()
	defer c.names.Unlock()
	path := c.linked()
	if st, err := os.Lstat(path); err == nil && time.Since(changedAt(st)) > seen {
		_ = os.Remove(path)
	}
}

func (c *churn) writeLinked() {
	c.names.Lock()
	defer c.names.Unlock()
	c.put(c.linked())
}

// seen is when an event has been looked at, on a busy machine too.
const seen = 1500 * time.Millisecond

func changedAt(st os.FileInfo) time.Time {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return time.Now()
	}
	return time.Unix(sys.Ctim.Unix())
}

func (c *churn) dirToFile() {
	p := c.below()
	_ = os.RemoveAll(p)
	c.put(p)
}

func (c *churn) fileToDir() {
	p := c.below()
	_ = os.Remove(p)
	c.populate(p)
}

func (c *churn) symlink() {
	p := c.file()
	_ = os.Remove(p)
	_ = os.Symlink([]string{"f0", "..", "/etc/passwd", "nowhere"}[c.rng.IntN(4)], p)
}

// writers is how many change a tree at once.
const writers = 8

// seed is that of S3SYNCD_SEED, or a new one. It is printed, so that a failure
// can be tried again.
func seed(t *testing.T) uint64 {
	t.Helper()
	s := uint64(time.Now().UnixNano())
	if v := os.Getenv("S3SYNCD_SEED"); v != "" {
		var err error
		if s, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("S3SYNCD_SEED: %v", err)
		}
	}
	t.Logf("S3SYNCD_SEED=%d", s)
	return s
}

// churn lets the writers do so many operations each, one in every pause (0: as
// fast as they can), and returns when they have.
func (s *site) churn(t *testing.T, seed uint64, ops int, pause time.Duration) {
	t.Helper()
	outside := filepath.Join(filepath.Dir(s.dir), "outside")
	if err := os.MkdirAll(outside, 0o755); err != nil {
		t.Errorf("churn: %v", err) // Not Fatal: this need not be the test's goroutine.
		return
	}
	var wg sync.WaitGroup
	var names sync.Mutex
	for i := range writers {
		wg.Go(func() {
			c := &churn{dir: s.dir, outside: outside, swaps: s.server == nil, rng: rand.New(rand.NewPCG(seed, uint64(i))), names: &names}
			pace(t.Context(), ops, pause, c.step)
		})
	}
	wg.Wait()
}

// pace calls f so many times, once in every pause.
func pace(ctx context.Context, times int, pause time.Duration, f func()) {
	if pause == 0 {
		for range times {
			f()
		}
		return
	}
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for range times {
		select {
		case <-tick.C:
			f()
		case <-ctx.Done():
			return
		}
	}
}
