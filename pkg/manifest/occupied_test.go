package manifest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// ecdsaSigner signs as KMS does: each signature of one digest is another one.
type ecdsaSigner struct {
	key    *ecdsa.PrivateKey
	public []byte
	print  string
}

func newECDSASigner(t *testing.T) *ecdsaSigner {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return &ecdsaSigner{key: key, public: trail.EncodePublic(der), print: trail.FingerprintOf(der)}
}

func (s *ecdsaSigner) Sign(_ context.Context, digest []byte) (algorithm, fingerprint string, sig []byte, err error) {
	sum := sha256.Sum256(digest)
	sig, err = ecdsa.SignASN1(rand.Reader, s.key, sum[:])
	return trail.AlgorithmECDSA, s.print, sig, err
}

func (s *ecdsaSigner) PublicKey(context.Context) ([]byte, error) { return s.public, nil }

// occupy puts something under the name of each signature before s3syncd does.
func occupy(b *bucket, with func(key string) []byte) {
	b.fault = func(op, key string) error {
		if _, there := b.objects[key]; op == "PUT" && !there && strings.HasSuffix(key, trail.SignatureSuffix) {
			if data := with(key); data != nil {
				b.objects[key] = data
			}
		}
		return nil
	}
}

// What stands under the name of a signature counts as published only where it is
// one of this digest by this key.
func TestAnOccupiedSignatureIsNotPublished(t *testing.T) {
	signer := newECDSASigner(t)
	other, _, otherSig, err := newECDSASigner(t).Sign(t.Context(), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	foreign := trail.NewSignature(other, signer.print, otherSig)
	forged, err := foreign.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"junk": []byte("x"), "nothing": {}, "of another digest": forged, "large": bytes.Repeat([]byte{' '}, 1<<20)} {
		r := newRig(t, func(o *Options) { o.Sign = signer })
		r.begin(state.Report{New: true})
		first := ""
		occupy(r.bucket, func(key string) []byte {
			if first == "" {
				first = key
			}
			if key != first {
				return nil
			}
			return data
		})
		r.commit("a", 1)
		r.flush(trail.ReasonFlush)
		if st := r.glance(t); st.Unsigned != 1 {
			t.Errorf("%s: %d digests are without signature, want 1", name, st.Unsigned)
		}
		if _, err := os.Stat(r.f.local.Path(strings.TrimPrefix(first, "p/_manifests/"))); err == nil {
			t.Errorf("%s: the local copy says that it was published", name)
		}
		// The next ones are signed, and lead to it.
		r.advance(time.Minute)
		r.commit("b", 1)
		r.flush(trail.ReasonStop)
		_, sig, n := parseNewest(t, r)
		if n.Sequence != 2 || sig == nil {
			t.Errorf("%s: digest %d has the signature %q", name, n.Sequence, sig)
		}
		if st := r.glance(t); st.Unsigned != 1 || !bytes.Equal(r.bucket.objects[first], data) {
			t.Errorf("%s: %d digests are without signature, want 1", name, st.Unsigned)
		}
	}
}

// parseNewest returns the newest digest that was published, and its signature.
func parseNewest(t *testing.T, r *rig) (d trail.Digest, sig []byte, n trail.Name) {
	t.Helper()
	for _, key := range r.bucket.created() {
		if name, ok := trail.ParseName(key); ok && name.Digest {
			d, n, sig = mustDigest(t, r.bucket.objects[key]), name, r.bucket.objects[sigOf(key)]
		}
	}
	return d, sig, n
}

// A signature whose answer was lost is there already, with other bytes than the
// next one would have.
func TestASignatureWhoseAnswerWasLostIsPublished(t *testing.T) {
	signer := newECDSASigner(t)
	r := newRig(t, func(o *Options) { o.Sign = signer })
	r.begin(state.Report{New: true})
	lost := 0
	r.bucket.set(nil, func(_, key string) error {
		if strings.HasSuffix(key, trail.SignatureSuffix) {
			lost++
			return errors.New("no answer")
		}
		return nil
	})
	r.commit("a", 1)
	r.flush(trail.ReasonFlush)
	r.bucket.set(nil, nil)
	r.flush(trail.ReasonStop)
	if st := r.glance(t); lost != 1 || st.Unsigned != 0 {
		t.Errorf("%d answers were lost, %d digests are without signature", lost, st.Unsigned)
	}
}

// Another thing under the name of the public key does not count as the key, and
// keeps nobody from signing.
func TestAnOccupiedKeyIsNotPublished(t *testing.T) {
	signer := newECDSASigner(t)
	r := newRig(t, func(o *Options) { o.Sign = signer })
	rel := "keys/" + signer.print + ".pem"
	r.bucket.objects["p/_manifests/"+rel] = newECDSASigner(t).public
	r.begin(state.Report{New: true})
	r.commit("a", 1)
	r.flush(trail.ReasonStop)
	if _, err := os.Stat(r.f.local.Path(rel)); err == nil {
		t.Error("the local copy says that the key was published")
	}
	if st := r.glance(t); st.Unsigned != 0 {
		t.Errorf("%d digests are without signature", st.Unsigned)
	}
}
