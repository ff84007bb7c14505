package listing

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/internal/s3store"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// bucketOf is a listing of objects by key.
type bucketOf map[string]archive.Object

func (b bucketOf) List(_ context.Context, prefix, startAfter string, fn func(archive.Object) error) error {
	for _, k := range slices.Sorted(maps.Keys(b)) {
		if !strings.HasPrefix(k, prefix) || k <= startAfter {
			continue
		}
		o := b[k]
		o.Key = k
		if err := fn(o); err != nil {
			return err
		}
	}
	return nil
}

// indexOf is an index in the order of its paths.
type indexOf []archive.Item

func (x indexOf) Range(after string, n int, buf []archive.Item) ([]archive.Item, error) {
	i, found := slices.BinarySearchFunc(x, after, func(it archive.Item, p string) int { return strings.Compare(it.Path, p) })
	if found {
		i++
	}
	return append(buf, x[i:min(len(x), i+n)]...), nil
}

func newIndexOf(paths ...string) indexOf {
	var x indexOf
	for _, p := range slices.Compact(slices.Sorted(slices.Values(paths))) {
		x = append(x, archive.Item{Path: p, Entry: archive.Entry{Stored: true, ETag: "e"}})
	}
	return x
}

// merged returns what compareListing says of each path, and fails for an entry
// that it tells of twice or out of the order of the keys.
func merged(t *testing.T, l lister, x ranger, m archive.Mapper) (got map[string]bool, listed int64, err error) {
	t.Helper()
	got, last := map[string]bool{}, ""
	listed, err = compareListing(t.Context(), l, x, m, func(key string, it archive.Item, o *archive.Object) error {
		if want, kerr := m.Key(it.Path); kerr != nil || key != want || key <= last {
			t.Errorf("%q came as %q after %q, want its key %q and the order of the keys", it.Path, key, last, want)
		}
		last = key
		got[it.Path] = o != nil
		return nil
	})
	return got, listed, err
}

func TestListingIsMergedWithOddNames(t *testing.T) {
	m := archive.NewMapper("pre")
	x := newIndexOf("a", "a%41", "a%2", "a/b", "a0", "\xff", "\xff/x", "z\xfe/y", "_manifest", "_manifests0", "ü", "b%41/c")
	x = append(x, archive.Item{Path: "\xff\xff", Entry: archive.Entry{FailClass: archive.ClassFile}}) // Nothing of it is in S3.
	b := bucketOf{
		"pre/unknown": {}, "pre/%FF": {}, "pre/a": {}, "pre/a%2541": {}, "pre/a/b": {}, "pre/_manifests/manifest_1.json": {},
		"pre/_manifests/digest_1.json": {}, "pre/_manifests0": {}, "pre/b%2541/c": {}, "other/a": {}, "pre/ü": {},
	}
	got, listed, err := merged(t, b, x, m)
	want := map[string]bool{
		"a": true, "a%41": true, "a%2": false, "a/b": true, "a0": false, "\xff": true, "\xff/x": false, "z\xfe/y": false,
		"_manifest": false, "_manifests0": true, "ü": true, "b%41/c": true,
	}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if listed != 8 {
		t.Errorf("listed %d objects, want 8 without the trail's", listed)
	}
}

// Random names, more of them than fit one chunk of any kind, are compared with
// the difference of two sets.
func TestListingAgreesWithSets(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	parts := []string{"a", "b", "%41", "%4", "\xff", "\xfe", "é", "a%FF", "A", "0", "~", "_manifests", "+", " "}
	m := archive.NewMapper("some/prefix")
	for range 3 {
		var paths []string
		for range 3*oddChunk + 100 {
			p := []string{fmt.Sprintf("%s%x", parts[rng.IntN(len(parts))], rng.Uint32N(1<<16))}
			for range rng.IntN(3) {
				p = append(p, parts[rng.IntN(len(parts))]+parts[rng.IntN(len(parts))])
			}
			paths = append(paths, strings.Join(p, "/"))
		}
		x, b, want := newIndexOf(paths...), bucketOf{}, map[string]bool{}
		for _, it := range x {
			key, err := m.Key(it.Path)
			if err != nil {
				t.Fatal(err)
			}
			want[it.Path] = rng.IntN(3) > 0
			if want[it.Path] {
				b[key] = archive.Object{}
			}
		}
		got, _, err := merged(t, b, x, m)
		if err != nil || !maps.Equal(got, want) {
			t.Fatalf("%d entries differ from %d, %v", len(got), len(want), err)
		}
	}
}

// brokenList ends in the middle.
type brokenList struct {
	bucketOf

	after int
}

