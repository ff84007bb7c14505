// Package removed closes the trails of sources that left the configuration.
package removed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/fscheck"
	"github.com/s3syncd/s3syncd/internal/pipeline"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// closeTime bounds the closing of one chain.
const closeTime = time.Minute

// chains are those of the sources that a state knows and the configuration does
// not have: removed ones, and those with another bucket or prefix by now.
type chains struct {
	*pipeline.Pipeline // of the configuration
}

// CloseAll ends the open chains of all sources that the configuration of l does not
// have, and reports whether none is left to be closed. What fails is logged, and
// done by the next call.
func CloseAll(ctx context.Context, l *pipeline.Pipeline) bool {
	d := chains{l}
	left, err := d.list(ctx)
	if err != nil {
		d.Log.Warn("removed sources were not listed", zap.Error(err))
	}
	done := true
	for _, k := range left {
		err := d.closeOne(ctx, k)
		if bucketGone(err) {
			err = d.giveUp(ctx, k, err)
		}
		if err != nil && ctx.Err() == nil {
			done = false
			d.Log.Warn("the trail of a removed source is not closed yet",
				zap.String("path", k.RealPath), zap.String("bucket", k.Bucket), zap.String("prefix", k.Prefix), zap.Error(err))
		}
	}
	return done
}

// list lists those whose chain is open.
func (d chains) list(ctx context.Context) ([]state.SourceKey, error) {
	known, err := d.DB.Sources()
	if err != nil {
		return nil, err
	}
	configured := map[string]bool{}
	for _, s := range d.Sources {
		configured[pipeline.PlaceOf(s.State.Key())] = true
	}
	var left []state.SourceKey
	for _, k := range known {
		if configured[pipeline.PlaceOf(k)] {
			continue // Of several states of one destination the one in use has left the others' chains.
		}
		open, err := d.isOpen(ctx, k)
		if err != nil {
			return left, err
		}
		if open {
			left = append(left, k)
		}
	}
	return left, nil
}

// isOpen reports whether the source has a chain of this host that was not
// closed.
func (d chains) isOpen(ctx context.Context, k state.SourceKey) (bool, error) {
	s, err := d.DB.Source(ctx, k)
	if err != nil {
		return false, err
	}
	ch, err := s.Chain()
	if err != nil || ch.ID == "" || s.HostChanged() {
		return false, err
	}
	closed, err := d.DB.Meta(pipeline.ClosedKey(k))
	return strings.TrimPrefix(string(closed), pipeline.GivenUp) != ch.ID, err
}

// bucketGone reports whether err says that the bucket does not exist.
func bucketGone(err error) bool {
	e, ok := errors.AsType[*archive.Error](err)
	return ok && e.Code == "NoSuchBucket"
}

// giveUp remembers that the chain of k stays without its last digest.
func (d chains) giveUp(ctx context.Context, k state.SourceKey, cause error) error {
	s, err := d.DB.Source(ctx, k)
	if err != nil {
		return err
	}
	ch, err := s.Chain()
	if err != nil {
		return err
	}
	d.Log.Error("the trail of a removed source is given up: its bucket is not there any more; the local copies stay",
		zap.String("path", k.RealPath), zap.String("bucket", k.Bucket), zap.String("prefix", k.Prefix), zap.String("chain", ch.ID), zap.Error(cause))
	return d.DB.SetMeta(context.WithoutCancel(ctx), pipeline.ClosedKey(k), []byte(pipeline.GivenUp+ch.ID))
}

// why is the event with which the chain of a source that left ends.
func (d chains) why(src *state.Source) archive.Note {
	for _, s := range d.Sources {
		if s.Real == src.Path() {
			return archive.Note{Kind: archive.NoteDestinationChanged, Detail: "from now on: " + pipeline.PlaceOf(s.State.Key())}
		}
	}
	return archive.Note{Kind: archive.NoteSourceRemoved, Detail: "it left the configuration"}
}

