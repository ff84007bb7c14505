package state

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

func TestCommitStoresEntryRecordAndIntentTogether(t *testing.T) {
	dir := t.TempDir()
	db, s := openTestSource(t, dir)
	in := archive.Intent{
		Op: archive.OpMultipart, Path: "d/\xff", Key: "backups/app/d/%FF", Fence: testEntry(5).Fence, Attributes: archive.Attributes{Mode: 0o600, UID: 1, GID: 2}, Racy: true,
		MD5: [16]byte{3}, SHA256: [32]byte{4}, Trigger: archive.TriggerRescan, DetectedAt: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
		Replaces: archive.Object{ETag: "e", VersionID: "v"}, PartSize: 5 << 20,
	}
	in.Attempt = must(s.Begin(t.Context(), in))(t)
	check(t, s.Attempt(t.Context(), in.Attempt, in.Key, func(i *archive.Intent) { i.UploadID, i.Key, i.Attempt = "upload", "other", 99 }))
	in.UploadID = "upload"
	closeDB(t, db)

	db, s = openTestSource(t, dir)
	if got := must(s.Intents())(t); !reflect.DeepEqual(got, []archive.Intent{in}) {
		t.Fatalf("Intents() = %+v, want %+v", got, in)
	}
	o := uploaded(in.Path, 5)
	o.Key, o.Settles = in.Key, in.Attempt
	id := must(s.Commit(t.Context(), o))(t)
	if want := testChain + "-1"; id != want || o.Record.ID != want || o.Record.Chain != testChain || o.Record.Timestamp == "" {
		t.Errorf("Commit = %s, record %+v, want the id %s", id, o.Record, want)
	}
	closeDB(t, db)

	_, s = openTestSource(t, dir)
	if got := must(s.Intents())(t); len(got) != 0 {
		t.Errorf("Intents() after Commit = %+v, want none", got)
	}
	e, ok, err := s.Get(in.Path)
	if !reflect.DeepEqual(e, *o.Entry) || !ok || err != nil {
		t.Errorf("Get = %+v, %v, %v, want %+v", e, ok, err, *o.Entry)
	}
	want := string(o.Record.AppendLine(nil))
	if got := readAll(t, s); !reflect.DeepEqual(got, map[uint64]string{1: want}) {
		t.Errorf("Records = %v, want %s", got, want)
	}
}

// readAll returns the lines of all stored records and checks their order.
func readAll(tb testing.TB, s *Source) map[uint64]string {
	tb.Helper()
	lines, last := map[uint64]string{}, uint64(0)
	check(tb, s.Records(0, must(s.Chain())(tb).NextRecord-1, func(n uint64, _ archive.Status, line []byte) error {
		if n <= last {
			tb.Errorf("record %d after %d", n, last)
		}
		lines[n], last = string(line), n
		return nil
	}))
	return lines
}

func TestKeyIsBusyUntilItsIntentEndsOrIsUnresolved(t *testing.T) {
	_, s := openTestSource(t, t.TempDir())
	first := must(s.Begin(t.Context(), archive.Intent{Key: "k", Path: "k"}))(t)
	if _, err := s.Begin(t.Context(), archive.Intent{Key: "k", Path: "k"}); !errors.Is(err, ErrKeyBusy) {
		t.Errorf("second Begin = %v, want ErrKeyBusy", err)
	}
	must(s.Begin(t.Context(), archive.Intent{Key: "k2", Path: "k2"}))(t) // A longer key is another key.
	check(t, s.Attempt(t.Context(), first, "k", func(i *archive.Intent) { i.Unresolved = true }))
	second := must(s.Begin(t.Context(), archive.Intent{Key: "k", Path: "k"}))(t)
	if second <= first {
		t.Errorf("attempts %d, %d, want them to increase", first, second)
	}
	open := must(s.Intent("k"))(t)
	if len(open) != 2 || open[0].Attempt != first || open[1].Attempt != second {
		t.Errorf("Intent(k) = %+v, want %d and %d", open, first, second)
	}
	check(t, s.DropIntent(t.Context(), "k", first))
	check(t, s.DropIntent(t.Context(), "k", first))
	if err := s.Attempt(t.Context(), first, "k", func(*archive.Intent) {}); !errors.Is(err, ErrNoIntent) {
		t.Errorf("Attempt after DropIntent = %v, want ErrNoIntent", err)
	}
	if got := must(s.Intents())(t); len(got) != 2 {
		t.Errorf("Intents() = %+v, want 2", got)
	}
}

