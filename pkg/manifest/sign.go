package manifest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// maxKeyBytes bounds a private key's file.
const maxKeyBytes = 64 << 10

// Signer signs digests. A signer that does not answer holds up nothing: digests
// are published first and signed when it does. Both methods return within
// seconds, whatever becomes of the request.
type Signer interface {
	// Sign signs the stored bytes of one digest, or of another signer's public
	// key. fingerprint is the SHA-256, in hex, of the public key in DER form.
	Sign(ctx context.Context, digest []byte) (algorithm, fingerprint string, sig []byte, err error)
	// PublicKey returns the key that checks the signatures: PEM, PKIX.
	PublicKey(ctx context.Context) ([]byte, error)
}

// Ed25519Signer signs with a private key in memory.
type Ed25519Signer struct {
	key         ed25519.PrivateKey
	public      []byte // PEM
	fingerprint string
}

// LoadEd25519 reads a PKCS #8 private key in PEM form. A file that others than
// its owner can read or write is refused, and so is one of another owner than
// this process's user, root and those that are named.
func LoadEd25519(path string, owners ...uint32) (*Ed25519Signer, error) {
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
	return &Ed25519Signer{key: key, fingerprint: trail.FingerprintOf(der), public: trail.EncodePublic(der)}, nil
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
func (s *Ed25519Signer) Sign(_ context.Context, digest []byte) (algorithm, fingerprint string, sig []byte, err error) {
	return trail.AlgorithmEd25519, s.fingerprint, ed25519.Sign(s.key, digest), nil
}

// PublicKey returns the public key.
func (s *Ed25519Signer) PublicKey(context.Context) ([]byte, error) { return s.public, nil }

// String keeps the key out of logs.
func (s *Ed25519Signer) String() string { return "ed25519:" + s.fingerprint }

// GoString keeps the key out of logs.
func (s *Ed25519Signer) GoString() string { return s.String() }

// signPause is the shortest wait after a signer that gave no answer. Meanwhile
// documents are published without asking it: it holds up nothing.
const signPause = 30 * time.Second

// signAll signs the published digests that have no signature yet, in order,
// and announces a new key. A local copy of a signature exists once the signature
// is published. The caller holds f.publishing.
func (f *Flusher) signAll(ctx context.Context) error {
	if f.o.Sign == nil || f.signerDown && f.signWait() > 0 {
		return nil
	}
	f.signAgain, f.signerDown = time.Time{}, false
	files, err := f.unsigned(ctx)
	if err != nil {
		return fmt.Errorf("look for unsigned digests: %w", err)
	}
	for i, file := range files {
		err := f.sign(ctx, file)
		if _, taken := errors.AsType[*occupiedError](err); taken {
			// A signature of a later digest leads to this one.
			f.occupied[file] = true
			f.log.Error("a digest stays without its signature", zap.Error(err))
			continue
		}
		if err != nil {
			if stopped(ctx, err) {
				return nil
			}
			// The signer is no reason to call the digests unpublished.
			f.signLater(err)
			f.unsignedNow(append(slices.Sorted(maps.Keys(f.occupied)), files[i:]...), fmt.Errorf("sign %s: %w", filepath.Base(file), err))
			return nil
		}
	}
	f.unsignedNow(slices.Sorted(maps.Keys(f.occupied)), nil)
	f.announce(ctx)
	return nil
}

// signLogEvery is how often the log says that digests are still not signed.
const signLogEvery = time.Hour

// unsignedNow notes which published digests have no signature, the oldest first,
// and why.
func (f *Flusher) unsignedNow(files []string, why error) {
	var since time.Time
	if len(files) > 0 {
		since = sealedAt(files[0])
	}
	f.m.unsigned.Set(float64(len(files)))
	f.m.oldest.Set(seconds(since))
	f.mu.Lock()
	was, now := f.status, time.Now()
	f.status.Unsigned, f.status.UnsignedSince, f.status.SignErr = len(files), since, why
	loud := why != nil && now.Sub(f.signLogged) >= signLogEvery
	switch {
	case loud:
		f.signLogged = now
	case why == nil:
		f.signLogged = time.Time{}
	}
	f.mu.Unlock()
	switch {
	case loud:
		f.log.Error("digests are published unsigned; each is signed when the signer answers",
			zap.Int("digests", len(files)), zap.Time("since", since), zap.String("class", string(state.ClassOf(why))), zap.Error(why))
	case why == nil && was.SignErr != nil:
		f.log.Info("digests are signed again", zap.Int("signed_late", was.Unsigned), zap.Time("unsigned_since", was.UnsignedSince))
	}
}

// sealedAt returns when the digest of a local copy was sealed.
func sealedAt(file string) time.Time {
	if d, err := readDigest(file); err == nil {
		if at, err := time.Parse(time.RFC3339Nano, d.EndTime); err == nil {
			return at
		}
	}
	n, _ := trail.ParseName(file)
	return n.Time
}

// signerError is one of the signer, not of publishing what it made.
type signerError struct{ err error }

func (e *signerError) Error() string { return "signer: " + e.err.Error() }

func (e *signerError) Unwrap() error { return e.err }

// signLater notes when to try again. The caller holds f.publishing.
func (f *Flusher) signLater(err error) {
	_, f.signerDown = errors.AsType[*signerError](err)
	f.signAgain = time.Now().Add(signPause)
}

// signWait returns how long until the signer is asked again, 0 where nothing
// waits for it. The caller holds f.publishing.
func (f *Flusher) signWait() time.Duration {
	if f.signAgain.IsZero() {
		return 0
	}
	return max(0, time.Until(f.signAgain))
}

// unsigned lists the local copies of published digests without a signature, in
// the order of their chains. Those of an older chain are signed only where the
// bucket has the same bytes: a fork may have been published under their names.
func (f *Flusher) unsigned(ctx context.Context) ([]string, error) {
	ch, err := f.st.Chain()
	if err != nil {
		return nil, err
	}
	waiting, err := f.local.unpublished()
	if err != nil {
		return nil, err
	}
	signed := map[string]bool{}
	var files []string
	err = f.local.walk(func(path string, e fs.DirEntry) error {
		if base, ok := strings.CutSuffix(path, trail.SignatureSuffix); ok {
			signed[base+".json"] = true
		} else if n, ok := trail.ParseName(e.Name()); ok && n.Digest && n.Instance == f.o.Instance && !waiting[path] &&
			(n.Chain != ch.ID || n.Sequence < ch.Sequence) {
			files = append(files, path)
		}
		return nil
	})
	files = slices.DeleteFunc(files, func(p string) bool { return signed[p] || f.unsignable[p] || f.occupied[p] })
	slices.SortFunc(files, func(a, b string) int {
		x, _ := trail.ParseName(a)
		y, _ := trail.ParseName(b)
		return cmp.Or(strings.Compare(x.Chain, y.Chain), cmp.Compare(x.Sequence, y.Sequence))
	})
	return slices.DeleteFunc(files, func(p string) bool { return f.foreign(ctx, p, ch.ID) }), err
}

// foreign reports whether the digest in a local copy is of an older chain and
// is not what the bucket has. It is asked about once.
func (f *Flusher) foreign(ctx context.Context, file, chain string) bool {
	n, _ := trail.ParseName(file)
	if n.Chain == chain {
		return false
	}
	own, err := fileSHA(file)
	if err != nil {
		return true
	}
	rel, err := filepath.Rel(f.o.LocalDir, file)
	if err != nil {
		return true
	}
	seen, _, err := f.remote.sum(ctx, f.o.Mapper.TrailPrefix()+filepath.ToSlash(rel))
	if err == nil && seen == own {
		return false
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		f.unsignable[file] = true
	}
	return true
}

// announce publishes, once, the new key under the signature of the one that
// signed before. Without it readers have to be told of the new key by hand; it
// is tried again with the next document.
func (f *Flusher) announce(ctx context.Context) {
	if f.o.SignBefore == nil || f.announced {
		return
	}
	err := f.announceKey(ctx)
	switch {
	case err == nil:
		f.announced = true
	case !stopped(ctx, err):
		f.signLater(err)
		f.log.Warn("the new signing key is not announced under the one before; it is tried again, and readers must be given the key until then", zap.Error(err))
	}
}

func (f *Flusher) announceKey(ctx context.Context) error {
	fresh, err := f.o.Sign.PublicKey(ctx)
	if err != nil {
		return &signerError{err}
	}
	before, err := f.o.SignBefore.PublicKey(ctx)
	if err != nil {
		return err
	}
	k, err := trail.ParsePublicKey(fresh)
	if err != nil {
		return err
	}
	old, err := trail.ParsePublicKey(before)
	if err != nil || k.Fingerprint() == old.Fingerprint() {
		return err
	}
	rel := trail.AnnouncementName(k.Fingerprint(), old.Fingerprint())
	if _, err := os.Stat(f.local.path(rel)); err == nil {
		return nil
	}
	algorithm, fingerprint, sig, err := f.o.SignBefore.Sign(ctx, fresh)
	if err != nil {
		return err
	}
	s := trail.NewSignature(algorithm, fingerprint, sig)
	data, err := s.Encode()
	if err != nil {
		return err
	}
	for _, doc := range []struct {
		rel  string
		data []byte
		same func([]byte) bool
	}{
		{trail.KeysDir + "/" + old.Fingerprint() + ".pem", before, nil},
		{trail.KeysDir + "/" + k.Fingerprint() + ".pem", fresh, nil},
		{rel, data, signedBy(ctx, f.o.SignBefore, fresh)},
	} {
		if err := f.publishOnce(ctx, doc.rel, doc.data, doc.same); err != nil {
			return err
		}
	}
	return nil
}

// sign signs one digest and publishes the signature, after the public key.
func (f *Flusher) sign(ctx context.Context, file string) error {
	digest, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	algorithm, fingerprint, sig, err := f.o.Sign.Sign(ctx, digest)
	if err != nil {
		return &signerError{err}
	}
	if n, ok := trail.ParseName(file); ok && n.Sequence == 1 {
		if err := f.forgetKey(fingerprint); err != nil {
			return err
		}
	}
	if err := f.publishKey(ctx, fingerprint); err != nil {
		return err
	}
	s := trail.NewSignature(algorithm, fingerprint, sig)
	data, err := s.Encode()
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(f.o.LocalDir, strings.TrimSuffix(file, ".json")+trail.SignatureSuffix)
	if err != nil {
		return err
	}
	// One whose answer was lost is there, with other bytes.
	return f.publishOnce(ctx, filepath.ToSlash(rel), data, signedBy(ctx, f.o.Sign, digest))
}

// signedBy returns what reports whether something is a signature of s over data.
func signedBy(ctx context.Context, s Signer, data []byte) func(seen []byte) bool {
	return func(seen []byte) bool {
		sig, err := trail.ParseSignature(seen)
		if err != nil {
			return false
		}
		public, err := s.PublicKey(ctx)
		if err != nil {
			return false
		}
		k, err := trail.ParsePublicKey(public)
		return err == nil && k.Verify(sig, data) == nil
	}
}

// forgetKey removes the copies of a key and of its announcement, so that both are
// published again: a chain that begins may be the first of its trail, and these
// copies those of the trail before.
func (f *Flusher) forgetKey(fingerprint string) error {
	dir := f.local.path(trail.KeysDir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), fingerprint+".") {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	f.announced, f.keyTaken = false, false
	return err
}

// publishKey publishes the public key, once. Where something else stands under
// its name, readers have to be given the key: that is no reason not to sign.
func (f *Flusher) publishKey(ctx context.Context, fingerprint string) error {
	rel := trail.KeysDir + "/" + fingerprint + ".pem"
	if _, err := os.Stat(f.local.path(rel)); err == nil || f.keyTaken {
		return nil
	}
	public, err := f.o.Sign.PublicKey(ctx)
	if err != nil {
		return &signerError{err}
	}
	err = f.publishOnce(ctx, rel, public, nil)
	if _, taken := errors.AsType[*occupiedError](err); taken {
		f.keyTaken = true
		f.log.Error("the public key is not published; readers must be given it", zap.Error(err))
		return nil
	}
	return err
}

// occupiedError says that something else stands under the name of a document,
// which is never overwritten.
type occupiedError struct{ key string }

func (e *occupiedError) Error() string {
	return "something that s3syncd did not write stands under " + e.key + ", and is never overwritten"
}

// publishOnce publishes a document that is outside the chain and then keeps its
// local copy. What is there already counts where it has these bytes or where
// same says that it means the same; anything else is an occupiedError.
func (f *Flusher) publishOnce(ctx context.Context, rel string, data []byte, same func(seen []byte) bool) error {
	s := newSums()
	if _, err := s.Write(data); err != nil {
		return err
	}
	key := f.o.Mapper.TrailPrefix() + rel
	_, err := f.pub.CreateDoc(ctx, key, bytes.NewReader(data), s.Size(), s.md5sum(), s.SHA256(), contentTypeOf(key))
	if errors.Is(err, state.ErrPrecondition) {
		data, err = f.there(ctx, key, data, same)
	}
	if err != nil {
		return err
	}
	if err := safefs.MkdirAll(filepath.Dir(f.local.path(rel)), dirMode); err != nil {
		return err
	}
	return safefs.WriteFile(f.local.path(rel), data, fileMode)
}

// there returns what stands under key where it may take the place of data.
func (f *Flusher) there(ctx context.Context, key string, data []byte, same func(seen []byte) bool) ([]byte, error) {
	body, _, err := f.pub.Get(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("compare: %w", err)
	}
	seen, err := io.ReadAll(io.LimitReader(body, trail.MaxSignatureBytes+1))
	if err = errors.Join(err, body.Close()); err != nil {
		return nil, fmt.Errorf("compare: %w", err)
	}
	if bytes.Equal(seen, data) || same != nil && same(seen) {
		return seen, nil
	}
	return nil, &occupiedError{key}
}
