package state

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/boltfile"
	"github.com/s3syncd/s3syncd/internal/codec"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// content is all that a state holds, for comparisons.
type content struct {
	items   []archive.Item
	lines   map[uint64]string
	chain   archive.Chain
	intents []archive.Intent
	docs    []archive.Doc
	meta    string
}

// read returns db's content, or the first error.
func read(db *DB) (c content, err error) {
	s, err := db.Source(context.Background(), testKey)
	if err != nil {
		return c, err
	}
	var errs [5]error
	c.items, errs[0] = s.Range("", 1<<20, nil)
	c.chain, errs[1] = s.Chain()
	c.intents, errs[2] = s.Intents()
	c.docs, errs[3] = s.Outbox()
	var meta []byte
	meta, errs[4] = db.Meta("canary")
	c.meta, c.lines = string(meta), map[uint64]string{}
	return c, errors.Join(append(errs[:], s.Records(0, c.chain.NextRecord-1, func(n uint64, _ archive.Status, line []byte) error {
		c.lines[n] = string(line)
		return nil
	}))...)
}

// sampleFile returns the bytes of a closed state with something of everything,
// and its content.
func sampleFile(tb testing.TB) ([]byte, content) {
	tb.Helper()
	return sampleOf(tb, 150)
}

// sampleOf is sampleFile with n files.
func sampleOf(tb testing.TB, n int) ([]byte, content) {
	tb.Helper()
	dir := tb.TempDir()
	db, s := openTestSource(tb, dir)
	check(tb, db.SetMeta(tb.Context(), "canary", []byte("ok")))
	for i := range n {
		o := uploaded(fmt.Sprintf("dir%d/file%d", i%7, i), i)
		if i%2 == 0 {
			o.Record = nil
		}
		must(s.Commit(tb.Context(), o))(tb)
	}
	must(s.Begin(tb.Context(), archive.Intent{Key: "k", Path: "k"}))(tb)
	sealManifest(tb, s, "m", uint64(min(40, n/3)))
	sealDigest(tb, s, "d")
	want := must(read(db))(tb)
	closeDB(tb, db)
	return must(os.ReadFile(filepath.Join(dir, fileName)))(tb), want
}

// expectNoLies opens a state with the given bytes and checks that it is set
// aside, or says what it should, or says that it is damaged.
func expectNoLies(tb testing.TB, what string, file []byte, want content) (outcome string) {
	tb.Helper()
	dir := tb.TempDir()
	path := filepath.Join(dir, fileName)
	check(tb, os.WriteFile(path, file, 0o600))
	db, err := Open(dir, testOptions())
	if err != nil {
		tb.Fatalf("%s: Open = %v, want nil", what, err)
	}
	defer func() { _ = db.Close() }()
	if r := db.Report(); r.SetAside != "" {
		if kept := must(os.ReadFile(r.SetAside))(tb); !r.New || !bytes.Equal(kept, file) || !strings.HasPrefix(r.SetAside, path+suffixDamaged) {
			tb.Fatalf("%s: report %+v, and the kept file is the same: %v", what, r, bytes.Equal(kept, file))
		}
		return "set aside"
	}
	got, err := read(db)
	switch {
	case errors.Is(err, ErrDamaged):
		return "found later"
	case err != nil:
		tb.Fatalf("%s: %v, want nil or ErrDamaged", what, err)
	case !reflect.DeepEqual(got, want):
		tb.Fatalf("%s: wrong content without an error", what)
	}
	s := must(db.Source(tb.Context(), testKey))(tb)
	for _, item := range want.items {
		if e, ok, err := s.Get(item.Path); !ok || err != nil || e != item.Entry {
			tb.Fatalf("%s: Get(%q) = %+v, %v, %v, want %+v", what, item.Path, e, ok, err, item.Entry)
		}
	}
	if r := db.Report(); r.New || r.HostChanged {
		tb.Fatalf("%s: Report() = %+v, want the same state on the same host", what, r)
	}
	for i := 0; i < len(want.items); i += 1 + len(want.items)/2 { // In the way of what a write would break.
		must(s.Commit(tb.Context(), uploaded(want.items[i].Path, i)))(tb)
	}
	closeDB(tb, db)
	if _, err := examine(path); err != nil {
		tb.Fatalf("%s: damaged by writing: %v", what, err)
	}
	return "harmless"
}

