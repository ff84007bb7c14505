package manifest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// Documents are found by their keys below the source's local directory. That
// directory follows the configuration (local_dir, the source's name), so the state
// remembers which one holds the copies, and they move when it changes.

// settle brings the copies of the source's documents into its local directory.
// What cannot be moved is searched for at its old place, and moved by a later
// start.
func settle(ctx context.Context, st *state.Source, o *Options, log *zap.Logger) error {
	box, err := st.Outbox()
	if err != nil {
		return fmt.Errorf("read outbox of %s: %w", o.Source, err)
	}
	home := st.Home()
	if home == "" {
		home = homeOf(box, o.Mapper.TrailPrefix())
	}
	if home != "" && home != o.LocalDir {
		ch, err := st.Chain()
		if err != nil {
			return fmt.Errorf("read chain of %s: %w", o.Source, err)
		}
		m := removal{from: home, to: o.LocalDir, bucket: o.Bucket, prefix: o.Mapper.Prefix(), ours: map[string]bool{ch.ID: true}}
		for _, d := range box {
			if n, ok := trail.ParseName(d.Key); ok {
				m.ours[n.Chain] = true
			}
		}
		moved, err := m.run()
		if err != nil {
			log.Error("the copies of documents are not all moved to the new local directory; the next start tries again",
				zap.String("from", home), zap.String("to", o.LocalDir), zap.Error(err))
			return nil
		}
		log.Info("the copies of documents moved with the configuration",
			zap.String("from", home), zap.String("to", o.LocalDir), zap.Int("files", moved))
	}
	if st.Home() == o.LocalDir {
		return nil
	}
	return st.SetHome(ctx, o.LocalDir)
}

// homeOf returns the directory that a state without a home kept its documents in:
// the one that a document in its outbox was written to, "" for none.
func homeOf(box []state.Doc, trail string) string {
	for _, d := range box {
		rel := string(filepath.Separator) + filepath.FromSlash(strings.TrimPrefix(d.Key, trail))
		if home, ok := strings.CutSuffix(d.File, rel); ok && filepath.IsAbs(home) {
			return filepath.Clean(home)
		}
	}
	return ""
}

// removal moves the copies of one trail from one directory to another. Both may
// hold those of other trails, which stay.
type removal struct {
	from, to       string
	bucket, prefix string
	ours           map[string]bool // chains, by id; filled in by what digests say
}

// run moves what belongs to the trail and returns how many files that were.
// Configurations and keys may belong to others as well: they are copied.
func (m *removal) run() (moved int, err error) {
	docs, shared, err := m.files()
	if err != nil {
		return 0, err
	}
	m.claim(docs)
	for _, rel := range shared {
		if _, err := os.Lstat(filepath.Join(m.to, rel)); err == nil {
			continue
		}
		if err := m.place(rel, safefs.Copy); err != nil {
			return moved, err
		}
	}
	for _, rel := range docs {
		if n, _ := trail.ParseName(documentOf(rel)); !m.ours[n.Chain] {
			continue
		}
		if err := m.place(rel, safefs.Rename); err != nil {
			return moved, err
		}
		moved++
		removeEmpty(filepath.Dir(filepath.Join(m.from, rel)), m.from)
	}
	return moved, nil
}

// files lists what stands in the old directory: documents of chains, with their
// signatures, and what belongs to no chain.
func (m *removal) files() (docs, shared []string, err error) {
	err = filepath.WalkDir(m.from, func(path string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // There is nothing to move, or nothing any more.
		case err != nil:
			return err
		case !e.Type().IsRegular():
			return nil
		}
		rel, err := filepath.Rel(m.from, path)
		if err != nil {
			return err
		}
		if _, ok := trail.ParseName(documentOf(rel)); ok {
			docs = append(docs, rel)
		} else if trail.ConfigPattern.MatchString(rel) || strings.HasPrefix(rel, trail.KeysDir+string(filepath.Separator)) {
			shared = append(shared, rel)
		}
		return nil
	})
	return docs, shared, err
}

// claim finds out which chains are of the trail: those whose digests say so.
func (m *removal) claim(docs []string) {
	for _, rel := range docs {
		n, ok := trail.ParseName(rel)
		if _, known := m.ours[n.Chain]; !ok || !n.Digest || known {
			continue
		}
		d, err := readDigest(filepath.Join(m.from, rel))
		if err == nil {
			m.ours[n.Chain] = d.Bucket == m.bucket && d.Prefix == m.prefix
		}
	}
}

func (m *removal) place(rel string, how func(from, to string) error) error {
	to := filepath.Join(m.to, rel)
	if err := safefs.MkdirAll(filepath.Dir(to), dirMode); err != nil {
		return err
	}
	return how(filepath.Join(m.from, rel), to)
}

// documentOf returns the name of the document that a signature is of, or name.
func documentOf(name string) string {
	if base, ok := strings.CutSuffix(name, trail.SignatureSuffix); ok {
		return base + ".json"
	}
	return name
}

// present makes sure that the local copy of a sealed manifest is there: one that
// waits in the outbox is made again from its records, a published one fetched.
func (f *Flusher) present(ctx context.Context, ref state.ManifestRef) error {
	box, err := f.st.Outbox()
	if err != nil {
		return fmt.Errorf("read outbox of %s: %w", f.o.Source, err)
	}
	for _, d := range box {
		if d.Key == ref.S3Key {
			file, err := f.open(d)
			if err != nil {
				return err
			}
			return file.Close()
		}
	}
	return f.local.recall(ctx, f.remote, ref)
}

// recall makes sure that the local copy of a published manifest is there: a lost
// one is fetched from the bucket. A *lostError says that it is not there either,
// or has other bytes.
func (c localCopies) recall(ctx context.Context, r remote, ref state.ManifestRef) (err error) {
	file := c.of(ref.S3Key)
	if _, err := os.Lstat(file); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	lost := func(err error) error {
		return &lostError{doc: state.Doc{Kind: state.KindManifest, Key: ref.S3Key, File: file}, err: err}
	}
	body, _, err := r.pub.Get(ctx, ref.S3Key)
	if errors.Is(err, fs.ErrNotExist) {
		return lost(err)
	}
	if err != nil {
		return fmt.Errorf("get %s: %w", ref.S3Key, err)
	}
	defer func() { err = errors.Join(err, body.Close()) }()
	if err := safefs.MkdirAll(filepath.Dir(file), dirMode); err != nil {
		return err
	}
	out, err := safefs.CreatePending(file, fileMode)
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
	c.log.Warn("a lost copy of a manifest was fetched from the bucket", zap.String("key", ref.S3Key))
	return out.Commit()
}
