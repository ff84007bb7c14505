package app

import (
	"context"
	"encoding/json"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/mounts"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/watcher"
)

// sourceMemory is a watcher.Memory in the state. Paths are bytes: not every one
// is UTF-8.
type sourceMemory struct {
	Path     []byte        `json:"path"`
	Place    safefs.Place  `json:"place"`
	Replaced bool          `json:"replaced,omitempty"`
	Mounts   []mountMemory `json:"mounts,omitempty"`
}

type mountMemory struct {
	Path  []byte       `json:"path"`
	Place safefs.Place `json:"place"`
	Came  bool         `json:"came,omitempty"`
	Mixed bool         `json:"mixed,omitempty"`
}

// memoryKey is where the directory of s is remembered. It belongs to the index,
// which belongs to the bucket and prefix.
func (s *source) memoryKey() string { return "place/" + s.cfg.Bucket + "/" + s.cfg.Prefix }

// mountsKey is where older releases look for the mount points, and for nothing
// else.
func (s *source) mountsKey() string { return "mounts/" + s.firstPath() }

// recall returns what the directory was when a run last used it.
func (s *source) recall() watcher.Memory {
	if s.db == nil {
		return watcher.Memory{} // A dry run of a state that does not exist yet.
	}
	m, known, err := s.readMemory()
	if err == nil && !known {
		m, err = s.readMounts()
	}
	if err != nil {
		s.log.Warn("what the directory was is not remembered: whether it still is that one is told by its files", zap.Error(err))
	}
	return m
}

func (s *source) readMemory() (m watcher.Memory, known bool, err error) {
	b, err := s.db.Meta(s.memoryKey())
	if err != nil || b == nil {
		return m, false, err
	}
	var kept sourceMemory
	if err := json.Unmarshal(b, &kept); err != nil {
		return m, false, err
	}
	m = watcher.Memory{Path: string(kept.Path), Place: kept.Place, Replaced: kept.Replaced}
	for _, k := range kept.Mounts {
		m.Mounts = append(m.Mounts, mounts.Mount{Path: string(k.Path), Place: k.Place, Came: k.Came, Mixed: k.Mixed})
	}
	return m, true, nil
}

// readMounts reads what an older release kept.
func (s *source) readMounts() (m watcher.Memory, err error) {
	b, err := s.db.Meta(s.mountsKey())
	if err != nil || b == nil {
		return m, err
	}
	var paths [][]byte
	if err := json.Unmarshal(b, &paths); err != nil {
		return m, err
	}
	for _, p := range paths {
		m.Mounts = append(m.Mounts, mounts.Mount{Path: string(p)})
	}
	return m, nil
}

// remember keeps what the directory is for the next run, so that another one in
// its place then, or a mount that is late, does not read as deleted files.
func (s *source) remember(m watcher.Memory) {
	kept := sourceMemory{Path: []byte(m.Path), Place: m.Place, Replaced: m.Replaced}
	paths := make([][]byte, 0, len(m.Mounts))
	for _, k := range m.Mounts {
		kept.Mounts = append(kept.Mounts, mountMemory{Path: []byte(k.Path), Place: k.Place, Came: k.Came, Mixed: k.Mixed})
		paths = append(paths, []byte(k.Path))
	}
	for key, value := range map[string]any{s.memoryKey(): kept, s.mountsKey(): paths} {
		b, err := json.Marshal(value)
		if err == nil {
			err = s.db.SetMeta(context.Background(), key, b)
		}
		if err != nil {
			s.log.Warn("what the directory is was not kept for the next start", zap.Error(err))
		}
	}
}