func TestDamagedFilesAreNeverBelieved(t *testing.T) {
	file, want := sampleFile(t)
	size := os.Getpagesize()
	used := int(must(boltfile.NewestMeta(bytes.NewReader(file)))(t).Pages)
	outcomes := map[string]int{}
	try := func(what string, file []byte) {
		t.Helper()
		outcomes[expectNoLies(t, what, file, want)]++
	}
	for page := range used {
		if got := expectNoLies(t, fmt.Sprintf("cut before page %d", page), file[:page*size], want); got != "set aside" {
			t.Errorf("cut before page %d: %s, want set aside", page, got)
		}
		zeroed := bytes.Clone(file)
		clear(zeroed[page*size : (page+1)*size])
		try(fmt.Sprintf("page %d zeroed", page), zeroed)
		copied := bytes.Clone(file)
		other := rand.IntN(used)
		copy(copied[page*size:(page+1)*size], file[other*size:])
		try(fmt.Sprintf("page %d is page %d", page, other), copied)
	}
	for _, n := range []int{1, 100, 5000, used*size - 1} {
		try(fmt.Sprintf("cut to %d bytes", n), file[:n])
	}
	try("zeroed", make([]byte, len(file)))
	try("text", bytes.Repeat([]byte("not a state "), 5000))
	both := bytes.Clone(file)
	both[16], both[size+16] = 0, 0
	try("no magic", both)
	if outcomes["set aside"] < used {
		t.Errorf("outcomes = %v, want most to be set aside", outcomes)
	}
}

func TestFlippedBytesAreNeverBelieved(t *testing.T) {
	file, want := sampleFile(t)
	used := int(must(boltfile.NewestMeta(bytes.NewReader(file)))(t).Pages) * os.Getpagesize()
	outcomes := map[string]int{}
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 60 {
		bad := bytes.Clone(file)
		at, by := rnd.IntN(used), byte(1+rnd.IntN(255))
		if i%2 == 0 { // Aim at the headers, where a flip does the most.
			at = at/os.Getpagesize()*os.Getpagesize() + rnd.IntN(200)
		}
		bad[at] ^= by
		outcomes[expectNoLies(t, fmt.Sprintf("byte %d changed by %#x", at, by), bad, want)]++
	}
	if outcomes["set aside"] == 0 || outcomes["harmless"] == 0 || len(outcomes) != 2 {
		t.Errorf("outcomes = %v, want some of both", outcomes)
	}
}

// flips returns some masks, or in a thorough run all that change one bit and
// those that turn a number into 0, 1 or its complement.
func flips(rnd *rand.Rand, b byte) []byte {
	all := []byte{1, 2, 4, 8, 16, 32, 64, 128, 255, b, b ^ 1}
	if os.Getenv("S3SYNCD_E2E") == "" {
		return []byte{all[rnd.IntN(len(all))]}
	}
	return all
}

