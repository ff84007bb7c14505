package manifest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// sweepEvery is how often local copies are looked through.
const sweepEvery = time.Hour

// sigSuffix ends the name of a digest's signature, in place of .json.
const sigSuffix = ".sig"

// walkLocal calls fn for every regular file in the local directory.
func (f *Flusher) walkLocal(fn func(path string, e fs.DirEntry) error) error {
	return filepath.WalkDir(f.o.LocalDir, func(path string, e fs.DirEntry, err error) error {
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
func (f *Flusher) removeTemporary() error {
	return f.walkLocal(func(path string, e fs.DirEntry) error {
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
// transaction left behind: the one document that ch would seal next. Everything
// else in the directory is kept, whatever it is.
func (f *Flusher) removeOrphans(ch state.Chain) error {
	kept, err := f.unpublished()
	if err != nil {
		return err
	}
	return f.walkLocal(func(path string, e fs.DirEntry) error {
		n, ok := ParseName(e.Name())
		if !ok || n.Chain != ch.ID || n.Instance != f.o.Instance || n.Sequence != ch.Sequence || kept[path] {
			return nil
		}
		if !n.Digest && n.N <= len(ch.Manifests) {
			return nil
		}
		f.log.Info("removed a document that was never sealed", zap.String("path", path))
		return os.Remove(path)
	})
}

// unpublished returns the local copies that the outbox needs.
func (f *Flusher) unpublished() (map[string]bool, error) {
	box, err := f.st.Outbox()
	if err != nil {
		return nil, fmt.Errorf("read outbox of %s: %w", f.o.Source, err)
	}
	files := make(map[string]bool, len(box))
	for _, d := range box {
		files[d.File] = true
	}
	return files, nil
}

// newestLocal returns the local document with the highest place in its chain
// of those that keep accepts, "" for none.
func (f *Flusher) newestLocal(keep func(Name) bool) (file string, err error) {
	var best Name
	err = f.walkLocal(func(path string, e fs.DirEntry) error {
		if n, ok := ParseName(e.Name()); ok && keep(n) && (file == "" || best.before(n)) {
			file, best = path, n
		}
		return nil
	})
	return file, err
}

// fileSHA returns the SHA-256 of a file's bytes.
func fileSHA(path string) (string, error) {
	r, err := os.Open(path)
	if err != nil {
		return "", err
	}
	s := newSums()
	_, err = io.Copy(s, r)
	return s.sha(), errors.Join(err, r.Close())
}

// teeReader sums what is read.
type teeReader struct {
	r io.Reader
	s *sums
}

func (t teeReader) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if n > 0 {
		_, _ = t.s.Write(p[:n]) // It cannot fail.
	}
	return n, err
}

// localCopy is a published document that may be removed.
type localCopy struct {
	path string
	time time.Time
	size int64
}

// sweep removes local copies beyond the limits, at most once an hour. What the
// outbox or the next digest needs stays, and so does whatever is not a document.
func (f *Flusher) sweep() {
	now := f.o.Now()
	f.mu.Lock()
	due := f.swept.IsZero() || now.Sub(f.swept) >= sweepEvery || now.Before(f.swept)
	if due {
		f.swept = now
	}
	f.mu.Unlock()
	if !due || (f.o.KeepLocal == 0 && f.o.KeepLocalSize == 0) {
		return
	}
	if err := f.removeOld(now); err != nil {
		f.log.Warn("local copies are looked through again in an hour", zap.Error(err))
	}
}

func (f *Flusher) removeOld(now time.Time) error {
	// Nothing is sealed meanwhile: a file that is on disk and in no outbox yet
	// would look like a published one.
	f.sealing.Lock()
	defer f.sealing.Unlock()
	copies, err := f.removable()
	if err != nil {
		return err
	}
	for _, c := range expired(copies, now, f.o.KeepLocal, f.o.KeepLocalSize) {
		if err := os.Remove(c.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		f.removeEmpty(filepath.Dir(c.path))
	}
	return nil
}

// removeEmpty removes dir and its parents below the local directory for as long
// as they are empty.
func (f *Flusher) removeEmpty(dir string) {
	for dir != f.o.LocalDir && strings.HasPrefix(dir, f.o.LocalDir+string(filepath.Separator)) {
		if os.Remove(dir) != nil {
			return // It is not empty.
		}
		dir = filepath.Dir(dir)
	}
}

// expired returns the copies that are older than keep, and the oldest ones of
// those that take more than size bytes together. Zero is no limit.
func expired(copies []localCopy, now time.Time, keep time.Duration, size int64) []localCopy {
	slices.SortFunc(copies, func(a, b localCopy) int { return b.time.Compare(a.time) }) // Newest first.
	total := int64(0)
	for i, c := range copies {
		total += c.size
		if (keep > 0 && now.Sub(c.time) > keep) || (size > 0 && total > size) {
			return copies[i:]
		}
	}
	return nil
}

// removable lists the local copies that nothing needs any more.
func (f *Flusher) removable() ([]localCopy, error) {
	ch, err := f.st.Chain()
	if err != nil {
		return nil, fmt.Errorf("read chain of %s: %w", f.o.Source, err)
	}
	kept, err := f.unpublished()
	if err != nil {
		return nil, err
	}
	for _, m := range ch.Manifests {
		kept[f.localOf(m.S3Key)] = true
	}
	if ch.PrevKey != "" {
		kept[f.localOf(ch.PrevKey)] = true
	}
	kept[f.localPath(configName(ch.ConfigSHA))] = true
	if err := f.keepUnsigned(kept); err != nil {
		return nil, err
	}
	var copies []localCopy
	err = f.walkLocal(func(path string, e fs.DirEntry) error {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) || kept[path] {
			return nil
		}
		if err != nil {
			return err
		}
		if at, ok := documentTime(e.Name(), info.ModTime()); ok {
			copies = append(copies, localCopy{path: path, time: at, size: info.Size()})
		}
		return nil
	})
	return copies, err
}

// keepUnsigned adds the digests whose signature is still to come: it is made
// over their local copies.
func (f *Flusher) keepUnsigned(kept map[string]bool) error {
	if f.o.Sign == nil {
		return nil
	}
	signed := map[string]bool{}
	var digests []string
	err := f.walkLocal(func(path string, e fs.DirEntry) error {
		if base, ok := strings.CutSuffix(path, sigSuffix); ok {
			signed[base+".json"] = true
		} else if n, ok := ParseName(e.Name()); ok && n.Digest {
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

// documentTime returns the time of the document called name, or false for what
// is none. Configurations have no time in their names.
func documentTime(name string, modified time.Time) (time.Time, bool) {
	if base, ok := strings.CutSuffix(name, sigSuffix); ok {
		name = base + ".json"
	}
	if n, ok := ParseName(name); ok {
		return n.Time, true
	}
	return modified, configPattern.MatchString(name)
}
