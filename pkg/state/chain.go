package state

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/s3syncd/s3syncd/internal/codec"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// Bounds of one step over the records: the lines that one read transaction
// copies, and the records that one write transaction deletes.
const (
	recordChunk      = 1024
	recordChunkBytes = 1 << 20
	deleteChunk      = 10_000
)

// Ledger is the records of one source, and the documents that are made of them:
// its chain and its outbox. It is a part of Source, with the same rules.
type Ledger struct{ source *Source }

// Chain returns the head of the chain and what the next digest needs. It is the
// caller's own copy.
func (l *Ledger) Chain() (archive.Chain, error) {
	if l.source.db.closed.Load() {
		return archive.Chain{}, fmt.Errorf("state: chain: %w", ErrClosed)
	}
	return l.source.head.Load().chain(), nil
}

// NextAttempt returns the number that the next intent draws: every entry with a
// lower one was written before.
func (l *Ledger) NextAttempt() uint64 { return l.source.head.Load().NextAttempt }

// BeginChain begins a new chain with the given id of 8 hex digits. Sequence and
// record numbers begin at 1 and there is no predecessor. Records that no sealed
// manifest of the old chain holds become the new chain's first records, with its
// numbers and ids; numbers that were reserved move with them. The outbox stays,
// so that what the old chain has sealed is published first. Scans, notes and
// skips that no digest has told yet are kept, and Counts are those of the
// records that moved. Attempt numbers go on.
func (l *Ledger) BeginChain(ctx context.Context, id string, begins archive.Begins, abandonsChain, abandonsSHA string) error {
	if !regexp.MustCompile(`^[0-9a-f]{8}$`).MatchString(id) {
		return fmt.Errorf("state: begin chain: the id %q is not 8 hex digits", id)
	}
	return l.source.update(ctx, "begin chain", func(st *sourceTxn) error {
		st.begin(id, begins, abandonsChain, abandonsSHA)
		st.newsDirty = true
		st.Counts = nil
		_, err := st.scan(0, st.NextRecord-1, func(_ uint64, _, value []byte) (bool, error) {
			status, err := codec.StatusOf(value)
			if err == nil {
				st.count(status, 1)
			}
			return true, err
		})
		return err
	})
}

// scan calls fn for the stored records of the chain with numbers in
// (after, upTo], in order, until it returns false.
func (st *sourceTxn) scan(after, upTo uint64, fn func(number uint64, key, value []byte) (bool, error)) (ended bool, err error) {
	c := st.records.Cursor()
	for _, seg := range st.segments() {
		if seg.Last <= seg.Shift || after >= seg.Last-seg.Shift {
			continue
		}
		first := max(after+seg.Shift, seg.After) + 1
		last := min(upTo, seg.Last-seg.Shift) + seg.Shift
		end := recordKey(seg.Epoch, last)
		for key, value := c.Seek(recordKey(seg.Epoch, first)); key != nil && bytes.Compare(key, end) <= 0; key, value = c.Next() {
			if len(key) != len(end) {
				return false, codec.Damaged("record %x is not one", key)
			}
			more, err := fn(binary.BigEndian.Uint64(key[4:])-seg.Shift, key, value)
			if err != nil || !more {
				return false, err
			}
		}
	}
	return true, nil
}

// line is one record, copied out of its transaction.
type line struct {
	number uint64
	status archive.Status
	text   []byte
}

// Records calls fn for each stored record with a number in (after, upTo], in
// order; reserved numbers have none. A line is the record's JSON without a
// newline and is valid until fn returns. No transaction is open while fn runs,
// so it may take its time and use the state. An error of fn ends the iteration
// and is returned as it is.
func (l *Ledger) Records(after, upTo uint64, fn func(number uint64, status archive.Status, line []byte) error) error {
	for {
		lines, ended, err := l.readLines(after, upTo)
		if err != nil {
			return err
		}
		for _, l := range lines {
			if err := fn(l.number, l.status, l.text); err != nil {
				return err
			}
			after = l.number
		}
		if ended {
			return nil
		}
	}
}

// readLines reads the next chunk of records, and true with the last one.
func (l *Ledger) readLines(after, upTo uint64) (lines []line, ended bool, err error) {
	err = l.source.view("records", func(st *sourceTxn) error {
		if st.head, err = loadHead(st.root); err != nil {
			return err
		}
		size := 0
		ended, err = st.scan(after, upTo, func(number uint64, key, value []byte) (bool, error) {
			status, text, err := codec.DecodeRecord(key, value)
			if err != nil {
				return false, err
			}
			if text, err = st.line(number, key, text); err != nil {
				return false, err
			}
			lines = append(lines, line{number: number, status: status, text: text})
			size += len(text)
			return len(lines) < recordChunk && size < recordChunkBytes, nil
		})
		return err
	})
	return lines, ended, err
}

