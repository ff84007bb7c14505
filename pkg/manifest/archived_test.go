package manifest

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/s3syncd/s3syncd/internal/verify"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// object changes a record to one of the object with this ETag.
func object(etag, sha string) func(*archive.Record) {
	return func(r *archive.Record) {
		r.ETag, r.SHA256 = etag, sha
		if r.Status == archive.StatusUploaded || r.Status == archive.StatusRekeyed {
			r.Attempt = 1
		}
	}
}

func (l *library) head(chain string) trail.Head {
	sha, key, _ := strings.Cut(l.heads[chain], " ")
	return trail.Head{Chain: chain, Key: key, SHA256: sha}
}

// archived renders what the trail knows back from head, and where it broke off.
func archived(t *testing.T, l *library, head trail.Head, pending ...archive.Record) (got, broken []string) {
	t.Helper()
	more := func(fn func([]byte) error) error {
		for i := range pending {
			if err := fn(pending[i].AppendLine(nil)); err != nil {
				return err
			}
		}
		return nil
	}
	err := trail.NewTrail(l, "p/").Archived(t.Context(), head, "p/", t.TempDir(), more, func(key string, err error) {
		broken = append(broken, key)
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, trail.ErrHash) && !errors.Is(err, trail.ErrFormat) {
			t.Errorf("%s broke off with %v", key, err)
		}
	}, func(r archive.Record) error {
		got = append(got, fmt.Sprintf("%s %s %s", strings.TrimPrefix(r.S3Key, "p/"), r.ETag, r.SHA256))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got, broken
}

func TestArchivedTellsTheObjectAndNotTheFile(t *testing.T) {
	l := newLibrary()
	l.add(t, "app-01", "0a1b2c3d", 1, true, nil,
		rec(archive.StatusUploaded, "gone", "", object("e1", "one")),
		rec(archive.StatusUploaded, "mirrored", "", object("e2", "two")),
		rec(archive.StatusUploaded, "rekeyed", "", object("e3", "three")),
		rec(archive.StatusSkipped, "adopted", "", object("e4", "four")),
		rec(archive.StatusUploaded, "edited", "", object("e5", "five")),
		rec(archive.StatusFailed, "failed", ""))
	l.add(t, "app-01", "0a1b2c3d", 2, true, nil,
		rec(archive.StatusDeleted, "gone", ""),
		rec(archive.StatusDeleted, "mirrored", "", func(r *archive.Record) { r.Attempt = 7 }),
		rec(archive.StatusRekeyed, "rekeyed", "", object("f3", "")),
		rec(archive.StatusSkipped, "edited", "", func(r *archive.Record) { r.Basis = archive.BasisIndex }))
	pending := []archive.Record{rec(archive.StatusUploaded, "edited", "2026-03-01T12:00:00Z", object("f5", "5")), rec(archive.StatusUploaded, "new", "", object("e6", "six"))}
	got, broken := archived(t, l, l.head("0a1b2c3d"), pending...)
	want := []string{"adopted e4 four", "edited f5 5", "gone e1 one", "new e6 six", "rekeyed f3 three"}
	if !slices.Equal(got, want) || broken != nil {
		t.Errorf("Archived tells %q, broken off at %q; want %q", got, broken, want)
	}
}

// The walk follows hashes from what it is given, and no chain that stands beside.
func TestArchivedBelievesOnlyWhatTheHeadLeadsTo(t *testing.T) {
	l := newLibrary()
	l.add(t, "app-01", "0000000a", 1, true, nil, rec(archive.StatusUploaded, "old", "", object("e1", "one")))
	old := l.head("0000000a")
	l.add(t, "app-01", "0000000a", 2, true, nil, rec(archive.StatusUploaded, "after", "", object("x", "forged behind the head that was left")))
	l.add(t, "app-01", "0000000b", 3, true, func(d *trail.Digest) {
		d.Sequence, d.Begins, d.AbandonsChain, d.AbandonsDigestSHA256 = 3, archive.BeginsForked, "0000000a", old.SHA256
	}, rec(archive.StatusUploaded, "new", "", object("e2", "two")))
	l.add(t, "app-01", "0000000c", 4, true, func(d *trail.Digest) { d.AbandonsChain = "0000000b" },
		rec(archive.StatusUploaded, "new", "", object("x", "forged")), rec(archive.StatusUploaded, "unknown", "", object("y", "forged")))
	got, broken := archived(t, l, l.head("0000000b"))
	if want := []string{"new e2 two", "old e1 one"}; !slices.Equal(got, want) || broken != nil {
		t.Errorf("Archived tells %q, broken off at %q; want %q", got, broken, want)
	}
	if got, _ := archived(t, l, trail.Head{}); got != nil {
		t.Errorf("from no head Archived tells %q", got)
	}
	for name, spoil := range map[string]func(){
		"a digest of other bytes": func() { l.set(old.Key, append(l.objects[old.Key], '\n')) },
		"no digest":               func() { delete(l.objects, old.Key) },
	} {
		spoil()
		got, broken := archived(t, l, l.head("0000000b"))
		if want := []string{"new e2 two"}; !slices.Equal(got, want) || len(broken) != 1 {
			t.Errorf("%s: Archived tells %q, broken off at %q; want %q", name, got, broken, want)
		}
	}
}

// A digest names its predecessor by hash and by key; each is compared.
func TestVerifyComparesThePredecessorsKey(t *testing.T) {
	for name, change := range map[string]func(*trail.Digest){
		"another key":  func(d *trail.Digest) { *d.PreviousDigestS3Key = "p/_manifests/digest_elsewhere.json" },
		"another hash": func(d *trail.Digest) { *d.PreviousDigestSHA256 = strings.Repeat("f", 64) },
	} {
		l := newLibrary()
		l.add(t, "app-01", "0a1b2c3d", 1, true, nil)
		l.add(t, "app-01", "0a1b2c3d", 2, true, change)
		v, err := verify.Run(t.Context(), trail.NewTrail(l, "p/"), verify.Options{Bucket: "b", Now: trailStart})
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]verify.FindingKind{"another key": verify.FindingLink, "another hash": verify.FindingDigestHash}[name]
		if !slices.ContainsFunc(v.Findings, func(f verify.Finding) bool { return f.Kind == want }) {
			t.Errorf("%s: findings %+v, want %s", name, v.Findings, want)
		}
	}
}
