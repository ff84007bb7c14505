package daemon

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/admin"
	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// listenControl opens the control socket. A default path that is too long for a
// socket, which the configuration has warned about, leaves the daemon without.
func (d *daemon) listenControl(ctx context.Context) error {
	if d.cfg.Admin.SocketTooLong() {
		d.log.Warn("no control socket: its path is too long; status, rescan and flush do not work", zap.String("socket", d.cfg.Admin.Socket))
		return nil
	}
	c, err := admin.ListenControl(ctx, admin.ControlOptions{
		Socket: d.cfg.Admin.Socket, StateDir: d.cfg.StateDir, Daemon: d, Log: d.log.Named("control"),
	})
	if err != nil {
		return err
	}
	d.control = c
	d.log.Info("control socket", zap.String("path", d.cfg.Admin.Socket))
	return nil
}

// running returns the pipeline that runs.
func (d *daemon) running() (*livePipeline, error) {
	l := d.current.Load()
	switch {
	case l == nil:
		return nil, fmt.Errorf("%w: it is starting", admin.ErrNotReady)
	case isClosed(l.leaving):
		return nil, fmt.Errorf("%w: it is stopping, or takes over a new configuration", admin.ErrNotReady)
	}
	return l, nil
}

// pick returns the sources of these names, all for none.
func (l *livePipeline) pick(names []string) ([]*liveSource, error) {
	if len(names) == 0 {
		return l.sources, nil
	}
	var picked []*liveSource
	for _, name := range names {
		i := slices.IndexFunc(l.sources, func(s *liveSource) bool { return s.Config.Name == name })
		if i < 0 {
			return nil, &admin.UnknownSourceError{Source: name, Known: sourceNames(l.sources)}
		}
		if !slices.Contains(picked, l.sources[i]) {
			picked = append(picked, l.sources[i])
		}
	}
	return picked, nil
}

func sourceNames(sources []*liveSource) []string {
	names := make([]string, len(sources))
	for i, s := range sources {
		names[i] = s.Config.Name
	}
	return names
}

// Rescan implements admin.Daemon.
func (d *daemon) Rescan(r admin.RescanRequest) (admin.RescanAnswer, error) {
	l, err := d.running()
	if err != nil {
		return admin.RescanAnswer{}, err
	}
	sources, err := l.pick(slices.DeleteFunc([]string{r.Source}, func(name string) bool { return name == "" }))
	if err != nil {
		return admin.RescanAnswer{}, err
	}
	for _, s := range sources {
		if err := s.rescan(r.Remote, r.ConfirmDeletes); err != nil {
			return admin.RescanAnswer{}, fmt.Errorf("source %s: %w", s.Config.Name, err)
		}
	}
	return admin.RescanAnswer{Sources: sourceNames(sources)}, nil
}

// rescan has the source scanned, what is parked tried again, and what is sealed
// published now. Remote also has the bucket compared with the index, confirm
// accepts what the directory is now and what is missing in it.
func (s *liveSource) rescan(remote, confirm bool) error {
	if remote {
		if err := s.remote.Request(); err != nil {
			return err
		}
	}
	s.Release()
	if confirm {
		s.Watch.ConfirmDeletes() // It asks for a scan as well.
		return nil
	}
	s.Watch.Rescan(archive.TriggerRescan)
	return nil
}

// Flush implements admin.Daemon.
func (d *daemon) Flush(ctx context.Context, names []string) (admin.FlushAnswer, error) {
	l, err := d.running()
	if err != nil {
		return admin.FlushAnswer{}, err
	}
	sources, err := l.pick(names)
	if err != nil {
		return admin.FlushAnswer{}, err
	}
	begin := time.Now()
	answer := admin.FlushAnswer{Sources: make([]admin.FlushedSource, len(sources))}
	var wg sync.WaitGroup
	for i, s := range sources {
		wg.Go(func() { answer.Sources[i] = (&flush{s: s, leaving: l.leaving}).run(ctx) })
	}
	wg.Wait()
	for _, f := range answer.Sources {
		d.log.Info("flush requested", zap.String("source", f.Source), zap.Bool("done", f.Done), zap.Strings("reasons", f.Reasons),
			zap.Duration("took", time.Since(begin)))
	}
	return answer, nil
}

// ledgers are those of every source that the process has had.
type ledgers struct {
	mu     sync.Mutex
	byName map[string]*ledger
}

// of returns the ledger of a source. A source that went to another place is
// another one.
func (l *ledgers) of(c config.Source) *ledger {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := c.Name + "\x00" + c.Path + "\x00" + c.Bucket + "\x00" + c.Prefix
	if l.byName == nil {
		l.byName = map[string]*ledger{}
	}
	if l.byName[key] == nil {
		l.byName[key] = newLedger()
	}
	return l.byName[key]
}
