package manifest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/anchor"
	"github.com/s3syncd/s3syncd/internal/verify"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// allocated returns how many bytes fn allocates.
func allocated(fn func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// A digest made up to fill the memory is refused before it does.
func TestAHostileDigestTakesLittleMemory(t *testing.T) {
	const size = 24 << 20
	for name, list := range map[string]string{
		"manifests of nothing": `"manifests":[` + strings.Repeat("{},", size/3) + `{}]`,
		"manifests of numbers": `"manifests":[` + strings.Repeat("1,", size/2) + `1]`,
		"scans of nulls":       `"scans":[` + strings.Repeat("null,", size/5) + `null]`,
		"ignore files":         `"scans":[{"ignore_files":[` + strings.Repeat("{},", size/3) + `{}]}]`,
		"events":               `"events":[` + strings.Repeat(`{"event":","},`, size/14) + `{}]`,
		"an unknown key":       `"other":[` + strings.Repeat("[],", size/3) + `[]]`,
		"a long name":          `"instance":"` + strings.Repeat("a", size) + `"`,
		"a long key":           `"manifests":[{"s3_key":"` + strings.Repeat("a", size) + `"}]`,
		"members":              strings.Repeat(`"a":1,`, size/6) + `"b":1`,
		"members of a member":  `"x":{` + strings.Repeat(`"a":{},`, size/7) + `"b":1}`,
		"depth":                `"other":` + strings.Repeat("[", size/2) + strings.Repeat("]", size/2),
	} {
		data := []byte(`{"version":1,"chain":"aaaaaaaa","sequence":1,` + list + `}`)
		var err error
		took := allocated(func() { _, err = trail.ParseDigest(bytes.NewReader(data)) })
		if !errors.Is(err, trail.ErrFormat) || took > 6*size || len(err.Error()) > 1000 {
			t.Errorf("%s: %d bytes took %d, %.1000v", name, len(data), took, err)
		}
	}
}

// What a host can write is read, with commas and brackets in its names.
func TestADigestWithLongListsIsRead(t *testing.T) {
	d := trail.Digest{Version: 1, Instance: "app-01", Chain: "aaaaaaaa", Sequence: 1, Begins: archive.BeginsNew}
	for i := range 20_000 {
		d.Manifests = append(d.Manifests, archive.ManifestRef{S3Key: fmt.Sprintf("p/%d", i), SHA256: strings.Repeat("a", 64)})
	}
	n := archive.ScanNote{IgnoreFiles: make([]archive.IgnoreFile, archive.MaxIgnoreFiles)}
	for i := range n.IgnoreFiles {
		n.IgnoreFiles[i].Path = strings.Repeat(`,[{"\`, 100)
	}
	for range 50 {
		d.Scans = append(d.Scans, n)
	}
	data, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := trail.ParseDigest(bytes.NewReader(data))
	if err != nil || len(got.Manifests) != 20_000 || len(got.Scans) != 50 || got.Scans[49].IgnoreFiles[999].Path != n.IgnoreFiles[999].Path {
		t.Errorf("%d bytes: %d manifests, %d scans, %v", len(data), len(got.Manifests), len(got.Scans), err)
	}
}

// largeLibrary counts the large documents that are read at once.
type largeLibrary struct {
	*bucket
	open, most atomic.Int64
}

type largeBody struct {
	io.Reader
	l *largeLibrary
}

func (b largeBody) Close() error { b.l.open.Add(-1); return nil }

func (l *largeLibrary) Get(ctx context.Context, key string) (io.ReadCloser, archive.Object, error) {
	body, o, err := l.bucket.Get(ctx, key)
	if err != nil || o.Size < trail.LargeDocument {
		return body, o, err
	}
	n := l.open.Add(1)
	for old := l.most.Load(); n > old && !l.most.CompareAndSwap(old, n); old = l.most.Load() {
	}
	runtime.Gosched()
	return largeBody{body, l}, o, nil
}

func TestLargeDigestsAreReadOneAtATime(t *testing.T) {
	s := publishTrail(t, 12, nil)
	b := newBucket()
	b.objects = maps.Clone(s.objects)
	for _, key := range s.documents("digest_") {
		b.objects[key] = append(bytes.Clone(b.objects[key]), bytes.Repeat([]byte{' '}, trail.LargeDocument)...)
	}
	l := &largeLibrary{bucket: b}
	v, err := verify.Run(t.Context(), trail.NewTrail(l, "p/"), verify.Options{Now: s.now})
	if err != nil || v.Chains[0].Digests != 13 || l.most.Load() != 1 {
		t.Errorf("%d large digests were read at once, %v", l.most.Load(), err)
	}
	err = trail.NewTrail(l, "p/").Newest(t.Context(), trail.Query{TempDir: t.TempDir()}, func(trail.Held) error { return nil })
	if err != nil || l.most.Load() != 1 {
		t.Errorf("a query read %d large digests at once, %v", l.most.Load(), err)
	}
}

// forgedChains adds chains of one digest that leave one another.
func forgedChains(t *testing.T, b *bucket, like trail.Digest, n int, at time.Time) {
	t.Helper()
	like.Sequence, like.PreviousDigestS3Key, like.PreviousDigestSHA256, like.Begins = 1, nil, nil, archive.BeginsForked
	like.Manifests, like.Counts, like.AbandonsChain = nil, trail.Counts{}, like.Chain
	for i := range n {
		like.Chain = fmt.Sprintf("%08x", 0xf0000000+n-i)
		data, err := like.Encode()
		if err != nil {
			t.Fatal(err)
		}
		b.objects["p/_manifests/"+trail.Name{Digest: true, Time: at, Instance: like.Instance, Chain: like.Chain, Sequence: 1}.Path()] = data
		like.AbandonsChain = like.Chain
	}
}

// Chains that are made up by the thousand cost requests in proportion, a finding
// says that there are too many, and the real one is checked as ever.
func TestManyForgedChainsDoNotHideTheRealOne(t *testing.T) {
	s := publishTrail(t, 2, nil)
	last := mustDigest(t, s.objects[s.documents("digest_")[2]])
	requests := func(forged int) (*verify.Result, int) {
		b := newBucket()
		b.objects = maps.Clone(s.objects)
		forgedChains(t, b, last, forged, s.now.Add(-24*time.Hour)) // Before the real one.
		delete(b.objects, s.documents("manifest_")[0])
		v, err := verify.Run(t.Context(), trail.NewTrail(b, "p/"), verify.Options{Now: s.now, Keys: []*trail.PublicKey{s.key}, Anchors: []anchor.Anchor{s.head()}})
		if err != nil {
			t.Fatal(err)
		}
		return v, len(b.requests)
	}
	_, none := requests(0)
	_, some := requests(100)
	v, many := requests(verify.MaxChains + 5)
	if per := some - none; many-none > per/100*(verify.MaxChains+5) {
		t.Errorf("100 chains cost %d requests, %d cost %d", some-none, verify.MaxChains+5, many-none)
	}
	if v.Clean || len(v.Chains) != verify.MaxChains {
		t.Errorf("%d chains were checked", len(v.Chains))
	}
	for _, want := range []verify.Finding{{Kind: verify.FindingLimit, Detail: "10006 chains are there, and 6 of them were not checked"}, {Kind: verify.FindingManifestMissing, Chain: s.chain}} {
		if !slices.ContainsFunc(v.Findings, func(f verify.Finding) bool {
			return f.Kind == want.Kind && f.Chain == want.Chain && strings.HasPrefix(f.Detail, want.Detail)
		}) {
			t.Errorf("no finding like %+v: %+v", want, v.FoundBy)
		}
	}
}

// A digest that is made up cannot have manifests read that are not its own, nor
// ask without end for what is not there.
func TestForgedDigestsAskForLittle(t *testing.T) {
	s := publishTrail(t, 1, nil)
	own := s.documents("manifest_")[0]
	b := newBucket()
	b.objects = maps.Clone(s.objects)
	d := mustDigest(t, s.objects[s.documents("digest_")[0]])
	d.Chain, d.Manifests = "ffffffff", nil
	for i := range 3000 {
		key := own
		if i > 1000 {
			key = "p/_manifests/" + trail.Name{Time: s.now, Instance: d.Instance, Chain: d.Chain, Sequence: 1, N: i + 1}.Path()
		}
		d.Manifests = append(d.Manifests, archive.ManifestRef{S3Key: key, SHA256: strings.Repeat("a", 64)})
	}
	data, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	b.objects["p/_manifests/"+trail.Name{Digest: true, Time: s.now, Instance: d.Instance, Chain: d.Chain, Sequence: 1}.Path()] = data
	v, err := verify.Run(t.Context(), trail.NewTrail(b, "p/"), verify.Options{Now: s.now})
	if err != nil {
		t.Fatal(err)
	}
	asked := map[string]int{}
	for _, r := range b.asked() {
		asked[r]++
	}
	if len(asked) > verify.MaxUnlisted+20 || asked["GET "+own] != 1 {
		t.Errorf("%d requests; the manifest of another chain was read %d times", len(asked), asked["GET "+own])
	}
	missing := slices.IndexFunc(v.FoundBy, func(k verify.KindCount) bool { return k.Kind == verify.FindingManifestMissing })
	if missing < 0 || v.FoundBy[missing].Count != 1999 {
		t.Errorf("found %+v", v.FoundBy)
	}
}

func TestFindingsQuoteLittle(t *testing.T) {
	var f verify.Findings
	f.Add(verify.Finding{Kind: verify.FindingName, Key: strings.Repeat("k", 1<<20), Detail: strings.Repeat("\u00fc", 1<<20)})
	f.Add(verify.Finding{Kind: verify.FindingName, Key: "k", Detail: "d"})
	if x := f.List[0]; len(x.Key) > verify.MaxDetailBytes+3 || len(x.Detail) > verify.MaxDetailBytes+3 || !strings.HasSuffix(x.Detail, "\u00fc…") {
		t.Errorf("%d and %d bytes are kept", len(x.Key), len(x.Detail))
	}
	if x := f.List[1]; x.Key != "k" || x.Detail != "d" {
		t.Errorf("a short one is kept as %+v", x)
	}
}

// Objects that somebody puts under a trail by the thousand are counted, not
// kept.
func TestAListingKeepsLittleOfWhatIsMadeUp(t *testing.T) {
	s := publishTrail(t, 1, nil)
	b := newBucket()
	b.objects = maps.Clone(s.objects)
	for i := range trail.MaxAside + 3 {
		sha := fmt.Sprintf("%064x", i)
		b.objects["p/_manifests/junk/"+sha] = nil
		b.objects["p/_manifests/keys/"+sha+".pem"] = nil
	}
	v, err := verify.Run(t.Context(), trail.NewTrail(b, "p/"), verify.Options{Now: s.now})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range v.Findings {
		if f.Kind == verify.FindingLimit {
			got = append(got, f.Detail)
		}
	}
	want := []string{"there are 3 other objects more than are checked", "there are 4 public keys and announcements more than are checked"}
	if !slices.Equal(got, want) || v.Chains[0].Digests != 2 {
		t.Errorf("limits %q, want %q; %+v", got, want, v.Chains)
	}
	in := &trail.Indexer{Root: "p/_manifests/", Chains: map[trail.ChainKey]*trail.ChainIndex{}, Documents: trail.MaxDocuments}
	in.Add(archive.Object{Key: s.documents("digest_")[0]})
	if x := in.Index(); len(x.Chains) != 0 || x.Omitted[trail.OmittedDocuments] != 1 {
		t.Errorf("beyond the limit: %+v", x)
	}
}
