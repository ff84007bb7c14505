package state

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
)

// peekWait is how long Peek waits for a process that is about to close the
// state.
const peekWait = time.Second

// Peeked is what a state says of one source's trail.
type Peeked struct {
	Chain  Chain
	Outbox []Doc // sealed, and not yet acknowledged
}

// Peek reads what the state in dir says of the trail of the source with key k,
// without changing it in any way: for someone who looks at a host from beside
// its daemon. While another process has the state open it is a LockedError;
// io/fs.ErrNotExist says that there is no state, or no such source in it.
func Peek(dir string, k SourceKey) (p Peeked, err error) {
	b, err := boltOpen(filepath.Join(dir, fileName), &bolt.Options{ReadOnly: true, Timeout: peekWait})
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	err = guard(func() error {
		return b.View(func(tx *bolt.Tx) error {
			sources := tx.Bucket([]byte(bucketSources))
			if sources == nil {
				return damaged("bucket %s is missing", bucketSources)
			}
			root := sources.Bucket(k.id())
			if root == nil {
				return fmt.Errorf("state: no such source: %w", fs.ErrNotExist)
			}
			outbox := root.Bucket([]byte(bucketOutbox))
			if outbox == nil {
				return damaged("bucket %s is missing", bucketOutbox)
			}
			h, err := loadHead(root)
			if err != nil {
				return err
			}
			p.Chain = h.chain()
			p.Outbox, err = readOutbox(outbox)
			return err
		})
	})
	return p, err
}
