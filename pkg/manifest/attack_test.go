package manifest

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/anchor"
	"github.com/s3syncd/s3syncd/internal/verify"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// attack is something that whoever can write the bucket does to a chain. Each
// stands in a row of docs/FORMAT.md, "What is proven, and against whom".
type attack struct {
	row   string // of the table, as it stands there
	do    func(a *attacked)
	found verify.FindingKind
}

// attacked is a trail under attack, and what it is checked against.
type attacked struct {
	t *testing.T
	s *signedTrail
	b *bucket
	o verify.Options
}

func (s *signedTrail) attacked(t *testing.T) *attacked {
	t.Helper()
	b := newBucket()
	b.modified = map[string]time.Time{}
	for key, data := range s.objects {
		b.objects[key] = data
		b.modified[key] = s.now
	}
	head := s.head()
	head.Local, head.Current, head.From = true, true, "the host's copy"
	return &attacked{t: t, s: s, b: b, o: verify.Options{Bucket: "b", Now: s.now, Anchors: []anchor.Anchor{head}}}
}

func (a *attacked) verify() *verify.Result {
	a.t.Helper()
	v, err := verify.Run(a.t.Context(), trail.NewTrail(a.b, "p/"), a.o)
	if err != nil {
		a.t.Fatal(err)
	}
	return v
}

// digests are the keys of the chain's digests.
func (a *attacked) digests() []string { return a.s.documents("digest_") }

// cut takes away the newest digests, their signatures and manifests.
func (a *attacked) cut(from int) {
	digests := a.digests()
	n, _ := trail.ParseName(digests[from])
	for key := range a.b.objects {
		if m, ok := trail.ParseName(strings.TrimSuffix(key, trail.SignatureSuffix) + ".json"); ok && m.Sequence >= n.Sequence {
			delete(a.b.objects, key)
		}
		if m, ok := trail.ParseName(key); ok && m.Sequence >= n.Sequence {
			delete(a.b.objects, key)
		}
	}
}

// last returns the newest digest that is there.
func (a *attacked) last() (key string, d trail.Digest) {
	for _, k := range a.digests() {
		if data, ok := a.b.objects[k]; ok {
			key, d = k, mustDigest(a.t, data)
		}
	}
	return key, d
}

