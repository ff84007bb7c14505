package manifest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	copiespkg "github.com/s3syncd/s3syncd/internal/copies"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// sweepEvery is how often local copies are looked through.
const sweepEvery = time.Hour

// localCopy is a published document that may be removed.
type localCopy struct {
	path string
	time time.Time
	size int64
}

// sweeper removes the local copies that nothing needs and that the limits exceed.
type sweeper struct {
	st     *state.Source
	o      *Options
	log    *zap.Logger
	local  copiespkg.Copies
	sealer *sealer

	mu    sync.Mutex
	swept time.Time
}

// sweep removes local copies beyond the limits, at most once an hour. What the
// outbox or the next digest needs stays, and so does whatever is not a document.
func (w *sweeper) sweep() {
	now := w.o.Now()
	w.mu.Lock()
	due := w.swept.IsZero() || now.Sub(w.swept) >= sweepEvery || now.Before(w.swept)
	if due {
		w.swept = now
	}
	w.mu.Unlock()
	if !due || (w.o.KeepLocal == 0 && w.o.KeepLocalSize == 0) {
		return
	}
	if err := w.removeOld(now); err != nil {
		w.log.Warn("old local copies were not removed, tried again in an hour", zap.Error(err))
	}
}

func (w *sweeper) removeOld(now time.Time) error {
	// Nothing is sealed during it: a file that is on disk and in no outbox yet
	// would look like a published one.
	w.sealer.mu.Lock()
	defer w.sealer.mu.Unlock()
	copies, err := w.removable()
	if err != nil {
		return err
	}
	for _, c := range expired(copies, now, w.o.KeepLocal, w.o.KeepLocalSize) {
		if err := os.Remove(c.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		copiespkg.RemoveEmpty(filepath.Dir(c.path), w.o.LocalDir)
	}
	return nil
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
func (w *sweeper) removable() ([]localCopy, error) {
	kept, err := w.needed()
	if err != nil {
		return nil, err
	}
	open, err := w.local.OpenFrom()
	if err != nil {
		return nil, err
	}
	var copies []localCopy
	err = w.local.Walk(func(path string, e fs.DirEntry) error {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) || kept[path] || open.Has(e.Name()) {
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
func (w *sweeper) needed() (map[string]bool, error) {
	ch, err := w.st.Chain()
	if err != nil {
		return nil, fmt.Errorf("read chain of %s: %w", w.o.Source, err)
	}
	kept, err := w.local.Unpublished()
	if err != nil {
		return nil, err
	}
	for _, m := range ch.Manifests {
		kept[w.local.Of(m.S3Key)] = true
	}
	if ch.PrevKey != "" {
		kept[w.local.Of(ch.PrevKey)] = true
	}
	kept[w.local.Path(trail.ConfigName(ch.ConfigSHA))] = true
	if w.o.Sign == nil {
		return kept, nil
	}
	return kept, w.local.KeepUnsigned(kept)
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
