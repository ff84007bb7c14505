package copies

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// Documents are found by their keys below the source's local directory. That
// directory follows the configuration (local_dir, the source's name), so the state
// remembers which one holds the copies, and they move when it changes.

// Settle brings the copies of the source's documents into its local directory.
// What cannot be moved is searched for at its old place, and moved by a later
// start.
func (c Copies) Settle(ctx context.Context, bucket, prefix string) error {
	box, err := c.St.Outbox()
	if err != nil {
		return fmt.Errorf("read outbox of %s: %w", c.Source, err)
	}
	home := c.St.Home()
	if home == "" {
		home = homeOf(box, c.Trail)
	}
	if home != "" && home != c.Dir {
		ch, err := c.St.Chain()
		if err != nil {
			return fmt.Errorf("read chain of %s: %w", c.Source, err)
		}
		m := move{from: home, to: c.Dir, bucket: bucket, prefix: prefix, ours: map[string]bool{ch.ID: true}}
		for _, d := range box {
			if n, ok := trail.ParseName(d.Key); ok {
				m.ours[n.Chain] = true
			}
		}
		moved, err := m.run()
		if err != nil {
			c.Log.Error("the copies of documents are not all moved to the new local directory; the next start tries again",
				zap.String("from", home), zap.String("to", c.Dir), zap.Error(err))
			return nil
		}
		c.Log.Info("the copies of documents moved with the configuration",
			zap.String("from", home), zap.String("to", c.Dir), zap.Int("files", moved))
	}
	if c.St.Home() == c.Dir {
		return nil
	}
	return c.St.SetHome(ctx, c.Dir)
}

// homeOf returns the directory that a state without a home kept its documents in:
// the one that a document in its outbox was written to, "" for none.
func homeOf(box []archive.Doc, trail string) string {
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
type move struct {
	from, to       string
	bucket, prefix string
	ours           map[string]bool // chains, by id; filled in by what digests say
}

// run moves what belongs to the trail and returns how many files that were.
// Configurations and keys may belong to others as well: they are copied.
func (m *move) run() (moved int, err error) {
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
		RemoveEmpty(filepath.Dir(filepath.Join(m.from, rel)), m.from)
	}
	return moved, nil
}

// files lists what is in the old directory: documents of chains, with their
// signatures, and what belongs to no chain.
func (m *move) files() (docs, shared []string, err error) {
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
func (m *move) claim(docs []string) {
	for _, rel := range docs {
		n, ok := trail.ParseName(rel)
		if _, known := m.ours[n.Chain]; !ok || !n.Digest || known {
			continue
		}
		d, err := ReadDigest(filepath.Join(m.from, rel))
		if err == nil {
			m.ours[n.Chain] = d.Bucket == m.bucket && d.Prefix == m.prefix
		}
	}
}

func (m *move) place(rel string, how func(from, to string) error) error {
	to := filepath.Join(m.to, rel)
	if err := safefs.MkdirAll(filepath.Dir(to), DirMode); err != nil {
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