func mustDigest(t *testing.T, data []byte) trail.Digest {
	t.Helper()
	d, err := trail.ParseDigest(strings.NewReader(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// put writes a forged digest, which the server has since at.
func (a *attacked) put(d trail.Digest, named, at time.Time) string {
	a.t.Helper()
	data, err := d.Encode()
	if err != nil {
		a.t.Fatal(err)
	}
	key := "p/_manifests/" + trail.Name{Digest: true, Time: named, Instance: d.Instance, Chain: d.Chain, Sequence: d.Sequence}.Path()
	a.b.objects[key], a.b.modified[key] = data, at
	return key
}

// chain forges a chain of one digest that says that it leaves the real one.
func (a *attacked) chain(id, leavesAt string) {
	_, d := a.last()
	d.Chain, d.Sequence, d.PreviousDigestS3Key, d.PreviousDigestSHA256 = id, 1, nil, nil
	d.Begins, d.AbandonsChain, d.AbandonsDigestSHA256 = archive.BeginsStateLost, a.s.chain, leavesAt
	d.Reason, d.Manifests, d.Counts = trail.ReasonStop, nil, trail.Counts{}
	a.put(d, a.s.now, a.s.now)
}

// follow forges a digest behind the newest one.
func (a *attacked) follow(end time.Time, change func(*trail.Digest)) string {
	key, d := a.last()
	sha := hexSHA(a.b.objects[key])
	d.PreviousDigestS3Key, d.PreviousDigestSHA256 = &key, &sha
	d.Sequence++
	d.Begins, d.AbandonsChain, d.AbandonsDigestSHA256 = "", "", ""
	d.StartTime, d.EndTime = d.EndTime, archive.FormatTime(end)
	d.Reason, d.Manifests, d.Counts = trail.ReasonInterval, nil, trail.Counts{}
	d.NextDigestDue = timeOrNull(end.Add(time.Hour))
	if change != nil {
		change(&d)
	}
	return a.put(d, end, a.s.now)
}

func (a *attacked) lastSHA() string {
	key, _ := a.last()
	return hexSHA(a.b.objects[key])
}

// keysAlone checks against the key, days after the end of the trail.
func (a *attacked) keysAlone() {
	a.o.Keys, a.o.Anchors = []*trail.PublicKey{a.s.key}, nil
	a.o.Now = a.s.now.Add(25 * time.Hour)
}

func chainAttacks() []attack {
	return []attack{
		{"remove the newest digests", func(a *attacked) { a.cut(2) }, verify.FindingAnchor},
		{"remove the newest digests, and add a chain that says it follows what is left", func(a *attacked) {
			a.cut(2)
			a.chain("ffffffff", a.lastSHA())
		}, verify.FindingAnchor},
		{"remove the newest digests, and add a chain that says it follows what is left", func(a *attacked) {
			a.cut(2)
			a.chain("ffffffff", "") // At no digest.
		}, verify.FindingAnchor},
		{"remove the newest digests, and add a chain that says it follows what is left", func(a *attacked) {
			a.cut(1)
			a.chain("00000000", a.lastSHA()) // Its id stands first.
			a.o.Anchors[0].Local = false     // As --anchor has it.
		}, verify.FindingAnchor},
		{"remove a whole chain, and leave one that says it follows it", func(a *attacked) {
			_, d := a.last()
			a.chain("ffffffff", "")
			for key := range a.b.objects {
				if n, ok := trail.ParseName(key); ok && n.Chain == d.Chain {
					delete(a.b.objects, key)
					delete(a.b.objects, sigOf(key))
				}
			}
		}, verify.FindingChainMissing},
		{"add a chain that says it follows the one that goes on", func(a *attacked) {
			a.chain("ffffffff", a.lastSHA())
		}, verify.FindingAbandoned},
		{"add a chain that says it follows the one that goes on", func(a *attacked) {
			a.chain("ffffffff", hexSHA(a.b.objects[a.digests()[1]])) // An older digest of it.
		}, verify.FindingAbandoned},
		{"have a chain of their own seen by a clean `--anchor` run, so that it counts later", func(a *attacked) {
			a.cut(len(a.digests()) - 1)
			f := &anchor.File{}
			for range 2 { // The second time with the made-up chain.
				a.o.Anchors = f.Of("b", "p/")
				v := a.verify()
				if !v.Clean {
					a.t.Fatalf("found %+v", v.Findings)
				}
				f.Note("b", "p/", v.Heads(), a.s.now)
				a.chain("ffffffff", a.lastSHA())
			}
			a.o.Anchors = f.Of("b", "p/")
			a.o.Now = a.s.now.Add(3 * time.Hour)
		}, verify.FindingSilent},
		{"end a silent chain with one that says it follows it", func(a *attacked) {
			a.cut(len(a.digests()) - 1)
			a.chain("ffffffff", a.lastSHA())
			a.keysAlone()
		}, verify.FindingSilent},
		{"write digests behind the newest one", func(a *attacked) { a.follow(a.s.now, nil) }, verify.FindingAnchor},
		{"write digests behind the newest signed one", func(a *attacked) {
			a.follow(a.s.now, nil)
			a.keysAlone()
		}, verify.FindingSignatureGone},
		{"write digests behind the newest signed one", func(a *attacked) {
			a.cut(len(a.digests()) - 1) // The stop: the chain goes on.
			a.keysAlone()
			a.o.Now = a.s.now.Add(26 * time.Hour)
			a.b.modified[a.follow(a.o.Now, nil)] = a.o.Now // Written again each day.
		}, verify.FindingSignatureGone},
		{"date a digest ahead, so that it is never late", func(a *attacked) {
			a.follow(time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC), nil)
			a.keysAlone()
			a.o.Now = a.s.now
		}, verify.FindingTime},
		{"date a digest ahead, so that it is never late", func(a *attacked) {
			a.follow(a.s.now, func(d *trail.Digest) { d.NextDigestDue = timeOrNull(a.s.now.AddDate(50, 0, 0)) })
			a.o.Anchors = nil
		}, verify.FindingTime},
		{"date a digest ahead, so that it is never late", func(a *attacked) {
			// Old by its own word, new by the server's.
			key := a.follow(a.s.now, nil)
			a.b.modified[key] = a.s.now.Add(-48 * time.Hour)
			a.keysAlone()
			a.o.Now = a.s.now
		}, verify.FindingSignatureGone},
		{"date events, scans or waiting paths ahead", func(a *attacked) {
			a.follow(a.s.now, func(d *trail.Digest) { d.Events = []archive.Note{{Kind: "start", Time: a.s.now.Add(time.Hour)}} })
			a.o.Anchors = nil
		}, verify.FindingTime},
		{"date events, scans or waiting paths ahead", func(a *attacked) {
			a.follow(a.s.now, func(d *trail.Digest) {
				d.Scans = []archive.ScanNote{{Start: a.s.now, End: a.s.now.Add(6 * time.Minute)}}
			})
			a.o.Anchors = nil
		}, verify.FindingTime},
		{"date the name of a manifest ahead", func(a *attacked) {
			_, d := a.last()
			key := "p/_manifests/" + trail.Name{Time: a.s.now.Add(time.Hour), Instance: d.Instance, Chain: d.Chain, Sequence: d.Sequence + 1, N: 1}.Path()
			a.b.objects[key] = encode(a.t, trail.LayoutFlat, []archive.Record{rec(archive.StatusUploaded, "a", "")})
		}, verify.FindingTime},
		{"date records ahead", func(a *attacked) { a.record(func(r *archive.Record) { r.Timestamp = "2099-01-01T00:00:00Z" }) }, verify.FindingTime},
		{"date records ahead", func(a *attacked) { a.record(func(r *archive.Record) { r.S3Time = "2099-01-01T00:00:00Z" }) }, verify.FindingTime},
		{"date records ahead", func(a *attacked) { a.record(func(r *archive.Record) { r.DetectedAt = "2099-01-01T00:00:00Z" }) }, verify.FindingTime},
		{"put something under the name of a signature or a key before it is written", func(a *attacked) {
			a.b.objects[sigOf(a.digests()[1])] = []byte("x")
		}, verify.FindingSignature},
		{"put something under the name of a signature or a key before it is written", func(a *attacked) {
			a.b.objects["p/_manifests/keys/"+a.s.key.Fingerprint()+".pem"] = []byte("x")
		}, verify.FindingKey},
		{"add a chain that says it follows the one that goes on", func(a *attacked) {
			a.chain("ffffffff", "") // At no digest; long before the end of the other.
			for key := range a.b.objects {
				if n, ok := trail.ParseName(key); ok && n.Chain == "ffffffff" {
					d := mustDigest(a.t, a.b.objects[key])
					d.EndTime = archive.FormatTime(a.s.now.Add(-8 * time.Minute))
					d.StartTime = d.EndTime
					a.put(d, a.s.now, a.s.now)
				}
			}
			a.o.Anchors = nil
		}, verify.FindingAbandoned},
		{"write manifests behind the end of a chain", func(a *attacked) {
			a.follow(a.s.now, func(d *trail.Digest) { d.Reason, d.NextDigestDue = trail.ReasonFinal, nil })
			_, d := a.last()
			key := "p/_manifests/" + trail.Name{Time: a.s.now, Instance: d.Instance, Chain: d.Chain, Sequence: d.Sequence + 2, N: 1}.Path()
			a.b.objects[key] = encode(a.t, trail.LayoutFlat, []archive.Record{rec(archive.StatusUploaded, "a", "")})
			a.o.Anchors = nil
		}, verify.FindingUnnamed},
	}
}

// record forges a digest with one record.
func (a *attacked) record(change func(*archive.Record)) {
	_, last := a.last()
	r := rec(archive.StatusUploaded, "a", archive.FormatTime(a.s.now), change)
	r.Instance, r.Source, r.Chain, r.ID, r.S3URI = last.Instance, "data", last.Chain, archive.RecordID(last.Chain, 100000), "s3://b/"+r.S3Key
	data := encode(a.t, trail.LayoutFlat, []archive.Record{r})
	key := "p/_manifests/" + trail.Name{Time: a.s.now, Instance: last.Instance, Chain: last.Chain, Sequence: last.Sequence + 1, N: 1}.Path()
	a.b.objects[key] = data
	a.follow(a.s.now, func(d *trail.Digest) {
		d.Manifests = []archive.ManifestRef{{S3Key: key, SHA256: hexSHA(data), SizeBytes: int64(len(data)), Records: 1}}
		d.Counts = trail.Counts{Uploaded: 1}
	})
	a.o.Anchors = nil
}

// Every attack on a chain that docs/FORMAT.md names is found, by what it names.
func TestAttacksOnChainsAreFound(t *testing.T) {
	doc, err := os.ReadFile("../../docs/FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	s := publishTrail(t, 4, nil)
	if v := s.attacked(t).verify(); !v.Clean {
		t.Fatalf("before any attack: %+v", v.Findings)
	}
	for _, x := range chainAttacks() {
		a := s.attacked(t)
		x.do(a)
		v := a.verify()
		if !slices.ContainsFunc(v.Findings, func(f verify.Finding) bool { return f.Kind == x.found }) {
			t.Errorf("%s: found %+v, noted %+v; want %s", x.row, v.Findings, v.Notes, x.found)
		}
		row := "| " + x.row + " | "
		_, rest, ok := strings.Cut(string(doc), row)
		says, _, _ := strings.Cut(rest, "\n")
		if !ok || !strings.Contains(says, "`"+string(x.found)+"`") {
			t.Errorf("docs/FORMAT.md has no row %q that names %q: %q", row, x.found, says)
		}
	}
}
