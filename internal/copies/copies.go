package copies

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/skips"
	"github.com/s3syncd/s3syncd/internal/survey"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// Copies are the documents of one source in its local directory, and what the
// state says of them.
type Copies struct {
	St       *state.Source
	Dir      string
	Trail    string // where the trail is in the bucket, with a trailing slash
	Source   string
	Instance string
	Log      *zap.Logger
}

// Of returns the local copy of the document under key.
func (c Copies) Of(key string) string {
	return c.Path(strings.TrimPrefix(key, c.Trail))
}

// PublishedHead returns the SHA-256 of the digest in file if it was published, else
// of the last one that the state knows.
func (c Copies) PublishedHead(ctx context.Context, r survey.Bucket, ch archive.Chain, file string) (string, error) {
	rel, err := filepath.Rel(c.Dir, file)
	if err != nil {
		return "", err
	}
	own, err := FileSHA(file)
	if err != nil {
		return "", err
	}
	sha, _, err := r.Sum(ctx, c.Trail+filepath.ToSlash(rel))
	if errors.Is(err, fs.ErrNotExist) || err == nil && sha != own {
		return c.AcknowledgedHead(ch)
	}
	return sha, err
}

// Write makes a small document durable in the local directory.
func (c Copies) Write(kind archive.DocKind, rel string, data []byte) (archive.Doc, error) {
	file := c.Path(rel)
	if err := safefs.MkdirAll(filepath.Dir(file), DirMode); err != nil {
		return archive.Doc{}, err
	}
	s := NewSums()
	if _, err := bytes.NewReader(data).WriteTo(s); err != nil {
		return archive.Doc{}, err
	}
	return s.Doc(kind, c.Trail+rel, file), safefs.WriteFile(file, data, FileMode)
}

// Path returns where the document at rel below the trail's prefix is.
func (c Copies) Path(rel string) string {
	return filepath.Join(c.Dir, filepath.FromSlash(rel))
}

// Walk calls fn for every regular file in the local directory.
func (c Copies) Walk(fn func(path string, e fs.DirEntry) error) error {
	return filepath.WalkDir(c.Dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // Removed since.
		case err != nil:
			return err
		case !e.Type().IsRegular():
			return nil
		}
		return fn(path, e)
	})
}

// RemoveTemporary removes what interrupted writes have left. No document has
// such a name.
func (c Copies) RemoveTemporary() error {
	return c.Walk(func(path string, e fs.DirEntry) error {
		pending, err := filepath.Match(safefs.TempPattern, e.Name())
		if err != nil {
			return err
		}
		if pending || strings.HasPrefix(e.Name(), skips.SpoolPrefix) {
			return os.Remove(path)
		}
		return nil
	})
}

// RemoveOrphans removes the file that a crash between its rename and its
// transaction left behind: the one document that the chain would seal next.
// Everything else in the directory is kept, whatever it is. The caller holds
// f.sealing.
func (c Copies) RemoveOrphans() error {
	ch, err := c.St.Chain()
	if err != nil {
		return fmt.Errorf("read chain of %s: %w", c.Source, err)
	}
	kept, err := c.Unpublished()
	if err != nil {
		return err
	}
	return c.Walk(func(path string, e fs.DirEntry) error {
		n, ok := trail.ParseName(e.Name())
		if !ok || n.Chain != ch.ID || n.Instance != c.Instance || n.Sequence != ch.Sequence || kept[path] {
			return nil
		}
		if !n.Digest && n.N <= len(ch.Manifests) {
			return nil
		}
		c.Log.Info("removed a document that was never sealed", zap.String("path", path))
		return os.Remove(path)
	})
}

// Unpublished returns the local copies that the outbox needs.
func (c Copies) Unpublished() (map[string]bool, error) {
	box, err := c.St.Outbox()
	if err != nil {
		return nil, fmt.Errorf("read outbox of %s: %w", c.Source, err)
	}
	files := make(map[string]bool, len(box))
	for _, d := range box {
		files[c.Of(d.Key)] = true
	}
	return files, nil
}