var errOutage = errors.New("the network is away")

func (b brokenList) List(ctx context.Context, prefix, startAfter string, fn func(archive.Object) error) error {
	n := 0
	return b.bucketOf.List(ctx, prefix, startAfter, func(o archive.Object) error {
		if n == b.after {
			return errOutage
		}
		n++
		return fn(o)
	})
}

func TestOnlyWhatWasListedToItsEndIsMissing(t *testing.T) {
	x := newIndexOf("a", "b", "c", "d", "e")
	b := bucketOf{"p/a": {}, "p/c": {}, "p/e": {}}
	got, _, err := merged(t, brokenList{b, 2}, x, archive.NewMapper("p"))
	if want := map[string]bool{"a": true, "b": false, "c": true}; !errors.Is(err, errOutage) || !maps.Equal(got, want) {
		t.Errorf("got %v, %v, want %v: of d nothing is known", got, err, want)
	}
}

// shuffled lists in another order than that of the keys.
type shuffled []string

func (s shuffled) List(_ context.Context, _, _ string, fn func(archive.Object) error) error {
	for _, k := range s {
		if err := fn(archive.Object{Key: k}); err != nil {
			return err
		}
	}
	return nil
}

func TestListingOutOfOrderProvesNothing(t *testing.T) {
	x := newIndexOf("a", "b", "c")
	got, _, err := merged(t, shuffled{"p/b", "p/a", "p/c"}, x, archive.NewMapper("p"))
	if !errors.Is(err, errUnordered) || got["c"] {
		t.Errorf("got %v, %v, want an error", got, err)
	}
}

// heads answers HEAD.
type heads map[string]archive.Object

func (h heads) Head(_ context.Context, key string) (archive.Object, error) {
	if o, ok := h[key]; ok {
		return o, nil
	}
	return archive.Object{}, fs.ErrNotExist
}

func TestWhatCountsAsReplaced(t *testing.T) {
	e := archive.Entry{Stored: true, ETag: "e", VersionID: "v1", Fence: archive.Fence{Size: 3}}
	for name, row := range map[string]struct {
		listed archive.Object
		head   heads
		want   bool
	}{
		"the same":                       {listed: archive.Object{Size: 3, ETag: "e"}},
		"another size":                   {listed: archive.Object{Size: 4, ETag: "e"}, want: true},
		"another ETag":                   {listed: archive.Object{Size: 3, ETag: "f"}, head: heads{"k": {ETag: "f"}}, want: true},
		"another ETag in listings alone": {listed: archive.Object{Size: 3, ETag: "f"}, head: heads{"k": {ETag: "e"}}},
		"gone since it was listed":       {listed: archive.Object{Size: 3, ETag: "f"}, want: true},
		"no ETag in listings":            {listed: archive.Object{Size: 3}, head: heads{"k": {ETag: "e"}}},
		"replaced, no ETag in listings":  {listed: archive.Object{Size: 3}, head: heads{"k": {ETag: "f"}}, want: true},
		"another version by HEAD":        {listed: archive.Object{Size: 3, ETag: "f"}, head: heads{"k": {ETag: "e", VersionID: "v2"}}, want: true},
	} {
		c := &remoteCheck{head: row.head}
		if got, err := c.differs(t.Context(), "k", &e, &row.listed); got != row.want || err != nil {
			t.Errorf("%s: differs = %v, %v, want %v", name, got, err, row.want)
		}
	}
}

func TestListedETagsAreAskedForUntilOneIsTrue(t *testing.T) {
	e := archive.Entry{Stored: true, ETag: "e"}
	liar := &remoteCheck{head: heads{"k": {ETag: "e"}}}
	for range 100 {
		if got, err := liar.differs(t.Context(), "k", &e, &archive.Object{ETag: "f"}); got || err != nil {
			t.Fatalf("differs = %v, %v, want false", got, err)
		}
	}
	liar.head = heads{"k": {ETag: "g", Metadata: map[string]string{archive.MetaMD5: "copied"}}}
	if got, err := liar.differs(t.Context(), "k", &e, &archive.Object{ETag: "f"}); !got || err != nil || liar.trusted {
		t.Errorf("of a replaced object differs = %v, %v, and the listing is trusted: %v; want true, nil, false", got, err, liar.trusted)
	}
	honest := &remoteCheck{head: heads{"k": {ETag: "f"}}}
	for range 100 {
		if got, err := honest.differs(t.Context(), "k", &e, &archive.Object{ETag: "f"}); !got || err != nil {
			t.Fatalf("differs = %v, %v, want true", got, err)
		}
	}
	honest.head = heads{} // Nothing more is asked for.
	if got, err := honest.differs(t.Context(), "k", &e, &archive.Object{ETag: "f"}); !got || err != nil || !honest.trusted {
		t.Errorf("differs = %v, %v, want true without a question", got, err)
	}
}

