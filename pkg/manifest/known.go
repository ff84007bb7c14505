package manifest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/copies"
	surveypkg "github.com/s3syncd/s3syncd/internal/survey"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// Anybody who can write the bucket can put digests there: behind the newest one of a
// chain, under the name of the next one, or as a chain that says it follows this
// one. A chain of this host that named such a digest as the one that it follows
// would vouch for it. So it names only digests that the host knows by itself: by
// its copy, or by a signature of its own key.

// known tells which digests in the bucket are the host's.
type known struct {
	local  copies.Copies
	remote surveypkg.Bucket
	keys   []Signer // whose signatures count
	log    *zap.Logger
}

// head returns the SHA-256 of the newest of t. It is "" where that one is not the
// host's, and one before it is, which proves so much of the chain; ok says
// whether any is.
func (k *known) head(ctx context.Context, t surveypkg.Newest) (sha string, ok bool, err error) {
	for i, h := range t {
		sum, own, err := k.digest(ctx, h.Key)
		switch {
		case err != nil:
			return "", false, err
		case own && i == 0:
			return sum, true, nil
		case own:
			return "", true, nil
		}
	}
	return "", false, nil
}

// digest returns the SHA-256 of the digest under key, and whether it is one of
// the host's. One that may not be read is not.
func (k *known) digest(ctx context.Context, key string) (sha string, own bool, err error) {
	data, err := k.remote.Read(ctx, key, surveypkg.AheadRead)
	if err != nil && surveypkg.Outage(ctx, err) {
		return "", false, err
	}
	if err != nil {
		k.log.Warn("a digest at which a chain could be left cannot be read", zap.String("key", key), zap.Error(err))
		return "", false, nil
	}
	s := trail.NewSum()
	_, _ = s.Write(data) // It cannot fail.
	sha = s.Hex()
	if copied, err := copies.FileSHA(k.local.Of(key)); err == nil {
		return sha, copied == sha, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", false, err
	}
	own, err = k.signed(ctx, key, data)
	return sha, own, err
}

// signed reports whether one of the keys has signed a digest.
func (k *known) signed(ctx context.Context, key string, data []byte) (bool, error) {
	if len(k.keys) == 0 {
		return false, nil
	}
	sig, err := k.remote.Read(ctx, strings.TrimSuffix(key, ".json")+trail.SignatureSuffix, trail.MaxSignatureBytes)
	if err != nil {
		if surveypkg.Outage(ctx, err) {
			return false, err
		}
		return false, nil
	}
	return slices.ContainsFunc(k.keys, func(s Signer) bool { return signedBy(ctx, s, data)(sig) }), nil
}

// silent reports whether a key cannot be had now, so that its signatures cannot be
// told from others.
func (k *known) silent(ctx context.Context) bool {
	return slices.ContainsFunc(k.keys, func(s Signer) bool {
		_, err := s.PublicKey(ctx)
		return err != nil
	})
}

// proves reports whether the host has what tells its digests from others, so that
// a digest that is not known is not the host's: a key, or copies.
func (k *known) proves() (bool, error) {
	if len(k.keys) > 0 {
		return true, nil
	}
	file, err := k.local.Newest(func(n trail.Name) bool { return n.Digest && n.Instance == k.local.Instance })
	return file != "", err
}

// leftAt says where ch is left because the bucket has the digests t of it behind
// those of the state. Where the host's key has signed none of them, that is the
// last one that the state knows, and where its signer gives no answer no digest is
// named. Without a key there is no telling an old state from
// digests that are made up: the chain that begins says so.
func (c *succession) leftAt(ctx context.Context, ch archive.Chain, t surveypkg.Newest, l *leave) error {
	sha, ok, err := c.known.head(ctx, t)
	switch {
	case err != nil || ok:
		l.head = sha
		return err
	case c.known.silent(ctx):
		c.log.Warn("the signer gives no answer: whether this host has signed the digests behind those of its state is not known", zap.String("chain", ch.ID))
		return nil
	case len(c.known.keys) > 0:
		c.log.Error("digests of the chain are in the bucket that this host's key has not signed: they are not followed", zap.String("chain", ch.ID))
		l.head, err = c.local.AcknowledgedHead(ch)
		return err
	}
	l.note = &archive.Note{Kind: archive.NoteGap, Time: c.o.Now(), Detail: fmt.Sprintf(
		"the bucket has digests of chain %s up to %d that this host's state and copies do not know: both are old, or somebody else wrote the digests", ch.ID, t[0].Name.Sequence)}
	l.head, err = c.remote.SumOf(ctx, t[0], c.log)
	return err
}
