package state

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/s3syncd/s3syncd/internal/boltfile"
	"github.com/s3syncd/s3syncd/internal/codec"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// playRole is the whole life of a test process that another test started.
func playRole(role string) int {
	roles := map[string]func(dir string) error{"writer": playWriter, "brief writer": playBriefWriter, "full disk": playFullDisk, "holder": playHolder, "guest": playGuest}
	if err := roles[role]("."); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// startRole starts this test binary again as role.
func startRole(t *testing.T, role, dir string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), must(os.Executable())(t))
	cmd.Env = append(os.Environ(), "STATE_TEST_ROLE="+role)
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	out := must(cmd.StdoutPipe())(t)
	check(t, cmd.Start())
	return cmd, bufio.NewScanner(out)
}

// playWriter writes all it can and prints what was acknowledged, until it is
// killed.
func playWriter(dir string) error {
	db, err := Open(dir, testOptions())
	if err != nil {
		return err
	}
	s, err := db.Source(context.Background(), testKey)
	if err != nil {
		return err
	}
	ctx := context.Background()
	if c, _ := s.Chain(); c.ID == "" {
		if err := s.BeginChain(ctx, testChain, archive.BeginsNew, "", ""); err != nil {
			return err
		}
	}
	failed := make(chan error)
	for w := range 8 {
		go func() {
			for i := 0; ; i++ {
				if err := writeOne(ctx, s, fmt.Sprintf("%d/%d", w, i%50), i); err != nil {
					failed <- err
				}
			}
		}()
	}
	go func() {
		for i := 0; ; i++ {
			if err := sealAndPublish(ctx, s, i); err != nil {
				failed <- err
			}
		}
	}()
	return <-failed
}

