package state

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

var day = time.Date(2026, 5, 6, 0, 0, 0, 0, time.UTC)

// commitN commits n records.
func commitN(tb testing.TB, s *Source, n int) {
	tb.Helper()
	for i := range n {
		must(s.Commit(tb.Context(), uploaded(strconv.Itoa(i), i)))(tb)
	}
}

func manifestDoc(name string, last uint64) (archive.Doc, archive.ManifestRef) {
	return archive.Doc{Kind: archive.KindManifest, Key: name, File: "/var/lib/\xff/" + name, SHA256: "aa", Size: 10, MD5: [16]byte{1}, Records: 3, LastRecord: last},
		archive.ManifestRef{S3Key: name, SHA256: "aa", SizeBytes: 10, Records: 3}
}

func sealManifest(tb testing.TB, s *Source, name string, last uint64) {
	tb.Helper()
	d, ref := manifestDoc(name, last)
	check(tb, s.SealManifest(tb.Context(), d, ref, day))
}

func sealDigest(tb testing.TB, s *Source, name string) {
	tb.Helper()
	c := must(s.Chain())(tb)
	check(tb, s.SealDigest(tb.Context(), archive.Doc{Kind: archive.KindDigest, Key: name, SHA256: "sha of " + name, LastRecord: c.SealedTo}, c, day.Add(time.Hour), day.Add(time.Hour)))
}

func publishAll(tb testing.TB, s *Source) {
	tb.Helper()
	for _, d := range must(s.Outbox())(tb) {
		check(tb, s.Published(tb.Context(), d.Number))
	}
}

func storedRecords(tb testing.TB, s *Source) int {
	tb.Helper()
	n := 0
	check(tb, s.view("test", func(st *sourceTxn) error {
		for range entries(st.records.Cursor()) {
			n++
		}
		return nil
	}))
	return n
}

func TestChainFromRecordsToPublishedDigest(t *testing.T) {
	dir := t.TempDir()
	db, s := openTestSource(t, dir)
	ctx := t.Context()
	check(t, s.SealConfig(ctx, archive.Doc{Kind: archive.KindConfig, Key: "config"}, "config sha"))
	commitN(t, s, 5)
	if first := must(s.ReserveRecords(ctx, 3))(t); first != 6 {
		t.Errorf("ReserveRecords = %d, want 6", first)
	}
	commitN(t, s, 1)
	check(t, s.AddCounts(ctx, map[archive.Status]int64{archive.StatusSkipped: 3}, 40))
	check(t, s.AddNote(ctx, archive.Note{Kind: archive.NoteStart, Time: day}))
	check(t, s.AddScan(ctx, archive.ScanNote{Trigger: archive.TriggerStartup, Files: 9}))
	sealManifest(t, s, "m1", 4)
	sealManifest(t, s, "m2", 9)
	before := must(s.Chain())(t)
	commitN(t, s, 1) // After the sealer has read the chain.
	check(t, s.AddNote(ctx, archive.Note{Kind: archive.NoteReload, Time: day}))
	check(t, s.AddCounts(ctx, nil, 2))
	digest := archive.Doc{Kind: archive.KindDigest, Key: "d1", SHA256: "sha of d1", LastRecord: 9, Sequence: 1}
	check(t, s.SealDigest(ctx, digest, before, day.Add(time.Hour), day.Add(time.Minute)))
	if err := s.SealDigest(ctx, digest, before, day, day); !errors.Is(err, ErrStale) {
		t.Errorf("SealDigest of the same chain twice = %v, want ErrStale", err)
	}
	closeDB(t, db)

	_, s = openTestSource(t, dir)
	want := archive.Chain{
		ID: testChain, Begins: archive.BeginsNew, NextRecord: 11, SealedTo: 9, Sequence: 2, PrevKey: "d1", PrevSHA256: "sha of d1",
		LastNamed: day.Add(time.Minute), LastDigest: day.Add(time.Hour), Manifests: []archive.ManifestRef{}, Scans: []archive.ScanNote{},
		Counts: map[archive.Status]int64{archive.StatusUploaded: 1}, IndexSkips: 2, Notes: []archive.Note{{Kind: archive.NoteReload, Time: day}}, ConfigSHA: "config sha", Unpublished: 10,
	}
	got := must(s.Chain())(t)
	if got.Manifests == nil {
		got.Manifests = []archive.ManifestRef{}
	}
	if got.Scans == nil {
		got.Scans = []archive.ScanNote{}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("Chain() =\n%+v, want\n%+v", got, want)
	}
	if want := (map[archive.Status]int64{archive.StatusUploaded: 6, archive.StatusSkipped: 3}); !reflect.DeepEqual(before.Counts, want) {
		t.Errorf("Counts before the digest = %v, want %v", before.Counts, want)
	}
	checkPublishing(t, s)
}

