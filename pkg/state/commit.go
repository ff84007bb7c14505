package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/s3syncd/s3syncd/internal/boltfile"
	"github.com/s3syncd/s3syncd/internal/codec"
)

const (
	// maxBatch is the number of callers that may share one transaction.
	maxBatch = 1000
	// Linger is the longest pause between transactions, in which callers gather;
	// lingerBelow of them end it.
	linger      = 4 * time.Millisecond
	lingerBelow = 32
	// LonelyAfter transactions in a row that had one caller each show that there
	// is only one.
	lonelyAfter = 8
)

// request is one caller's change. Its result is sent on done exactly once.
type request struct {
	run     func(*txn) error
	done    chan error
	refused error // why run changed nothing, although the transaction continued
}

// refusal is the error of a change that was refused before it wrote anything,
// so that it need not undo the changes of others.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

func refuse(err error) error { return refusal{err} }

// submit makes one change durable and returns once it is, or once it certainly
// is not. A ctx that ends before the committer has taken the change withdraws
// it; after that submit waits, for as long as the disk takes, because a caller
// that does not know the outcome could only guess. Safe for concurrent use.
//
// Only a machine that stops, or a disk that fails, within the transaction's
// last fsync leaves it open until the next start whether the change is there.
func (db *DB) submit(ctx context.Context, op string, run func(*txn) error) error {
	err := ctx.Err()
	if err == nil {
		err = db.enqueue(ctx, run)
	}
	if err != nil {
		return fmt.Errorf("state: %s: %w", op, db.noted(err))
	}
	return nil
}

func (db *DB) enqueue(ctx context.Context, run func(*txn) error) error {
	r := &request{run: run, done: make(chan error, 1)}
	select {
	case db.requests <- r:
		return <-r.done
	case <-ctx.Done():
		return ctx.Err()
	case <-db.closing:
		return ErrClosed
	}
}

// loop is the group committer: the one goroutine that writes. It ends when the
// DB is closed; every request that it has taken is answered.
//
// A transaction costs two fsyncs however many callers share it. While there are
// several, the next transaction begins only after a pause in which they gather. A
// lone caller does not wait.
func (db *DB) loop() {
	defer close(db.ended)
	var earliest time.Time
	lonely := lonelyAfter
	for {
		select {
		case <-db.closing:
			return
		case r := <-db.requests:
			batch := db.gather(r, earliest)
			db.commitAll(batch)
			if lonely++; len(batch) > 1 {
				lonely = 0
			}
			if earliest = (time.Time{}); lonely < lonelyAfter {
				earliest = time.Now().Add(linger)
			}
		}
	}
}

// gather returns first, all requests that wait now, and those that come before
// until.
func (db *DB) gather(first *request, until time.Time) []*request {
	batch := []*request{first}
	var timer *time.Timer
	for len(batch) < maxBatch {
		select {
		case r := <-db.requests:
			batch = append(batch, r)
			continue
		default:
		}
		if len(batch) >= lingerBelow || !time.Now().Before(until) {
			return batch
		}
		if timer == nil {
			timer = time.NewTimer(time.Until(until))
			defer timer.Stop() //nolint:gocritic // Once.
		}
		select {
		case r := <-db.requests:
			batch = append(batch, r)
		case <-timer.C:
			until = time.Time{}
		case <-db.closing:
			return batch
		}
	}
	return batch
}

// commitAll commits batch in one transaction. A change that makes it fail is
// tried once more alone, so that only its caller sees the error.
func (db *DB) commitAll(batch []*request) {
	for len(batch) > 0 {
		guilty, err := db.attempt(batch)
		if guilty == nil {
			answer(batch, err)
			return
		}
		_, err = db.attempt([]*request{guilty})
		answer([]*request{guilty}, err)
		batch = slices.DeleteFunc(batch, func(r *request) bool { return r == guilty })
	}
}

func answer(batch []*request, err error) {
	for _, r := range batch {
		if err == nil {
			r.done <- r.refused
			continue
		}
		r.done <- err
	}
}

// txn is one write transaction. It is used by the committer only.
type txn struct {
	bolt    *bolt.Tx
	now     func() time.Time
	sources map[*Source]*sourceTxn
	after   []func()
	running *request
	changed bool
}

// sourceTxn is one source within a transaction.
type sourceTxn struct {
	*head
	now       func() time.Time
	root      *bolt.Bucket
	files     *bolt.Bucket
	records   *bolt.Bucket
	intents   *bolt.Bucket
	outbox    *bolt.Bucket
	newsDirty bool
	at        *place // nil: as last committed
}

// attempt runs batch in one transaction. It returns the request that made it
// fail, or nil and the error that concerns them all. After an error nothing of
// batch is stored.
func (db *DB) attempt(batch []*request) (guilty *request, err error) {
	if err := db.mend(); err != nil {
		db.failing.Store(&err)
		return nil, err
	}
	t := &txn{now: db.now, sources: map[*Source]*sourceTxn{}}
	err = guard(func() error { return db.transact(t, batch) })
	switch {
	case err == nil && t.changed:
		db.failing.Store(nil)
	case err != nil && t.running == nil:
		db.failing.Store(&err)
	}
	if err == nil {
		for s, st := range t.sources {
			s.head.Store(st.head)
		}
		for _, fn := range t.after {
			fn()
		}
		return nil, nil
	}
	if t.bolt != nil {
		if guard(func() error { return rollback(t.bolt) }) != nil {
			db.dead = err // The library still holds its locks: nothing more can be done with it.
		}
	}
	return t.running, err
}

