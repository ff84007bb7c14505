package manifest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/anchor"
	"github.com/s3syncd/s3syncd/internal/signer"
	"github.com/s3syncd/s3syncd/internal/verify"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// signedTrail is what a flusher has published: several digests, a
// configuration, signatures, and the key that signed them.
type signedTrail struct {
	objects map[string][]byte
	key     *trail.PublicKey
	now     time.Time
	chain   string
}

// publishTrail lets a real flusher publish n digests with manifests, one without
// and a clean stop.
func publishTrail(t *testing.T, n int, opt func(*Options)) signedTrail {
	t.Helper()
	path, _ := writeKey(t, 0o600)
	signer, err := signer.LoadEd25519(path)
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(o *Options) {
		o.Sign = signer
		if opt != nil {
			opt(o)
		}
	})
	r.begin(state.Report{New: true})
	config := []byte("instance: app-01\n")
	sum := sha256.Sum256(config)
	if err := r.f.PublishConfig(t.Context(), config, hex.EncodeToString(sum[:])); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		r.advance(time.Minute)
		r.commitFull(string(rune('a'+i)), 4)
		r.flush(trail.ReasonFlush)
	}
	r.advance(time.Minute)
	r.flush(trail.ReasonStop)
	return signedTrail{objects: maps.Clone(r.bucket.objects), key: publicKeyOf(t, signer), now: r.clock().Add(time.Minute), chain: r.chain().ID}
}

// publicPEM returns the public key of s as it is published.
func publicPEM(s Signer) []byte {
	pem, err := s.PublicKey(context.Background())
	if err != nil {
		panic(err)
	}
	return pem
}

// fingerprintOf returns the fingerprint of the key of s.
func fingerprintOf(s Signer) string {
	k, err := trail.ParsePublicKey(publicPEM(s))
	if err != nil {
		panic(err)
	}
	return k.Fingerprint()
}

