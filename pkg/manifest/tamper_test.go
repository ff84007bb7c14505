package manifest

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/s3syncd/s3syncd/internal/signer"
	"github.com/s3syncd/s3syncd/internal/verify"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// tampering is one change of a published trail. It returns the keys of which a
// finding must name one ("": a finding without a key will do), and the kinds
// that it may be.
type tampering struct {
	name string
	do   func(r *rand.Rand, o map[string][]byte) (keys []string, kinds []verify.FindingKind)
}

// sigOf returns the key of a digest's signature.
func sigOf(digest string) string { return strings.TrimSuffix(digest, ".json") + trail.SignatureSuffix }

func pick(r *rand.Rand, keys []string) string { return keys[r.IntN(len(keys))] }

// flip changes one byte of a document to another.
func flip(r *rand.Rand, o map[string][]byte, key string) {
	data := bytes.Clone(o[key])
	i := r.IntN(len(data))
	data[i] ^= byte(1 + r.IntN(255))
	o[key] = data
}

var hashKinds = []verify.FindingKind{verify.FindingDigestHash, verify.FindingSignature, verify.FindingFormat, verify.FindingNewerFormat, verify.FindingAnchor, verify.FindingName}

// forge writes a digest anew with a change, as someone without the key could:
// every later digest follows the forged one.
func forge(s *signedTrail, o map[string][]byte, from int, change func(*trail.Digest)) {
	digests := s.documents("digest_")
	for i := from; i < len(digests); i++ {
		d, err := trail.ParseDigest(bytes.NewReader(o[digests[i]]))
		if err != nil {
			panic(err)
		}
		if i == from {
			change(&d)
		}
		if i > from || from > 0 {
			sha := hexSHA(o[digests[i-1]])
			d.PreviousDigestSHA256 = &sha
		}
		data, err := d.Encode()
		if err != nil {
			panic(err)
		}
		o[digests[i]] = data
	}
}

// rewrite changes a manifest and everything that leads to it.
func rewrite(s *signedTrail, r *rand.Rand, o map[string][]byte) {
	manifests := s.documents("manifest_")
	key := pick(r, manifests)
	n, _ := trail.ParseName(key)
	data := bytes.Replace(o[key], []byte("aaaaaaaa"), []byte("bbbbbbbb"), 1)
	o[key] = data
	forge(s, o, int(n.Sequence)-1, func(d *trail.Digest) {
		for i := range d.Manifests {
			if d.Manifests[i].S3Key == key {
				d.Manifests[i].SHA256, d.Manifests[i].SizeBytes = hexSHA(data), int64(len(data))
			}
		}
	})
}

