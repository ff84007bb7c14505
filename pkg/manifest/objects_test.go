package manifest

import (
	"context"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/s3syncd/s3syncd/internal/verify"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// shelf is a trail in memory with the objects that it tells of.
type shelf struct {
	*fakeArchive

	heads map[string]archive.Object
	heed  func(key string) error // before each HEAD, where it is set
}

func newShelf() *shelf { return &shelf{fakeArchive: newArchive(), heads: map[string]archive.Object{}} }

func (s *shelf) Head(_ context.Context, key string) (archive.Object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.heed != nil {
		if err := s.heed(key); err != nil {
			return archive.Object{}, err
		}
	}
	o, ok := s.heads[key]
	if !ok {
		return o, archive.Classified(archive.ClassTransient, "HeadObject", fs.ErrNotExist)
	}
	return o, nil
}

func (*shelf) ListVersions(context.Context, string, string, func(archive.ObjectVersion) error) error {
	return nil
}

// put stores an object as an upload of the host would, and returns its record.
func (s *shelf) put(key, text, id string, at time.Time, change ...func(*archive.Record)) archive.Record {
	s.set("p/"+key, []byte(text))
	o := archive.Object{Key: "p/" + key, Size: int64(len(text)), ETag: "etag of " + text, LastModified: at.Truncate(time.Second), Metadata: map[string]string{
		archive.MetaSHA256: hexSHA([]byte(text)),
	}}
	if id != "" {
		o.Metadata[archive.MetaID] = id
	}
	s.heads["p/"+key] = o
	r := rec(archive.StatusUploaded, key, archive.FormatTime(at))
	r.SizeBytes, r.SHA256, r.ETag = &o.Size, o.Metadata[archive.MetaSHA256], o.ETag
	if oid, ok := archive.ParseObjectID(id); ok {
		r.Attempt = oid.Attempt
	}
	for _, c := range change {
		c(&r)
	}
	return r
}

// drop removes an object.
func (s *shelf) drop(key string) {
	delete(s.objects, "p/"+key)
	delete(s.heads, "p/"+key)
}

func (s *shelf) check(t *testing.T, now time.Time, change func(*verify.ObjectOptions)) *verify.Result {
	t.Helper()
	tr := trail.NewTrail(s, "p/")
	v, err := verify.Run(t.Context(), tr, verify.Options{Bucket: "b", Now: now})
	if err != nil {
		t.Fatal(err)
	}
	o := verify.ObjectOptions{Workers: 4}
	if change != nil {
		change(&o)
	}
	if err := v.CheckObjects(t.Context(), tr, s, o); err != nil {
		t.Fatal(err)
	}
	return v
}

// about returns what was found and noted of one key.
func about(v *verify.Result, key string) (said []string) {
	for _, f := range v.Findings {
		if f.Key == "p/"+key {
			said = append(said, string(f.Kind))
		}
	}
	for _, f := range v.Notes {
		if f.Key == "p/"+key {
			said = append(said, "note "+string(f.Kind))
		}
	}
	return said
}

func withReason(reason string) func(*trail.Digest) {
	return func(d *trail.Digest) {
		d.Reason, d.ConfigSHA256 = reason, ""
		if reason == trail.ReasonStop || reason == trail.ReasonFinal {
			d.NextDigestDue = nil
		}
	}
}

func pendingSince(at time.Time) func(*trail.Digest) {
	return func(d *trail.Digest) {
		withReason(trail.ReasonInterval)(d)
		d.Pending, d.OldestPendingSince = 1, timeOrNull(at)
	}
}

// An object that the trail does not know, or that stands in the place of one
// that it knows, is believed to be new only while its chain can have written it.
func TestWhatAnObjectClaimsOfItselfIsNotBelieved(t *testing.T) {
	const chain = "0a1b2c3d"
	id := func(n uint64) string { return archive.ObjectID{Instance: "app-01", Chain: chain, Attempt: n}.String() }
	end := trailStart.Add(time.Hour) // of the digest; the next one is due an hour later
	later := end.Add(10 * time.Minute)
	now := end.Add(30 * time.Minute)
	for _, c := range []struct {
		name    string
		Head    func(*trail.Digest)
		id      string
		written time.Time
		now     time.Time
		noted   bool
	}{
		{"since the digest", nil, id(8), later, now, true},
		{"by a later attempt, drawn much later", nil, id(90_000), later, now, true},
		{"while the digest was written", nil, id(8), end.Add(-300 * time.Millisecond), now, true},
		{"on its way before the digest", pendingSince(end.Add(-time.Hour)), id(8), end.Add(-50 * time.Minute), now, true},
		{"the next digest is a little late", nil, id(8), later, end.Add(time.Hour + 50*time.Second), true},

		{"after the chain stopped", withReason(trail.ReasonStop), id(8), later, now, false},
		{"after the chain ended", withReason(trail.ReasonFinal), id(8), later, now, false},
		{"before the digest that does not name it", nil, id(8), end.Add(-10 * time.Minute), now, false},
		{"seconds before the digest that does not name it", nil, id(8), end.Add(-3 * time.Second), now, false},
		{"before what was on its way", pendingSince(end.Add(-10 * time.Minute)), id(8), end.Add(-20 * time.Minute), now, false},
		{"the next digest should name it", nil, id(8), later, end.Add(2 * time.Hour), false},
		{"the next digest is two minutes late", nil, id(8), later, end.Add(time.Hour + 2*time.Minute), false},
		{"with another record's attempt", nil, id(7), later, now, false},
		{"with a number that nobody has drawn yet", nil, id(1 << 40), later, now, false},
		{"with the highest number", nil, "app-01/" + chain + "/18446744073709551615", later, now, false},
		{"with no number", nil, id(0), later, now, false},
		{"by a chain that is not there", nil, "app-01/ffffffff/8", later, now, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newShelf()
			known := s.put("known", "old content", id(6), trailStart)
			other := s.put("other", "other", id(7), trailStart)
			head := c.Head
			if head == nil {
				head = withReason(trail.ReasonInterval)
			}
			s.add(t, "app-01", chain, 1, true, head, known, other)
			s.put("known", "other bytes", c.id, c.written)
			s.put("new", "new bytes", c.id, c.written)
			v := s.check(t, c.now, nil)
			want := map[string]string{"known": "object-content", "new": "object-unlisted"}
			switch {
			case c.noted:
				want = map[string]string{"known": "note changed-since", "new": "note changed-since"}
			case strings.Contains(c.id, "ffffffff"):
				want = map[string]string{"known": "object-chain", "new": "object-chain"}
			}
			for key, kind := range want {
				if got := about(v, key); len(got) != 1 || got[0] != kind {
					t.Errorf("of %s it says %v, want %s: %+v", key, got, kind, v.Findings)
				}
			}
			wanted := int64(0)
			if c.noted {
				wanted = 2
			}
			if v.Objects.ChangedSince != wanted || (v.Objects.OldestChange != "") != c.noted {
				t.Errorf("the summary is %+v, want %d changed since", v.Objects, wanted)
			}
			if got := about(v, "other"); len(got) != 0 {
				t.Errorf("of an object that is as it was: %v", got)
			}
		})
	}
}