// line returns a copy of a record's line, with this chain's ids if an earlier
// chain has written it.
func (st *sourceTxn) line(number uint64, key, text []byte) ([]byte, error) {
	if binary.BigEndian.Uint32(key) == st.Epoch {
		return bytes.Clone(text), nil
	}
	var r archive.Record
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, codec.Damaged("record %x: %w", key, err)
	}
	r.Chain, r.ID = st.ID, archive.RecordID(st.ID, number)
	return r.AppendLine(nil), nil
}

// SealManifest puts a manifest into the outbox. In d.LastRecord is the number up
// to which it accounts for the chain's records. In one transaction the chain is
// sealed up to there, and ref is kept for the next digest. Doc numbers are drawn
// here; d.Number is ignored.
func (l *Ledger) SealManifest(ctx context.Context, d archive.Doc, ref archive.ManifestRef, namedAt time.Time) error {
	return l.source.update(ctx, "seal manifest", func(st *sourceTxn) error {
		if d.Kind != archive.KindManifest || d.LastRecord < st.SealedTo || d.LastRecord >= st.NextRecord {
			return refuse(fmt.Errorf("a %s up to record %d does not follow %d of %d: %w",
				d.Kind, d.LastRecord, st.SealedTo, st.NextRecord-1, ErrStale))
		}
		w := toDocWire(&d)
		w.Covers = d.LastRecord - st.SealedTo
		st.SealedTo = d.LastRecord
		st.Manifests = extend(st.Manifests, ref)
		st.newsDirty = true
		return st.send(&w, namedAt)
	})
}

// SealUnused ends numbers up to upTo that were reserved and have no line: a run
// that reserved them did not come to its seal, or used fewer. Nothing waits for
// them any more. ErrStale: a record is stored among them, or they are not drawn.
func (l *Ledger) SealUnused(ctx context.Context, upTo uint64) error {
	return l.source.update(ctx, "seal unused numbers", func(st *sourceTxn) error {
		if upTo < st.SealedTo || upTo >= st.NextRecord {
			return refuse(fmt.Errorf("numbers up to %d do not follow %d of %d: %w", upTo, st.SealedTo, st.NextRecord-1, ErrStale))
		}
		stored := false
		_, err := st.scan(st.SealedTo, upTo, func(uint64, []byte, []byte) (bool, error) {
			stored = true
			return false, nil
		})
		switch {
		case err != nil:
			return err
		case stored:
			return refuse(fmt.Errorf("a record up to %d is not sealed: %w", upTo, ErrStale))
		}
		st.Unpublished -= int64(upTo - st.SealedTo)
		st.SealedTo = upTo
		return nil
	})
}

// SealDigest puts a digest into the outbox and moves the chain's head to it.
// The Chain that the digest was written from is sealed: what it had is taken
// out of the chain, and what was added since stays for the next digest. Its
// Counts must be those of the records that the digest's manifests hold.
// ErrStale: sealed is not of the chain and sequence that is current.
func (l *Ledger) SealDigest(ctx context.Context, d archive.Doc, sealed archive.Chain, endTime, namedAt time.Time) error {
	return l.source.update(ctx, "seal digest", func(st *sourceTxn) error {
		if sealed.ID != st.ID || sealed.Sequence != st.Sequence {
			return refuse(fmt.Errorf("digest %s-%d: %w", sealed.ID, sealed.Sequence, ErrStale))
		}
		if d.Kind != archive.KindDigest || d.LastRecord > st.SealedTo {
			return refuse(fmt.Errorf("a %s up to record %d, with %d sealed: %w", d.Kind, d.LastRecord, st.SealedTo, ErrStale))
		}
		if len(sealed.Manifests) > len(st.Manifests) || len(sealed.Scans) > len(st.Scans) || len(sealed.Notes) > len(st.Notes) {
			return refuse(errors.New("the digest tells more than the chain has"))
		}
		st.Manifests = slices.Concat(st.Manifests[len(sealed.Manifests):])
		st.Scans = slices.Concat(st.Scans[len(sealed.Scans):])
		st.Notes = slices.Concat(st.Notes[len(sealed.Notes):])
		st.newsDirty = true
		for status, n := range sealed.Counts {
			st.count(status, -n)
		}
		st.IndexSkips -= sealed.IndexSkips
		st.Sequence++
		st.PrevKey, st.PrevSHA256 = d.Key, d.SHA256
		st.LastDigest, st.Ended = endTime.UTC(), d.Final
		w := toDocWire(&d)
		w.Deletes = st.stored(d.LastRecord)
		return st.send(&w, namedAt)
	})
}