func publicKeyOf(t *testing.T, s Signer) *trail.PublicKey {
	t.Helper()
	k, err := trail.ParsePublicKey(publicPEM(s))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// commitFull records n uploads as the uploader does.
func (r *rig) commitFull(prefix string, n int) {
	r.Helper()
	for i := range n {
		path := prefix + string(rune('0'+i))
		size := int64(i)
		rec := archive.Record{
			LocalPath: "/data/" + path, S3Key: "p/" + path, S3URI: "s3://b/p/" + path, SizeBytes: &size, Status: archive.StatusUploaded,
			Timestamp: archive.FormatTime(r.clock()), SHA256: strings.Repeat("a", 64), Trigger: archive.TriggerEvent, Source: "data", Instance: "app-01",
		}
		if _, err := r.st.Commit(r.Context(), archive.Outcome{Path: path, Key: rec.S3Key, Record: &rec}); err != nil {
			r.Fatal(err)
		}
	}
}

func (s *signedTrail) library(change func(map[string][]byte)) trail.Library {
	b := newBucket()
	b.objects = maps.Clone(s.objects)
	if change != nil {
		change(b.objects)
	}
	return b
}

// head is the newest digest, as something outside knows it.
func (s *signedTrail) head() anchor.Anchor {
	digests := s.documents("digest_")
	last := digests[len(digests)-1]
	n, _ := trail.ParseName(last)
	return anchor.Anchor{Instance: n.Instance, Chain: n.Chain, Sequence: n.Sequence, SHA256: hexSHA(s.objects[last]), From: "the anchor"}
}

// documents lists keys whose base name begins with kind, in order.
func (s *signedTrail) documents(kind string) (keys []string) {
	for key := range s.objects {
		base := key[strings.LastIndex(key, "/")+1:]
		if strings.HasPrefix(base, kind) && !strings.HasSuffix(base, trail.SignatureSuffix) {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b string) int {
		x, _ := trail.ParseName(a)
		y, _ := trail.ParseName(b)
		return strings.Compare(x.String(), y.String())
	})
	return keys
}

func (s *signedTrail) verify(t *testing.T, l trail.Library, change func(*verify.Options)) *verify.Result {
	t.Helper()
	o := verify.Options{Bucket: "b", Now: s.now, Keys: []*trail.PublicKey{s.key}, Anchors: []anchor.Anchor{s.head()}}
	if change != nil {
		change(&o)
	}
	v, err := verify.Run(t.Context(), trail.NewTrail(l, "p/"), o)
	if err != nil {
		t.Fatalf("Verify: %v", err)
	}
	return v
}

// kindsOf renders what was found and noted, for comparison.
func kindsOf(v *verify.Result) (found, noted []string) {
	for _, k := range v.FoundBy {
		found = append(found, string(k.Kind))
	}
	for _, k := range v.NotedBy {
		noted = append(noted, string(k.Kind))
	}
	return slices.Sorted(slices.Values(found)), slices.Sorted(slices.Values(noted))
}

func wantKinds(t *testing.T, v *verify.Result, found []string, noted ...string) {
	t.Helper()
	f, n := kindsOf(v)
	if !slices.Equal(f, found) || !slices.Equal(n, noted) {
		t.Errorf("found %v and noted %v, want %v and %v: %+v %+v", f, n, found, noted, v.Findings, v.Notes)
	}
	if v.Clean != (len(found) == 0) || (v.First == nil) != v.Clean {
		t.Errorf("clean %v, first %v", v.Clean, v.First)
	}
}

func TestVerifyFindsNothingInWhatAFlusherPublished(t *testing.T) {
	for _, layout := range []trail.Layout{trail.LayoutFlat, trail.LayoutHive} {
		s := publishTrail(t, 3, func(o *Options) { o.Layout, o.MaxRecords = layout, 2 })
		v := s.verify(t, s.library(nil), nil)
		wantKinds(t, v, nil, "stopped")
		c := v.Chains[0]
		if len(v.Chains) != 1 || c.Digests != 4 || c.Manifests != 6 || c.Records != 12 || c.Counts.Uploaded != 12 || c.Signed != 4 ||
			c.SignedTo != 4 || c.AnchoredTo != 4 || c.HeadReason != trail.ReasonStop || !slices.Equal(c.SignedBy, []string{s.key.Fingerprint()}) {
			t.Errorf("%s: %+v", layout, c)
		}
		if heads := v.Heads(); len(heads) != 1 || heads[0].SHA256 != s.head().SHA256 {
			t.Errorf("heads %v", heads)
		}
		wantKinds(t, s.verify(t, s.library(nil), func(o *verify.Options) { o.Anchors, o.Keys = nil, nil }), nil, "key-untrusted", "stopped", "tail-unanchored")
		var shown [][2]int64
		s.verify(t, s.library(nil), func(o *verify.Options) {
			o.Progress = func(done, total int64) { shown = append(shown, [2]int64{done, total}) }
		})
		if len(shown) != 4 || shown[3] != [2]int64{10, 10} {
			t.Errorf("progress %v", shown)
		}
	}
}

func TestVerifyNamesTheChainThatFellSilent(t *testing.T) {
	s := publishTrail(t, 2, nil)
	digests := s.documents("digest_")
	// The clean stop is gone: the one before it promised another digest.
	l := s.library(func(o map[string][]byte) {
		delete(o, digests[2])
		delete(o, strings.TrimSuffix(digests[2], ".json")+trail.SignatureSuffix)
	})
	off := func(o *verify.Options) { o.Anchors = nil }
	wantKinds(t, s.verify(t, l, off), nil, "tail-unanchored")
	late := func(o *verify.Options) { o.Anchors, o.Now = nil, s.now.Add(2*time.Hour) }
	wantKinds(t, s.verify(t, l, late), []string{"silent"}, "tail-unanchored")
	stale := func(o *verify.Options) { o.Anchors, o.MaxAge = nil, time.Second }
	wantKinds(t, s.verify(t, l, stale), []string{"stale"}, "tail-unanchored")
	wantKinds(t, s.verify(t, l, nil), []string{"anchor"}, "tail-unanchored")
	// One that stopped may be as old as nobody asks.
	l = s.library(nil)
	wantKinds(t, s.verify(t, l, func(o *verify.Options) { o.Now = s.now.AddDate(1, 0, 0) }), nil, "stopped")
	wantKinds(t, s.verify(t, l, func(o *verify.Options) { o.MaxAge, o.Now = 2*time.Hour, s.now.Add(time.Hour) }), nil, "stopped")
	v := s.verify(t, l, func(o *verify.Options) { o.MaxAge, o.Now = time.Hour, s.now.AddDate(1, 0, 0) })
	wantKinds(t, v, []string{"stopped"})
	if !strings.HasPrefix(v.Findings[0].Detail, "stopped since 2026-01-20T10:33:00Z, ") {
		t.Errorf("it says %q", v.Findings[0].Detail)
	}
}

func TestVerifyExplainsChainsThatWereLeft(t *testing.T) {
	l := newLibrary()
	l.add(t, "app-01", "aaaaaaaa", 1, true, nil, rec(archive.StatusUploaded, "a", ""))
	_, head := l.add(t, "app-01", "aaaaaaaa", 2, true, nil)
	l.add(t, "app-01", "aaaaaaaa", 3, false, nil, rec(archive.StatusUploaded, "left", ""))
	sha := hexSHA(l.objects[head])
	follow := func(d *trail.Digest) {
		d.Begins, d.AbandonsChain, d.AbandonsDigestSHA256 = archive.BeginsForked, "aaaaaaaa", sha
		d.Events = []archive.Note{{Kind: archive.NoteGap, Time: trailStart, Detail: "forked"}}
		d.NextDigestDue = timeOrNull(trailStart.Add(10 * time.Hour))
	}
	l.add(t, "app-01", "bbbbbbbb", 1, true, follow, rec(archive.StatusUploaded, "left", ""))
	l.add(t, "app-01", "bbbbbbbb", 2, false, nil, rec(archive.StatusUploaded, "next", ""))
	o := verify.Options{Now: trailStart.Add(3 * time.Hour), Anchors: []anchor.Anchor{{SHA256: l.heads["bbbbbbbb"][:64], From: "--expect-head"}}}
	check := func(o verify.Options, found []string, noted ...string) {
		t.Helper()
		v, err := verify.Run(t.Context(), trail.NewTrail(l, "p/"), o)
		if err != nil {
			t.Fatal(err)
		}
		wantKinds(t, v, found, noted...)
	}
	check(o, []string{"config"}, "gap", "left-behind", "manifest-pending", "unsigned")
	l.set("p/_manifests/config_"+hexSHA(nil)+".json", nil)
	check(o, nil, "gap", "left-behind", "manifest-pending", "unsigned")
	// Nothing vouches for the one that follows: the one that it leaves goes on.
	own := verify.Options{Now: o.Now}
	check(own, nil, "abandoned-chain", "gap", "manifest-pending", "tail-unanchored", "unsigned")
	own.Now = trailStart.Add(4 * time.Hour)
	check(own, []string{"silent"}, "abandoned-chain", "gap", "manifest-pending", "tail-unanchored", "unsigned")
	sha = strings.Repeat("0", 64)
	l.heads["bbbbbbbb"] = ""
	l.add(t, "app-01", "bbbbbbbb", 1, true, follow, rec(archive.StatusUploaded, "left", ""))
	o.Anchors[0].SHA256 = l.heads["bbbbbbbb"][:64]
	check(o, []string{"chain-missing"}, "gap", "left-behind", "manifest-pending", "tail-unanchored", "unsigned")
	o.Instance = "app-02"
	o.Anchors = nil
	if _, err := verify.Run(t.Context(), trail.NewTrail(l, "p/"), o); err == nil || !strings.Contains(err.Error(), "no audit trail of instance app-02") {
		t.Errorf("another instance: %v", err)
	}
}

// Where the configuration signs, what is not signed may wait for a day, by the
// server's time, whatever the digests say.
func TestVerifyMissesSignaturesThatAreConfigured(t *testing.T) {
	s := publishTrail(t, 2, nil)
	unsigned := func(o *verify.Options) { o.Keys, o.Signing = nil, "app-01" }
	from := func(first int, modified time.Time) *bucket {
		b := newBucket()
		b.objects, b.modified = maps.Clone(s.objects), map[string]time.Time{}
		for i, key := range s.documents("digest_") {
			b.modified[key] = modified
			if i >= first {
				delete(b.objects, sigOf(key))
			}
		}
		return b
	}
	day := 24 * time.Hour
	for _, row := range []struct {
		name  string
		first int // that is not signed
		age   time.Duration
		found []string
		noted []string
	}{
		{"none, young", 0, day, nil, []string{"stopped", "unsigned"}},
		{"none, old", 0, day + time.Second, []string{"signature-missing"}, []string{"stopped"}},
		{"the last, young", 2, day, nil, []string{"key-untrusted", "signature-pending", "stopped"}},
		{"the last, old", 2, day + time.Second, []string{"signature-missing"}, []string{"key-untrusted", "stopped"}},
		{"all", 3, 100 * day, nil, []string{"key-untrusted", "stopped"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			wantKinds(t, s.verify(t, from(row.first, s.now.Add(-row.age)), unsigned), row.found, row.noted...)
		})
	}
	// Another host's chains are not what this configuration is about, and without
	// any key or configuration nothing has to be signed.
	for _, signing := range []string{"", "app-02"} {
		v := s.verify(t, from(0, s.now.Add(-9*day)), func(o *verify.Options) { o.Keys, o.Signing = nil, signing })
		wantKinds(t, v, nil, "stopped", "unsigned")
	}
	// A chain that was signed from some digest on is covered to its beginning.
	b := from(3, s.now.Add(-9*day))
	delete(b.objects, sigOf(s.documents("digest_")[0]))
	wantKinds(t, s.verify(t, b, nil), nil, "stopped", "unsigned")
}

// Two hosts that archive as one instance show as a chain that goes on after
// another one left it.
func TestVerifyFindsAChainThatGoesOnAfterItWasLeft(t *testing.T) {
	for _, row := range []struct {
		name  string
		ends  string // the chain that ended with final
		found []string
		noted []string
	}{
		{"both go on", "", []string{"abandoned-chain"}, nil},
		{"the one that was left has ended", "aaaaaaaa", nil, []string{"abandoned-chain"}},
		{"the one that follows has ended", "bbbbbbbb", nil, []string{"abandoned-chain"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := newLibrary()
			l.set("p/_manifests/config_"+hexSHA(nil)+".json", nil)
			end := func(d *trail.Digest) {
				if d.Chain == row.ends {
					d.Reason, d.NextDigestDue = trail.ReasonFinal, nil
				}
			}
			l.add(t, "app-01", "aaaaaaaa", 1, true, nil)
			sha := l.heads["aaaaaaaa"][:64]
			l.add(t, "app-01", "aaaaaaaa", 2, true, end)
			l.add(t, "app-01", "bbbbbbbb", 1, true, func(d *trail.Digest) {
				d.Begins, d.AbandonsChain, d.AbandonsDigestSHA256 = archive.BeginsHostChanged, "aaaaaaaa", sha
			})
			l.add(t, "app-01", "bbbbbbbb", 2, true, end)
			o := verify.Options{Now: trailStart.Add(2 * time.Hour)}
			for _, id := range []string{"aaaaaaaa", "bbbbbbbb"} {
				o.Anchors = append(o.Anchors, anchor.Anchor{SHA256: l.heads[id][:64]})
			}
			v, err := verify.Run(t.Context(), trail.NewTrail(l, "p/"), o)
			if err != nil {
				t.Fatal(err)
			}
			wantKinds(t, v, row.found, append(row.noted, "unsigned")...)
		})
	}
}

// What is dated after the server's now is not accepted, nor what only a server
// far ahead of this machine's clock would accept.
func TestVerifyJudgesDatesByTheServersClock(t *testing.T) {
	s := publishTrail(t, 1, nil)
	for _, row := range []struct {
		name     string
		verifier time.Duration // from the truth
		server   time.Duration
		found    []string
		noted    []string
	}{
		{"both right", 0, 0, nil, []string{"stopped"}},
		{"the verifier is slow", -14 * time.Minute, 0, nil, []string{"clock", "stopped"}},
		{"the verifier is fast", 9000 * time.Hour, 0, nil, []string{"clock", "stopped"}},
		{"the server is slow", 0, -9000 * time.Hour, []string{"time"}, []string{"clock", "stopped"}},
		{"the server lies, the verifier is slow", -20 * time.Minute, 9000 * time.Hour, []string{"time"}, []string{"clock", "stopped"}},
		{"the server lies", 0, 9000 * time.Hour, nil, []string{"clock", "stopped"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			v := s.verify(t, s.library(nil), func(o *verify.Options) {
				o.Now, o.Server = s.now.Add(row.verifier), func() time.Time { return s.now.Add(row.server) }
			})
			wantKinds(t, v, row.found, row.noted...)
		})
	}
}

// A chain that was started again after its stop and then fell silent has
// manifests behind the stop, and no digest.
func TestVerifyFindsAStartThatNoDigestFollowed(t *testing.T) {
	l := newLibrary()
	l.set("p/_manifests/config_"+hexSHA(nil)+".json", nil)
	l.add(t, "app-01", "aaaaaaaa", 1, true, func(d *trail.Digest) { d.Reason, d.NextDigestDue = trail.ReasonStop, nil })
	l.add(t, "app-01", "aaaaaaaa", 2, false, nil, rec(archive.StatusUploaded, "a", ""))
	for age, found := range map[time.Duration][]string{24 * time.Hour: nil, 24*time.Hour + time.Second: {"silent"}} {
		v, err := verify.Run(t.Context(), trail.NewTrail(l, "p/"), verify.Options{Now: trailStart.Add(2*time.Hour + age)})
		if err != nil {
			t.Fatal(err)
		}
		noted := []string{"manifest-pending", "stopped", "tail-unanchored", "unsigned"}
		if found != nil {
			noted = noted[1:]
		}
		wantKinds(t, v, found, noted...)
	}
}
