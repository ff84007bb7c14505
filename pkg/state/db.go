package state

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/s3syncd/s3syncd/internal/codec"
)

// Options are what Open needs to know.
type Options struct {
	// Instance and MachineID bind the state to this host, see
	// Report.HostChanged. An empty one is not compared.
	Instance  string
	MachineID string
	Log       *zap.Logger      // nil: nothing is logged
	Now       func() time.Time // for the timestamps of records; nil: time.Now
}

// Report is what Open found.
type Report struct {
	// New: no usable state was there.
	New bool
	// SetAside is the path under which a damaged file was kept, "" for none. It
	// is reported again until the new state has been closed cleanly once.
	SetAside string
	// HostChanged: the state was begun by another instance or machine. The index
	// is kept. Source.HostChanged says the same for each source, and is durable
	// until the source's next BeginChain; this field is true only once.
	HostChanged bool
	// Unclean: the last user of the state did not get to Close it.
	Unclean bool
}

// DB is the open state of one daemon. All methods are safe for concurrent use,
// and return ErrClosed after Close.
type DB struct {
	dir, path string
	log       *zap.Logger
	now       func() time.Time
	report    Report

	lock *os.File // flock, held from Open to Close
	file *os.File // the state file, for its meta pages

	mu   sync.RWMutex // guards bolt; read-locked by readers
	bolt *bolt.DB     // nil: closed, or not yet opened again after a failure

	// Owned by the committer.
	requests chan *request
	closing  chan struct{}
	ended    chan struct{}
	before   []byte // the meta pages before a commit that has not returned well, else nil
	dead     error  // why nothing can be written any more

	closed  atomic.Bool
	flagged atomic.Bool // the next Open has to read every value
	failing atomic.Pointer[error]

	create  sync.Mutex // held while a source is created
	sources atomic.Pointer[map[string]*Source]
}

// Report returns what Open found.
func (db *DB) Report() Report { return db.report }

// Close waits for the transaction under way, marks the end as clean and
// releases the directory. Changes that still wait get ErrClosed.
func (db *DB) Close() error {
	if db.closed.Swap(true) {
		return ErrClosed
	}
	close(db.closing)
	<-db.ended
	_, err := db.attempt([]*request{{run: markClean}})
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.bolt != nil && db.dead == nil {
		err = errors.Join(err, db.bolt.Close())
	}
	db.bolt = nil
	if err = errors.Join(err, db.file.Close(), unlock(db.lock)); err != nil {
		return fmt.Errorf("close %s: %w", db.path, err)
	}
	return nil
}

// Size returns the size of the file in bytes, 0 if it cannot be told.
func (db *DB) Size() int64 {
	info, err := os.Stat(db.path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// Failing returns why the last change could not be written, nil when it could:
// the disk is full, or fails. Nothing is acknowledged until then. It reads memory
// only.
func (db *DB) Failing() error {
	if err := db.failing.Load(); err != nil {
		return *err
	}
	return nil
}

// Try commits a change that means nothing and returns once it is durable, or why
// it is not. For finding out whether a disk that failed works again.
func (db *DB) Try(ctx context.Context) error {
	return db.SetMeta(ctx, keyTried, binary.BigEndian.AppendUint64(nil, uint64(db.now().UnixNano())))
}

// keyTried is what Try writes.
const keyTried = "state/tried"

// FreeBytes returns how much an unprivileged process can still write to the
// state's file system.
func (db *DB) FreeBytes() (int64, error) {
	n, err := freeBytes(db.dir)
	if err != nil {
		return 0, err
	}
	return n, nil
}

func freeBytes(dir string) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}

// Meta returns the small fact stored under key, nil if there is none.
func (db *DB) Meta(key string) ([]byte, error) {
	var value []byte
	err := db.view("meta "+key, func(tx *bolt.Tx) error {
		facts := tx.Bucket([]byte(bucketFacts))
		if facts == nil {
			return codec.Damaged("bucket %s is missing", bucketFacts)
		}
		v := facts.Get([]byte(key))
		if v == nil {
			return nil
		}
		v, err := codec.Unseal([]byte(key), v)
		value = bytes.Clone(v)
		return err
	})
	return value, err
}

// SetMeta stores a small fact durably. A nil value deletes it.
func (db *DB) SetMeta(ctx context.Context, key string, value []byte) error {
	return db.submit(ctx, "set meta "+key, func(t *txn) error {
		if key == "" {
			return refuse(errors.New("empty key"))
		}
		facts := t.bolt.Bucket([]byte(bucketFacts))
		if facts == nil {
			return codec.Damaged("bucket %s is missing", bucketFacts)
		}
		if value == nil {
			return remove(facts, []byte(key))
		}
		return put(facts, []byte(key), codec.Seal([]byte(key), bytes.Clone(value)))
	})
}

// view runs fn in a read transaction. It must be short, because pages that it
// may still see are not used again, and must not call the DB.
func (db *DB) view(op string, fn func(*bolt.Tx) error) error {
	db.mu.RLock()
	defer db.mu.RUnlock()
	err := ErrClosed
	switch {
	case db.bolt != nil:
		err = guard(func() error { return db.bolt.View(fn) })
	case !db.closed.Load():
		err = errors.New("the file could not be opened again after a failure")
	}
	if err != nil {
		return fmt.Errorf("state: %s: %w", op, db.noted(err))
	}
	return nil
}

// noted returns err. If it says that the file is damaged, the next Open is told
// to read all of it.
func (db *DB) noted(err error) error {
	if errors.Is(err, ErrDamaged) && !db.flagged.Swap(true) {
		f, markErr := os.OpenFile(db.path+suffixCheck, os.O_CREATE|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
		if markErr == nil {
			markErr = f.Close()
		}
		db.log.Error("state is damaged; the next start examines it and sets it aside if it is beyond use",
			zap.String("path", db.path), zap.Error(err), zap.NamedError("marker", markErr))
	}
	return err
}