func TestRangeVisitsEveryPathOnceInOrder(t *testing.T) {
	_, s := openTestSource(t, t.TempDir())
	var want []string
	for i := range 500 {
		want = append(want, fmt.Sprintf("d%03d/%c\xff", rand.IntN(1000), 'a'+i%26))
	}
	for i, p := range want {
		o := uploaded(p, i)
		o.Record = nil
		must(s.Commit(t.Context(), o))(t)
	}
	slices.Sort(want)
	want = slices.Compact(want)
	for _, n := range []int{1, 7, 100, 1000} {
		var got []string
		var buf []archive.Item
		for after := ""; ; after = got[len(got)-1] {
			buf = must(s.Range(after, n, buf))(t)
			for _, item := range buf {
				got = append(got, item.Path)
			}
			if len(buf) < n {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("Range in steps of %d: %d paths, want %d", n, len(got), len(want))
		}
	}
	if got := must(s.Range("d", 0, nil))(t); len(got) != 0 {
		t.Errorf("Range of 0 = %d items, want 0", len(got))
	}
}

func TestTotalsFollowTheIndex(t *testing.T) {
	dir := t.TempDir()
	db, s := openTestSource(t, dir)
	commit := func(path string, size int64, stored bool) {
		t.Helper()
		must(s.Commit(t.Context(), archive.Outcome{Path: path, Entry: &archive.Entry{Stored: stored, Fence: archive.Fence{Size: size}}}))(t)
	}
	expect := func(files, bytes int64) {
		t.Helper()
		if f, b := s.Totals(); f != files || b != bytes {
			t.Errorf("Totals() = %d, %d, want %d, %d", f, b, files, bytes)
		}
	}
	commit("a", 10, true)
	commit("b", 20, true)
	commit("c", 40, false)
	expect(2, 30)
	commit("a", 11, true)
	commit("c", 40, true)
	expect(3, 71)
	commit("b", 20, false)
	expect(2, 51)
	must(s.Commit(t.Context(), archive.Outcome{Path: "a", Remove: true}))(t)
	must(s.Commit(t.Context(), archive.Outcome{Path: "never", Remove: true}))(t)
	expect(1, 40)
	closeDB(t, db)
	_, s = openTestSource(t, dir)
	expect(1, 40)
}

func TestCommitRefusesWhatItCannotStore(t *testing.T) {
	db := openDB(t, t.TempDir(), testOptions())
	s := must(db.Source(t.Context(), testKey))(t)
	long := strings.Repeat("x", bolt.MaxKeySize+1)
	for name, o := range map[string]archive.Outcome{
		"no path":        {Entry: &archive.Entry{}},
		"long path":      {Path: long, Entry: &archive.Entry{}},
		"both":           {Path: "a", Entry: &archive.Entry{}, Remove: true},
		"unknown status": {Path: "a", Record: &archive.Record{Status: "lost"}},
	} {
		if _, err := s.Commit(t.Context(), o); err == nil {
			t.Errorf("%s: Commit = nil, want an error", name)
		}
	}
	if _, err := s.Commit(t.Context(), uploaded("a", 1)); !errors.Is(err, ErrNoChain) {
		t.Errorf("Commit without a chain = %v, want ErrNoChain", err)
	}
	if _, ok, err := s.Get("a"); ok || err != nil {
		t.Errorf("Get after a refused Commit = %v, %v, want none", ok, err)
	}
}

func TestRefusedCommitKeepsOthersOfItsBatch(t *testing.T) {
	db, s := openTestSource(t, t.TempDir())
	other := must(db.Source(t.Context(), SourceKey{Bucket: "other"}))(t) // Has no chain: its records are refused.
	boom := errors.New("boom")
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			switch i % 6 {
			case 1:
				if _, err := other.Commit(t.Context(), uploaded("x", i)); !errors.Is(err, ErrNoChain) {
					t.Errorf("Commit without a chain = %v, want ErrNoChain", err)
				}
			case 2:
				err := s.update(t.Context(), "fail", func(st *sourceTxn) error { st.NextRecord += 100; return boom })
				if !errors.Is(err, boom) {
					t.Errorf("failing change = %v, want boom", err)
				}
			case 3:
				err := s.update(t.Context(), "panic", func(st *sourceTxn) error { st.Files += 100; panic("boom") })
				if !errors.Is(err, ErrDamaged) {
					t.Errorf("panicking change = %v, want ErrDamaged", err)
				}
			default:
				if _, err := s.Commit(t.Context(), uploaded(strconv.Itoa(i), i)); err != nil {
					t.Errorf("Commit = %v, want nil", err)
				}
			}
		})
	}
	wg.Wait()
	if got := len(readAll(t, s)); got != 30 {
		t.Errorf("%d records, want 30", got)
	}
	if c := must(s.Chain())(t); c.NextRecord != 31 || c.Counts[archive.StatusUploaded] != 30 || c.Unpublished != 30 {
		t.Errorf("Chain() = %+v, want 30 records", c)
	}
	if files, _ := s.Totals(); files != 30 {
		t.Errorf("Totals() = %d files, want 30", files)
	}
}

