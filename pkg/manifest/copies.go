package manifest

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
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// localCopies are the documents of one source in its local directory, and what the
// state says of them.
type localCopies struct {
	st       *state.Source
	dir      string
	trail    string // where the trail stands in the bucket, with a trailing slash
	source   string
	instance string
	log      *zap.Logger
}

// of returns the local copy of the document under key.
func (c localCopies) of(key string) string {
	return c.path(strings.TrimPrefix(key, c.trail))
}

// publishedHead returns the SHA-256 of the digest in file if it was published, else
// of the last one that the state knows.
func (c localCopies) publishedHead(ctx context.Context, r remote, ch state.Chain, file string) (string, error) {
	rel, err := filepath.Rel(c.dir, file)
	if err != nil {
		return "", err
	}
	own, err := fileSHA(file)
	if err != nil {
		return "", err
	}
	sha, _, err := r.sum(ctx, c.trail+filepath.ToSlash(rel))
	if errors.Is(err, fs.ErrNotExist) || err == nil && sha != own {
		return c.acknowledgedHead(ch)
	}
	return sha, err
}

// write makes a small document durable in the local directory.
func (c localCopies) write(kind state.Kind, rel string, data []byte) (state.Doc, error) {
	file := c.path(rel)
	if err := safefs.MkdirAll(filepath.Dir(file), dirMode); err != nil {
		return state.Doc{}, err
	}
	s := newSums()
	if _, err := bytes.NewReader(data).WriteTo(s); err != nil {
		return state.Doc{}, err
	}
	return docOf(s, kind, c.trail+rel, file), safefs.WriteFile(file, data, fileMode)
}

// path returns where the document at rel below the trail's prefix stands.
func (c localCopies) path(rel string) string {
	return filepath.Join(c.dir, filepath.FromSlash(rel))
}

// walk calls fn for every regular file in the local directory.
func (c localCopies) walk(fn func(path string, e fs.DirEntry) error) error {
	return filepath.WalkDir(c.dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // Removed meanwhile.
		case err != nil:
			return err
		case !e.Type().IsRegular():
			return nil
		}
		return fn(path, e)
	})
}

// removeTemporary removes what interrupted writes have left. No document has
// such a name.
func (c localCopies) removeTemporary() error {
	return c.walk(func(path string, e fs.DirEntry) error {
		pending, err := filepath.Match(safefs.TempPattern, e.Name())
		if err != nil {
			return err
		}
		if pending || strings.HasPrefix(e.Name(), spoolPrefix) {
			return os.Remove(path)
		}
		return nil
	})
}

// removeOrphans removes the file that a crash between its rename and its
// transaction left behind: the one document that the chain would seal next.
// Everything else in the directory is kept, whatever it is. The caller holds
// f.sealing.
func (c localCopies) removeOrphans() error {
	ch, err := c.st.Chain()
	if err != nil {
		return fmt.Errorf("read chain of %s: %w", c.source, err)
	}
	kept, err := c.unpublished()
	if err != nil {
		return err
	}
	return c.walk(func(path string, e fs.DirEntry) error {
		n, ok := trail.ParseName(e.Name())
		if !ok || n.Chain != ch.ID || n.Instance != c.instance || n.Sequence != ch.Sequence || kept[path] {
			return nil
		}
		if !n.Digest && n.N <= len(ch.Manifests) {
			return nil
		}
		c.log.Info("removed a document that was never sealed", zap.String("path", path))
		return os.Remove(path)
	})
}

// unpublished returns the local copies that the outbox needs.
func (c localCopies) unpublished() (map[string]bool, error) {
	box, err := c.st.Outbox()
	if err != nil {
		return nil, fmt.Errorf("read outbox of %s: %w", c.source, err)
	}
	files := make(map[string]bool, len(box))
	for _, d := range box {
		files[c.of(d.Key)] = true
	}
	return files, nil
}

// newest returns the local document with the highest place in its chain
// of those that keep accepts, "" for none.
func (c localCopies) newest(keep func(trail.Name) bool) (file string, err error) {
	var best trail.Name
	err = c.walk(func(path string, e fs.DirEntry) error {
		if n, ok := trail.ParseName(e.Name()); ok && keep(n) && (file == "" || best.Before(n)) {
			file, best = path, n
		}
		return nil
	})
	return file, err
}