func TestRestartsDoNotPostponeTheCheckOfTheFarSide(t *testing.T) {
	db, err := state.Open(t.TempDir(), state.Options{Instance: "i", MachineID: "m", Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	s := New(Options{DB: db, Key: "remote-check/b/p//data", Log: zap.NewNop()})
	const interval = 10 * time.Hour
	start := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	for _, row := range []struct{ after, least, most time.Duration }{
		{0, 9 * time.Hour, 11 * time.Hour},
		{8 * time.Hour, time.Hour, 3 * time.Hour},       // An interval after the first start.
		{20 * time.Hour, remoteLate, remoteLate},        // Overdue: soon, but not with the start.
		{-time.Hour, 9 * time.Hour, 11 * time.Hour},     // A clock that was set back begins anew.
		{9 * time.Hour, remoteLate, 60 * time.Minute},   // From the clock that was set back on.
		{-2 * time.Hour, 9 * time.Hour, 11 * time.Hour}, // Once more.
	} {
		now := start.Add(row.after)
		if d := s.first(t.Context(), now, interval).Sub(now); d < row.least || d > row.most {
			t.Errorf("a start after %v checks after %v, want %v to %v", row.after, d, row.least, row.most)
		}
	}
}

func TestRequestsForACheckOfTheFarSideMerge(t *testing.T) {
	store, err := s3store.Open(t.Context(), s3store.Options{
		Region: "us-east-1", Bucket: "b", Instance: "i", KMSKeyID: "key", SSE: "aws:kms",
		Log: zap.NewNop(), Metrics: s3conn.NewMetrics(prometheus.NewRegistry()),
	})
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{Store: store})
	for range 3 {
		if err := s.Request(); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{})
		s.asked <- struct{}{}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Hour)
		defer cancel()
		begin := time.Now()
		if !s.await(ctx, begin.Add(time.Hour)) || time.Since(begin) != 0 {
			t.Errorf("a check that was asked for began after %v", time.Since(begin))
		}
		if !s.await(ctx, begin.Add(time.Hour)) || time.Since(begin) != time.Hour {
			t.Errorf("the periodic check began after %v, want 1h", time.Since(begin))
		}
		if s.await(ctx, time.Time{}) || time.Since(begin) != 100*time.Hour {
			t.Errorf("an interval of 0 checked after %v", time.Since(begin))
		}
	})
	if len(s.asked) != 1 {
		t.Errorf("%d checks wait, want 1", len(s.asked))
	}
	denied := store.Capabilities()
	denied.ListDenied, denied.CheckedAt = true, time.Now()
	if !store.Restore(denied) {
		t.Fatal("the capabilities were not taken up")
	}
	if err := s.Request(); !errors.Is(err, errListDenied) {
		t.Errorf("request without the right to list = %v, want %v", err, errListDenied)
	}
	if err := s.check(t.Context()); !errors.Is(err, errListDenied) {
		t.Errorf("check without the right to list = %v, want %v and no request", err, errListDenied)
	}
}

func TestEscapedNamesAreHeldABoundedNumberAtATime(t *testing.T) {
	var paths []string
	for i := range 3*oddChunk + 7 {
		paths = append(paths, fmt.Sprintf("%x\xff", i))
	}
	c := newKeyCursor(newIndexOf(paths...), archive.NewMapper("p"))
	n := 0
	for ; ; n++ {
		k, err := c.peek()
		if err != nil {
			t.Fatal(err)
		}
		if k == nil {
			break
		}
		if len(c.odd) > oddChunk || cap(c.odd) > 3*oddChunk || len(c.plain) > 0 {
			t.Fatalf("%d of %d odd and %d plain entries are held, want at most %d odd", len(c.odd), cap(c.odd), len(c.plain), oddChunk)
		}
		c.next()
	}
	if n != len(paths) {
		t.Errorf("walked %d entries, want %d", n, len(paths))
	}
}

func TestWhatIsWrittenDuringTheCheckIsLeftOut(t *testing.T) {
	c := &remoteCheck{begun: 5}
	for _, e := range []archive.Entry{{Stored: true, Attempt: 5}, {Stored: true, Attempt: 1, Suspect: true}} {
		if err := c.compare(t.Context(), "k", archive.Item{Path: "p", Entry: e}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if c.missing != 0 || len(c.batch) != 0 {
		t.Errorf("%d missing, %+v to mark, want none", c.missing, c.batch)
	}
}
