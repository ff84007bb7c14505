package manifest

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/s3syncd/s3syncd/internal/signer"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

func TestOldLocalCopiesGoPublishedOnesOnly(t *testing.T) {
	r := newRig(t, func(o *Options) { o.KeepLocal = 24 * time.Hour; o.Layout = trail.LayoutHive })
	r.begin(state.Report{New: true})
	r.must(os.WriteFile(filepath.Join(r.local(), "notes.txt"), nil, 0o600))
	for _, name := range []string{"a", "b"} {
		r.commit(name, 1)
		r.flush(trail.ReasonFlush)
		r.advance(time.Minute)
	}
	r.commit("c", 1)
	_, err := r.f.sealAll(t.Context(), trail.ReasonFlush) // Sealed and not published.
	r.must(err)
	waiting, err := r.f.local.Unpublished()
	r.must(err)
	r.advance(48 * time.Hour)
	r.f.sweeper.sweep()
	got := r.files()
	want := []string{"notes.txt"}
	for file := range waiting {
		rel, err := filepath.Rel(r.local(), file)
		r.must(err)
		want = append(want, rel)
	}
	slices.Sort(want)
	slices.Sort(got)
	if len(waiting) != 2 || !slices.Equal(got, want) {
		t.Errorf("files = %v, want %v", got, want)
	}
	r.flush(trail.ReasonFlush)
	_, paths := r.trail()
	r.wantOnce(paths, map[string]int{"a": 1, "b": 1, "c": 1}, "a", "b", "c")
}

func TestExpiredKeepsTheNewest(t *testing.T) {
	now := time.Date(2026, 1, 20, 0, 0, 0, 0, time.UTC)
	copies := func() (out []localCopy) {
		for i := range 5 {
			out = append(out, localCopy{path: strconv.Itoa(i), time: now.Add(-time.Duration(i) * time.Hour), size: 10})
		}
		slices.Reverse(out)
		return out
	}
	for _, row := range []struct {
		name string
		keep time.Duration
		size int64
		want int
	}{
		{"no limits", 0, 0, 0},
		{"two hours", 2 * time.Hour, 0, 2},
		{"three copies' bytes", 0, 30, 2},
		{"the stricter of both", time.Hour, 45, 3},
		{"no byte", 0, 1, 5},
	} {
		got := expired(copies(), now, row.keep, row.size)
		if len(got) != row.want || (row.want > 0 && got[len(got)-1].path != "4") {
			t.Errorf("%s: expired = %v, want the %d oldest", row.name, got, row.want)
		}
	}
}