// checkPublishing acknowledges the outbox of the test above one by one.
func checkPublishing(t *testing.T, s *Source) {
	t.Helper()
	docs := must(s.Outbox())(t)
	wantDoc, _ := manifestDoc("m1", 4)
	wantDoc.Number = 2
	if len(docs) != 4 || !reflect.DeepEqual(docs[1], wantDoc) {
		t.Fatalf("Outbox() = %+v, want config, m1, m2, d1", docs)
	}
	for i, want := range []struct {
		key         string
		unpublished int64
		stored      int
	}{{"config", 10, 7}, {"m1", 6, 7}, {"m2", 1, 7}, {"d1", 1, 1}} {
		if docs[i].Key != want.key || docs[i].Number != uint64(i+1) {
			t.Errorf("document %d = %d %s, want %s", i, docs[i].Number, docs[i].Key, want.key)
		}
		for range 2 { // The second is no error and changes nothing.
			check(t, s.Published(t.Context(), docs[i].Number))
			if c := must(s.Chain())(t); c.Unpublished != want.unpublished {
				t.Errorf("after %s: Unpublished = %d, want %d", want.key, c.Unpublished, want.unpublished)
			}
			if got := storedRecords(t, s); got != want.stored {
				t.Errorf("after %s: %d records stored, want %d", want.key, got, want.stored)
			}
		}
	}
	if got := must(s.Outbox())(t); len(got) != 0 {
		t.Errorf("Outbox() = %+v, want none", got)
	}
}

func TestSealRefusesWhatDoesNotFollow(t *testing.T) {
	_, s := openTestSource(t, t.TempDir())
	commitN(t, s, 3)
	sealManifest(t, s, "m", 2)
	before := must(s.Chain())(t)
	for name, call := range map[string]func() error{
		"manifest behind": func() error { d, r := manifestDoc("x", 1); return s.SealManifest(t.Context(), d, r, day) },
		"manifest ahead":  func() error { d, r := manifestDoc("x", 4); return s.SealManifest(t.Context(), d, r, day) },
		"manifest of no kind": func() error {
			return s.SealManifest(t.Context(), archive.Doc{LastRecord: 3}, archive.ManifestRef{}, day)
		},
		"digest ahead": func() error {
			return s.SealDigest(t.Context(), archive.Doc{Kind: archive.KindDigest, LastRecord: 3}, before, day, day)
		},
		"digest of another chain": func() error {
			return s.SealDigest(t.Context(), archive.Doc{Kind: archive.KindDigest}, archive.Chain{ID: "ffffffff", Sequence: 1}, day, day)
		},
		"digest with too much": func() error {
			c := before
			c.Notes = make([]archive.Note, 9)
			return s.SealDigest(t.Context(), archive.Doc{Kind: archive.KindDigest}, c, day, day)
		},
		"configuration of no kind": func() error { return s.SealConfig(t.Context(), archive.Doc{}, "") },
		"chain id":                 func() error { return s.BeginChain(t.Context(), "xyz", archive.BeginsNew, "", "") },
	} {
		if err := call(); err == nil {
			t.Errorf("%s: nil, want an error", name)
		}
	}
	if after := must(s.Chain())(t); !reflect.DeepEqual(after, before) {
		t.Errorf("Chain() = %+v, want it unchanged: %+v", after, before)
	}
}

