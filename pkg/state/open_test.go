package state

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

func TestOpenMakesAPrivateState(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	db := openDB(t, dir, testOptions())
	if got, want := db.Report(), (Report{New: true}); got != want {
		t.Errorf("Report() = %+v, want %+v", got, want)
	}
	for path, want := range map[string]fs.FileMode{dir: 0o700, db.path: 0o600, filepath.Join(dir, "lock"): 0o600} {
		if info := must(os.Stat(path))(t); info.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", path, info.Mode().Perm(), want)
		}
	}
	if db.Size() <= 0 {
		t.Errorf("Size() = %d, want more than 0", db.Size())
	}
	if n := must(db.FreeBytes())(t); n <= 0 {
		t.Errorf("FreeBytes() = %d, want more than 0", n)
	}
}

func TestReportTellsAnUncleanEnd(t *testing.T) {
	dir := t.TempDir()
	closeDB(t, openDB(t, dir, testOptions()))
	db := openDB(t, dir, testOptions())
	copied := filepath.Join(t.TempDir(), fileName)
	check(t, os.WriteFile(copied, must(os.ReadFile(db.path))(t), 0o600))
	closeDB(t, db)
	db = openDB(t, dir, testOptions())
	if got, want := db.Report(), (Report{}); got != want {
		t.Errorf("Report() after Close = %+v, want %+v", got, want)
	}
	if got, want := openDB(t, filepath.Dir(copied), testOptions()).Report(), (Report{Unclean: true}); got != want {
		t.Errorf("Report() without Close = %+v, want %+v", got, want)
	}
}

func TestHostChangeIsRememberedUntilTheChainBeginsAnew(t *testing.T) {
	dir := t.TempDir()
	db, s := openTestSource(t, dir)
	commitN(t, s, 1)
	must(db.Source(t.Context(), SourceKey{Bucket: "no chain"}))(t)
	closeDB(t, db)
	o := testOptions()
	o.MachineID = "another"
	for i, want := range []bool{true, false} {
		db = openDB(t, dir, o)
		s = must(db.Source(t.Context(), testKey))(t)
		if got := db.Report().HostChanged; got != want {
			t.Errorf("open %d: Report().HostChanged = %v, want %v", i, got, want)
		}
		if !s.HostChanged() || must(db.Source(t.Context(), SourceKey{Bucket: "no chain"}))(t).HostChanged() {
			t.Errorf("open %d: Source.HostChanged is not that of the source with a chain", i)
		}
		if _, ok, _ := s.Get("0"); !ok {
			t.Errorf("open %d: the index is gone", i)
		}
		if i == 1 {
			check(t, s.BeginChain(t.Context(), "bbbbbbbb", archive.BeginsHostChanged, testChain, ""))
		}
		closeDB(t, db)
	}
	db = openDB(t, dir, o)
	if must(db.Source(t.Context(), testKey))(t).HostChanged() {
		t.Error("HostChanged after BeginChain = true, want false")
	}
	closeDB(t, db)
	o.MachineID = ""
	if openDB(t, dir, o).Report().HostChanged {
		t.Error("HostChanged with an unknown machine = true, want false")
	}
}

func TestMetaAndSourcesSurvive(t *testing.T) {
	dir := t.TempDir()
	db := openDB(t, dir, testOptions())
	keys := []SourceKey{testKey, {Bucket: "b", RealPath: "/\xff"}, {Bucket: "bucketbackups", Prefix: "/app", RealPath: "/srv/app"}}
	for _, k := range keys {
		first := must(db.Source(t.Context(), k))(t)
		if again := must(db.Source(t.Context(), k))(t); again != first {
			t.Errorf("Source(%v) twice gives two values", k)
		}
	}
	check(t, db.SetMeta(t.Context(), "canary", []byte("ok")))
	check(t, db.SetMeta(t.Context(), "empty", []byte{}))
	check(t, db.SetMeta(t.Context(), "gone", []byte("x")))
	check(t, db.SetMeta(t.Context(), "gone", nil))
	if err := db.SetMeta(t.Context(), "", []byte("x")); err == nil {
		t.Error("SetMeta of an empty key = nil, want an error")
	}
	closeDB(t, db)
	db = openDB(t, dir, testOptions())
	got := map[SourceKey]bool{}
	for _, k := range must(db.Sources())(t) {
		got[k] = true
	}
	if want := (map[SourceKey]bool{keys[0]: true, keys[1]: true, keys[2]: true}); !reflect.DeepEqual(got, want) {
		t.Errorf("Sources() = %v, want %v", got, want)
	}
	for key, want := range map[string]string{"canary": "ok", "empty": "", "gone": "", "never": ""} {
		if v := must(db.Meta(key))(t); string(v) != want || (v == nil) != (key == "gone" || key == "never") {
			t.Errorf("Meta(%s) = %q, want %q", key, v, want)
		}
	}
}

