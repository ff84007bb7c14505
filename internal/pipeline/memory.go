package pipeline

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/mounts"
	"github.com/s3syncd/s3syncd/internal/s3store"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/state"
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

// placeMemory keeps what the directory of a source is, from run to run.
type placeMemory struct {
	db     *state.DB // nil: a dry run whose state does not exist yet
	log    *zap.Logger
	key    string // belongs to the index, which belongs to bucket and prefix
	mounts string // where older releases expect the mount points, and nothing else
}

func placeMemoryOf(s *Source) placeMemory {
	return placeMemory{db: s.Session.DB, log: s.Log, key: "place/" + s.Config.Bucket + "/" + s.Config.Prefix, mounts: "mounts/" + s.FirstPath()}
}

// recall returns what the directory was when it was last in use, in whatever
// run.
func (p placeMemory) recall() watcher.Memory {
	if p.db == nil {
		return watcher.Memory{}
	}
	m, known, err := p.read()
	if err == nil && !known {
		m, err = p.readMounts()
	}
	if err != nil {
		p.log.Warn("what the directory was is unreadable: its files decide whether it still is that one", zap.Error(err))
	}
	return m
}

func (p placeMemory) read() (m watcher.Memory, known bool, err error) {
	b, err := p.db.Meta(p.key)
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
func (p placeMemory) readMounts() (m watcher.Memory, err error) {
	b, err := p.db.Meta(p.mounts)
	if err != nil || b == nil {
		return m, err
	}
	var paths [][]byte
	if err := json.Unmarshal(b, &paths); err != nil {
		return m, err
	}
	for _, path := range paths {
		m.Mounts = append(m.Mounts, mounts.Mount{Path: string(path)})
	}
	return m, nil
}

// remember keeps what the directory is for the next run, so that another one in
// its place then, or a mount that is late, does not read as deleted files.
func (p placeMemory) remember(m watcher.Memory) {
	kept := sourceMemory{Path: []byte(m.Path), Place: m.Place, Replaced: m.Replaced}
	paths := make([][]byte, 0, len(m.Mounts))
	for _, k := range m.Mounts {
		kept.Mounts = append(kept.Mounts, mountMemory{Path: []byte(k.Path), Place: k.Place, Came: k.Came, Mixed: k.Mixed})
		paths = append(paths, []byte(k.Path))
	}
	for key, value := range map[string]any{p.key: kept, p.mounts: paths} {
		b, err := json.Marshal(value)
		if err == nil {
			err = p.db.SetMeta(context.Background(), key, b)
		}
		if err != nil {
			p.log.Warn("what the directory is was not kept for the next start", zap.Error(err))
		}
	}
}

// canaryAge is how long a canary that passed counts for an unchanged
// destination.
const canaryAge = 24 * time.Hour

// provenDestination is what the state remembers of the last canary.
type provenDestination struct {
	Time         time.Time            `json:"time"`
	Capabilities s3store.Capabilities `json:"capabilities"`
}

// Capabilities keeps what the canary of a destination learned, for the next run.
type Capabilities struct {
	store *s3store.Store
	db    *state.DB
	key   string
	log   *zap.Logger
}

// CapabilitiesOf returns what keeps the canary of c's destination.
func CapabilitiesOf(c *config.Source, store *s3store.Store, db *state.DB, log *zap.Logger) Capabilities {
	return Capabilities{store: store, db: db, key: fmt.Sprintf("canary/%s/%s/%s", c.Bucket, c.Prefix, c.Name), log: log}
}

// recall gives the store what the canary of an earlier run learned. It returns
// when that canary passed, where it was for the same destination and within
// canaryAge, and else the zero time.
func (c Capabilities) recall() (provenAt time.Time, err error) {
	b, err := c.db.Meta(c.key)
	if err != nil || b == nil {
		return time.Time{}, err
	}
	var p provenDestination
	if err := json.Unmarshal(b, &p); err != nil {
		c.log.Warn("what the last canary learned is unreadable, it runs again", zap.Error(err))
		return time.Time{}, nil
	}
	age := time.Since(p.Time)
	if c.store.Restore(p.Capabilities) && age >= 0 && age < canaryAge {
		return p.Time, nil
	}
	return time.Time{}, nil
}

// Remember keeps what the canary has just learned.
func (c Capabilities) Remember() {
	b, err := json.Marshal(provenDestination{Time: time.Now(), Capabilities: c.store.Capabilities()})
	if err == nil {
		err = c.db.SetMeta(context.Background(), c.key, b)
	}
	if err != nil {
		c.log.Warn("the canary's result was not kept, the next start runs it again", zap.Error(err))
	}
}

// forget makes the next start run the canary, because the server did not confirm
// the key.
func (c Capabilities) forget() {
	if err := c.db.SetMeta(context.Background(), c.key, nil); err != nil {
		c.log.Warn("the canary's old result was not removed", zap.Error(err))
	}
}