// closeOne ends the chain of one source with the settings that it had. Nothing
// but documents of its trail is sent, and that only behind a canary.
func (d chains) closeOne(ctx context.Context, k state.SourceKey) error {
	cfg, err := d.lastConfig(ctx, k)
	if err != nil || cfg == nil {
		return err
	}
	env := pipeline.Session{
		Config: cfg, DB: d.DB, Log: d.Log, Program: d.Program, Queue: queue.New(1), Grace: d.Grace, Removed: &k,
		Metrics: pipeline.NewMetrics(prometheus.NewPedanticRegistry(), d.Program, d.DB, func() []pipeline.Snapshot { return nil }),
	}
	s, err := env.OpenSource(ctx, 0)
	if err != nil {
		return err
	}
	defer s.Store.CloseIdle()
	ctx, cancel := context.WithTimeout(ctx, closeTime)
	defer cancel()
	if err := s.Store.Probe(ctx); err != nil {
		return err
	}
	ch, err := s.State.Chain()
	if err != nil {
		return err
	}
	if ch.Ended { // Its last digest only waits to be published.
		if err := s.Flusher.Flush(ctx, trail.ReasonFlush); err != nil {
			return err
		}
		return errors.Join(s.Closed(ctx), s.Flusher.Close())
	}
	if err := s.Flusher.Begin(ctx, d.DB.Report()); err != nil {
		return err
	}
	if err := abortUploads(ctx, s); err != nil {
		return err
	}
	if err := s.State.AddNote(ctx, d.why(s.State)); err != nil {
		return err
	}
	return errors.Join(s.CloseChain(ctx), s.Flusher.Close())
}

// lastConfig returns the configuration that the source was last archived with,
// from the local copy of what was published of it; nil, once it has said why,
// where the chain cannot be closed with it.
func (d chains) lastConfig(ctx context.Context, k state.SourceKey) (*config.Config, error) {
	s, err := d.DB.Source(ctx, k)
	if err != nil {
		return nil, err
	}
	ch, err := s.Chain()
	if err != nil {
		return nil, err
	}
	log := d.Log.With(zap.String("path", k.RealPath), zap.String("bucket", k.Bucket), zap.String("prefix", k.Prefix))
	files, err := filepath.Glob(filepath.Join(globQuoted(s.Home()), "config_"+ch.ConfigSHA+".json"))
	if err == nil && (len(files) == 0 || s.Home() == "") {
		files, err = filepath.Glob(filepath.Join(globQuoted(d.Config.Manifest.LocalDir), "*", "config_"+ch.ConfigSHA+".json"))
	}
	if err != nil || len(files) == 0 || ch.ConfigSHA == "" {
		log.Warn("the chain of a removed source stays open: no local copy of its settings is kept", zap.Error(err))
		return nil, nil //nolint:nilnil // There is nothing to do, and it has been said.
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		return nil, fmt.Errorf("read the settings of a removed source: %w", err)
	}
	cfg, err := config.Parse(files[0], data, nil)
	if err != nil {
		return nil, fmt.Errorf("read the settings of a removed source: %w", err)
	}
	if why := d.unlike(cfg, k, s.Path()); why != "" {
		log.Warn("the chain of a removed source stays open", zap.String("reason", why))
		return nil, nil //nolint:nilnil // It has been said.
	}
	cfg.StateDir, cfg.Manifest.LocalDir = d.Config.StateDir, filepath.Dir(filepath.Dir(files[0]))
	return cfg, nil
}

// unlike returns why cfg, of which nothing but the path is changed, is not what
// the source k was archived with from the directory at path.
func (d chains) unlike(cfg *config.Config, k state.SourceKey, path string) string {
	s := &cfg.Sources[0]
	if fscheck.RealPath(s.Path) != path {
		s.Path = path // It was reached through a link that is gone, or that leads elsewhere now.
	}
	switch {
	case cfg.Instance != d.Config.Instance:
		return "it was archived as instance " + cfg.Instance
	case s.Bucket != k.Bucket || s.Prefix != k.Prefix:
		return "its settings are about another destination"
	}
	return ""
}

// abortUploads gives up the multipart uploads that the source has open: they have
// no other end. One that may not be aborted is left to the bucket's rule.
func abortUploads(ctx context.Context, s *pipeline.Source) error {
	intents, err := s.State.Intents()
	if err != nil {
		return err
	}
	for i := range intents {
		in := &intents[i]
		if in.UploadID == "" {
			continue
		}
		err := s.Store.Abort(ctx, in.Key, in.UploadID)
		switch {
		case errors.Is(err, archive.ErrNoUpload):
			continue // It may be an object by now, which its intent still tells.
		case errors.Is(err, fs.ErrPermission), errors.Is(err, archive.ErrUnsupported):
			s.Log.Warn("multipart upload cannot be aborted, a lifecycle rule has to remove it",
				zap.String("key", in.Key), zap.String("upload_id", in.UploadID), zap.Error(err))
		case err != nil:
			return fmt.Errorf("abort the upload of %s: %w", in.Key, err)
		}
		if err := s.State.DropIntent(ctx, in.Key, in.Attempt); err != nil {
			return err
		}
	}
	return nil
}

// globQuoted returns path as a pattern that matches it alone.
func globQuoted(path string) string {
	quoted := make([]byte, 0, len(path))
	for i := range len(path) {
		switch path[i] {
		case '*', '?', '[', '\\':
			quoted = append(quoted, '\\')
		}
		quoted = append(quoted, path[i])
	}
	return string(quoted)
}