func tamperings(t *testing.T, s *signedTrail) []tampering {
	t.Helper()
	digests, manifests := s.documents("digest_"), s.documents("manifest_")
	config, keys := s.documents("config_")[0], s.documents(s.key.Fingerprint())
	foreignPath, _ := writeKey(t, 0o600)
	foreign, err := signer.LoadEd25519(foreignPath)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(data []byte) []byte {
		algorithm, fingerprint, raw, err := foreign.Sign(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		sig := trail.NewSignature(algorithm, fingerprint, raw)
		out, err := sig.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	inner := digests[1 : len(digests)-1]
	return []tampering{
		{"a byte of a digest", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			key := pick(r, digests)
			flip(r, o, key)
			return []string{key, sigOf(key)}, hashKinds
		}},
		{"a byte of a manifest", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			key := pick(r, manifests)
			flip(r, o, key)
			return []string{key}, []verify.FindingKind{verify.FindingManifestHash}
		}},
		{"a byte of a signature", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			key := sigOf(pick(r, digests))
			flip(r, o, key)
			return []string{key}, []verify.FindingKind{verify.FindingSignature, verify.FindingForeignKey}
		}},
		{"a byte of the configuration", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			flip(r, o, config)
			return []string{config}, []verify.FindingKind{verify.FindingConfig}
		}},
		{"a byte of the public key", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			flip(r, o, keys[0])
			return keys, []verify.FindingKind{verify.FindingKey}
		}},
		{"a removed manifest", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			key := pick(r, manifests)
			delete(o, key)
			return []string{key}, []verify.FindingKind{verify.FindingManifestMissing}
		}},
		{"a removed configuration", func(_ *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			delete(o, config)
			return digests[:1], []verify.FindingKind{verify.FindingConfig}
		}},
		{"a removed inner digest with its signature", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			key := pick(r, inner)
			delete(o, key)
			delete(o, sigOf(key))
			return []string{""}, []verify.FindingKind{verify.FindingDigestMissing}
		}},
		{"a removed digest", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			key := pick(r, digests)
			delete(o, key)
			return []string{sigOf(key)}, []verify.FindingKind{verify.FindingDigestMissing}
		}},
		{"a removed end", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			for _, key := range digests[1+r.IntN(len(digests)-1):] {
				delete(o, key)
				delete(o, sigOf(key))
			}
			return []string{""}, []verify.FindingKind{verify.FindingAnchor}
		}},
		{"a removed beginning", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			for _, key := range digests[:1+r.IntN(len(digests)-1)] {
				delete(o, key)
				delete(o, sigOf(key))
			}
			return []string{""}, []verify.FindingKind{verify.FindingDigestMissing}
		}},
		{"a removed chain", func(_ *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			for _, key := range slices.Concat(digests, manifests) {
				delete(o, key)
				delete(o, sigOf(key))
			}
			return []string{""}, []verify.FindingKind{verify.FindingChainMissing}
		}},
		{"a removed inner signature", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			delete(o, sigOf(pick(r, inner)))
			return []string{""}, []verify.FindingKind{verify.FindingSignatureGone}
		}},
		{"swapped manifests", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			i := r.IntN(len(manifests) - 1)
			a, b := manifests[i], manifests[i+1]
			o[a], o[b] = o[b], o[a]
			return []string{a, b}, []verify.FindingKind{verify.FindingManifestHash}
		}},
		{"swapped digests", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			i := r.IntN(len(digests) - 1)
			a, b := digests[i], digests[i+1]
			o[a], o[b] = o[b], o[a]
			o[sigOf(a)], o[sigOf(b)] = o[sigOf(b)], o[sigOf(a)]
			return []string{a, b}, []verify.FindingKind{verify.FindingName}
		}},
		{"an older digest replayed as a newer one", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			i := 1 + r.IntN(len(digests)-1)
			o[digests[i]], o[sigOf(digests[i])] = o[digests[i-1]], o[sigOf(digests[i-1])]
			return []string{digests[i]}, []verify.FindingKind{verify.FindingName}
		}},
		{"an older manifest replayed as a newer one", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			i := 1 + r.IntN(len(manifests)-1)
			o[manifests[i]] = o[manifests[i-1]]
			return []string{manifests[i]}, []verify.FindingKind{verify.FindingManifestHash}
		}},
		{"re-ordered records", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			key := pick(r, manifests)
			records := readAll(t, o[key])
			slices.Reverse(records)
			o[key] = encode(t, trail.LayoutFlat, records)
			return []string{key}, []verify.FindingKind{verify.FindingManifestHash}
		}},
		{"re-ordered records under a forged digest", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			key := pick(r, manifests)
			records := readAll(t, o[key])
			slices.Reverse(records)
			o[key] = encode(t, trail.LayoutFlat, records)
			n, _ := trail.ParseName(key)
			forge(s, o, int(n.Sequence)-1, func(d *trail.Digest) {
				d.Manifests[n.N-1].SHA256, d.Manifests[n.N-1].SizeBytes = hexSHA(o[key]), int64(len(o[key]))
			})
			return []string{key}, []verify.FindingKind{verify.FindingRecord}
		}},
		{"a truncated manifest", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			key := pick(r, manifests)
			o[key] = o[key][:r.IntN(len(o[key]))]
			return []string{key}, []verify.FindingKind{verify.FindingManifestHash}
		}},
		{"a truncated digest", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			key := pick(r, digests)
			o[key] = o[key][:r.IntN(len(o[key]))]
			return []string{key, sigOf(key)}, hashKinds
		}},
		{"a forged continuation of an older digest", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			from := 1 + r.IntN(len(digests)-1)
			forge(s, o, from, func(d *trail.Digest) { d.Pending++ })
			return []string{sigOf(digests[from])}, []verify.FindingKind{verify.FindingSignature}
		}},
		{"a forged continuation without signatures", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			from := r.IntN(len(digests))
			forge(s, o, from, func(d *trail.Digest) { d.Pending++ })
			for _, key := range digests[from:] {
				delete(o, sigOf(key))
			}
			return []string{""}, []verify.FindingKind{verify.FindingAnchor}
		}},
		{"a forged chain under a foreign signature", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			rewrite(s, r, o)
			for _, key := range digests {
				o[sigOf(key)] = sign(o[key])
			}
			o["p/_manifests/keys/"+fingerprintOf(foreign)+".pem"] = publicPEM(foreign)
			return []string{sigOf(digests[0])}, []verify.FindingKind{verify.FindingForeignKey}
		}},
		{"a foreign signature", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			key := pick(r, digests)
			o[sigOf(key)] = sign(o[key])
			return []string{sigOf(key)}, []verify.FindingKind{verify.FindingForeignKey}
		}},
		{"a foreign key that announces itself", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			key := pick(r, digests)
			o[sigOf(key)] = sign(o[key])
			o["p/_manifests/keys/"+fingerprintOf(foreign)+".pem"] = publicPEM(foreign)
			announcement := "p/_manifests/" + trail.AnnouncementName(fingerprintOf(foreign), s.key.Fingerprint())
			o[announcement] = sign(publicPEM(foreign))
			return []string{announcement}, []verify.FindingKind{verify.FindingKey}
		}},
		{"a signature of another digest", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			i := r.IntN(len(digests) - 1)
			o[sigOf(digests[i])] = o[sigOf(digests[i+1])]
			return []string{sigOf(digests[i])}, []verify.FindingKind{verify.FindingSignature}
		}},
		{"a second digest of one number", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			key := pick(r, digests)
			n, _ := trail.ParseName(key)
			n.Time = n.Time.Add(1e9)
			other := "p/_manifests/" + n.Path()
			o[other] = o[key]
			return []string{other}, []verify.FindingKind{verify.FindingFork}
		}},
		{"a manifest that no digest names", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			key := pick(r, manifests)
			n, _ := trail.ParseName(key)
			n.N += 2 + r.IntN(5)
			other := "p/_manifests/" + n.Path()
			o[other] = o[key]
			return []string{other}, []verify.FindingKind{verify.FindingUnnamed}
		}},
		{"other counts", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			n, _ := trail.ParseName(pick(r, manifests))
			forge(s, o, int(n.Sequence)-1, func(d *trail.Digest) { d.Counts.Uploaded++ })
			return []string{digests[n.Sequence-1]}, []verify.FindingKind{verify.FindingCounts}
		}},
		{"an earlier end", func(r *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			i := r.IntN(len(digests) - 1)
			forge(s, o, i, func(d *trail.Digest) { d.EndTime = d.StartTime })
			return []string{digests[i], digests[i+1]}, []verify.FindingKind{verify.FindingTime}
		}},
		{"another reason to begin", func(_ *rand.Rand, o map[string][]byte) ([]string, []verify.FindingKind) {
			forge(s, o, 0, func(d *trail.Digest) { d.Begins, d.AbandonsChain = archive.BeginsStateLost, "ffffffff" })
			return []string{digests[0]}, []verify.FindingKind{verify.FindingChainMissing}
		}},
	}
}