// Every byte of a used page is changed. What the pages' examination lets pass is
// read, and written to: damage that a write makes worse is no less damage.
func TestEveryByteIsExamined(t *testing.T) {
	thorough := os.Getenv("S3SYNCD_E2E") != ""
	sizes := []int{150}
	if thorough {
		sizes = []int{0, 3, 150, 3000}
	}
	for _, n := range sizes {
		file, want := sampleOf(t, n)
		m := must(boltfile.NewestMeta(bytes.NewReader(file)))(t)
		size := int(m.PageSize)
		file = file[:int(m.Pages)*size]
		rnd := rand.New(rand.NewPCG(uint64(n), uint64(time.Now().UnixNano())))
		free := freePages(file, m)
		outcomes, tried := map[string]int{}, map[string]int{}
		for at := 0; at < len(file); at++ {
			page := file[at/size*size:]
			// Behind the elements all bytes are alike: some of them are enough.
			elems := boltfile.PageHeader + boltfile.ElemBytes*int(binary.NativeEndian.Uint16(page[10:]))
			structure := at%size < elems || at < 2*size && at%size < boltfile.PageHeader+boltfile.MetaBytes
			if free[at/size] || !structure && rnd.IntN(400) > 0 || !thorough && structure && rnd.IntN(8) > 0 || len(file) > 1<<19 && rnd.IntN(200) > 0 {
				continue
			}
			for _, by := range flips(rnd, file[at]) {
				if by == 0 {
					continue
				}
				file[at] ^= by
				what := "set aside"
				if _, _, err := boltfile.Check(bytes.NewReader(file), int64(len(file))); !errors.Is(err, ErrDamaged) {
					what = expectNoLies(t, fmt.Sprintf("byte %d (page %d+%d) changed by %#x", at, at/size, at%size, by), file, want)
				}
				file[at] ^= by
				outcomes[what]++
				if structure {
					tried[what]++
				}
			}
		}
		t.Logf("%d files, %d pages: %v, in headers and elements %v", n, m.Pages, outcomes, tried)
		if outcomes["set aside"] == 0 || outcomes["found later"] > 0 {
			t.Errorf("%d files: outcomes = %v, want most set aside and none found later", n, outcomes)
		}
	}
}

// freePages tells which pages of a sound file are free.
func freePages(file []byte, m boltfile.Meta) map[int]bool {
	free := map[int]bool{}
	list := file[int(m.Freelist)*int(m.PageSize):]
	for i := range int(binary.NativeEndian.Uint16(list[10:])) {
		free[int(binary.NativeEndian.Uint64(list[boltfile.PageHeader+8*i:]))] = true
	}
	return free
}

// The library would go back to the transaction before the last one, which was
// acknowledged.
func TestALostMetaPageIsDamage(t *testing.T) {
	file, _ := sampleFile(t)
	size := os.Getpagesize()
	for a := range boltfile.MetaBytes {
		for _, mask := range []byte{1, 0x80, 0xff} {
			for _, page := range []int{0, size} {
				bad := bytes.Clone(file[:2*size])
				bad[page+boltfile.PageHeader+a] ^= mask
				if m, err := boltfile.NewestMeta(bytes.NewReader(bad)); !errors.Is(err, ErrDamaged) {
					t.Errorf("byte %d of the meta page at %d changed by %#x: %+v, %v, want ErrDamaged", a, page, mask, m, err)
				}
				for b := range boltfile.MetaBytes {
					bad[size-page+boltfile.PageHeader+b] ^= mask
					if m, err := boltfile.NewestMeta(bytes.NewReader(bad)); !errors.Is(err, ErrDamaged) {
						t.Errorf("bytes %d and %d of both meta pages changed by %#x: %+v, %v, want ErrDamaged", a, b, mask, m, err)
					}
					bad[size-page+boltfile.PageHeader+b] ^= mask
				}
			}
		}
	}
	older := bytes.Clone(file) // As when the disk has lost all writes to one page for a while.
	m := must(boltfile.NewestMeta(bytes.NewReader(file)))(t)
	slot := older[int(m.Txid%2)*size+boltfile.PageHeader:]
	binary.NativeEndian.PutUint64(slot[48:], m.Txid-4)
	sum := fnv.New64a()
	_, _ = sum.Write(slot[:56])
	binary.NativeEndian.PutUint64(slot[56:], sum.Sum64())
	if got, ok := boltfile.ParseMeta(older[int(m.Txid%2)*size:]); !ok || got.Txid != m.Txid-4 {
		t.Fatalf("the changed meta page is %+v, %v, want a valid one", got, ok)
	}
	if got, err := boltfile.NewestMeta(bytes.NewReader(older)); !errors.Is(err, ErrDamaged) {
		t.Errorf("newestMeta with transactions %d and %d = %+v, %v, want ErrDamaged", m.Txid-4, m.Txid-1, got, err)
	}
}