// Newest returns the local document with the highest place in its chain
// of those that keep accepts, "" for none.
func (c Copies) Newest(keep func(trail.Name) bool) (file string, err error) {
	var best trail.Name
	err = c.Walk(func(path string, e fs.DirEntry) error {
		if n, ok := trail.ParseName(e.Name()); ok && keep(n) && (file == "" || best.Before(n)) {
			file, best = path, n
		}
		return nil
	})
	return file, err
}

// Manifests lists the local manifests that keep accepts, in the order of
// their chain.
func (c Copies) Manifests(keep func(trail.Name) bool) ([]string, error) {
	type local struct {
		name trail.Name
		path string
	}
	var found []local
	err := c.Walk(func(path string, e fs.DirEntry) error {
		if n, ok := trail.ParseName(e.Name()); ok && !n.Digest && keep(n) {
			found = append(found, local{name: n, path: path})
		}
		return nil
	})
	slices.SortFunc(found, func(a, b local) int {
		if a.name.Before(b.name) {
			return -1
		}
		return 1
	})
	files := make([]string, len(found))
	for i, l := range found {
		files[i] = l.path
	}
	return files, err
}

// OpenChains holds, by chain, the sequence number of the first digest that is not
// acknowledged. What is sealed from there on is needed if the chain is left: also
// manifests that are published already.
type OpenChains map[string]uint64

// OpenFrom returns where the documents that are still needed begin, by chain.
func (c Copies) OpenFrom() (OpenChains, error) {
	box, err := c.St.Outbox()
	if err != nil {
		return nil, fmt.Errorf("read outbox of %s: %w", c.Source, err)
	}
	open := OpenChains{}
	for _, d := range box {
		n, ok := trail.ParseName(d.Key)
		if first, known := open[n.Chain]; ok && (!known || n.Sequence < first) {
			open[n.Chain] = n.Sequence
		}
	}
	return open, nil
}

// Has reports whether the document of this name is needed.
func (c OpenChains) Has(name string) bool {
	n, ok := trail.ParseName(name)
	first, open := c[n.Chain]
	return ok && open && n.Sequence >= first
}

// Waiting returns the names of the digests of ch that wait in the outbox, and
// their numbers by seqKey.
func (c Copies) Waiting(ch archive.Chain) (map[string]bool, error) {
	box, err := c.St.Outbox()
	if err != nil {
		return nil, fmt.Errorf("read outbox of %s: %w", c.Source, err)
	}
	names := map[string]bool{}
	for _, d := range box {
		if n, ok := trail.ParseName(d.Key); ok && n.Digest && n.Chain == ch.ID {
			names[n.String()], names[survey.SeqKey(n.Sequence)] = true, true
		}
	}
	return names, nil
}

// SealedRefs lists the manifests of the chain old, from a digest on, that are known by their hashes: those that
// no digest names yet, and those that a digest in the outbox names.
func (c Copies) SealedRefs(old archive.Chain, from uint64) ([]archive.ManifestRef, error) {
	box, err := c.St.Outbox()
	if err != nil {
		return nil, fmt.Errorf("read outbox of %s: %w", c.Source, err)
	}
	var refs []archive.ManifestRef
	for _, d := range box {
		n, ok := trail.ParseName(d.Key)
		if !ok || !n.Digest || n.Chain != old.ID || n.Sequence < from {
			continue
		}
		if digest, err := ReadDigest(c.Of(d.Key)); err == nil {
			refs = append(refs, digest.Manifests...)
		}
	}
	return append(refs, old.Manifests...), nil
}

// AcknowledgedHead returns the hash of ch's last acknowledged digest, "" when
// there is none or its successor's local copy is lost.
func (c Copies) AcknowledgedHead(ch archive.Chain) (string, error) {
	box, err := c.St.Outbox()
	if err != nil {
		return "", fmt.Errorf("read outbox of %s: %w", c.Source, err)
	}
	for _, d := range box {
		if n, ok := trail.ParseName(d.Key); !ok || !n.Digest || n.Chain != ch.ID {
			continue
		}
		if next, err := ReadDigest(c.Of(d.Key)); err == nil && next.PreviousDigestSHA256 != nil {
			return *next.PreviousDigestSHA256, nil
		}
		return "", nil
	}
	return ch.PrevSHA256, nil
}