// A chain that another one follows writes nothing any more.
func TestAnObjectOfAChainThatWasLeft(t *testing.T) {
	s := newShelf()
	s.add(t, "app-01", "aaaaaaaa", 1, true, withReason(trail.ReasonInterval), s.put("a", "a", "app-01/aaaaaaaa/1", trailStart))
	head, _, _ := strings.Cut(s.library.heads["aaaaaaaa"], " ")
	s.add(t, "app-01", "bbbbbbbb", 1, true, func(d *trail.Digest) {
		withReason(trail.ReasonInterval)(d)
		d.Begins, d.AbandonsChain, d.AbandonsDigestSHA256 = archive.BeginsStateLost, "aaaaaaaa", head
	}, s.put("b", "b", "app-01/bbbbbbbb/1", trailStart))
	later := trailStart.Add(70 * time.Minute)
	s.put("a", "A", "app-01/aaaaaaaa/2", later)
	s.put("b", "B", "app-01/bbbbbbbb/2", later)
	v := s.check(t, later.Add(time.Minute), nil)
	if got := fmt.Sprint(about(v, "a"), about(v, "b")); got != "[object-content] [note changed-since]" {
		t.Errorf("it says %s: %+v", got, v.Findings)
	}
}

// What metadata alone says of an object's content is counted until it was hashed.
func TestContentThatMetadataAloneProves(t *testing.T) {
	skip := func(basis archive.Basis) func(*archive.Record) {
		return func(r *archive.Record) { r.Status, r.Basis, r.Attempt = archive.StatusSkipped, basis, 0 }
	}
	s := newShelf()
	at := trailStart.Add(-time.Hour)
	mine := "app-01/0a1b2c3d/"
	replaced := s.put("replaced", "r", mine+"1", at)
	rekeyed := s.put("rekeyed", "k", mine+"2", at)
	rekeyed.Status, rekeyed.ReplacedETag = archive.StatusRekeyed, "that of an unknown object"
	proven := s.put("proven", "p", "", at, skip(archive.BasisMetadata))
	s.add(t, "app-01", "0a1b2c3d", 1, true, withReason(trail.ReasonStop),
		s.put("uploaded", "u", mine+"3", at),
		s.put("metadata", "m", "", at, skip(archive.BasisMetadata)),
		s.put("etag", "e", "", at, skip(archive.BasisETag)),
		replaced, rekeyed, proven)
	after := s.put("replaced", "r", "", at, skip(archive.BasisMetadata), func(r *archive.Record) { r.ETag = "another" })
	o := s.heads["p/replaced"]
	o.ETag = "another"
	s.heads["p/replaced"] = o
	index := s.put("metadata", "m", "", at, skip(archive.BasisIndex))
	s.add(t, "app-01", "0a1b2c3d", 2, true, withReason(trail.ReasonStop), after, index, s.put("proven", "p", "", at, skip(archive.BasisETag)))

	v := s.check(t, trailStart.Add(3*time.Hour), nil)
	if !v.Clean || v.Objects.Unproven != 3 {
		t.Errorf("without --deep: %+v, %+v; want metadata, replaced and rekeyed unproven", v.Objects, v.Findings)
	}
	all := func(o *verify.ObjectOptions) { o.Deep = 100 }
	if v = s.check(t, trailStart.Add(3*time.Hour), all); !v.Clean || v.Objects.Unproven != 0 || v.Objects.Downloaded != 6 {
		t.Errorf("with --deep all: %+v, %+v", v.Objects, v.Findings)
	}
	// The same size, metadata and ETag, and other bytes.
	s.objects["p/metadata"] = []byte("x")
	if v = s.check(t, trailStart.Add(3*time.Hour), all); fmt.Sprint(about(v, "metadata")) != "[object-content]" {
		t.Errorf("other bytes: %+v", v.Findings)
	}
}