// names reports whether v names the tampering.
func namesFinding(v *verify.Result, keys []string, kinds []verify.FindingKind) bool {
	return slices.ContainsFunc(v.Findings, func(f verify.Finding) bool {
		return slices.Contains(kinds, f.Kind) && (slices.Contains(keys, f.Key) || slices.Contains(keys, ""))
	})
}

// A thousand tamperings of a signed trail with an anchor, from one seed: each is
// found, and named for what it is.
func TestAThousandTamperingsAreFoundAndNamed(t *testing.T) {
	s := publishTrail(t, 4, func(o *Options) { o.MaxRecords = 2 })
	wantKinds(t, s.verify(t, s.library(nil), nil), nil, "stopped")
	kinds := tamperings(t, &s)
	r := rand.New(rand.NewPCG(2026, 11))
	found := map[string]int{}
	for i := range 1000 {
		k := kinds[i%len(kinds)]
		var keys []string
		var want []verify.FindingKind
		v := s.verify(t, s.library(func(o map[string][]byte) { keys, want = k.do(r, o) }), nil)
		if !namesFinding(v, keys, want) {
			t.Errorf("tampering %d, %s: found %+v, want one of %v of %v", i, k.name, v.Findings, want, keys)
			continue
		}
		found[k.name]++
	}
	total := 0
	for _, n := range found {
		total += n
	}
	if len(found) != len(kinds) || total != 1000 {
		t.Errorf("%d tamperings of %d kinds were found", total, len(found))
	}
}

// Every byte of a digest, a manifest, a signature, a configuration and a key.
func TestEveryByteIsProven(t *testing.T) {
	s := publishTrail(t, 1, nil)
	step := 7
	if os.Getenv("S3SYNCD_E2E") != "" {
		step = 1
	}
	flipped := 0
	for key, data := range s.objects {
		want := []string{key, sigOf(key)}
		if strings.HasSuffix(key, ".pem") {
			want = append(want, "")
		}
		for i := 0; i < len(data); i += step {
			changed := bytes.Clone(data)
			changed[i] ^= 1 << (i % 8)
			v := s.verify(t, s.library(func(o map[string][]byte) { o[key] = changed }), nil)
			if !slices.ContainsFunc(v.Findings, func(f verify.Finding) bool { return slices.Contains(want, f.Key) }) {
				t.Errorf("byte %d of %s: found %+v", i, key, v.Findings)
			}
			flipped++
		}
	}
	if flipped < 500 {
		t.Errorf("only %d bytes were changed", flipped)
	}
}

// Without an anchor the end of a trail can be taken away, and that is said.
func TestARemovedEndWithoutAnAnchorIsOnlyNoted(t *testing.T) {
	s := publishTrail(t, 2, nil)
	digests := s.documents("digest_")
	v := s.verify(t, s.library(func(o map[string][]byte) {
		delete(o, digests[2])
		delete(o, sigOf(digests[2]))
	}), func(o *verify.Options) { o.Anchors = nil })
	wantKinds(t, v, nil, string(verify.NoteUnanchored))
	if _, err := json.Marshal(v); err != nil {
		t.Error(err)
	}
}