func TestFreePageInUseIsDamage(t *testing.T) {
	file, _ := sampleFile(t)
	m, free, err := boltfile.Check(bytes.NewReader(file), int64(len(file)))
	if err != nil || free == 0 {
		t.Fatalf("checkPages = %d free pages, %v, want some", free, err)
	}
	ids := file[int(m.Freelist)*int(m.PageSize)+boltfile.PageHeader:]
	for _, id := range []uint64{m.Root, m.Freelist, binary.NativeEndian.Uint64(ids[8:]), 0, m.Pages} {
		bad := bytes.Clone(file)
		binary.NativeEndian.PutUint64(bad[len(file)-len(ids):], id)
		if _, _, err := boltfile.Check(bytes.NewReader(bad), int64(len(bad))); !errors.Is(err, ErrDamaged) {
			t.Errorf("checkPages with page %d free = %v, want ErrDamaged", id, err)
		}
	}
}

func FuzzOpenDamaged(f *testing.F) {
	file, want := sampleFile(f)
	file = file[:int(must(boltfile.NewestMeta(bytes.NewReader(file)))(f).Pages)*os.Getpagesize()] // Behind that is nothing.
	f.Add(uint32(4096), byte(1), uint32(8192), byte(255))
	f.Fuzz(func(t *testing.T, a uint32, x byte, b uint32, y byte) {
		bad := bytes.Clone(file)
		bad[int(a)%len(bad)] ^= x
		bad[int(b)%len(bad)] ^= y
		if _, _, err := boltfile.Check(bytes.NewReader(bad), int64(len(bad))); errors.Is(err, ErrDamaged) {
			return // Open does the same first, and takes a hundred times as long.
		}
		expectNoLies(t, "fuzzed", bad, want)
	})
}

func TestMissingPartsAreDamage(t *testing.T) {
	file, _ := sampleFile(t)
	id := testKey.id()
	source := func(tx *bolt.Tx) *bolt.Bucket { return tx.Bucket([]byte(bucketSources)).Bucket(id) }
	for name, edit := range map[string]func(tx *bolt.Tx) error{
		"meta":    func(tx *bolt.Tx) error { return tx.DeleteBucket([]byte(bucketMeta)) },
		"facts":   func(tx *bolt.Tx) error { return tx.DeleteBucket([]byte(bucketFacts)) },
		"sources": func(tx *bolt.Tx) error { return tx.DeleteBucket([]byte(bucketSources)) },
		"files":   func(tx *bolt.Tx) error { return source(tx).DeleteBucket([]byte(bucketFiles)) },
		"records": func(tx *bolt.Tx) error { return source(tx).DeleteBucket([]byte(bucketRecords)) },
		"head":    func(tx *bolt.Tx) error { return source(tx).Delete([]byte(keyHead)) },
		"format":  func(tx *bolt.Tx) error { return tx.Bucket([]byte(bucketMeta)).Put([]byte(keyFormat), []byte("zero")) },
		"no source": func(tx *bolt.Tx) error {
			return tx.Bucket([]byte(bucketSources)).Put([]byte("stray"), []byte("value"))
		},
		"no intent": func(tx *bolt.Tx) error {
			return source(tx).Bucket([]byte(bucketIntents)).Put([]byte("x"), []byte("{}"))
		},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, fileName)
		check(t, os.WriteFile(path, file, 0o600))
		editBolt(t, path, edit)
		db := openDB(t, dir, testOptions())
		if r := db.Report(); !r.New || r.SetAside == "" {
			t.Errorf("without %s: Report() = %+v, want it set aside", name, r)
		}
	}
}