// manifests lists the local manifests that keep accepts, in the order of
// their chain.
func (c localCopies) manifests(keep func(trail.Name) bool) ([]string, error) {
	type local struct {
		name trail.Name
		path string
	}
	var found []local
	err := c.walk(func(path string, e fs.DirEntry) error {
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

// openChains holds, by chain, the sequence number of the first digest that is not
// acknowledged. What is sealed from there on is needed if the chain is left: also
// manifests that are published already.
type openChains map[string]uint64

func (c localCopies) openFrom() (openChains, error) {
	box, err := c.st.Outbox()
	if err != nil {
		return nil, fmt.Errorf("read outbox of %s: %w", c.source, err)
	}
	open := openChains{}
	for _, d := range box {
		n, ok := trail.ParseName(d.Key)
		if first, known := open[n.Chain]; ok && (!known || n.Sequence < first) {
			open[n.Chain] = n.Sequence
		}
	}
	return open, nil
}

// has reports whether the document of this name is needed.
func (c openChains) has(name string) bool {
	n, ok := trail.ParseName(name)
	first, open := c[n.Chain]
	return ok && open && n.Sequence >= first
}

// waiting returns the names of the digests of ch that wait in the outbox, and
// their numbers by seqKey.
func (c localCopies) waiting(ch state.Chain) (map[string]bool, error) {
	box, err := c.st.Outbox()
	if err != nil {
		return nil, fmt.Errorf("read outbox of %s: %w", c.source, err)
	}
	names := map[string]bool{}
	for _, d := range box {
		if n, ok := trail.ParseName(d.Key); ok && n.Digest && n.Chain == ch.ID {
			names[n.String()], names[seqKey(n.Sequence)] = true, true
		}
	}
	return names, nil
}

// sealedRefs lists the manifests of l that are known by their hashes: those that
// no digest names yet, and those that a digest in the outbox names.
func (c localCopies) sealedRefs(l leave) ([]state.ManifestRef, error) {
	box, err := c.st.Outbox()
	if err != nil {
		return nil, fmt.Errorf("read outbox of %s: %w", c.source, err)
	}
	var refs []state.ManifestRef
	for _, d := range box {
		n, ok := trail.ParseName(d.Key)
		if !ok || !n.Digest || n.Chain != l.old.ID || n.Sequence < l.from {
			continue
		}
		if digest, err := readDigest(c.of(d.Key)); err == nil {
			refs = append(refs, digest.Manifests...)
		}
	}
	return append(refs, l.old.Manifests...), nil
}

// acknowledgedHead returns the hash of ch's last acknowledged digest, "" when
// there is none or its successor's local copy is lost.
func (c localCopies) acknowledgedHead(ch state.Chain) (string, error) {
	box, err := c.st.Outbox()
	if err != nil {
		return "", fmt.Errorf("read outbox of %s: %w", c.source, err)
	}
	for _, d := range box {
		if n, ok := trail.ParseName(d.Key); !ok || !n.Digest || n.Chain != ch.ID {
			continue
		}
		if next, err := readDigest(c.of(d.Key)); err == nil && next.PreviousDigestSHA256 != nil {
			return *next.PreviousDigestSHA256, nil
		}
		return "", nil
	}
	return ch.PrevSHA256, nil
}

// openSealed opens d's local copy and checks it. It may still be where it was
// written, if it could not be moved since.
func (c localCopies) openSealed(d state.Doc) (*os.File, error) {
	file, err := os.Open(c.of(d.Key))
	if errors.Is(err, os.ErrNotExist) {
		file, err = os.Open(d.File)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, &lostError{doc: d, err: err}
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
		err = &lostError{doc: d, err: fmt.Errorf("%s has the SHA-256 %s, sealed as %s", file.Name(), s.Hex(), d.SHA256)}
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// drop takes the old chain's documents out of the outbox. The copy of a digest that
// is dropped goes too: it would count as one that the host has published.
func (c localCopies) drop(ctx context.Context, l leave) error {
	box, err := c.st.Outbox()
	if err != nil {
		return fmt.Errorf("read outbox of %s: %w", c.source, err)
	}
	for _, d := range box {
		n, ok := trail.ParseName(d.Key)
		if !ok || n.Chain != l.old.ID || n.Sequence < l.from {
			continue
		}
		if err := c.retell(ctx, d); err != nil {
			return err
		}
		if n.Digest {
			if err := os.Remove(c.of(d.Key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err := c.st.Published(ctx, d.Number); err != nil {
			return fmt.Errorf("drop %s: %w", d.Key, err)
		}
	}
	return nil
}

// retell moves what a digest that is dropped tells of scans and events to the next
// one.
func (c localCopies) retell(ctx context.Context, doc state.Doc) error {
	if doc.Kind != state.KindDigest {
		return nil
	}
	d, err := readDigest(c.of(doc.Key))
	if err != nil {
		return nil //nolint:nilerr // It is lost, and that is noted.
	}
	for _, n := range d.Events {
		if err := c.st.AddNote(ctx, n); err != nil {
			return err
		}
	}
	for _, s := range d.Scans {
		if err := c.st.AddScan(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// ended reports whether ch ended with a final digest. A state that an older
// release wrote does not say so; then the digest itself is read, from the bucket
// where the local copy is lost.
func (c localCopies) ended(ctx context.Context, r remote, ch state.Chain) (bool, error) {
	if ch.Ended || ch.PrevKey == "" {
		return ch.Ended, nil
	}
	d, err := readDigest(c.of(ch.PrevKey))
	if errors.Is(err, fs.ErrNotExist) {
		ask, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		var sha string
		if d, sha, err = r.digest(ask, ch.PrevKey); err == nil && sha != ch.PrevSHA256 {
			err = fmt.Errorf("%w: %s has the SHA-256 %s, and was sealed as %s", trail.ErrFormat, ch.PrevKey, sha, ch.PrevSHA256)
		}
	}
	if ctx.Err() != nil {
		return false, fmt.Errorf("begin chain of %s: %w", c.source, ctx.Err())
	}
	if err != nil {
		c.log.Warn("the chain's last digest cannot be read: it goes on as one that has not ended", zap.Error(err))
		return false, nil
	}
	return d.Reason == trail.ReasonFinal, nil
}
