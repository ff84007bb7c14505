package state

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/s3syncd/s3syncd/internal/codec"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// peekWait is how long Peek waits for a process that is about to close the
// state.
const peekWait = time.Second

// Peeked is what a state says of one source's trail.
type Peeked struct {
	Chain  archive.Chain
	Outbox []archive.Doc // sealed, and not yet acknowledged
}

// Peek reads what the state in dir says of the trail of the source with the bucket
// and prefix of k, whatever its directory, without changing it in any way: for
// someone who inspects a host from beside its daemon. Of several states of one
// destination the chain is the one that sealed a digest last. While another process
// has the state open it is a LockedError; io/fs.ErrNotExist says that there is no
// state, or no such source in it.
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
				return codec.Damaged("bucket %s is missing", bucketSources)
			}
			found := false
			err := sources.ForEachBucket(func(id []byte) error {
				root := sources.Bucket(id)
				key, _, err := loadKey(root)
				if err != nil || key.Bucket != k.Bucket || key.Prefix != k.Prefix {
					return err
				}
				outbox, err := child(root, []byte(bucketOutbox))
				if err != nil {
					return err
				}
				h, err := loadHead(root)
				if err != nil {
					return err
				}
				if !found || p.Chain.LastDigest.Before(h.LastDigest) {
					p.Chain = h.chain()
				}
				more, err := readOutbox(outbox)
				p.Outbox, found = append(p.Outbox, more...), true
				return err
			})
			if err == nil && !found {
				return fmt.Errorf("state: no such source: %w", fs.ErrNotExist)
			}
			return err
		})
	})
	return p, err
}
