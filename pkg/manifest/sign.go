package manifest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/copies"
	"github.com/s3syncd/s3syncd/internal/safefs"
	surveypkg "github.com/s3syncd/s3syncd/internal/survey"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

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

// signPause is the shortest wait after a signer that gave no answer. Until then
// documents are published without asking it: it holds up nothing.
const signPause = 30 * time.Second

// signing signs published digests and publishes the signatures and keys. The
// publisher's lock guards it.
type signing struct {
	st     *state.Source
	o      *Options
	pub    Publisher
	log    *zap.Logger
	local  copies.Copies
	remote surveypkg.Bucket
	notes  *progress

	again      time.Time       // when the signer is asked again
	down       bool            // it gave no answer
	keyTaken   bool            // something else is under the public key's name
	occupied   map[string]bool // local digests of whose signature this is true
	unsignable map[string]bool // local digests that the bucket has otherwise
	announced  bool            // the signing key is
}

// signAll signs the published digests that have no signature yet, in order,
// and announces a new key. A local copy of a signature exists once the signature
// is published.
func (g *signing) signAll(ctx context.Context) error {
	if g.o.Sign == nil || g.down && g.wait() > 0 {
		return nil
	}
	g.again, g.down = time.Time{}, false
	files, err := g.unsigned(ctx)
	if err != nil {
		return fmt.Errorf("look for unsigned digests: %w", err)
	}
	for i, file := range files {
		err := g.sign(ctx, file)
		if _, taken := errors.AsType[*occupiedError](err); taken {
			// A signature of a later digest covers this one.
			g.occupied[file] = true
			g.log.Error("a digest stays without its signature", zap.Error(err))
			continue
		}
		if err != nil {
			if stopped(ctx, err) {
				return nil
			}
			// The signer is no reason to call the digests unpublished.
			g.later(err)
			g.notes.unsigned(append(slices.Sorted(maps.Keys(g.occupied)), files[i:]...), fmt.Errorf("sign %s: %w", filepath.Base(file), err))
			return nil
		}
	}
	g.notes.unsigned(slices.Sorted(maps.Keys(g.occupied)), nil)
	g.announce(ctx)
	return nil
}

