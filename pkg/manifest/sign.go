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
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// AlgorithmEd25519 names pure Ed25519 (RFC 8032) over a digest's bytes.
const AlgorithmEd25519 = "ed25519"

// maxKeyBytes bounds a private key's file.
const maxKeyBytes = 64 << 10

// Signer signs digests. A signer that does not answer holds up nothing: digests
// are published first and signed when it does.
type Signer interface {
	// Sign signs the stored bytes of one digest. fingerprint is the SHA-256, in
	// hex, of the public key in DER form.
	Sign(ctx context.Context, digest []byte) (algorithm, fingerprint string, sig []byte, err error)
	// PublicKey returns the key that checks the signatures: PEM, PKIX.
	PublicKey(ctx context.Context) ([]byte, error)
}

// Signature is the object beside a digest.
type Signature struct {
	Algorithm            string `json:"algorithm"`
	PublicKeyFingerprint string `json:"public_key_fingerprint"`
	Signature            string `json:"signature"` // base64
}

// Ed25519Signer signs with a private key in memory.
type Ed25519Signer struct {
	key         ed25519.PrivateKey
	public      []byte // PEM
	fingerprint string
}

// LoadEd25519 reads a PKCS #8 private key in PEM form. A file that others than
// its owner can read or write is refused.
func LoadEd25519(path string) (*Ed25519Signer, error) {
	data, err := readPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("signing key %s: %w", path, err)
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("signing key %s: not a PEM block PRIVATE KEY", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("signing key %s: %w", path, err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("signing key %s: a %T, not an Ed25519 key", path, parsed)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("signing key %s: %w", path, err)
	}
	sum := sha256.Sum256(der)
	return &Ed25519Signer{
		key: key, fingerprint: hex.EncodeToString(sum[:]),
		public: pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}),
	}, nil
}

// readPrivate reads a small file that only its owner can read, and checks that
// on the open file.
func readPrivate(path string) (data []byte, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("its mode is %v; it must be a file that only its owner can read (chmod 600)", info.Mode())
	}
	return io.ReadAll(io.LimitReader(file, maxKeyBytes))
}

// Sign signs digest. It does not block.
func (s *Ed25519Signer) Sign(_ context.Context, digest []byte) (algorithm, fingerprint string, sig []byte, err error) {
	return AlgorithmEd25519, s.fingerprint, ed25519.Sign(s.key, digest), nil
}

// PublicKey returns the public key.
func (s *Ed25519Signer) PublicKey(context.Context) ([]byte, error) { return s.public, nil }

// String keeps the key out of logs.
func (s *Ed25519Signer) String() string { return "ed25519:" + s.fingerprint }

// GoString keeps the key out of logs.
func (s *Ed25519Signer) GoString() string { return s.String() }

// signAll signs the published digests of the chain that have no signature yet.
// A local copy of a signature exists once the signature is published.
func (f *Flusher) signAll(ctx context.Context) error {
	if f.o.Sign == nil {
		return nil
	}
	files, err := f.unsigned()
	if err != nil {
		return fmt.Errorf("look for unsigned digests: %w", err)
	}
	for i, file := range files {
		if err := f.sign(ctx, file); err != nil {
			f.setUnsigned(len(files) - i)
			// The signer is no reason to call the digests unpublished.
			f.failed(ctx, fmt.Errorf("sign %s: %w", filepath.Base(file), err))
			return nil
		}
	}
	f.setUnsigned(0)
	return nil
}

// setUnsigned notes how many published digests have no signature.
func (f *Flusher) setUnsigned(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.Unsigned = n
}

// unsigned lists the local copies of published digests without a signature, in
// order.
func (f *Flusher) unsigned() ([]string, error) {
	ch, err := f.st.Chain()
	if err != nil {
		return nil, err
	}
	waiting, err := f.unpublished()
	if err != nil {
		return nil, err
	}
	signed := map[string]bool{}
	var files []string
	err = f.walkLocal(func(path string, e fs.DirEntry) error {
		if base, ok := strings.CutSuffix(path, sigSuffix); ok {
			signed[base+".json"] = true
		} else if n, ok := ParseName(e.Name()); ok && n.Digest && n.Chain == ch.ID && n.Sequence < ch.Sequence && !waiting[path] {
			files = append(files, path)
		}
		return nil
	})
	files = slices.DeleteFunc(files, func(p string) bool { return signed[p] })
	slices.Sort(files)
	return files, err
}

// sign signs one digest and publishes the signature, after the public key.
func (f *Flusher) sign(ctx context.Context, file string) error {
	digest, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	algorithm, fingerprint, sig, err := f.o.Sign.Sign(ctx, digest)
	if err != nil {
		return err
	}
	if err := f.publishKey(ctx, fingerprint); err != nil {
		return err
	}
	data, err := json.Marshal(Signature{
		Algorithm: algorithm, PublicKeyFingerprint: fingerprint, Signature: base64.StdEncoding.EncodeToString(sig),
	})
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(f.o.LocalDir, strings.TrimSuffix(file, ".json")+sigSuffix)
	if err != nil {
		return err
	}
	return f.publishOnce(ctx, filepath.ToSlash(rel), append(data, '\n'))
}

// publishKey publishes the public key, once.
func (f *Flusher) publishKey(ctx context.Context, fingerprint string) error {
	rel := keysDir + "/" + fingerprint + ".pem"
	if _, err := os.Stat(f.localPath(rel)); err == nil {
		return nil
	}
	public, err := f.o.Sign.PublicKey(ctx)
	if err != nil {
		return err
	}
	return f.publishOnce(ctx, rel, public)
}

// publishOnce publishes a document that is outside the chain and then keeps its
// local copy. One that is there already is left as it is: a signature or key
// proves itself.
func (f *Flusher) publishOnce(ctx context.Context, rel string, data []byte) error {
	s := newSums()
	if _, err := s.Write(data); err != nil {
		return err
	}
	key := f.o.Mapper.TrailPrefix() + rel
	_, err := f.pub.CreateDoc(ctx, key, strings.NewReader(string(data)), s.size, s.md5sum(), [sha256.Size]byte(s.sha256.Sum(nil)), contentTypeOf(key))
	if err != nil && !errors.Is(err, state.ErrPrecondition) {
		return err
	}
	if err := safefs.MkdirAll(filepath.Dir(f.localPath(rel)), dirMode); err != nil {
		return err
	}
	return safefs.WriteFile(f.localPath(rel), data, fileMode)
}
