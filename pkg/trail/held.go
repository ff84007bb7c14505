package trail

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/s3syncd/s3syncd/internal/extsort"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// fold calls fn with what the records of each key come to.
func fold(ctx context.Context, srt *extsort.Sorter, fn func(Held) error) error {
	var h holding
	key, begun := "", false
	tell := func() error {
		if !begun {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return fn(h.held())
	}
	err := srt.Each(func(k, raw []byte) error {
		if !begun || string(k) != key {
			if err := tell(); err != nil {
				return err
			}
			h, key, begun = holding{}, string(k), true
		}
		r, err := parseRecord(raw)
		if err != nil {
			return err
		}
		h.add(&r)
		return nil
	})
	if err != nil {
		return err
	}
	return tell()
}

// holding is what S3 holds under one key, and whether the file is there, as its
// records say one by one.
type holding struct {
	has   bool
	rec   archive.Record // what was stored last
	gone  *archive.Record
	alive bool
}

// add brings h up to date with the next record.
func (h *holding) add(r *archive.Record) {
	switch r.Status {
	case archive.StatusDeleted:
		h.gone, h.alive = r, false
		if r.Attempt != 0 {
			h.has, h.rec = false, archive.Record{} // The object was deleted, too.
		}
	case archive.StatusUploaded:
		h.has, h.rec, h.gone, h.alive = true, *r, nil, true
	case archive.StatusRekeyed:
		h.rekeyed(*r)
	case archive.StatusSkipped:
		if h.has && sameContent(&h.rec, r) {
			observe(&h.rec, r)
		} else {
			h.has, h.rec = true, *r
		}
		h.gone, h.alive = nil, true
	case archive.StatusFailed:
	}
}

// rekeyed applies a record of a rekey, which says nothing of the file. That
// the content is the one before is known where the object is.
func (h *holding) rekeyed(next archive.Record) {
	before := h.rec.ETag
	switch {
	case !h.has, before != "" && before != next.ReplacedETag && before != next.ETag:
		next.Basis = archive.BasisMetadata
	default:
		next.Basis = h.rec.Basis
		fillContent(&next, &h.rec)
	}
	h.has, h.rec, h.gone = true, next, nil
}

// held returns what the records come to.
func (h *holding) held() Held {
	if h.gone == nil {
		return Held{Record: h.rec, Gone: !h.alive}
	}
	held := Held{Record: *h.gone, Gone: true}
	if h.has {
		kept := h.rec // h is used again.
		held.Kept = &kept
	}
	return held
}

// sameContent reports whether a skip says nothing else of the content than rec.
func sameContent(rec, skip *archive.Record) bool {
	if rec.SizeBytes != nil && skip.SizeBytes != nil && *rec.SizeBytes != *skip.SizeBytes {
		return false
	}
	switch {
	case rec.SHA256 != "" && skip.SHA256 != "":
		return rec.SHA256 == skip.SHA256
	case rec.MD5 != "" && skip.MD5 != "":
		return rec.MD5 == skip.MD5
	case rec.ETag != "" && skip.ETag != "":
		return rec.ETag == skip.ETag
	}
	return true
}

// observe adds to rec what a later skip of the same content says.
func observe(rec, skip *archive.Record) {
	if skip.MTime != "" {
		rec.MTime, rec.Mode, rec.UID, rec.GID = skip.MTime, skip.Mode, skip.UID, skip.GID
	}
	if skip.ETag != "" && skip.ETag != rec.ETag {
		// Someone stored the same content again: the object is not that upload's.
		rec.ETag, rec.VersionID, rec.Attempt, rec.RequestID = skip.ETag, skip.VersionID, 0, ""
		rec.Basis = skip.Basis
	}
	if skip.Basis == archive.BasisETag {
		rec.Basis = skip.Basis // What metadata said is proven.
	}
	replace(&rec.VersionID, skip.VersionID)
	replace(&rec.KMSKeyID, skip.KMSKeyID)
	replace(&rec.SSE, skip.SSE)
	replace(&rec.SHA256, skip.SHA256)
	replace(&rec.MD5, skip.MD5)
	rec.LocalPath, rec.LocalPathB64 = skip.LocalPath, skip.LocalPathB64
}

// replace sets dst to v where v says something.
func replace(dst *string, v string) {
	if v != "" {
		*dst = v
	}
}

// fillContent adds to a rekeyed record what the one before it says of the
// content and the file.
func fillContent(next, before *archive.Record) {
	if next.SizeBytes == nil {
		next.SizeBytes = before.SizeBytes
	}
	if next.MD5 == "" && next.SHA256 == "" {
		next.MD5, next.SHA256 = before.MD5, before.SHA256
	}
	if next.MTime == "" {
		next.MTime, next.Mode, next.UID, next.GID = before.MTime, before.Mode, before.UID, before.GID
	}
}

// parseRecord reads a record that was read before.
func parseRecord(raw []byte) (archive.Record, error) {
	var r archive.Record
	if err := json.Unmarshal(raw, &r); err != nil {
		return r, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return r, nil
}