func TestSetAsideIsReportedUntilACleanEnd(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, fileName)
	check(t, os.WriteFile(path, []byte("damaged"), 0o600))
	db := openDB(t, dir, testOptions())
	kept := db.Report().SetAside
	crashed := must(os.ReadFile(path))(t)
	closeDB(t, db)

	check(t, os.WriteFile(path, crashed, 0o600)) // As it was without the Close.
	db = openDB(t, dir, testOptions())
	if got, want := db.Report(), (Report{SetAside: kept, Unclean: true}); got != want {
		t.Errorf("Report() after a crash = %+v, want %+v", got, want)
	}
	closeDB(t, db)
	db = openDB(t, dir, testOptions())
	if got, want := db.Report(), (Report{}); got != want {
		t.Errorf("Report() after a clean end = %+v, want %+v", got, want)
	}
	closeDB(t, db)

	check(t, os.Remove(path)) // As between setting aside and creating.
	db = openDB(t, dir, testOptions())
	if got, want := db.Report(), (Report{New: true, SetAside: kept}); got != want {
		t.Errorf("Report() after a crash while setting aside = %+v, want %+v", got, want)
	}
}

func TestSetAsideNeverReplacesAnEarlierOne(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, fileName)
	seen := map[string]bool{}
	for i := range 3 {
		check(t, os.WriteFile(path, fmt.Append(nil, i), 0o600))
		name := must(setAside(path, day, ErrDamaged, zap.NewNop()))(t)
		if got := string(must(os.ReadFile(name))(t)); seen[name] || got != strconv.Itoa(i) {
			t.Errorf("setAside = %s with %q, want a new name with %d", name, got, i)
		}
		seen[name] = true
	}
}

func TestDamageFoundWhileRunningIsDealtWithAtTheNextStart(t *testing.T) {
	dir := t.TempDir()
	db, s := openTestSource(t, dir)
	commitN(t, s, 50)
	path := filepath.Join(dir, fileName)
	file := must(os.ReadFile(path))(t)
	e := testEntry(7)
	at := bytes.LastIndex(file, append([]byte("7"), codec.EncodeEntry(&e)[:20]...))
	if at < 0 {
		t.Fatal("the entry is not in the file")
	}
	f := must(os.OpenFile(path, os.O_WRONLY, 0))(t)
	for i := bytes.Index(file, codec.EncodeEntry(&e)); i >= 0; { // Every copy of it, in free pages too.
		must(f.WriteAt([]byte{^file[i+3]}, int64(i+3)))(t)
		n := bytes.Index(file[i+1:], codec.EncodeEntry(&e))
		if n < 0 {
			break
		}
		i += 1 + n
	}
	check(t, f.Close())
	if _, _, err := s.Get("7"); !errors.Is(err, ErrDamaged) {
		t.Errorf("Get of a damaged entry = %v, want ErrDamaged", err)
	}
	if _, ok, err := s.Get("8"); !ok || err != nil {
		t.Errorf("Get of another entry = %v, %v, want it", ok, err)
	}
	closeDB(t, db)
	db = openDB(t, dir, testOptions())
	if db.Report().SetAside == "" {
		t.Errorf("Report() = %+v, want the file set aside", db.Report())
	}
	closeDB(t, db)
	if db = openDB(t, dir, testOptions()); db.Report().SetAside != "" {
		t.Errorf("Report() = %+v, want the new state in use", db.Report())
	}
}

func TestFileCutWhileOpenIsAnError(t *testing.T) {
	dir := t.TempDir()
	db, s := openTestSource(t, dir)
	commitN(t, s, 50)
	check(t, os.Truncate(db.path, int64(2*os.Getpagesize())))
	if _, err := s.Range("", 100, nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("Range of a cut file = %v, want ErrDamaged", err)
	}
	if _, err := s.Commit(t.Context(), uploaded("a", 1)); !errors.Is(err, ErrDamaged) {
		t.Errorf("Commit to a cut file = %v, want ErrDamaged", err)
	}
	_ = db.Close()
	if db = openDB(t, dir, testOptions()); db.Report().SetAside == "" {
		t.Errorf("Report() = %+v, want the file set aside", db.Report())
	}
}