// playBriefWriter writes for a while as playWriter does, with a reopening in
// the middle, and prints what was acknowledged.
func playBriefWriter(dir string) error {
	ctx := context.Background()
	for round := range 2 {
		db, err := Open(dir, testOptions())
		if err != nil {
			return err
		}
		s, err := db.Source(ctx, testKey)
		if err != nil {
			return err
		}
		if round == 0 {
			if err := s.BeginChain(ctx, testChain, archive.BeginsNew, "", ""); err != nil {
				return err
			}
		}
		var group errgroup.Group
		for w := range 4 {
			group.Go(func() error {
				for i := range 15 {
					if err := writeOne(ctx, s, fmt.Sprintf("%d/%d", w, i), i+round); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		if err := sealAndPublish(ctx, s, round); err != nil {
			return err
		}
		if err := db.Close(); err != nil {
			return err
		}
	}
	return nil
}

func writeOne(ctx context.Context, s *Source, path string, i int) error {
	o := uploaded(path, i)
	open, err := s.Intent(o.Key)
	if err != nil {
		return err
	}
	for _, in := range open { // Left by the process before.
		if err := s.DropIntent(ctx, in.Key, in.Attempt); err != nil {
			return err
		}
	}
	o.Settles, err = s.Begin(ctx, archive.Intent{Path: path, Key: o.Key})
	if err != nil {
		return err
	}
	o.Entry.Attempt, o.Record.Attempt = o.Settles, o.Settles
	id, err := s.Commit(ctx, o)
	if err != nil {
		return err
	}
	_, err = fmt.Printf("%s %d %s\n", path, o.Settles, id)
	return err
}

func sealAndPublish(ctx context.Context, s *Source, i int) error {
	c, err := s.Chain()
	if err != nil {
		return err
	}
	d, ref := manifestDoc(fmt.Sprint("m", i), c.NextRecord-1)
	if err := s.SealManifest(ctx, d, ref, day); err != nil {
		return err
	}
	counts := c.Counts // Of exactly the records that are sealed.
	if c, err = s.Chain(); err != nil {
		return err
	}
	c.Counts = counts
	if err := s.SealDigest(ctx, archive.Doc{Kind: archive.KindDigest, LastRecord: c.SealedTo}, c, day, day); err != nil {
		return err
	}
	docs, err := s.Outbox()
	for _, d := range docs {
		err = errors.Join(err, s.Published(ctx, d.Number))
	}
	return err
}

func TestNothingAcknowledgedIsLostByKilling(t *testing.T) {
	dir := t.TempDir()
	acked := map[string]uint64{} // the newest attempt of each path
	ids := map[string]bool{}
	for round := range 8 {
		cmd, lines := startRole(t, "writer", dir)
		// So many acknowledgements first, however slow the machine is, and then at
		// any moment.
		left := 20 + rand.IntN(60)
		var kill *time.Timer
		for lines.Scan() {
			var path, id string
			var attempt uint64
			if n, _ := fmt.Sscanf(lines.Text(), "%s %d %s", &path, &attempt, &id); n != 3 {
				continue // The last line may be cut.
			}
			if ids[id] {
				t.Errorf("round %d: the id %s was given twice", round, id)
			}
			ids[id] = true
			acked[path] = max(acked[path], attempt)
			if left--; left == 0 {
				kill = time.AfterFunc(time.Duration(rand.IntN(20_000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
			}
		}
		if err := cmd.Wait(); kill == nil || kill.Stop() || err == nil {
			t.Fatalf("round %d: the writer ended by itself: %v", round, err)
		}
		checkAfterCrash(t, dir, acked, round)
	}
}

func checkAfterCrash(t *testing.T, dir string, acked map[string]uint64, round int) {
	t.Helper()
	db := openDB(t, dir, testOptions())
	defer closeDB(t, db)
	if r := db.Report(); r.SetAside != "" || r.New || !r.Unclean {
		// A writer that was killed before it had opened the state leaves it clean.
		if r.SetAside != "" || len(acked) > 0 && r.New {
			t.Fatalf("round %d: Report() = %+v", round, r)
		}
	}
	s := must(db.Source(t.Context(), testKey))(t)
	for path, attempt := range acked {
		if e, ok, err := s.Get(path); !ok || err != nil || e.Attempt < attempt {
			t.Errorf("round %d: Get(%s) = attempt %d, %v, %v, want at least %d", round, path, e.Attempt, ok, err, attempt)
		}
	}
	var files, size int64
	for _, item := range must(s.Range("", 1<<20, nil))(t) {
		files, size = files+1, size+item.Entry.Fence.Size
	}
	if f, b := s.Totals(); f != files || b != size {
		t.Errorf("round %d: Totals() = %d, %d, want %d, %d", round, f, b, files, size)
	}
	c := must(s.Chain())(t)
	lines := readAll(t, s)
	for n := c.SealedTo + 1; n < c.NextRecord; n++ {
		if !strings.Contains(lines[n], fmt.Sprintf(`"id":"%s-%d"`, testChain, n)) {
			t.Errorf("round %d: unsealed record %d = %q", round, n, lines[n])
		}
	}
	if got, want := c.Counts[archive.StatusUploaded], int64(c.NextRecord-1-c.SealedTo); got < want {
		t.Errorf("round %d: Counts = %d, want at least the %d unsealed records", round, got, want)
	}
	check(t, db.view("test", func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			t.Errorf("round %d: %v", round, err)
		}
		return nil
	}))
}

func TestFullDiskRefusesAndRecovers(t *testing.T) {
	cmd, lines := startRole(t, "full disk", t.TempDir())
	for lines.Scan() {
		t.Log(lines.Text())
	}
	check(t, cmd.Wait())
}

// playFullDisk lets writes fail in two ways, by a limit on the size of files:
// the file cannot grow, and a write into it fails halfway.
func playFullDisk(dir string) error {
	db, err := Open(dir, testOptions())
	if err != nil {
		return err
	}
	s, err := db.Source(context.Background(), testKey)
	if err != nil {
		return err
	}
	if err := s.BeginChain(context.Background(), testChain, archive.BeginsNew, "", ""); err != nil {
		return err
	}
	acked := map[string]bool{}
	for round, limit := range []uint64{uint64(db.Size()) + 100<<10, 10 << 10, uint64(db.Size()) + 8<<20} {
		refused := 0
		err := withLimit(limit, func() {
			for i := range 40 {
				refused += writeBatch(s, fmt.Sprintf("%d-%d", round, i), acked)
			}
		})
		if err != nil {
			return err
		}
		if refused == 0 {
			return fmt.Errorf("round %d: nothing was refused", round)
		}
		if n := writeBatch(s, fmt.Sprint("after ", round), acked); n > 0 {
			return fmt.Errorf("round %d: %d commits were refused with space again", round, n)
		}
		if err := verifyAcked(s, acked); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
	}
	if err := db.Close(); err != nil {
		return err
	}
	if db, err = Open(dir, testOptions()); err != nil {
		return err
	}
	if r := db.Report(); r != (Report{}) {
		return fmt.Errorf("report = %+v", r)
	}
	if s, err = db.Source(context.Background(), testKey); err != nil {
		return err
	}
	return errors.Join(verifyAcked(s, acked), db.Close())
}

// writeBatch commits 50 large entries at once and returns how many failed.
func writeBatch(s *Source, name string, acked map[string]bool) (refused int) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			o := uploaded(fmt.Sprintf("%s/%d", name, i), i)
			o.Record.Error = strings.Repeat("x", 5000)
			_, err := s.Commit(context.Background(), o)
			mu.Lock()
			defer mu.Unlock()
			acked[o.Path] = err == nil
			if err != nil {
				refused++
			}
		})
	}
	wg.Wait()
	return refused
}

func withLimit(limit uint64, fn func()) error {
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: limit, Max: was.Max}); err != nil {
		return err
	}
	fn()
	return unix.Setrlimit(unix.RLIMIT_FSIZE, &was)
}