// An object that stayed when its file went is compared, too.
func TestAnObjectThatOutlivesItsFile(t *testing.T) {
	s := newShelf()
	at := trailStart.Add(-time.Hour)
	gone := func(key string) archive.Record {
		return rec(archive.StatusDeleted, key, archive.FormatTime(at.Add(time.Minute)))
	}
	s.add(t, "app-01", "0a1b2c3d", 1, true, withReason(trail.ReasonStop),
		s.put("kept", "k", "app-01/0a1b2c3d/1", at), s.put("replaced", "r", "app-01/0a1b2c3d/2", at), s.put("expired", "e", "app-01/0a1b2c3d/3", at))
	s.add(t, "app-01", "0a1b2c3d", 2, true, withReason(trail.ReasonStop), gone("kept"), gone("replaced"), gone("expired"))
	s.put("replaced", "R", "app-01/0a1b2c3d/4", at.Add(2*time.Minute))
	s.drop("expired")
	v := s.check(t, trailStart.Add(3*time.Hour), nil)
	if got := fmt.Sprint(about(v, "kept"), about(v, "replaced"), about(v, "expired")); got != "[] [object-content] []" || v.Objects.Deleted != 3 || v.Objects.Records != 3 {
		t.Errorf("it says %s: %+v, %+v", got, v.Objects, v.Findings)
	}
}

