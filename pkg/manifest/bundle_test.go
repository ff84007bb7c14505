package manifest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/bundle"
	"github.com/s3syncd/s3syncd/pkg/archive"
	trailpkg "github.com/s3syncd/s3syncd/pkg/trail"
)

// HeadVersion implements Header.
func (a *fakeArchive) HeadVersion(context.Context, string, string) (archive.Object, error) {
	return archive.Object{Size: 7, ETag: "e"}, nil
}

// signed returns a trail of three digests, of which the second is signed, the
// bundle of the one file in the first, and the key.
func signed(t *testing.T) (*fakeArchive, *bundle.Bundle, *trailpkg.PublicKey) {
	t.Helper()
	a := newArchive()
	_, first := a.add(t, "h", "0a0a0a0a", 1, true, nil, a.upload("f", "content", atTen), a.upload("g", "other", atTen))
	_, second := a.add(t, "h", "0a0a0a0a", 2, true, nil, a.upload("h", "more", atEleven))
	a.add(t, "h", "0a0a0a0a", 3, true, nil)
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	public, err := trailpkg.ParsePublicKey(trailpkg.EncodePublic(der))
	if err != nil {
		t.Fatal(err)
	}
	s := trailpkg.Signature{Algorithm: trailpkg.AlgorithmEd25519, PublicKeyFingerprint: public.Fingerprint(), Signature: base64.StdEncoding.EncodeToString(ed25519.Sign(key, a.objects[second]))}
	data, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	a.set(strings.TrimSuffix(second, ".json")+trailpkg.SignatureSuffix, data)
	a.set("p/_manifests/keys/"+public.Fingerprint()+".pem", trailpkg.EncodePublic(der))
	b := a.bundle(t, "p/f", "")
	if len(b.Digests) != 2 || b.Digests[0].S3Key != first || b.Digests[1].S3Key != second {
		t.Fatalf("the bundle has %d digests, want those up to the signed one", len(b.Digests))
	}
	return a, b, public
}

// bundle makes the bundle of the newest record of key.
func (a *fakeArchive) bundle(t *testing.T, key, head string) *bundle.Bundle {
	t.Helper()
	trail := trailpkg.NewTrail(a, "p/")
	var latest trailpkg.Latest
	q := trailpkg.HistoryQuery{Match: func(r *archive.Record) bool { return r.S3Key == key }, Distrust: func(_ string, err error) error { return err }}
	if err := trail.History(t.Context(), q, func(it trailpkg.HistoryItem) error { latest.Add(it); return nil }); err != nil {
		t.Fatal(err)
	}
	b, err := bundle.New(t.Context(), trail, a, latest.Item, head, time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// check encodes and checks a bundle.
func check(t *testing.T, b *bundle.Bundle, c bundle.Check) (bundle.Report, error) {
	t.Helper()
	data, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return bundle.Verify(bytes.NewReader(data), c)
}

func TestABundleProvesItsRecord(t *testing.T) {
	a, b, public := signed(t)
	r, err := check(t, b, bundle.Check{Trusted: []*trailpkg.PublicKey{public}})
	if err != nil || len(r.Faults) > 0 || !r.Anchored || r.SignedBy != public.Fingerprint() || r.Record.S3Key != "p/f" {
		t.Errorf("VerifyBundle = %+v, %v", r, err)
	}
	r, err = check(t, b, bundle.Check{})
	if err != nil || len(r.Faults) > 0 || r.Anchored || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], public.Fingerprint()) {
		t.Errorf("VerifyBundle without a key = %+v, %v, want a note with the fingerprint", r, err)
	}
	sha, _, _ := strings.Cut(a.heads["0a0a0a0a"], " ")
	r, err = check(t, a.bundle(t, "p/f", sha), bundle.Check{ExpectHead: strings.ToUpper(sha)})
	if err != nil || len(r.Faults) > 0 || !r.Anchored || r.Digests != 3 {
		t.Errorf("VerifyBundle against a head = %+v, %v", r, err)
	}
	if r, _ := check(t, b, bundle.Check{ExpectHead: sha}); len(r.Faults) != 1 || r.Anchored {
		t.Errorf("VerifyBundle against another head = %+v", r)
	}
}