func TestNewChainTakesOverWhatIsUnsealed(t *testing.T) {
	dir := t.TempDir()
	db, s := openTestSource(t, dir)
	commitN(t, s, 10)
	sealManifest(t, s, "m1", 4)
	sealDigest(t, s, "d1")
	sealManifest(t, s, "m2", 6) // Sealed, and no digest names it any more.
	check(t, s.AddNote(t.Context(), archive.Note{Kind: archive.NoteUncleanEnd, Time: day}))
	lines := readAll(t, s)
	check(t, s.BeginChain(t.Context(), "bbbbbbbb", archive.BeginsForked, testChain, "head"))
	c := must(s.Chain())(t)
	if c.ID != "bbbbbbbb" || c.Begins != archive.BeginsForked || c.AbandonsChain != testChain || c.AbandonsSHA256 != "head" || c.NextRecord != 5 ||
		c.SealedTo != 0 || c.Sequence != 1 || c.PrevKey != "" || len(c.Manifests) != 0 || c.Counts[archive.StatusUploaded] != 4 || len(c.Notes) != 1 || c.Unpublished != 10 {
		t.Errorf("Chain() = %+v", c)
	}
	expectMoved := func(chain string, from int) {
		t.Helper()
		got := readAll(t, s)
		for n := 1; n <= 10-from; n++ {
			was := strings.Replace(lines[uint64(from+n)], fmt.Sprintf("%s-%d\"", testChain, from+n), fmt.Sprintf("%s-%d\"", chain, n), 1)
			if want := strings.Replace(was, `"chain":"`+testChain, `"chain":"`+chain, 1); got[uint64(n)] != want {
				t.Errorf("record %d =\n%s, want\n%s", n, got[uint64(n)], want)
			}
		}
	}
	expectMoved("bbbbbbbb", 6)
	if id := must(s.Commit(t.Context(), uploaded("new", 1)))(t); id != "bbbbbbbb-5" {
		t.Errorf("Commit = %s, want bbbbbbbb-5", id)
	}
	sealManifest(t, s, "m3", 1)
	check(t, s.BeginChain(t.Context(), "cccccccc", archive.BeginsForked, "bbbbbbbb", "")) // Once more, with a part sealed.
	closeDB(t, db)
	_, s = openTestSource(t, dir)
	expectMoved("cccccccc", 7)
	if got := readAll(t, s); len(got) != 4 || !strings.Contains(got[4], `"id":"cccccccc-4"`) {
		t.Errorf("Records = %v, want 4", got)
	}
	sealManifest(t, s, "m4", 2)
	sealDigest(t, s, "d4")
	publishAll(t, s)
	if got := storedRecords(t, s); got != 2 {
		t.Errorf("%d records stored, want the 2 unsealed ones", got)
	}
	expectUnpublished(t, s, 2)
	sealManifest(t, s, "m5", 4)
	sealDigest(t, s, "d5")
	publishAll(t, s)
	if got := storedRecords(t, s); got != 0 {
		t.Errorf("%d records stored, want 0", got)
	}
	expectUnpublished(t, s, 0)
	if moved := s.head.Load().Moved; len(moved) != 0 {
		t.Errorf("moved segments = %+v, want none", moved)
	}
}

func expectUnpublished(tb testing.TB, s *Source, want int64) {
	tb.Helper()
	if c := must(s.Chain())(tb); c.Unpublished != want {
		tb.Errorf("Unpublished = %d, want %d", c.Unpublished, want)
	}
}

func TestPublishedDeletesManyRecordsInSteps(t *testing.T) {
	db, s := openTestSource(t, t.TempDir())
	const n = 2*deleteChunk + 10
	check(t, s.update(t.Context(), "fill", func(st *sourceTxn) error {
		for range n {
			if err := st.addRecord(&archive.Record{Status: archive.StatusSkipped}); err != nil {
				return err
			}
		}
		return nil
	}))
	sealManifest(t, s, "m", n-5)
	sealDigest(t, s, "d")
	docs := must(s.Outbox())(t)
	check(t, s.Published(t.Context(), docs[0].Number))
	before := txID(t, db)
	check(t, s.Published(t.Context(), docs[1].Number))
	if got := txID(t, db) - before; got != 3 {
		t.Errorf("Published took %d transactions, want 3", got)
	}
	if got := readAll(t, s); len(got) != 5 {
		t.Errorf("%d records left, want 5", len(got))
	}
}