func TestConcurrentCommitsShareTransactions(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		db, s := openTestSource(t, dir)
		defer closeDB(t, db)
		before := txID(t, db)
		const callers = 500
		held := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := db.submit(t.Context(), "hold", func(*txn) error { <-held; return nil }); err != nil {
				t.Errorf("submit = %v, want nil", err)
			}
		})
		synctest.Wait() // The committer is in a transaction.
		for i := range callers {
			wg.Go(func() {
				if _, err := s.Commit(t.Context(), uploaded(strconv.Itoa(i), i)); err != nil {
					t.Errorf("Commit = %v, want nil", err)
				}
			})
		}
		synctest.Wait() // All of them wait for it.
		close(held)
		wg.Wait()
		if used := txID(t, db) - before; used != 2 {
			t.Errorf("%d commits took %d transactions, want 1 after the one that was held up", callers, used-1)
		}
		lines := readAll(t, s)
		for n := uint64(1); n <= callers; n++ {
			if !strings.HasSuffix(lines[n], fmt.Sprintf(`"id":"%s-%d"}`, testChain, n)) {
				t.Fatalf("record %d = %s, want its id", n, lines[n])
			}
		}
	})
}

// txID returns the number of write transactions so far.
func txID(tb testing.TB, db *DB) int {
	tb.Helper()
	var id int
	check(tb, db.view("test", func(tx *bolt.Tx) error { id = tx.ID(); return nil }))
	return id
}

func TestReadersAndWritersDoNotDisturbEachOther(t *testing.T) {
	_, s := openTestSource(t, t.TempDir())
	ctx, stop := context.WithCancel(t.Context())
	var writers, readers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := range 40 {
				o := uploaded(fmt.Sprintf("%d/%d", w, i%20), i)
				in := archive.Intent{Path: o.Path, Key: o.Key}
				attempt, err := s.Begin(ctx, in)
				if err != nil {
					t.Errorf("Begin = %v, want nil", err)
					return
				}
				o.Settles = attempt
				if _, err := s.Commit(ctx, o); err != nil {
					t.Errorf("Commit = %v, want nil", err)
					return
				}
			}
		})
	}
	for range 3 {
		readers.Go(func() {
			var buf []archive.Item
			for ctx.Err() == nil {
				var err error
				if buf, err = s.Range("", 1000, buf); err != nil {
					t.Errorf("Range = %v, want nil", err)
					return
				}
				c, err := s.Chain()
				if err == nil {
					err = s.Records(0, c.NextRecord-1, func(uint64, archive.Status, []byte) error { return nil })
				}
				if _, intentErr := s.Intents(); err != nil || intentErr != nil {
					t.Errorf("Records, Intents = %v, %v, want nil", err, intentErr)
					return
				}
				s.Totals()
			}
		})
	}
	writers.Wait()
	stop()
	readers.Wait()
	if files, _ := s.Totals(); files != 80 {
		t.Errorf("Totals() = %d files, want 80", files)
	}
	if got := len(readAll(t, s)); got != 160 {
		t.Errorf("%d records, want 160", got)
	}
}

func TestWrongKeyCountsStoredFilesOnly(t *testing.T) {
	_, s := openTestSource(t, t.TempDir())
	for path, e := range map[string]archive.Entry{
		"a": {Stored: true, KMSKeyID: "old"}, "b": {Stored: true, KMSKeyID: "new"}, "c": {KMSKeyID: "old"}, "d": {Stored: true},
	} {
		must(s.Commit(t.Context(), archive.Outcome{Path: path, Entry: &e}))(t)
	}
	if got := must(s.WrongKey(func(o archive.Object) bool { return o.KMSKeyID == "new" }))(t); got != 2 {
		t.Errorf("WrongKey = %d, want 2", got)
	}
}

