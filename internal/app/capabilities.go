package app

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/config"
	"github.com/s3syncd/s3syncd/internal/s3store"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// canaryAge is how long a canary that passed counts for an unchanged
// destination.
const canaryAge = 24 * time.Hour

// provenDestination is what the state remembers of the last canary.
type provenDestination struct {
	Time         time.Time            `json:"time"`
	Capabilities s3store.Capabilities `json:"capabilities"`
}

// capabilities keeps what the canary of a destination learned, for the next run.
type capabilities struct {
	store *s3store.Store
	db    *state.DB
	key   string
	log   *zap.Logger
}

func capabilitiesOf(c *config.Source, store *s3store.Store, db *state.DB, log *zap.Logger) capabilities {
	return capabilities{store: store, db: db, key: fmt.Sprintf("canary/%s/%s/%s", c.Bucket, c.Prefix, c.Name), log: log}
}

// recall gives the store what the canary of an earlier run learned. It returns
// when that canary passed, where it was for the same destination and within
// canaryAge, and else the zero time.
func (c capabilities) recall() (provenAt time.Time, err error) {
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

// remember keeps what the canary has just learned.
func (c capabilities) remember() {
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
func (c capabilities) forget() {
	if err := c.db.SetMeta(context.Background(), c.key, nil); err != nil {
		c.log.Warn("the canary's old result was not removed", zap.Error(err))
	}
}