// verifyAcked checks that the acknowledged outcomes are there and no others.
func verifyAcked(s *Source, acked map[string]bool) error {
	n := int64(0)
	for path, want := range acked {
		if _, ok, err := s.Get(path); ok != want || err != nil {
			return fmt.Errorf("get %s = %v, %w, want %v", path, ok, err, want)
		}
		if want {
			n++
		}
	}
	records := int64(0)
	c, _ := s.Chain()
	err := s.Records(0, c.NextRecord-1, func(uint64, archive.Status, []byte) error { records++; return nil })
	if files, _ := s.Totals(); files != n || records != n || c.NextRecord != uint64(n)+1 {
		err = errors.Join(err, fmt.Errorf("%d files, %d records, next record %d, want %d", files, records, c.NextRecord, n))
	}
	return err
}

func playHolder(dir string) error {
	if _, err := Open(dir, testOptions()); err != nil {
		return err
	}
	fmt.Println("open")
	select {}
}

func TestLockOfAKilledProcessIsNoObstacle(t *testing.T) {
	dir := t.TempDir()
	cmd, lines := startRole(t, "holder", dir)
	if !lines.Scan() {
		t.Fatal("the holder did not open the state")
	}
	_, err := Open(dir, testOptions())
	if locked, ok := errors.AsType[*LockedError](err); !ok || locked.PID != cmd.Process.Pid {
		t.Errorf("Open = %v, want a LockedError with pid %d", err, cmd.Process.Pid)
	}
	check(t, cmd.Process.Signal(syscall.SIGKILL))
	_ = cmd.Wait()
	if got, want := openDB(t, dir, testOptions()).Report(), (Report{Unclean: true}); got != want {
		t.Errorf("Report() = %+v, want %+v", got, want)
	}
}

// A commit whose last fsync fails has changed a meta page: everyone can see
// what no one was told. It must be gone before the next change is made.
func TestCommitThatFailedInItsLastStepIsUndone(t *testing.T) {
	db, s := openTestSource(t, t.TempDir())
	commitN(t, s, 20)
	before := must(s.Chain())(t)
	metas := must(boltfile.ReadMetas(db.file))(t)
	check(t, db.bolt.Update(func(tx *bolt.Tx) error {
		st, err := openSource(tx, s.id)
		if err != nil {
			return err
		}
		for n := before.NextRecord; n < before.NextRecord+200; n++ {
			key := recordKey(0, n)
			if err := st.records.Put(key, must(codec.EncodeRecord(key, archive.StatusFailed, []byte("{}")))(t)); err != nil {
				return err
			}
		}
		return st.root.Bucket([]byte(bucketFiles)).Delete([]byte("3"))
	}))
	db.before = metas // As finish leaves it when the commit has returned an error.
	if id := must(s.Commit(t.Context(), uploaded("next", 1)))(t); id != archive.RecordID(testChain, before.NextRecord) {
		t.Errorf("Commit = %s, want number %d", id, before.NextRecord)
	}
	if _, ok, err := s.Get("3"); !ok || err != nil {
		t.Errorf("Get of what the failed commit deleted = %v, %v, want it", ok, err)
	}
	if got := storedRecords(t, s); got != 22-1 {
		t.Errorf("%d records, want 21", got)
	}
	check(t, db.view("test", func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			t.Error(err)
		}
		return nil
	}))
}
