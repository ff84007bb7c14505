package copies

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/survey"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// Present makes sure that the local copy of a sealed manifest is there: one that
// waits in the outbox is made again from its records, a published one fetched.
func (c Copies) Present(ctx context.Context, r survey.Bucket, ref archive.ManifestRef) error {
	box, err := c.St.Outbox()
	if err != nil {
		return fmt.Errorf("read outbox of %s: %w", c.Source, err)
	}
	for _, d := range box {
		if d.Key == ref.S3Key {
			file, err := c.Open(d)
			if err != nil {
				return err
			}
			return file.Close()
		}
	}
	return c.Recall(ctx, r, ref)
}

// Recall makes sure that the local copy of a published manifest is there: a lost
// one is fetched from the bucket. A *lostError says that it is not there either,
// or has other bytes.
func (c Copies) Recall(ctx context.Context, r survey.Bucket, ref archive.ManifestRef) (err error) {
	file := c.Of(ref.S3Key)
	if _, err := os.Lstat(file); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	lost := func(err error) error {
		return &LostError{Doc: archive.Doc{Kind: archive.KindManifest, Key: ref.S3Key, File: file}, err: err}
	}
	body, _, err := r.Pub.Get(ctx, ref.S3Key)
	if errors.Is(err, fs.ErrNotExist) {
		return lost(err)
	}
	if err != nil {
		return fmt.Errorf("get %s: %w", ref.S3Key, err)
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	if err := safefs.MkdirAll(filepath.Dir(file), DirMode); err != nil {
		return err
	}
	out, err := safefs.CreatePending(file, FileMode)
	if err != nil {
		return err
	}
	defer out.Close()
	s := trail.NewSum()
	if _, err := io.Copy(io.MultiWriter(out, s), io.LimitReader(body, ref.SizeBytes+1)); err != nil {
		return fmt.Errorf("get %s: %w", ref.S3Key, err)
	}
	if s.Hex() != ref.SHA256 {
		return lost(fmt.Errorf("the bucket has the SHA-256 %s, sealed as %s", s.Hex(), ref.SHA256))
	}
	c.Log.Warn("a lost copy of a manifest was fetched from the bucket", zap.String("key", ref.S3Key))
	return out.Commit()
}

// Ended reports whether ch ended with a final digest. A state that an older
// release wrote does not say so; then the digest itself is read, from the bucket
// where the local copy is lost.
func (c Copies) Ended(ctx context.Context, r survey.Bucket, ch archive.Chain) (bool, error) {
	if ch.Ended || ch.PrevKey == "" {
		return ch.Ended, nil
	}
	d, err := ReadDigest(c.Of(ch.PrevKey))
	if errors.Is(err, fs.ErrNotExist) {
		ask, cancel := context.WithTimeout(ctx, survey.AskTimeout)
		defer cancel()
		var sha string
		if d, sha, err = r.Digest(ask, ch.PrevKey); err == nil && sha != ch.PrevSHA256 {
			err = fmt.Errorf("%w: %s has the SHA-256 %s, and was sealed as %s", trail.ErrFormat, ch.PrevKey, sha, ch.PrevSHA256)
		}
	}
	if ctx.Err() != nil {
		return false, fmt.Errorf("begin chain of %s: %w", c.Source, ctx.Err())
	}
	if err != nil {
		c.Log.Warn("the chain's last digest cannot be read: the chain continues as one that has not ended", zap.Error(err))
		return false, nil
	}
	return d.Reason == trail.ReasonFinal, nil
}

// LostError says that the local copy of a sealed document is gone or changed,
// so that the bytes that were sealed cannot be sent.
type LostError struct {
	Doc archive.Doc
	err error
}

func (e *LostError) Error() string {
	return fmt.Sprintf("the sealed bytes of %s are lost: %v", e.Doc.Key, e.err)
}

func (e *LostError) Unwrap() error { return e.err }