// Looked stores until when the bucket was searched for chains that left this one.
func (l *Ledger) Looked(ctx context.Context, until time.Time) error {
	return l.source.update(ctx, "note a look at other chains", func(st *sourceTxn) error {
		st.LookedTo = later(st.LookedTo, until.UTC())
		return nil
	})
}

// SealConfig puts a configuration document into the outbox and remembers its
// hash.
func (l *Ledger) SealConfig(ctx context.Context, d archive.Doc, sha string) error {
	return l.source.update(ctx, "seal configuration", func(st *sourceTxn) error {
		if d.Kind != archive.KindConfig {
			return refuse(fmt.Errorf("a %s is not a configuration", d.Kind))
		}
		w := toDocWire(&d)
		st.ConfigSHA = sha
		return st.send(&w, time.Time{})
	})
}

// send appends a document to the outbox.
func (st *sourceTxn) send(w *docWire, namedAt time.Time) error {
	if !namedAt.IsZero() {
		st.LastNamed = namedAt.UTC()
	}
	key := numberKey(st.NextDoc)
	st.NextDoc++
	return putJSON(st.outbox, key, w)
}

// Outbox returns the sealed documents that are not acknowledged yet, in the
// order in which they are to be published.
func (l *Ledger) Outbox() ([]archive.Doc, error) {
	var docs []archive.Doc
	err := l.source.view("outbox", func(st *sourceTxn) (err error) {
		docs, err = readOutbox(st.outbox)
		return err
	})
	return docs, err
}

// readOutbox decodes the documents in an outbox, in order.
func readOutbox(outbox *bolt.Bucket) ([]archive.Doc, error) {
	var docs []archive.Doc
	for key, value := range entries(outbox.Cursor()) {
		var w docWire
		if err := codec.DecodeJSON(key, value, &w); err != nil {
			return nil, err
		}
		if len(key) != 8 {
			return nil, codec.Damaged("document %x: the key is no number", key)
		}
		docs = append(docs, w.doc(binary.BigEndian.Uint64(key)))
	}
	return docs, nil
}

// Published takes an acknowledged document out of the outbox. With a digest go
// the records that it and its predecessors account for, in transactions of
// bounded size; if that is interrupted the document is still there, and the next
// call continues. A number that is not in the outbox has been taken out before:
// no error.
func (l *Ledger) Published(ctx context.Context, number uint64) error {
	for {
		ended := false
		err := l.source.update(ctx, "published", func(st *sourceTxn) (err error) {
			ended, err = st.published(number)
			return err
		})
		if err != nil || ended {
			return err
		}
	}
}

// published does one bounded step of Published.
func (st *sourceTxn) published(number uint64) (ended bool, err error) {
	key := numberKey(number)
	value := st.outbox.Get(key)
	if value == nil {
		return true, nil
	}
	var w docWire
	if err := codec.DecodeJSON(key, value, &w); err != nil {
		return false, err
	}
	if w.Kind == archive.KindDigest {
		n, err := st.deleteRecords(w.Deletes)
		if err != nil || n == deleteChunk {
			return false, err
		}
		for len(st.Moved) > 0 && bytes.Compare(recordKey(st.Moved[0].Epoch, st.Moved[0].Last), w.Deletes) <= 0 {
			st.Moved = st.Moved[1:]
		}
	}
	st.Unpublished -= int64(w.Covers)
	return true, remove(st.outbox, key)
}

// deleteRecords deletes up to deleteChunk records stored at or below the key
// to. In the order of the keys they are the oldest, whatever chain they are of.
func (st *sourceTxn) deleteRecords(to []byte) (int, error) {
	var keys [][]byte
	for key := range entries(st.records.Cursor()) {
		if bytes.Compare(key, to) > 0 || len(keys) == deleteChunk {
			break
		}
		keys = append(keys, bytes.Clone(key))
	}
	for _, key := range keys {
		if err := remove(st.records, key); err != nil {
			return 0, err
		}
	}
	return len(keys), nil
}