func TestMetricsExistAtZero(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	NewMetrics(reg).source("data")
	want := `
# HELP s3syncd_chain_abandoned 1 if another chain of this instance has left the chain of this host since it began: two hosts write as one.
# TYPE s3syncd_chain_abandoned gauge
s3syncd_chain_abandoned{source="data"} 0
# HELP s3syncd_last_manifest_timestamp_seconds When the last manifest or digest was acknowledged, 0 for never.
# TYPE s3syncd_last_manifest_timestamp_seconds gauge
s3syncd_last_manifest_timestamp_seconds{source="data"} 0
# HELP s3syncd_manifest_flushes_total Attempts to publish the sealed documents of a source's audit trail, by result.
# TYPE s3syncd_manifest_flushes_total counter
s3syncd_manifest_flushes_total{result="failed",source="data"} 0
s3syncd_manifest_flushes_total{result="forked",source="data"} 0
s3syncd_manifest_flushes_total{result="published",source="data"} 0
# HELP s3syncd_manifest_sequence Sequence number of the last sealed digest of the chain, 0 for none.
# TYPE s3syncd_manifest_sequence gauge
s3syncd_manifest_sequence{source="data"} 0
# HELP s3syncd_manifest_unpublished_records Audit records that no acknowledged manifest holds yet.
# TYPE s3syncd_manifest_unpublished_records gauge
s3syncd_manifest_unpublished_records{source="data"} 0
# HELP s3syncd_oldest_unsigned_digest_timestamp_seconds When the oldest digest that waits for its signature was sealed, 0 for none.
# TYPE s3syncd_oldest_unsigned_digest_timestamp_seconds gauge
s3syncd_oldest_unsigned_digest_timestamp_seconds{source="data"} 0
# HELP s3syncd_unsigned_digests Published digests that still wait for their signature.
# TYPE s3syncd_unsigned_digests gauge
s3syncd_unsigned_digests{source="data"} 0
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

func TestMetricsFollowTheTrail(t *testing.T) {
	r := newRig(t, nil)
	r.begin(state.Report{New: true})
	r.commit("a", 3)
	r.must(r.f.sealFull(t.Context()))
	if got := testutil.ToFloat64(r.f.m.unpublished); got != 3 {
		t.Errorf("unpublished = %v, want 3", got)
	}
	r.flush(trail.ReasonFlush)
	for name, row := range map[string]struct {
		got, want float64
	}{
		"unpublished": {testutil.ToFloat64(r.f.m.unpublished), 0},
		"published":   {testutil.ToFloat64(r.f.m.published), 1},
		"sequence":    {testutil.ToFloat64(r.f.m.sequence), 1},
		"last":        {testutil.ToFloat64(r.f.m.last), float64(r.clock().Unix())},
	} {
		if row.got != row.want {
			t.Errorf("%s = %v, want %v", name, row.got, row.want)
		}
	}
}

func writeKey(t *testing.T, mode os.FileMode) (path string, public ed25519.PublicKey) {
	t.Helper()
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), mode); err != nil {
		t.Fatal(err)
	}
	return path, public
}

func sum256(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:]
}

func TestDigestsAreSignedWhenTheSignerAnswers(t *testing.T) {
	path, public := writeKey(t, 0o600)
	signer, err := signer.LoadEd25519(path)
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(o *Options) { o.Sign = signer })
	r.begin(state.Report{New: true})
	r.bucket.set(func(_, key string) error {
		if strings.HasSuffix(key, trail.SignatureSuffix) {
			return errors.New("down")
		}
		return nil
	}, nil)
	r.commit("a", 1)
	r.flush(trail.ReasonFlush) // The digest is published without its signature.
	if st := r.glance(t); !st.Signing || st.Unsigned != 1 || st.DigestHash == "" {
		t.Errorf("Glance() = %+v, want one digest that waits for its signature", st)
	}
	r.bucket.set(nil, nil)
	r.advance(time.Second)
	r.flush(trail.ReasonStop)
	if st := r.glance(t); st.Unsigned != 0 || st.DigestHash != hex.EncodeToString(sum256(r.bucket.objects[st.Digest])) {
		t.Errorf("Glance() = %+v, want none, and the hash of %s", st, st.Digest)
	}
	signed := 0
	for _, key := range r.bucket.created() {
		n, ok := trail.ParseName(key)
		if !ok || !n.Digest {
			continue
		}
		var s trail.Signature
		if err := json.Unmarshal(r.bucket.objects[strings.TrimSuffix(key, ".json")+trail.SignatureSuffix], &s); err != nil {
			t.Fatalf("%s: %v", key, err)
		}
		sig, err := base64.StdEncoding.DecodeString(s.Signature)
		if err != nil || s.Algorithm != trail.AlgorithmEd25519 || !ed25519.Verify(public, r.bucket.objects[key], sig) {
			t.Errorf("%s: signature %+v does not hold (%v)", key, s, err)
		}
		block, _ := pem.Decode(r.bucket.objects["p/_manifests/keys/"+s.PublicKeyFingerprint+".pem"])
		if block == nil {
			t.Fatalf("no public key %s", s.PublicKeyFingerprint)
		}
		if sum := sha256.Sum256(block.Bytes); hex.EncodeToString(sum[:]) != s.PublicKeyFingerprint {
			t.Errorf("fingerprint %s is not of the key", s.PublicKeyFingerprint)
		}
		signed++
	}
	if signed != 2 {
		t.Errorf("%d digests are signed, want 2", signed)
	}
	if got := fmt.Sprintf("%v %+v %#v", signer, signer, signer); strings.Contains(got, "PrivateKey") || strings.Count(got, fingerprintOf(signer)) != 3 {
		t.Errorf("the signer prints as %s", got)
	}
}

func TestASigningKeyOfAnotherUserIsRefused(t *testing.T) {
	needRoot(t)
	path, _ := writeKey(t, 0o600)
	if err := os.Chown(path, 1000, 1000); err != nil {
		t.Fatal(err)
	}
	if _, err := signer.LoadEd25519(path); err == nil || !strings.Contains(err.Error(), "belongs to user 1000") {
		t.Errorf("LoadEd25519 = %v, want a refusal", err)
	}
	if _, err := signer.LoadEd25519(path, 1000); err != nil {
		t.Errorf("LoadEd25519 of a key of a user that is trusted = %v", err)
	}
}

// refusing is a signer that gives no signature while it is set.
type refusing struct {
	Signer
	no atomic.Bool
}

func (s *refusing) Sign(ctx context.Context, digest []byte) (algorithm, fingerprint string, sig []byte, err error) {
	if s.no.Load() {
		return "", "", nil, archive.Classified(archive.ClassConfiguration, "Sign", errors.New("AccessDeniedException"))
	}
	return s.Signer.Sign(ctx, digest)
}

// Digests that cannot be signed are a state of their own: how many, since when and
// why, whatever the publishing of documents does, and over a restart too.
func TestUnsignedDigestsAreAState(t *testing.T) {
	path, _ := writeKey(t, 0o600)
	key, err := signer.LoadEd25519(path)
	if err != nil {
		t.Fatal(err)
	}
	signer := &refusing{Signer: key}
	signer.no.Store(true)
	logs, seen := observer.New(zap.InfoLevel)
	r := newRig(t, func(o *Options) { o.Sign, o.Log = signer, zap.New(logs) })
	r.begin(state.Report{New: true})
	first := r.clock()
	for i, name := range []string{"a", "b", "c"} {
		r.commit(name, 1)
		r.f.publisher.signing.again = time.Time{} // The pause is over.
		r.flush(trail.ReasonFlush)
		if i == 1 {
			r.reopen()
			r.begin(state.Report{})
		}
		r.advance(time.Hour)
	}
	st := r.glance(t)
	if st.Unsigned != 3 || !st.UnsignedSince.Equal(first) || st.SignErr == nil || st.Err != nil {
		t.Errorf("Glance = %+v, want three digests unsigned since %v, why, and nothing unpublished", st, first)
	}
	if n, at := testutil.ToFloat64(r.f.m.unsigned), testutil.ToFloat64(r.f.m.oldest); n != 3 || at != seconds(first) {
		t.Errorf("unsigned %v since %v, want 3 since %v", n, at, seconds(first))
	}
	if got := testutil.ToFloat64(r.f.m.failed); got != 0 {
		t.Errorf("%v flushes failed, want 0: the documents are published", got)
	}
	if n := seen.FilterMessageSnippet("published unsigned").Len(); n != 2 {
		t.Errorf("%d lines say that digests are unsigned, want one a process", n)
	}
	if n := seen.FilterMessageSnippet("publishing").Len(); n != 0 {
		t.Errorf("the log speaks of publishing: %v", seen.All())
	}
	signer.no.Store(false)
	r.f.publisher.signing.again = time.Time{}
	r.must(r.f.publisher.publish(t.Context()))
	if st := r.glance(t); st.Unsigned != 0 || !st.UnsignedSince.IsZero() || st.SignErr != nil || testutil.ToFloat64(r.f.m.oldest) != 0 {
		t.Errorf("Glance = %+v after the signer answered, want none", st)
	}
	if seen.FilterMessageSnippet("signed again").Len() != 1 {
		t.Error("the log does not say that digests are signed again")
	}
}

func TestASigningKeyThatOthersCanReadIsRefused(t *testing.T) {
	path, _ := writeKey(t, 0o640)
	if _, err := signer.LoadEd25519(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("LoadEd25519 = %v, want a refusal", err)
	}
	other := filepath.Join(t.TempDir(), "x.pem")
	if err := os.WriteFile(other, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := signer.LoadEd25519(other); err == nil {
		t.Error("a file without a key was taken")
	}
}