func TestLockNamesItsHolder(t *testing.T) {
	dir := t.TempDir()
	db := openDB(t, dir, testOptions())
	_, err := Open(dir, testOptions())
	if locked, ok := errors.AsType[*LockedError](err); !ok || locked.PID != os.Getpid() || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("second Open = %v, want a LockedError with pid %d", err, os.Getpid())
	}
	closeDB(t, db)
	openDB(t, dir, testOptions())
}

func TestNewerFormatIsRefusedAndUntouched(t *testing.T) {
	dir := t.TempDir()
	db, _ := openTestSource(t, dir)
	closeDB(t, db)
	path := filepath.Join(dir, fileName)
	editBolt(t, path, func(tx *bolt.Tx) error {
		// What else a newer release changes is none of this one's business.
		check(t, tx.DeleteBucket([]byte(bucketFacts)))
		meta := tx.Bucket([]byte(bucketMeta))
		check(t, meta.Put([]byte(keyFormat), []byte("2")))
		return sealMeta(meta)
	})
	before := must(os.ReadFile(path))(t)
	if _, err := Open(dir, testOptions()); !errors.Is(err, ErrNewerFormat) {
		t.Fatalf("Open = %v, want ErrNewerFormat", err)
	}
	if !bytes.Equal(must(os.ReadFile(path))(t), before) {
		t.Error("the file was changed")
	}
	if names := must(filepath.Glob(path + "*"))(t); len(names) != 1 {
		t.Errorf("files = %v, want the state alone", names)
	}
}

func editBolt(tb testing.TB, path string, fn func(*bolt.Tx) error) {
	tb.Helper()
	b := must(bolt.Open(path, 0o600, nil))(tb)
	check(tb, b.Update(fn))
	check(tb, b.Close())
}

func TestInterruptedCreationLeavesNoTrace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, fileName)
	for _, suffix := range []string{suffixNew, suffixCompact} {
		check(t, os.WriteFile(path+suffix, []byte("half"), 0o600))
	}
	if got, want := openDB(t, dir, testOptions()).Report(), (Report{New: true}); got != want {
		t.Errorf("Report() = %+v, want %+v", got, want)
	}
	if names := must(filepath.Glob(path + "*"))(t); len(names) != 1 {
		t.Errorf("files = %v, want the state alone", names)
	}
}

func TestCompactionKeepsEverything(t *testing.T) {
	dir := t.TempDir()
	db, s := openTestSource(t, dir)
	check(t, s.update(t.Context(), "fill", func(st *sourceTxn) error {
		for range 20_000 {
			if err := st.addRecord(&archive.Record{Status: archive.StatusSkipped}); err != nil {
				return err
			}
		}
		return nil
	}))
	commitN(t, s, 100)
	sealManifest(t, s, "m", 20_050)
	sealDigest(t, s, "d")
	publishAll(t, s)
	chain, lines := must(s.Chain())(t), readAll(t, s)
	closeDB(t, db)
	path := filepath.Join(dir, fileName)
	found := must(examine(path))(t)
	if 2*found.free*found.pageSize <= found.size {
		t.Fatalf("%+v is not mostly free; the test needs it to be", found)
	}
	check(t, compact(path, found, found.size, zap.NewNop()))
	if got := must(os.Stat(path))(t).Size(); got != found.size {
		t.Errorf("a file of no more than the limit was compacted to %d", got)
	}
	check(t, compact(path, found, 0, zap.NewNop()))
	if got := must(os.Stat(path))(t).Size(); got > found.size/2 {
		t.Errorf("size after compaction = %d, was %d", got, found.size)
	}
	_, s = openTestSource(t, dir)
	if got := must(s.Chain())(t); !reflect.DeepEqual(got, chain) {
		t.Errorf("Chain() = %+v, want %+v", got, chain)
	}
	if got := readAll(t, s); !reflect.DeepEqual(got, lines) || len(got) != 50 {
		t.Errorf("%d records, want %d", len(got), len(lines))
	}
	if got := must(s.Range("", 1000, nil))(t); len(got) != 100 {
		t.Errorf("%d entries, want 100", len(got))
	}
}

func TestFailedCompactionKeepsTheFile(t *testing.T) {
	dir := t.TempDir()
	db, _ := openTestSource(t, dir)
	closeDB(t, db)
	path := filepath.Join(dir, fileName)
	check(t, os.Mkdir(path+suffixCompact, 0o700)) // Cannot be written as a file.
	before := must(os.ReadFile(path))(t)
	check(t, compact(path, finding{size: 1000, pageSize: 100, free: 9}, 0, zap.NewNop()))
	if !bytes.Equal(must(os.ReadFile(path))(t), before) {
		t.Error("the file was changed")
	}
}