// What cannot be asked or read of the objects does not end the comparison, and
// where a document was not read nothing is called a fault that it may explain.
func TestObjectsThatCannotBeAskedFor(t *testing.T) {
	s := newShelf()
	at := trailStart.Add(-time.Hour)
	first, _ := s.add(t, "app-01", "0a1b2c3d", 1, true, withReason(trail.ReasonInterval), s.put("a", "a", "app-01/0a1b2c3d/1", at), s.put("b", "b", "app-01/0a1b2c3d/2", at))
	s.add(t, "app-01", "0a1b2c3d", 2, true, withReason(trail.ReasonStop), s.put("c", "c", "app-01/0a1b2c3d/3", at), s.put("d", "d", "app-01/0a1b2c3d/4", at))
	now := trailStart.Add(3 * time.Hour)
	synctest.Test(t, func(t *testing.T) {
		s.heed = func(key string) error {
			if key == "p/b" {
				return errDenied
			}
			return nil
		}
		s.body = breaking(-1, keyIs("p/c"))
		v := s.check(t, now, func(o *verify.ObjectOptions) { o.Deep = 100 })
		if got := fmt.Sprint(about(v, "a"), about(v, "b"), about(v, "c"), about(v, "d")); got != "[] [unchecked] [unchecked] []" || v.Objects.Unchecked != 2 || v.Objects.Downloaded != 2 {
			t.Errorf("it says %s: %+v, %+v", got, v.Objects, v.Findings)
		}
		s.heed, s.body = nil, breaking(-1, keyIs(first))
		v = s.check(t, now, nil)
		if got := fmt.Sprint(about(v, "a"), about(v, "b"), about(v, "c")); got != "[unchecked] [unchecked] []" {
			t.Errorf("with a manifest that cannot be read it says %s: %+v", got, v.Findings)
		}
		// Three bodies break off, and then it reads on.
		s.body = breaking(3, everyKey)
		if v = s.check(t, now, func(o *verify.ObjectOptions) { o.Deep = 100 }); !v.Clean {
			t.Errorf("after broken bodies: %+v", v.Findings)
		}
	})
}

// A manifest that no digest names tells of an object only while its chain can
// have written it.
func TestAManifestBehindTheEndOfAChain(t *testing.T) {
	for reason, want := range map[string]string{
		trail.ReasonInterval: "[]", trail.ReasonStop: "[object-content]", trail.ReasonFinal: "[object-content]",
	} {
		s := newShelf()
		s.add(t, "app-01", "0a1b2c3d", 1, true, withReason(reason), s.put("a", "a", "app-01/0a1b2c3d/1", trailStart))
		later := trailStart.Add(119 * time.Minute)
		m, _ := s.add(t, "app-01", "0a1b2c3d", 2, false, nil, s.put("a", "forged", "app-01/0a1b2c3d/2", later))
		v := s.check(t, later.Add(time.Minute), nil)
		if got := fmt.Sprint(about(v, "a")); got != want {
			t.Errorf("behind %s it says %s: %+v", reason, got, v.Findings)
		}
		found := "[note manifest-pending]"
		if reason == trail.ReasonFinal {
			found = "[unnamed-manifest]"
		}
		if got := fmt.Sprint(about(v, strings.TrimPrefix(m, "p/"))); got != found {
			t.Errorf("behind %s it says %s of the manifest, want %s", reason, got, found)
		}
		if reason == trail.ReasonStop {
			v = s.check(t, later.Add(25*time.Hour), nil)
			if got := fmt.Sprint(about(v, strings.TrimPrefix(m, "p/"))); got != "[silent]" {
				t.Errorf("a day behind %s it says %s of the manifest", reason, got)
			}
		}
	}
}