// Each seventh byte of what is proven is changed, and every part is exchanged.
func TestAChangedBundleIsFound(t *testing.T) {
	a, genuine, public := signed(t)
	trust := bundle.Check{Trusted: []*trailpkg.PublicKey{public}}
	tried := 0
	found := func(what string, change func(b *bundle.Bundle)) {
		t.Helper()
		data, err := json.Marshal(genuine)
		if err != nil {
			t.Fatal(err)
		}
		b, err := bundle.Read(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		change(b)
		tried++
		if r, err := check(t, b, trust); err == nil && len(r.Faults) == 0 {
			t.Errorf("%s was not found", what)
		}
	}
	for i := 0; i < len(genuine.Manifest.Content); i += 7 {
		found("a changed byte of the manifest", func(b *bundle.Bundle) { b.Manifest.Content[i] ^= 1 })
		found("a changed byte of the manifest with its hash", func(b *bundle.Bundle) {
			b.Manifest.Content[i] ^= 1
			b.Manifest.SHA256 = trailpkg.SumOf(b.Manifest.Content)
		})
	}
	for d := range genuine.Digests {
		for i := d; i < len(genuine.Digests[d].Content); i += 7 {
			found("a changed byte of a digest with its hash", func(b *bundle.Bundle) {
				b.Digests[d].Content[i] ^= 1
				b.Digests[d].SHA256 = trailpkg.SumOf(b.Digests[d].Content)
			})
		}
	}
	for i := range genuine.Digests[1].Signature {
		found("a changed byte of the signature", func(b *bundle.Bundle) { b.Digests[1].Signature[i] ^= 1 })
	}
	other := a.bundle(t, "p/h", "")
	found("another record", func(b *bundle.Bundle) { b.Record = other.Record })
	found("a changed record", func(b *bundle.Bundle) { b.Record = bytes.Replace(b.Record, []byte("p/f"), []byte("p/F"), 1) })
	found("another status in the record", func(b *bundle.Bundle) {
		b.Record = bytes.Replace(b.Record, []byte(`"uploaded"`), []byte(`"deleted"`), 1)
	})
	found("another key", func(b *bundle.Bundle) { b.S3Key = "p/g" })
	found("another bucket", func(b *bundle.Bundle) { b.Bucket = "c" })
	found("another manifest", func(b *bundle.Bundle) { b.Manifest = other.Manifest })
	found("a missing digest", func(b *bundle.Bundle) { b.Digests = b.Digests[1:] })
	found("no digest", func(b *bundle.Bundle) { b.Digests = nil })
	found("a digest without the signed one", func(b *bundle.Bundle) { b.Digests = b.Digests[:1] })
	found("a missing signature", func(b *bundle.Bundle) { b.Digests[1].Signature = nil })
	found("a missing public key", func(b *bundle.Bundle) { b.Keys = nil })
	found("a signature by another key", func(b *bundle.Bundle) {
		key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, ed25519.SeedSize))
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		s := trailpkg.Signature{Algorithm: trailpkg.AlgorithmEd25519, PublicKeyFingerprint: trailpkg.FingerprintOf(der), Signature: base64.StdEncoding.EncodeToString(ed25519.Sign(key, b.Digests[1].Content))}
		if b.Digests[1].Signature, err = s.Encode(); err != nil {
			t.Fatal(err)
		}
		b.Keys[s.PublicKeyFingerprint] = string(trailpkg.EncodePublic(der))
	})
	if tried < 400 {
		t.Errorf("%d changes were tried, want 400", tried)
	}
}

func TestWhatIsNoBundleIsRefused(t *testing.T) {
	for text, want := range map[string]error{"": trailpkg.ErrFormat, "[]": trailpkg.ErrFormat, "{}": trailpkg.ErrFormat, `{"s3syncd_bundle":2}`: trailpkg.ErrNewerFormat, "null": trailpkg.ErrFormat} {
		if _, err := bundle.Verify(strings.NewReader(text), bundle.Check{}); !errors.Is(err, want) {
			t.Errorf("VerifyBundle(%q) = %v, want %v", text, err, want)
		}
	}
	a := newArchive()
	a.add(t, "h", "0a0a0a0a", 1, false, nil, a.upload("f", "content", atTen))
	var latest trailpkg.Latest
	q := trailpkg.HistoryQuery{Match: func(*archive.Record) bool { return true }}
	if err := trailpkg.NewTrail(a, "p/").History(t.Context(), q, func(it trailpkg.HistoryItem) error { latest.Add(it); return nil }); err != nil {
		t.Fatal(err)
	}
	if b, err := bundle.New(t.Context(), trailpkg.NewTrail(a, "p/"), a, latest.Item, "", time.Now()); err == nil {
		t.Errorf("a bundle without a digest: %+v, want an error", b)
	}
}

func TestHistoryTellsOldRecordsFirstAndPassesOverChangedManifests(t *testing.T) {
	a := newArchive()
	a.add(t, "h", "bbbbbbbb", 1, true, func(d *trailpkg.Digest) { d.Begins, d.AbandonsChain = archive.BeginsStateLost, "cccccccc" }, a.upload("f", "4", ""))
	a.add(t, "h", "cccccccc", 1, true, nil, a.upload("f", "1", ""), a.upload("g", "x", ""))
	changed, _ := a.add(t, "h", "cccccccc", 2, true, nil, a.upload("f", "2", ""))
	a.add(t, "h", "cccccccc", 3, true, nil, a.upload("f", "3", ""))
	a.objects[changed] = bytes.Replace(a.objects[changed], []byte("2"), []byte("9"), 1)
	var got, faults []string
	q := trailpkg.HistoryQuery{
		Match:    func(r *archive.Record) bool { return r.S3Key == "p/f" },
		Distrust: func(key string, err error) error { faults = append(faults, key); return nil },
	}
	err := trailpkg.NewTrail(a, "p/").History(t.Context(), q, func(it trailpkg.HistoryItem) error {
		got = append(got, it.Record.SHA256)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	wantLines(t, got, hexSHA([]byte("1")), hexSHA([]byte("3")), hexSHA([]byte("4")))
	wantLines(t, faults, changed)
	if _, err := hex.DecodeString(got[0]); err != nil {
		t.Error(err)
	}
}
