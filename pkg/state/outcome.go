package state

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/s3syncd/s3syncd/internal/codec"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// Begin draws an attempt number and stores in, so that the write that it
// announces can be recognized whatever happens to its answer. It returns
// ErrKeyBusy while another intent on in.Key is open and not Unresolved.
func (s *Source) Begin(ctx context.Context, in archive.Intent) (attempt uint64, err error) {
	err = s.db.submit(ctx, "begin "+in.Key, func(t *txn) error {
		st, err := t.source(s)
		if err != nil {
			return err
		}
		open, err := readIntents(st, intentPrefix(in.Key))
		if err != nil {
			return err
		}
		for i := range open {
			if !open[i].Unresolved {
				return refuse(ErrKeyBusy)
			}
		}
		in.Attempt = st.NextAttempt
		st.NextAttempt++
		return st.putIntent(&in)
	})
	if err != nil {
		return 0, err
	}
	return in.Attempt, nil
}

// Attempt changes an open intent. The change may be called more than once, each
// time on what is stored; it cannot change Key and Attempt. ErrNoIntent: no
// such intent is open.
func (s *Source) Attempt(ctx context.Context, attempt uint64, key string, change func(*archive.Intent)) error {
	return s.db.submit(ctx, "change the intent on "+key, func(t *txn) error {
		st, err := t.source(s)
		if err != nil {
			return err
		}
		id := intentKey(key, attempt)
		value := st.intents.Get(id)
		if value == nil {
			return refuse(ErrNoIntent)
		}
		in, err := decodeIntent(id, value)
		if err != nil {
			return err
		}
		change(&in)
		in.Key, in.Attempt = key, attempt
		return st.putIntent(&in)
	})
}

// DropIntent removes an intent. One that is gone already is no error.
func (s *Source) DropIntent(ctx context.Context, key string, attempt uint64) error {
	return s.db.submit(ctx, "drop the intent on "+key, func(t *txn) error {
		st, err := t.source(s)
		if err != nil {
			return err
		}
		return remove(st.intents, intentKey(key, attempt))
	})
}

func (st *sourceTxn) putIntent(in *archive.Intent) error {
	return putJSON(st.intents, intentKey(in.Key, in.Attempt), toIntentWire(in))
}

// Commit makes an outcome durable: its index entry, its record and the end of
// its intent, all or nothing. It draws the record's number and returns its id;
// then o.Record's Chain and ID are filled in, and its Timestamp if that was
// empty, never earlier than an earlier record's. Other intents on o.Key stay
// open, and one that is gone already is no error. Many callers share one
// transaction.
func (s *Source) Commit(ctx context.Context, o archive.Outcome) (id string, err error) {
	if err := checkOutcome(&o); err != nil {
		return "", fmt.Errorf("state: commit %q: %w", o.Path, err)
	}
	var entry []byte
	if o.Entry != nil {
		entry = codec.Seal([]byte(o.Path), codec.EncodeEntry(o.Entry))
	}
	var done archive.Record
	err = s.db.submit(ctx, "commit", func(t *txn) error {
		st, err := t.source(s)
		if err != nil {
			return err
		}
		if o.Record != nil {
			done = *o.Record
			if err := st.addRecord(&done); err != nil {
				return err
			}
		}
		if o.Settles != 0 {
			if err := remove(st.intents, intentKey(o.Key, o.Settles)); err != nil {
				return err
			}
		}
		return st.index(&o, entry)
	})
	if err != nil || o.Record == nil {
		return "", err
	}
	o.Record.Chain, o.Record.ID, o.Record.Timestamp = done.Chain, done.ID, done.Timestamp
	return done.ID, nil
}

