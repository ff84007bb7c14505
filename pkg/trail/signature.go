package trail

import (
	"bytes"
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
)

// AlgorithmECDSA names ECDSA with SHA-256 over a digest's bytes, in DER form.
const AlgorithmECDSA = "ecdsa-sha256"

// MaxSignatureBytes bounds signatures, announcements and public keys.
const MaxSignatureBytes = 64 << 10

// ErrSignature says that a signature is not one of the named key over these
// bytes.
var ErrSignature = errors.New("the signature does not hold")

// PublicKey checks signatures.
type PublicKey struct {
	key  any // ed25519.PublicKey or *ecdsa.PublicKey
	hash string
}

// Fingerprint returns the SHA-256, in hex, of the key's DER form.
func (k *PublicKey) Fingerprint() string { return k.hash }

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
	return &PublicKey{key: parsed, hash: FingerprintOf(block.Bytes)}, nil
}

// FingerprintOf returns the fingerprint of a public key in DER form.
func FingerprintOf(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// EncodePublic returns a public key in DER form as keys/ holds it.
func EncodePublic(der []byte) []byte {
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
	if !ok || s.PublicKeyFingerprint != k.hash {
		return fmt.Errorf("%w: %s by key %s", ErrSignature, s.Algorithm, k.hash)
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
	again, err := s.Encode()
	if err != nil || !bytes.Equal(again, data) {
		return s, fmt.Errorf("%w: not a signature as it is written", ErrFormat)
	}
	return s, nil
}

// NewSignature returns a signature as it is stored.
func NewSignature(algorithm, fingerprint string, sig []byte) Signature {
	return Signature{Algorithm: algorithm, PublicKeyFingerprint: fingerprint, Signature: base64.StdEncoding.EncodeToString(sig)}
}

// Encode returns the one line that a signature is stored as.
func (s *Signature) Encode() ([]byte, error) {
	data, err := json.Marshal(s)
	return append(data, '\n'), err
}

// CanonicalPEM reports whether data is one PEM block as it is written here.
func CanonicalPEM(data []byte) bool {
	block, _ := pem.Decode(data)
	return block != nil && bytes.Equal(EncodePublic(block.Bytes), data)
}

// AnnouncementName returns the name, below the trail, of the announcement of a
// new key under an old one's signature.
func AnnouncementName(fresh, old string) string {
	return KeysDir + "/" + fresh + ".announced-by-" + old + SignatureSuffix
}

// AlgorithmEd25519 names pure Ed25519 (RFC 8032) over a digest's bytes.
const AlgorithmEd25519 = "ed25519"

// Signature is the object beside a digest.
type Signature struct {
	Algorithm            string `json:"algorithm"`
	PublicKeyFingerprint string `json:"public_key_fingerprint"`
	Signature            string `json:"signature"` // base64
}
