package manifest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// AlgorithmECDSA names ECDSA with SHA-256 over a digest's bytes, in DER form.
const AlgorithmECDSA = "ecdsa-sha256"

// maxSignatureBytes bounds signatures, announcements and public keys.
const maxSignatureBytes = 64 << 10

// ErrSignature says that a signature is not one of the named key over these
// bytes.
var ErrSignature = errors.New("the signature does not hold")

// PublicKey checks signatures.
type PublicKey struct {
	key         any // ed25519.PublicKey or *ecdsa.PublicKey
	fingerprint string
}

// Fingerprint returns the SHA-256, in hex, of the key's DER form.
func (k *PublicKey) Fingerprint() string { return k.fingerprint }

// ParsePublicKey reads a PEM block PUBLIC KEY of an Ed25519 or ECDSA key.
func ParsePublicKey(data []byte) (*PublicKey, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("not one PEM block PUBLIC KEY")
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	switch parsed.(type) {
	case ed25519.PublicKey, *ecdsa.PublicKey:
	default:
		return nil, fmt.Errorf("a %T, which signs nothing here", parsed)
	}
	return &PublicKey{key: parsed, fingerprint: fingerprintOf(block.Bytes)}, nil
}

// fingerprintOf returns the fingerprint of a public key in DER form.
func fingerprintOf(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// encodePublic returns a public key in DER form as keys/ holds it.
func encodePublic(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// Verify returns ErrSignature unless s is a signature of k over data.
func (k *PublicKey) Verify(s Signature, data []byte) error {
	raw, err := base64.StdEncoding.DecodeString(s.Signature)
	if err != nil || base64.StdEncoding.EncodeToString(raw) != s.Signature {
		return fmt.Errorf("%w: it is not base64 as it is written", ErrSignature)
	}
	ok := false
	switch key := k.key.(type) {
	case ed25519.PublicKey:
		ok = s.Algorithm == AlgorithmEd25519 && ed25519.Verify(key, data, raw)
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(data)
		ok = s.Algorithm == AlgorithmECDSA && ecdsa.VerifyASN1(key, sum[:], raw)
	}
	if !ok || s.PublicKeyFingerprint != k.fingerprint {
		return fmt.Errorf("%w: %s by key %s", ErrSignature, s.Algorithm, k.fingerprint)
	}
	return nil
}

// ParseSignature reads the object beside a digest. There is one way to write a
// signature: other bytes of the same meaning are ErrFormat.
func ParseSignature(data []byte) (Signature, error) {
	var s Signature
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	again, err := s.encode()
	if err != nil || !bytes.Equal(again, data) {
		return s, fmt.Errorf("%w: not a signature as it is written", ErrFormat)
	}
	return s, nil
}

// NewSignature returns a signature as it is stored.
func NewSignature(algorithm, fingerprint string, sig []byte) Signature {
	return Signature{Algorithm: algorithm, PublicKeyFingerprint: fingerprint, Signature: base64.StdEncoding.EncodeToString(sig)}
}

// encode returns the one line that a signature is stored as.
func (s *Signature) encode() ([]byte, error) {
	data, err := json.Marshal(s)
	return append(data, '\n'), err
}

var (
	keyPattern      = regexp.MustCompile(`^([0-9a-f]{64})\.pem$`)
	announcePattern = regexp.MustCompile(`^([0-9a-f]{64})\.announced-by-([0-9a-f]{64})\.sig$`)
)

// announcementName returns the name, below the trail, of the announcement of a
// new key under an old one's signature.
func announcementName(fresh, old string) string {
	return keysDir + "/" + fresh + ".announced-by-" + old + sigSuffix
}

// keyring is the public keys of a trail, and which of them are trusted.
type keyring struct {
	keys      map[string]*PublicKey
	announces map[string][]string // by the announcing key: those that it announces
	trusted   map[string]bool     // and those that they announce
	named     []*PublicKey
	given     bool            // the caller named keys to trust
	begun     map[string]bool // instances whose first key was taken for theirs, where none was named
}

func newKeyring(trusted []*PublicKey) *keyring {
	r := &keyring{keys: map[string]*PublicKey{}, announces: map[string][]string{}, trusted: map[string]bool{}, begun: map[string]bool{}, named: trusted, given: len(trusted) > 0}
	for _, k := range trusted {
		r.keys[k.fingerprint] = k
	}
	return r
}

// load reads the keys and announcements of a trail. What is wrong with one of
// them goes to fault; an error is one of reading.
func (r *keyring) load(ctx context.Context, t *Trail, entries []Entry, fault func(kind FindingKind, key, detail string)) error {
	pems, sigs := map[string][]byte{}, []Entry{}
	for _, e := range entries {
		name := strings.TrimPrefix(e.Key, t.root()+keysDir+"/")
		m := keyPattern.FindStringSubmatch(name)
		if m == nil {
			if announcePattern.MatchString(name) {
				sigs = append(sigs, e)
			} else {
				fault(NoteForeignObject, e.Key, "neither a public key nor an announcement of one")
			}
			continue
		}
		data, err := t.small(ctx, e.Key)
		if err != nil {
			return err
		}
		k, err := ParsePublicKey(data)
		switch {
		case err != nil:
			fault(FindingKey, e.Key, err.Error())
		case k.fingerprint != m[1]:
			fault(FindingKey, e.Key, "it holds the key "+k.fingerprint)
		case !canonicalPEM(data):
			fault(FindingKey, e.Key, "it is not written as a public key is")
		default:
			r.keys[k.fingerprint] = k
			pems[k.fingerprint] = data
		}
	}
	for _, e := range sigs {
		if err := r.announcement(ctx, t, e, pems, fault); err != nil {
			return err
		}
	}
	for _, k := range r.named {
		r.trust(k.fingerprint)
	}
	return nil
}

// canonicalPEM reports whether data is one PEM block as it is written here.
func canonicalPEM(data []byte) bool {
	block, _ := pem.Decode(data)
	return block != nil && bytes.Equal(encodePublic(block.Bytes), data)
}

// announcement reads one announcement.
func (r *keyring) announcement(ctx context.Context, t *Trail, e Entry, pems map[string][]byte, fault func(kind FindingKind, key, detail string)) error {
	m := announcePattern.FindStringSubmatch(strings.TrimPrefix(e.Key, t.root()+keysDir+"/"))
	fresh, old := m[1], m[2]
	data, err := t.small(ctx, e.Key)
	if err != nil {
		return err
	}
	s, err := ParseSignature(data)
	switch {
	case err != nil:
		fault(FindingKey, e.Key, err.Error())
	case pems[fresh] == nil || r.keys[old] == nil:
		fault(FindingKey, e.Key, "a key that it names is not under "+keysDir+"/")
	case s.PublicKeyFingerprint != old:
		fault(FindingKey, e.Key, "it is signed by the key "+s.PublicKeyFingerprint)
	default:
		if err := r.keys[old].Verify(s, pems[fresh]); err != nil {
			fault(FindingKey, e.Key, err.Error())
			return nil
		}
		r.announces[old] = append(r.announces[old], fresh)
	}
	return nil
}

// trusts reports whether a key is trusted, or announced by one that is.
func (r *keyring) trusts(fingerprint string) bool { return r.trusted[fingerprint] }

// trust trusts a key, and those that it announces.
func (r *keyring) trust(fingerprint string) {
	for todo := []string{fingerprint}; len(todo) > 0; todo = todo[1:] {
		if k := todo[0]; !r.trusted[k] {
			r.trusted[k] = true
			todo = append(todo, r.announces[k]...)
		}
	}
}

// small reads a document that is never large.
func (t *Trail) small(ctx context.Context, key string) (data []byte, err error) {
	err = again(ctx, func() error {
		data, err = t.read(ctx, key, maxSignatureBytes)
		return err
	})
	return data, err
}

// read returns the first bytes of a document, at most one more than limit.
func (t *Trail) read(ctx context.Context, key string, limit int64) ([]byte, error) {
	body, o, err := t.lib.Get(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", key, err)
	}
	data, err := readUpTo(body, o.Size, limit)
	if err = errors.Join(err, body.Close()); err != nil {
		return nil, fmt.Errorf("get %s: %w", key, err)
	}
	return data, nil
}

// readUpTo reads at most one byte more than limit. Where size is right it takes
// no more memory than that.
func readUpTo(r io.Reader, size, limit int64) ([]byte, error) {
	b := bytes.NewBuffer(make([]byte, 0, max(0, min(size, limit))+bytes.MinRead))
	_, err := b.ReadFrom(io.LimitReader(r, limit+1))
	return b.Bytes(), err
}