// MarkSuspect marks the entries of items as suspect, in one transaction, and returns
// how many it marked: those that describe the object that is given, and are not
// suspect yet. What else an attempt changed of them since does not matter.
func (s *Source) MarkSuspect(ctx context.Context, items []archive.Item) (marked int, err error) {
	err = s.update(ctx, "doubt", func(st *sourceTxn) error {
		marked = 0
		for i := range items {
			path := []byte(items[i].Path)
			old := st.files.Get(path)
			if old == nil {
				continue
			}
			e, err := openEntry(path, old)
			if err != nil {
				return err
			}
			if was := &items[i].Entry; e.Attempt != was.Attempt || e.ETag != was.ETag || e.Stored != was.Stored || e.Suspect {
				continue
			}
			e.Suspect = true
			if err := put(st.files, path, codec.Seal(path, codec.EncodeEntry(&e))); err != nil {
				return err
			}
			marked++
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return marked, nil
}

// SuspectAll marks all entries of stored files as suspect, in transactions of
// bounded size: the index may be older than the bucket.
func (s *Source) SuspectAll(ctx context.Context) error {
	var page []archive.Item
	for after := ""; ; after = page[len(page)-1].Path {
		var err error
		if page, err = s.Range(after, rangeChunk, page); err != nil {
			return err
		}
		if _, err := s.MarkSuspect(ctx, slices.DeleteFunc(slices.Clone(page), func(it archive.Item) bool { return !it.Entry.Stored })); err != nil {
			return err
		}
		if len(page) < rangeChunk {
			return nil
		}
	}
}

// checkOutcome refuses outcomes that could not be stored, before they join others.
func checkOutcome(o *archive.Outcome) error {
	switch {
	case o.Entry != nil && o.Remove, o.Failure != nil && (o.Entry != nil || o.Remove):
		return errors.New("an entry cannot be stored, removed or marked at once")
	case (o.Entry != nil || o.Remove || o.Failure != nil) && (o.Path == "" || len(o.Path) > bolt.MaxKeySize):
		return fmt.Errorf("a path of %d bytes cannot be indexed", len(o.Path))
	case o.Record != nil:
		_, err := codec.EncodeRecord(nil, o.Record.Status, nil)
		return err
	}
	return nil
}

// addRecord draws a number for r, fills it in and stores it.
func (st *sourceTxn) addRecord(r *archive.Record) error {
	if st.ID == "" {
		return refuse(ErrNoChain)
	}
	n := st.NextRecord
	r.Chain, r.ID = st.ID, archive.RecordID(st.ID, n)
	st.stamp(r)
	key := recordKey(st.Epoch, n)
	value, err := codec.EncodeRecord(key, r.Status, r.AppendLine(make([]byte, 0, archive.LineGuess)))
	if err != nil {
		return err
	}
	st.NextRecord++
	st.Unpublished++
	st.count(r.Status, 1)
	return put(st.records, key, value)
}

// stamp fills in an empty timestamp, and remembers the newest. One that was far
// in the future is left with an event.
func (st *sourceTxn) stamp(r *archive.Record) {
	if r.Timestamp == "" {
		now := st.now().UTC().Round(0)
		if archive.GoesBack(st.LastStamp, now) {
			st.Notes = extend(st.Notes, archive.ClockNote(st.LastStamp, now))
			st.newsDirty, st.LastStamp = true, now
		}
		st.LastStamp = later(st.LastStamp, now)
		r.Timestamp = archive.FormatTime(st.LastStamp)
		return
	}
	if given, err := time.Parse(time.RFC3339Nano, r.Timestamp); err == nil {
		st.LastStamp = later(st.LastStamp, given.UTC())
	}
}

// index stores or removes the entry of an outcome and keeps the totals.
func (st *sourceTxn) index(o *archive.Outcome, entry []byte) error {
	if o.Failure != nil {
		return st.markFailed(o)
	}
	if entry == nil && !o.Remove {
		return nil
	}
	path := []byte(o.Path)
	if old := st.files.Get(path); old != nil {
		e, err := openEntry(path, old)
		if err != nil {
			return err
		}
		st.total(&e, -1)
		if o.Unasked && o.Entry != nil && e.Suspect {
			doubted := *o.Entry
			doubted.Suspect = true
			entry = codec.Seal(path, codec.EncodeEntry(&doubted))
		}
	}
	if o.Remove {
		return remove(st.files, path)
	}
	st.total(o.Entry, 1)
	return put(st.files, path, entry)
}

// markFailed notes the failure of an outcome in what is stored of its path now:
// a look, or a check of the bucket, may have changed it since it was read.
func (st *sourceTxn) markFailed(o *archive.Outcome) (err error) {
	path := []byte(o.Path)
	var e archive.Entry
	if old := st.files.Get(path); old != nil {
		if e, err = openEntry(path, old); err != nil {
			return err
		}
	}
	e.FailClass, e.FailFence = o.Failure.Class, o.Failure.Fence
	return put(st.files, path, codec.Seal(path, codec.EncodeEntry(&e)))
}

// total adds sign times e to the totals.
func (st *sourceTxn) total(e *archive.Entry, sign int64) {
	if e.Stored {
		st.Files += sign
		st.Bytes += sign * e.Fence.Size
	}
}

// AddNote adds an event for the next digest. A zero time becomes now.
func (l *Ledger) AddNote(ctx context.Context, n archive.Note) error {
	return l.source.update(ctx, "add a note", func(st *sourceTxn) error {
		st.note(n)
		return nil
	})
}

func (st *sourceTxn) note(n archive.Note) {
	if n.Time.IsZero() {
		n.Time = st.now().UTC()
	}
	st.Notes = extend(st.Notes, n)
	st.newsDirty = true
}

// AddScan adds a completed scan for the next digest.
func (l *Ledger) AddScan(ctx context.Context, n archive.ScanNote) error {
	return l.source.update(ctx, "add a scan", func(st *sourceTxn) error {
		st.Scans = extend(st.Scans, n)
		st.newsDirty = true
		return nil
	})
}

// AddCounts adds outcomes whose records are not stored here (streamed lines),
// and skips that the index alone decided, to the next digest's counts.
func (l *Ledger) AddCounts(ctx context.Context, byStatus map[archive.Status]int64, indexSkips int64) error {
	return l.source.update(ctx, "add counts", func(st *sourceTxn) error {
		for status, n := range byStatus {
			st.count(status, n)
		}
		st.IndexSkips += indexSkips
		return nil
	})
}

// ReserveRecords draws n record numbers, from first on, for lines that are
// streamed into a manifest and never stored. They count as unpublished until a
// manifest that reaches beyond them is acknowledged, or SealUnused ends them.
func (l *Ledger) ReserveRecords(ctx context.Context, n uint64) (first uint64, err error) {
	err = l.source.update(ctx, "reserve records", func(st *sourceTxn) error {
		if st.ID == "" {
			return refuse(ErrNoChain)
		}
		first = st.NextRecord
		st.NextRecord += n
		st.Unpublished += int64(n)
		return nil
	})
	if err != nil {
		return 0, err
	}
	return first, nil
}

// update makes a change of s durable.
func (s *Source) update(ctx context.Context, op string, change func(*sourceTxn) error) error {
	return s.db.submit(ctx, op, func(t *txn) error {
		st, err := t.source(s)
		if err != nil {
			return err
		}
		return change(st)
	})
}

// extend appends to a slice that others may hold.
func extend[T any](s []T, v T) []T { return append(slices.Clip(s), v) }

// later returns the later of two times.
func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