// transact does attempt's work in a transaction that its caller rolls back
// after an error or a panic.
func (db *DB) transact(t *txn, batch []*request) (err error) {
	if t.bolt, err = db.bolt.Begin(true); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	for _, r := range batch {
		t.running = r
		r.refused = nil
		err := r.run(t)
		if _, ok := errors.AsType[refusal](err); ok {
			r.refused = err
			continue
		}
		if err != nil {
			return err
		}
		t.changed = true
	}
	t.running = nil
	if !t.changed {
		return rollback(t.bolt)
	}
	if err := t.writeHeads(); err != nil {
		return err
	}
	return db.finish(t.bolt)
}

// finish commits tx. After a failure the file is brought back to what it was.
func (db *DB) finish(tx *bolt.Tx) error {
	metas, err := boltfile.ReadMetas(db.file)
	if err != nil {
		return err
	}
	db.before = metas // Until the commit has returned without an error or a panic.
	if err := tx.Commit(); err != nil {
		return errors.Join(fmt.Errorf("commit: %w", err), guard(db.mend))
	}
	db.before = nil
	return nil
}

// mend undoes a failed commit before anything else is written. A commit that
// failed in its very last fsync has changed a meta page without being durable:
// the old meta pages are put back, and only once the disk confirms them may
// pages that the failed transaction used be written again. The file is then
// opened again, because what the library keeps in memory can no longer be
// trusted. Until all that has worked every change is refused.
func (db *DB) mend() error {
	if db.dead != nil || db.before == nil {
		return db.dead
	}
	now, err := boltfile.ReadMetas(db.file)
	if err != nil {
		return err
	}
	if !bytes.Equal(now, db.before) {
		if err := boltfile.RestoreMetas(db.file, db.before); err != nil {
			return err
		}
	}
	if err := db.reopen(); err != nil {
		return err
	}
	db.before = nil
	return nil
}

// reopen replaces the open bbolt file. Readers wait.
func (db *DB) reopen() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.bolt != nil {
		if err := db.bolt.Close(); err != nil {
			return fmt.Errorf("close %s: %w", db.path, err)
		}
		db.bolt = nil
	}
	b, err := openBolt(db.path)
	if err != nil {
		return err
	}
	db.bolt = b
	return nil
}

func rollback(tx *bolt.Tx) error {
	if err := tx.Rollback(); err != nil && !errors.Is(err, berrors.ErrTxClosed) {
		return fmt.Errorf("roll back: %w", err)
	}
	return nil
}

// guard runs fn and returns a panic, or a fault in the mapped file, as damage.
func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = codec.Damaged("%v", p)
		}
	}()
	return fn()
}

// source returns s within t.
func (t *txn) source(s *Source) (*sourceTxn, error) {
	if st := t.sources[s]; st != nil {
		return st, nil
	}
	st, err := openSource(t.bolt, s.id)
	if err != nil {
		return nil, err
	}
	st.head, st.now = s.head.Load().clone(), t.now
	t.sources[s] = st
	return st, nil
}

// openSource finds the buckets of a source.
func openSource(tx *bolt.Tx, id []byte) (st *sourceTxn, err error) {
	st = new(sourceTxn)
	if st.root, err = child(tx.Bucket([]byte(bucketSources)), id); err != nil {
		return nil, err
	}
	for _, b := range []struct {
		name string
		to   **bolt.Bucket
	}{
		{bucketFiles, &st.files}, {bucketRecords, &st.records}, {bucketIntents, &st.intents}, {bucketOutbox, &st.outbox},
	} {
		if *b.to, err = child(st.root, []byte(b.name)); err != nil {
			return nil, err
		}
	}
	st.files.FillPercent = 0.75   // The first scan inserts in order, later changes do not.
	st.records.FillPercent = 0.95 // Only ever appended to.
	return st, nil
}

// child returns the bucket of that name in parent.
func child(parent *bolt.Bucket, name []byte) (*bolt.Bucket, error) {
	if parent == nil {
		return nil, codec.Damaged("bucket %s is missing", bucketSources)
	}
	b := parent.Bucket(name)
	if b == nil {
		return nil, codec.Damaged("bucket %q is missing", name)
	}
	return b, nil
}

// writeHeads stores what t changed in its sources' heads.
func (t *txn) writeHeads() error {
	for _, st := range t.sources {
		if err := putJSON(st.root, []byte(keyHead), st.ledger); err != nil {
			return err
		}
		if !st.newsDirty {
			continue
		}
		if err := putJSON(st.root, []byte(keyNews), st.news); err != nil {
			return err
		}
	}
	return nil
}

func putJSON(b *bolt.Bucket, key []byte, v any) error {
	value, err := codec.EncodeJSON(key, v)
	if err != nil {
		return err
	}
	return put(b, key, value)
}

func put(b *bolt.Bucket, key, value []byte) error {
	if err := b.Put(key, value); err != nil {
		return fmt.Errorf("store key %x: %w", key, err)
	}
	return nil
}

func remove(b *bolt.Bucket, key []byte) error {
	if err := b.Delete(key); err != nil {
		return fmt.Errorf("delete key %x: %w", key, err)
	}
	return nil
}