func TestEndedContextWithdrawsWhatHasNotBegun(t *testing.T) {
	db, s := openTestSource(t, t.TempDir())
	entered, release := make(chan struct{}), make(chan struct{})
	first := make(chan error, 1)
	go func() {
		first <- s.update(t.Context(), "hold", func(*sourceTxn) error { close(entered); <-release; return nil })
	}()
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	second := make(chan error, 1)
	go func() {
		_, err := s.Commit(ctx, uploaded("late", 1))
		second <- err
	}()
	cancel()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Errorf("Commit of an ended context = %v, want Canceled", err)
	}
	close(release)
	check(t, <-first)
	closeDB(t, db)
	if _, err := s.Commit(t.Context(), uploaded("late", 1)); !errors.Is(err, ErrClosed) {
		t.Errorf("Commit after Close = %v, want ErrClosed", err)
	}
}

func TestCloseEndsEverythingWithErrClosed(t *testing.T) {
	db, s := openTestSource(t, t.TempDir())
	var wg sync.WaitGroup
	acked := make([]bool, 50)
	for i := range acked {
		wg.Go(func() {
			_, err := s.Commit(t.Context(), uploaded(strconv.Itoa(i), i))
			acked[i] = err == nil
			if err != nil && !errors.Is(err, ErrClosed) {
				t.Errorf("Commit during Close = %v, want nil or ErrClosed", err)
			}
		})
	}
	closeDB(t, db)
	wg.Wait()
	ctx := t.Context()
	for name, call := range map[string]func() error{
		"Close":          db.Close,
		"Meta":           func() error { _, err := db.Meta("k"); return err },
		"SetMeta":        func() error { return db.SetMeta(ctx, "k", []byte("v")) },
		"Source":         func() error { _, err := db.Source(t.Context(), SourceKey{Bucket: "new"}); return err },
		"Sources":        func() error { _, err := db.Sources(); return err },
		"Get":            func() error { _, _, err := s.Get("a"); return err },
		"Range":          func() error { _, err := s.Range("", 1, nil); return err },
		"WrongKey":       func() error { _, err := s.WrongKey(func(archive.Object) bool { return true }); return err },
		"Begin":          func() error { _, err := s.Begin(ctx, archive.Intent{Key: "k"}); return err },
		"Attempt":        func() error { return s.Attempt(ctx, 1, "k", func(*archive.Intent) {}) },
		"Intents":        func() error { _, err := s.Intents(); return err },
		"Intent":         func() error { _, err := s.Intent("k"); return err },
		"DropIntent":     func() error { return s.DropIntent(ctx, "k", 1) },
		"Chain":          func() error { _, err := s.Chain(); return err },
		"BeginChain":     func() error { return s.BeginChain(ctx, testChain, archive.BeginsNew, "", "") },
		"ReserveRecords": func() error { _, err := s.ReserveRecords(ctx, 1); return err },
		"AddCounts":      func() error { return s.AddCounts(ctx, nil, 1) },
		"AddNote":        func() error { return s.AddNote(ctx, archive.Note{}) },
		"AddScan":        func() error { return s.AddScan(ctx, archive.ScanNote{}) },
		"Records":        func() error { return s.Records(0, 1, nil) },
		"SealManifest":   func() error { return s.SealManifest(ctx, archive.Doc{}, archive.ManifestRef{}, time.Time{}) },
		"SealDigest":     func() error { return s.SealDigest(ctx, archive.Doc{}, archive.Chain{}, time.Time{}, time.Time{}) },
		"SealConfig":     func() error { return s.SealConfig(ctx, archive.Doc{}, "") },
		"Outbox":         func() error { _, err := s.Outbox(); return err },
		"Published":      func() error { return s.Published(ctx, 1) },
	} {
		if err := call(); !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close = %v, want ErrClosed", name, err)
		}
	}
	_, s = openTestSource(t, db.dir)
	for i, want := range acked {
		if _, ok, _ := s.Get(strconv.Itoa(i)); ok != want {
			t.Errorf("Get(%d) after reopening = %v, want %v", i, ok, want)
		}
	}
}

