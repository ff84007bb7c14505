// Package signer signs digests, with a key in a file or one in KMS.
package signer

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// maxKeyBytes bounds a private key's file.
const maxKeyBytes = 64 << 10

// Ed25519 signs with a private key in memory.
type Ed25519 struct {
	key         ed25519.PrivateKey
	public      []byte // PEM
	fingerprint string
}

// LoadEd25519 reads a PKCS #8 private key in PEM form. A file that others than
// its owner can read or write is refused, and so is one of another owner than
// this process's user, root and those that are named.
func LoadEd25519(path string, owners ...uint32) (*Ed25519, error) {
	data, err := readPrivate(path, append(owners, 0, uint32(os.Geteuid())))
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
	return &Ed25519{key: key, fingerprint: trail.FingerprintOf(der), public: trail.EncodePublic(der)}, nil
}

// readPrivate reads a small file that only its owner, one of owners, can read,
// and checks that on the open file.
func readPrivate(path string, owners []uint32) (data []byte, err error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // A FIFO must not block.
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
	st, err := safefs.Fstat(file)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(owners, st.UID) {
		return nil, fmt.Errorf("it belongs to user %d, who can replace it; it must belong to the user of the service or to root (chown)", st.UID)
	}
	return io.ReadAll(io.LimitReader(file, maxKeyBytes))
}

// Sign signs digest. It does not block.
func (s *Ed25519) Sign(_ context.Context, digest []byte) (algorithm, fingerprint string, sig []byte, err error) {
	return trail.AlgorithmEd25519, s.fingerprint, ed25519.Sign(s.key, digest), nil
}

// PublicKey returns the public key.
func (s *Ed25519) PublicKey(context.Context) ([]byte, error) { return s.public, nil }

// String keeps the key out of logs.
func (s *Ed25519) String() string { return "ed25519:" + s.fingerprint }

// GoString keeps the key out of logs.
func (s *Ed25519) GoString() string { return s.String() }
