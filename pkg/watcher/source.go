package watcher

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/s3syncd/s3syncd/internal/safefs"
)

// assessor remembers what the looks at a source that is not in use found.
type assessor struct {
	proposed safefs.Identity // another one, seen once
	reason   string          // why the source is away, "" while it is not
}

// await returns the identity of the source as soon as it may be used, or false
// when ctx ended.
func (w *Watcher) await(ctx context.Context, a *assessor) (id safefs.Identity, ok bool) {
	pause := 100 * time.Millisecond
	for ctx.Err() == nil {
		id, reason := w.assess(a)
		if reason == "" {
			w.back(a, id)
			return id, true
		}
		if reason != a.reason {
			a.reason = reason
			w.lost(reason)
			w.announceWatching()
		}
		pause = min(2*pause, w.t.unhealthy)
		if a.proposed != (safefs.Identity{}) {
			pause = w.t.unhealthy // The second look must be at another time.
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-w.suspected:
		case <-t.C:
		}
		t.Stop()
	}
	return safefs.Identity{}, false
}

// back notes that the source is in use from now on.
func (w *Watcher) back(a *assessor, id safefs.Identity) {
	a.proposed, a.reason = safefs.Identity{}, ""
	w.root.Pin(id)
	w.network.Store(isNetwork(id.FSType))
	w.available.Store(true)
	w.away.Store(nil)
	w.met.available.Set(1)
	w.log.Info("source available", zap.String("path", id.RealPath), zap.Bool("network", w.network.Load()), zap.Bool("replaced", w.replaced.Load()))
	if w.o.OnAvailable != nil {
		w.o.OnAvailable(true, "")
	}
}

// lost notes that the source is not in use any more.
func (w *Watcher) lost(reason string) {
	w.available.Store(false)
	w.setAway(reason)
	w.met.available.Set(0)
	w.log.Warn("source not available, it is paused and used again when it is back", zap.String("reason", reason))
	if w.o.OnAvailable != nil {
		w.o.OnAvailable(false, reason)
	}
}

// assess decides whether what is in the place of the source may be used; reason
// is "" then. It sets w.replaced.
func (w *Watcher) assess(a *assessor) (id safefs.Identity, reason string) {
	id, err := w.probe.Identify()
	if err != nil {
		return id, err.Error()
	}
	if safefs.Pseudo(id.FSType) {
		return id, "the kernel's own file systems are not archived"
	}
	w.probe.Pin(id)
	empty, err := w.emptyRoot()
	if err != nil {
		return id, err.Error()
	}
	same, err := proof{w.index, w.probe}.isSame(w.memory.get(), id)
	switch {
	case err != nil:
		return id, err.Error()
	case same, w.confirmed.Load():
		w.replaced.Store(false)
		w.confirmed.Store(false) // Consent was to what stood there, not to whatever comes next.
		w.memory.accept(id)
		return id, ""
	case empty:
		a.proposed = safefs.Identity{}
		return id, "the directory is empty, but files of it are archived"
	case !id.SameDirectory(a.proposed):
		a.proposed = id
		return id, "another directory is in the place of the source"
	}
	w.memory.suspectReplaced()
	if !w.replaced.Swap(true) {
		w.log.Warn("another directory is in the place of the source: it is archived, and nothing counts as deleted until 's3syncd rescan --confirm-deletes'",
			zap.String("path", id.RealPath))
	}
	return id, ""
}

func (w *Watcher) emptyRoot() (bool, error) {
	d, err := w.probe.OpenDir("")
	if err != nil {
		return false, err
	}
	defer d.Close()
	empty := true
	err = d.Visit(func(*safefs.Entry) bool {
		empty = false
		return false
	})
	return empty, err
}

// guard ends with an error when the source is not id any more, or not mounted
// as it was.
func (w *Watcher) guard(ctx context.Context, id safefs.Identity) error {
	t := time.NewTicker(w.t.identity)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.suspected:
		case <-t.C:
		}
		if err := w.verify(id); err != nil {
			return err
		}
		w.mounts.check(id.RealPath)
	}
}

// verify compares the source with id.
func (w *Watcher) verify(id safefs.Identity) error {
	now, err := w.root.Identify()
	switch {
	case err != nil:
		return err
	case !now.SameDirectory(id):
		return errors.New("another directory is in the place of the source")
	case now.MountID != id.MountID:
		return errors.New("the source was mounted again")
	}
	d, err := w.root.OpenDir("")
	if err != nil {
		return err
	}
	d.Close()
	return nil
}

// isNetwork reports whether a file system of this type changes without events:
// its files belong to another host or to a program (FUSE).
func isNetwork(fsType int64) bool {
	switch uint32(fsType) {
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC,
		unix.FUSE_SUPER_MAGIC, unix.V9FS_MAGIC, unix.CEPH_SUPER_MAGIC, unix.AFS_SUPER_MAGIC, unix.AFS_FS_MAGIC,
		unix.CODA_SUPER_MAGIC, unix.OCFS2_SUPER_MAGIC, unix.NCP_SUPER_MAGIC,
		0x0bd00bd0, // LLNL's cluster file system
		0x01161970, // GFS2
		0x47504653, // GPFS
		0x786f4256: // VirtualBox shared folders
		return true
	}
	return false
}
