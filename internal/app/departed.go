package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/uploader"
)

// closeDeparted ends the chains of sources that left the configuration while no
// daemon ran, or whose final digest did not get through. It keeps trying until
// ctx ends; nothing else waits for it.
func (g *generation) closeDeparted(ctx context.Context) error {
	for wait := departedRetry; ; wait = min(2*wait, departedRetryMost) {
		left, err := g.departed(ctx)
		if err != nil {
			g.log.Warn("sources that left the configuration were not looked for", zap.Error(err))
		}
		failed := false
		for _, k := range left {
			err := g.closeOne(ctx, k)
			if bucketGone(err) {
				err = g.giveUp(ctx, k, err)
			}
			if err != nil && ctx.Err() == nil {
				failed = true
				g.log.Warn("the trail of a source that left the configuration is not closed yet, it is tried again",
					zap.String("path", k.RealPath), zap.String("bucket", k.Bucket), zap.String("prefix", k.Prefix), zap.Duration("retry_in", wait), zap.Error(err))
			}
		}
		if !failed {
			<-ctx.Done()
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// departed lists the sources that the state knows with an open chain and that
// the configuration does not have.
func (g *generation) departed(ctx context.Context) ([]state.SourceKey, error) {
	known, err := g.db.Sources()
	if err != nil {
		return nil, err
	}
	configured := map[state.SourceKey]bool{}
	for _, s := range g.sources {
		configured[state.SourceKey{Bucket: s.cfg.Bucket, Prefix: s.cfg.Prefix, RealPath: s.real}] = true
	}
	var left []state.SourceKey
	for _, k := range known {
		if configured[k] {
			continue
		}
		open, err := g.isOpen(ctx, k)
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
func (g *generation) isOpen(ctx context.Context, k state.SourceKey) (bool, error) {
	s, err := g.db.Source(ctx, k)
	if err != nil {
		return false, err
	}
	ch, err := s.Chain()
	if err != nil || ch.ID == "" || s.HostChanged() {
		return false, err
	}
	closed, err := g.db.Meta(closedKey(k))
	return strings.TrimPrefix(string(closed), givenUp) != ch.ID, err
}

// givenUp stands before the chain's name in the state where nothing is left to
// close it in.
const givenUp = "given-up:"

// bucketGone reports whether err says that the bucket does not exist.
func bucketGone(err error) bool {
	e, ok := errors.AsType[*state.Error](err)
	return ok && e.Code == "NoSuchBucket"
}

// giveUp remembers that the chain of k stays without its last digest.
func (g *generation) giveUp(ctx context.Context, k state.SourceKey, cause error) error {
	s, err := g.db.Source(ctx, k)
	if err != nil {
		return err
	}
	ch, err := s.Chain()
	if err != nil {
		return err
	}
	g.log.Error("the trail of a source that left the configuration is given up: its bucket is not there any more; the local copies stay",
		zap.String("path", k.RealPath), zap.String("bucket", k.Bucket), zap.String("prefix", k.Prefix), zap.String("chain", ch.ID), zap.Error(cause))
	return g.db.SetMeta(context.WithoutCancel(ctx), closedKey(k), []byte(givenUp+ch.ID))
}

// takeUp forgets that the chain of s was given up: its source is configured again.
func (e *environment) takeUp(ctx context.Context, s *source) error {
	key := closedKey(state.SourceKey{Bucket: s.cfg.Bucket, Prefix: s.cfg.Prefix, RealPath: s.real})
	closed, err := e.db.Meta(key)
	if err != nil || !strings.HasPrefix(string(closed), givenUp) {
		return err
	}
	return e.db.SetMeta(ctx, key, nil)
}

// closeOne ends the chain of one source with the settings that it had. Nothing
// but documents of its trail is sent, and that only behind a canary.
func (g *generation) closeOne(ctx context.Context, k state.SourceKey) error {
	cfg, err := g.lastConfig(ctx, k)
	if err != nil || cfg == nil {
		return err
	}
	env := environment{
		cfg: cfg, db: g.db, log: g.log, build: g.build, queue: uploader.NewQueue(1), grace: g.grace, direct: true,
		metrics: newMetrics(prometheus.NewPedanticRegistry(), g.build, g.db, func() []snapshot { return nil }),
	}
	s, err := env.openSource(ctx, 0)
	if err != nil {
		return err
	}
	defer s.store.CloseIdle()
	ctx, cancel := context.WithTimeout(ctx, departedRetry)
	defer cancel()
	if err := s.store.Probe(ctx); err != nil {
		return err
	}
	if err := s.flusher.Begin(ctx, g.db.Report()); err != nil {
		return err
	}
	return errors.Join(env.closeChain(ctx, s), s.flusher.Close())
}

// lastConfig returns the configuration that the source was last archived with,
// from the local copy of what was published of it; nil, once it has said why,
// where the chain cannot be closed with it.
func (g *generation) lastConfig(ctx context.Context, k state.SourceKey) (*config.Config, error) {
	s, err := g.db.Source(ctx, k)
	if err != nil {
		return nil, err
	}
	ch, err := s.Chain()
	if err != nil {
		return nil, err
	}
	log := g.log.With(zap.String("path", k.RealPath), zap.String("bucket", k.Bucket), zap.String("prefix", k.Prefix))
	files, err := filepath.Glob(filepath.Join(globQuoted(g.cfg.Manifest.LocalDir), "*", "config_"+ch.ConfigSHA+".json"))
	if err != nil || len(files) == 0 || ch.ConfigSHA == "" {
		log.Warn("the chain of a source that left the configuration stays open: no local copy of its settings is kept", zap.Error(err))
		return nil, nil //nolint:nilnil // There is nothing to do, and it has been said.
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		return nil, fmt.Errorf("read the settings of a source that left: %w", err)
	}
	cfg, err := config.Parse(files[0], data, nil)
	if err != nil {
		return nil, fmt.Errorf("read the settings of a source that left: %w", err)
	}
	if why := g.unlike(cfg, k); why != "" {
		log.Warn("the chain of a source that left the configuration stays open", zap.String("reason", why))
		return nil, nil //nolint:nilnil // As above.
	}
	cfg.StateDir, cfg.Manifest.LocalDir = g.cfg.StateDir, filepath.Dir(filepath.Dir(files[0]))
	return cfg, nil
}

// unlike returns why cfg, of which nothing but the path is changed, is not what
// the source k was archived with.
func (g *generation) unlike(cfg *config.Config, k state.SourceKey) string {
	s := &cfg.Sources[0]
	if realPath(s.Path) != k.RealPath {
		s.Path = k.RealPath // It was reached through a link that is gone.
	}
	switch {
	case cfg.Instance != g.cfg.Instance:
		return "it was archived as instance " + cfg.Instance
	case s.Bucket != k.Bucket || s.Prefix != k.Prefix:
		return "its settings are about another destination"
	case realPath(s.Path) != k.RealPath:
		return "another directory is in its place"
	}
	return ""
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