func TestDoubtMarksOnlyWhatIsAsItWasSeen(t *testing.T) {
	_, s := openTestSource(t, t.TempDir())
	for i, path := range []string{"a", "changed", "gone", "twice"} {
		must(s.Commit(t.Context(), uploaded(path, i)))(t)
	}
	seen := must(s.Range("", 10, nil))(t)
	must(s.Commit(t.Context(), uploaded("changed", 9)))(t)
	must(s.Commit(t.Context(), archive.Outcome{Path: "gone", Remove: true}))(t)
	if n, err := s.MarkSuspect(t.Context(), seen[3:]); n != 1 || err != nil {
		t.Fatalf("Doubt = %d, %v, want 1", n, err)
	}
	files, bytes := s.Totals()
	if n, err := s.MarkSuspect(t.Context(), seen); n != 1 || err != nil {
		t.Errorf("Doubt = %d, %v, want 1: the others changed, went or are doubted", n, err)
	}
	for path, want := range map[string]bool{"a": true, "changed": false, "twice": true} {
		if e, ok, err := s.Get(path); !ok || err != nil || e.Suspect != want || !e.Stored {
			t.Errorf("Get(%s) = %+v, %v, %v, want doubted %v", path, e, ok, err, want)
		}
	}
	if f, b := s.Totals(); f != files || b != bytes {
		t.Errorf("Totals = %d, %d, want %d, %d", f, b, files, bytes)
	}
	if got, want := s.NextAttempt(), uint64(1); got != want {
		t.Errorf("NextAttempt = %d, want %d", got, want)
	}
}

func TestAnOutcomeThatAskedNobodyLeavesADoubt(t *testing.T) {
	_, s := openTestSource(t, t.TempDir())
	ctx := t.Context()
	e := archive.Entry{Stored: true, ETag: "abc", Attempt: 1, Fence: archive.Fence{Size: 3}}
	if _, err := s.Commit(ctx, archive.Outcome{Path: "f", Entry: &e}); err != nil {
		t.Fatal(err)
	}
	if n, err := s.MarkSuspect(ctx, []archive.Item{{Path: "f", Entry: e}}); n != 1 || err != nil {
		t.Fatalf("Doubt = %d, %v, want 1", n, err)
	}
	doubted := func() bool {
		t.Helper()
		got, ok, err := s.Get("f")
		if !ok || err != nil {
			t.Fatalf("Get = %v, %v", ok, err)
		}
		return got.Suspect
	}
	if _, err := s.Commit(ctx, archive.Outcome{Path: "f", Entry: &e, Unasked: true}); err != nil || !doubted() {
		t.Errorf("after a look that asked nobody: %v, doubted %v, want true", err, doubted())
	}
	if _, err := s.Commit(ctx, archive.Outcome{Path: "f", Entry: &e}); err != nil || doubted() {
		t.Errorf("after a look that asked: %v, doubted %v, want false", err, doubted())
	}
}

// What a check of the bucket, or another look, changes between the reading of an
// entry and the commit of a failure stays.
func TestAFailureIsNotedInWhatIsStoredThen(t *testing.T) {
	_, s := openTestSource(t, t.TempDir())
	ctx := t.Context()
	e := archive.Entry{Stored: true, ETag: "abc", Attempt: 1, Fence: archive.Fence{Size: 3}}
	if _, err := s.Commit(ctx, archive.Outcome{Path: "f", Entry: &e}); err != nil {
		t.Fatal(err)
	}
	if n, err := s.MarkSuspect(ctx, []archive.Item{{Path: "f", Entry: e}}); n != 1 || err != nil {
		t.Fatalf("Doubt = %d, %v, want 1", n, err)
	}
	failure := &archive.Failure{Class: archive.ClassFile, Fence: archive.Fence{Size: 4}}
	for _, path := range []string{"f", "new"} {
		if _, err := s.Commit(ctx, archive.Outcome{Path: path, Failure: failure}); err != nil {
			t.Fatal(err)
		}
	}
	want := e
	want.Suspect, want.FailClass, want.FailFence = true, archive.ClassFile, failure.Fence
	if got, _, err := s.Get("f"); got != want || err != nil {
		t.Errorf("Get(f) = %+v, %v, want %+v", got, err, want)
	}
	if got, _, err := s.Get("new"); got != (archive.Entry{FailClass: archive.ClassFile, FailFence: failure.Fence}) || err != nil {
		t.Errorf("Get(new) = %+v, %v, want a failure alone", got, err)
	}
	if files, size := s.Totals(); files != 1 || size != 3 {
		t.Errorf("Totals = %d, %d, want 1 file of 3 bytes", files, size)
	}
	for _, o := range []archive.Outcome{{Path: "f", Failure: failure, Entry: &e}, {Path: "f", Failure: failure, Remove: true}, {Failure: failure}} {
		if _, err := s.Commit(ctx, o); err == nil {
			t.Errorf("Commit(%+v) = nil, want an error", o)
		}
	}
}
