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

	"github.com/s3syncd/s3syncd/pkg/trail"
)

// sweepEvery is how often local copies are looked through.
const sweepEvery = time.Hour

// fileSHA returns the SHA-256 of a file's bytes.
func fileSHA(path string) (string, error) {
	r, err := os.Open(path)
	if err != nil {
		return "", err
	}
	s := trail.NewSum()
	_, err = io.Copy(s, r)
	return s.Hex(), errors.Join(err, r.Close())
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
		removeEmpty(filepath.Dir(c.path), f.o.LocalDir)
	}
	return nil
}

// removeEmpty removes dir and its parents below top for as long as they are
// empty.
func removeEmpty(dir, top string) {
	for dir != top && strings.HasPrefix(dir, top+string(filepath.Separator)) {
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
	kept, err := f.needed()
	if err != nil {
		return nil, err
	}
	open, err := f.local.openFrom()
	if err != nil {
		return nil, err
	}
	var copies []localCopy
	err = f.local.walk(func(path string, e fs.DirEntry) error {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) || kept[path] || open.has(e.Name()) {
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

// needed returns the local copies that the outbox, the next digest or a signature
// needs.
func (f *Flusher) needed() (map[string]bool, error) {
	ch, err := f.st.Chain()
	if err != nil {
		return nil, fmt.Errorf("read chain of %s: %w", f.o.Source, err)
	}
	kept, err := f.local.unpublished()
	if err != nil {
		return nil, err
	}
	for _, m := range ch.Manifests {
		kept[f.local.of(m.S3Key)] = true
	}
	if ch.PrevKey != "" {
		kept[f.local.of(ch.PrevKey)] = true
	}
	kept[f.local.path(trail.ConfigName(ch.ConfigSHA))] = true
	if f.o.Sign == nil {
		return kept, nil
	}
	return kept, f.local.keepUnsigned(kept)
}

// keepUnsigned adds the digests whose signature is still to come: it is made
// over their local copies.
func (c localCopies) keepUnsigned(kept map[string]bool) error {
	signed := map[string]bool{}
	var digests []string
	err := c.walk(func(path string, e fs.DirEntry) error {
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

// documentTime returns the time of the document called name, or false for what
// is none. Configurations have no time in their names.
func documentTime(name string, modified time.Time) (time.Time, bool) {
	if base, ok := strings.CutSuffix(name, trail.SignatureSuffix); ok {
		name = base + ".json"
	}
	if n, ok := trail.ParseName(name); ok {
		return n.Time, true
	}
	return modified, trail.ConfigPattern.MatchString(name)
}