// openSealed opens d's local copy and checks it. It may still be where it was
// written, if it could not be moved since.
func (c Copies) openSealed(d archive.Doc) (*os.File, error) {
	file, err := os.Open(c.Of(d.Key))
	if errors.Is(err, os.ErrNotExist) {
		file, err = os.Open(d.File)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, &LostError{Doc: d, err: err}
	}
	if err != nil {
		return nil, err
	}
	s := trail.NewSum()
	_, err = io.Copy(s, file)
	if err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err == nil && s.Hex() != d.SHA256 {
		err = &LostError{Doc: d, err: fmt.Errorf("%s has the SHA-256 %s, sealed as %s", file.Name(), s.Hex(), d.SHA256)}
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// Drop takes the old chain's documents out of the outbox. The copy of a digest that
// is dropped goes too: it would count as one that the host has published.
func (c Copies) Drop(ctx context.Context, chain string, from uint64) error {
	box, err := c.St.Outbox()
	if err != nil {
		return fmt.Errorf("read outbox of %s: %w", c.Source, err)
	}
	for _, d := range box {
		n, ok := trail.ParseName(d.Key)
		if !ok || n.Chain != chain || n.Sequence < from {
			continue
		}
		if err := c.retell(ctx, d); err != nil {
			return err
		}
		if n.Digest {
			if err := os.Remove(c.Of(d.Key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err := c.St.Published(ctx, d.Number); err != nil {
			return fmt.Errorf("drop %s: %w", d.Key, err)
		}
	}
	return nil
}

// retell moves what a digest that is dropped tells of scans and events to the next
// one.
func (c Copies) retell(ctx context.Context, doc archive.Doc) error {
	if doc.Kind != archive.KindDigest {
		return nil
	}
	d, err := ReadDigest(c.Of(doc.Key))
	if err != nil {
		return nil //nolint:nilerr // It is lost, and that is noted.
	}
	for _, n := range d.Events {
		if err := c.St.AddNote(ctx, n); err != nil {
			return err
		}
	}
	for _, s := range d.Scans {
		if err := c.St.AddScan(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// ReadDigest reads a local copy.
func ReadDigest(file string) (trail.Digest, error) {
	r, err := os.Open(file)
	if err != nil {
		return trail.Digest{}, err
	}
	d, err := trail.ParseDigest(r)
	return d, errors.Join(err, r.Close())
}

// FileSHA returns the SHA-256 of a file's bytes.
func FileSHA(path string) (string, error) {
	r, err := os.Open(path)
	if err != nil {
		return "", err
	}
	s := trail.NewSum()
	_, err = io.Copy(s, r)
	return s.Hex(), errors.Join(err, r.Close())
}

// RemoveEmpty removes dir and its parents below top for as long as they are
// empty.
func RemoveEmpty(dir, top string) {
	for dir != top && strings.HasPrefix(dir, top+string(filepath.Separator)) {
		if os.Remove(dir) != nil {
			return // It is not empty.
		}
		dir = filepath.Dir(dir)
	}
}

// KeepUnsigned adds the digests whose signature is still to come: it is made
// over their local copies.
func (c Copies) KeepUnsigned(kept map[string]bool) error {
	signed := map[string]bool{}
	var digests []string
	err := c.Walk(func(path string, e fs.DirEntry) error {
		if base, ok := strings.CutSuffix(path, trail.SignatureSuffix); ok {
			signed[base+".json"] = true
		} else if n, ok := trail.ParseName(e.Name()); ok && n.Digest {
			digests = append(digests, path)
		}
		return nil
	})
	for _, path := range digests {
		if !signed[path] {
			kept[path] = true
		}
	}
	return err
}