// sealedAt returns when the digest of a local copy was sealed.
func sealedAt(file string) time.Time {
	if d, err := copies.ReadDigest(file); err == nil {
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

// later notes when to try again.
func (g *signing) later(err error) {
	_, g.down = errors.AsType[*signerError](err)
	g.again = time.Now().Add(signPause)
}

// wait returns how long until the signer is asked again, 0 where nothing
// waits for it.
func (g *signing) wait() time.Duration {
	if g.again.IsZero() {
		return 0
	}
	return max(0, time.Until(g.again))
}

// unsigned lists the local copies of published digests without a signature, in
// the order of their chains. Those of an older chain are signed only where the
// bucket has the same bytes: a fork may have been published under their names.
func (g *signing) unsigned(ctx context.Context) ([]string, error) {
	ch, err := g.st.Chain()
	if err != nil {
		return nil, err
	}
	waiting, err := g.local.Unpublished()
	if err != nil {
		return nil, err
	}
	signed := map[string]bool{}
	var files []string
	err = g.local.Walk(func(path string, e fs.DirEntry) error {
		if base, ok := strings.CutSuffix(path, trail.SignatureSuffix); ok {
			signed[base+".json"] = true
		} else if n, ok := trail.ParseName(e.Name()); ok && n.Digest && n.Instance == g.o.Instance && !waiting[path] &&
			(n.Chain != ch.ID || n.Sequence < ch.Sequence) {
			files = append(files, path)
		}
		return nil
	})
	files = slices.DeleteFunc(files, func(p string) bool { return signed[p] || g.unsignable[p] || g.occupied[p] })
	slices.SortFunc(files, func(a, b string) int {
		x, _ := trail.ParseName(a)
		y, _ := trail.ParseName(b)
		return cmp.Or(strings.Compare(x.Chain, y.Chain), cmp.Compare(x.Sequence, y.Sequence))
	})
	return slices.DeleteFunc(files, func(p string) bool { return g.foreign(ctx, p, ch.ID) }), err
}

// foreign reports whether the digest in a local copy is of an older chain and
// is not what the bucket has. It is asked about once.
func (g *signing) foreign(ctx context.Context, file, chain string) bool {
	n, _ := trail.ParseName(file)
	if n.Chain == chain {
		return false
	}
	own, err := copies.FileSHA(file)
	if err != nil {
		return true
	}
	rel, err := filepath.Rel(g.o.LocalDir, file)
	if err != nil {
		return true
	}
	seen, _, err := g.remote.Sum(ctx, g.o.Mapper.TrailPrefix()+filepath.ToSlash(rel))
	if err == nil && seen == own {
		return false
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		g.unsignable[file] = true
	}
	return true
}

// announce publishes, once, the new key under the signature of the one that
// signed before. Without it readers have to be given the new key by hand; it
// is tried again with the next document.
func (g *signing) announce(ctx context.Context) {
	if g.o.SignBefore == nil || g.announced {
		return
	}
	err := g.announceKey(ctx)
	switch {
	case err == nil:
		g.announced = true
	case !stopped(ctx, err):
		g.later(err)
		g.log.Warn("the new signing key is not announced under the one before; it is tried again, and readers must be given the key until then", zap.Error(err))
	}
}

func (g *signing) announceKey(ctx context.Context) error {
	fresh, err := g.o.Sign.PublicKey(ctx)
	if err != nil {
		return &signerError{err}
	}
	before, err := g.o.SignBefore.PublicKey(ctx)
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
	if _, err := os.Stat(g.local.Path(rel)); err == nil {
		return nil
	}
	algorithm, fingerprint, sig, err := g.o.SignBefore.Sign(ctx, fresh)
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
		{rel, data, signedBy(ctx, g.o.SignBefore, fresh)},
	} {
		if err := g.publishOnce(ctx, doc.rel, doc.data, doc.same); err != nil {
			return err
		}
	}
	return nil
}

// sign signs one digest and publishes the signature, after the public key.
func (g *signing) sign(ctx context.Context, file string) error {
	digest, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	algorithm, fingerprint, sig, err := g.o.Sign.Sign(ctx, digest)
	if err != nil {
		return &signerError{err}
	}
	if n, ok := trail.ParseName(file); ok && n.Sequence == 1 {
		if err := g.forgetKey(fingerprint); err != nil {
			return err
		}
	}
	if err := g.publishKey(ctx, fingerprint); err != nil {
		return err
	}
	s := trail.NewSignature(algorithm, fingerprint, sig)
	data, err := s.Encode()
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(g.o.LocalDir, strings.TrimSuffix(file, ".json")+trail.SignatureSuffix)
	if err != nil {
		return err
	}
	// One whose answer was lost is there, with other bytes.
	return g.publishOnce(ctx, filepath.ToSlash(rel), data, signedBy(ctx, g.o.Sign, digest))
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
func (g *signing) forgetKey(fingerprint string) error {
	dir := g.local.Path(trail.KeysDir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), fingerprint+".") {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	g.announced, g.keyTaken = false, false
	return err
}

// publishKey publishes the public key, once. Where something else is under
// its name, readers have to be given the key: that is no reason not to sign.
func (g *signing) publishKey(ctx context.Context, fingerprint string) error {
	rel := trail.KeysDir + "/" + fingerprint + ".pem"
	if _, err := os.Stat(g.local.Path(rel)); err == nil || g.keyTaken { //nolint:gosec // A fingerprint is hex.
		return nil
	}
	public, err := g.o.Sign.PublicKey(ctx)
	if err != nil {
		return &signerError{err}
	}
	err = g.publishOnce(ctx, rel, public, nil)
	if _, taken := errors.AsType[*occupiedError](err); taken {
		g.keyTaken = true
		g.log.Error("the public key is not published; readers must be given it", zap.Error(err))
		return nil
	}
	return err
}

// occupiedError says that something else is under the name of a document,
// which is never overwritten.
type occupiedError struct{ key string }

func (e *occupiedError) Error() string {
	return "something that s3syncd did not write stands under " + e.key + ", and is never overwritten"
}

// publishOnce publishes a document that is outside the chain and then keeps its
// local copy. What is there already counts where it has these bytes or where
// same says that it means the same; anything else is an occupiedError.
func (g *signing) publishOnce(ctx context.Context, rel string, data []byte, same func(seen []byte) bool) error {
	s := copies.NewSums()
	if _, err := s.Write(data); err != nil {
		return err
	}
	key := g.o.Mapper.TrailPrefix() + rel
	_, err := g.pub.CreateDoc(ctx, key, bytes.NewReader(data), s.Size(), s.MD5(), s.SHA256(), contentTypeOf(key))
	if errors.Is(err, archive.ErrPrecondition) {
		data, err = g.there(ctx, key, data, same)
	}
	if err != nil {
		return err
	}
	if err := safefs.MkdirAll(filepath.Dir(g.local.Path(rel)), copies.DirMode); err != nil {
		return err
	}
	return safefs.WriteFile(g.local.Path(rel), data, copies.FileMode)
}

// there returns what is under key where it may take the place of data.
func (g *signing) there(ctx context.Context, key string, data []byte, same func(seen []byte) bool) ([]byte, error) {
	body, _, err := g.pub.Get(ctx, key)
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