func TestRecordsReadsExactlyTheRangeAsked(t *testing.T) {
	_, s := openTestSource(t, t.TempDir())
	commitN(t, s, 3)
	must(s.ReserveRecords(t.Context(), 10))(t)
	commitN(t, s, 2)
	for _, row := range []struct {
		after, upTo uint64
		want        []uint64
	}{
		{0, 0, nil},
		{0, 1, []uint64{1}},
		{1, 3, []uint64{2, 3}},
		{3, 13, nil},
		{2, 14, []uint64{3, 14}},
		{0, ^uint64(0), []uint64{1, 2, 3, 14, 15}},
		{15, 100, nil},
		{9, 2, nil},
	} {
		var got []uint64
		check(t, s.Records(row.after, row.upTo, func(n uint64, _ archive.Status, _ []byte) error { got = append(got, n); return nil }))
		if !reflect.DeepEqual(got, row.want) {
			t.Errorf("Records(%d, %d) = %v, want %v", row.after, row.upTo, got, row.want)
		}
	}
	stop := errors.New("stop")
	if err := s.Records(0, 15, func(uint64, archive.Status, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("Records = %v, want the callback's error", err)
	}
}

func TestRecordsMayWriteWhileItReads(t *testing.T) {
	_, s := openTestSource(t, t.TempDir())
	commitN(t, s, 10)
	check(t, s.Records(0, 10, func(n uint64, _ archive.Status, _ []byte) error {
		return s.AddCounts(t.Context(), nil, 1)
	}))
}

func TestTimestampsStandStillForAMinute(t *testing.T) {
	dir := t.TempDir()
	c := &clock{now: day}
	o := testOptions()
	o.Now = c.Now
	db := openDB(t, dir, o)
	s := must(db.Source(t.Context(), testKey))(t)
	check(t, s.BeginChain(t.Context(), testChain, archive.BeginsNew, "", ""))
	stamp := func() string {
		t.Helper()
		o := uploaded("a", 1)
		must(s.Commit(t.Context(), o))(t)
		return o.Record.Timestamp
	}
	first := stamp()
	c.now = day.Add(-30 * time.Second)
	second := stamp()
	closeDB(t, db)
	db = openDB(t, dir, o)
	s = must(db.Source(t.Context(), testKey))(t)
	third := stamp()
	c.now = day.Add(time.Second)
	fourth := stamp()
	if want := archive.FormatTime(day); first != want || second != want || third != want || fourth != archive.FormatTime(c.now) {
		t.Errorf("timestamps %s, %s, %s, %s, want three times %s and then later", first, second, third, fourth, want)
	}
	given := uploaded("a", 1)
	given.Record.Timestamp = "2026-01-01T00:00:00Z"
	must(s.Commit(t.Context(), given))(t)
	if given.Record.Timestamp != "2026-01-01T00:00:00Z" {
		t.Errorf("a given timestamp became %s", given.Record.Timestamp)
	}
}

// SealUnused ends numbers without a line, and never a record.
func TestSealUnusedNeverPassesARecord(t *testing.T) {
	_, s := openTestSource(t, t.TempDir())
	first, err := s.ReserveRecords(t.Context(), 1000)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SealUnused(t.Context(), first+499); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(t.Context(), uploaded("a", 1)); err != nil { // Number first + 1000.
		t.Fatal(err)
	}
	if err := s.SealUnused(t.Context(), first+1000); !errors.Is(err, ErrStale) {
		t.Errorf("sealed past a record: %v, want ErrStale", err)
	}
	if err := s.SealUnused(t.Context(), first+1001); !errors.Is(err, ErrStale) {
		t.Errorf("sealed numbers that are not drawn: %v, want ErrStale", err)
	}
	if err := s.SealUnused(t.Context(), first+999); err != nil {
		t.Fatal(err)
	}
	if err := s.SealUnused(t.Context(), first+499); !errors.Is(err, ErrStale) {
		t.Errorf("went back: %v, want ErrStale", err)
	}
	c, err := s.Chain()
	if err != nil || c.Unpublished != 1 || c.SealedTo != first+999 {
		t.Errorf("%d unpublished, sealed to %d, %v, want 1 and %d", c.Unpublished, c.SealedTo, err, first+999)
	}
}

// A timestamp that was far in the future does not date all that follow: the
// time goes back, and the next digest says so.
func TestTimestampsGoBackWithAnEvent(t *testing.T) {
	c := &clock{now: day.Add(10 * 365 * 24 * time.Hour)}
	o := testOptions()
	o.Now = c.Now
	s := must(openDB(t, t.TempDir(), o).Source(t.Context(), testKey))(t)
	check(t, s.BeginChain(t.Context(), testChain, archive.BeginsNew, "", ""))
	must(s.Commit(t.Context(), uploaded("a", 1)))(t)
	wrong := c.now
	c.now = day
	for range 2 {
		out := uploaded("a", 1)
		must(s.Commit(t.Context(), out))(t)
		if out.Record.Timestamp != archive.FormatTime(day) {
			t.Errorf("timestamp %s, want %s", out.Record.Timestamp, archive.FormatTime(day))
		}
	}
	ch := must(s.Chain())(t)
	if want := []archive.Note{archive.ClockNote(wrong, day)}; !slices.Equal(ch.Notes, want) {
		t.Errorf("events %v, want %v", ch.Notes, want)
	}
}
