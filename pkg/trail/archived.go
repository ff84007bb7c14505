package trail

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/s3syncd/s3syncd/internal/extsort"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// maxHeads bounds how many digests of an abandoned chain are read to find the one
// that its successor names.
const maxHeads = 1000

// Head is a digest that a reader trusts.
type Head struct {
	Chain  string
	Key    string // "": the chain's digest with this hash
	SHA256 string // "": not known, the newest of the chain is believed
}

// Archived calls fn for each key below prefix, in the order of the keys' bytes,
// with the last record that says which object S3 holds of it, whether the file is
// still there or not. It believes what leads from the heads back by hashes, and
// nothing else that is in the bucket, so a chain that was added says
// nothing. The walk ends where a document is missing or is another one: broken is
// told, and what lies before is not known. Records of pending, optional, are
// those of the state that no digest names yet.
//
// Memory does not grow with the number of records, the disk below tempDir does.
func (t *Trail) Archived(ctx context.Context, head Head, prefix, tempDir string, pending func(fn func(line []byte) error) error, broken func(key string, err error), fn func(archive.Record) error) error {
	w := &walk{t: t, sort: extsort.NewSorter(tempDir, defaultQueryMemory), prefix: prefix, tempDir: tempDir}
	defer w.sort.Close()
	if pending != nil {
		err := pending(func(line []byte) error {
			r, err := parseRecord(line)
			if err != nil {
				return err
			}
			return w.add(&r, line)
		})
		if err != nil {
			return err
		}
	}
	var fault *brokenError
	if err := w.back(ctx, head); errors.As(err, &fault) {
		broken(fault.key, fault.err)
	} else if err != nil {
		return err
	}
	return foldObjects(ctx, w.sort, fn)
}

// brokenError says at which document a walk ended that has no further to go.
type brokenError struct {
	key string
	err error
}

func (e *brokenError) Error() string { return e.key + ": " + e.err.Error() }

// Unwrap returns what is wrong with the document.
func (e *brokenError) Unwrap() error { return e.err }

// walk goes back through digests. What it meets later happened earlier.
type walk struct {
	t               *Trail
	sort            *extsort.Sorter
	prefix, tempDir string
	steps           int64
}

// back walks from head to the beginning of the first chain.
func (w *walk) back(ctx context.Context, head Head) error {
	seen := map[string]bool{}
	for head.Chain != "" || head.Key != "" {
		if head.Key == "" {
			if seen[head.Chain] {
				return &brokenError{head.Chain, fmt.Errorf("%w: the chain follows itself", ErrFormat)}
			}
			seen[head.Chain] = true
			found, err := w.find(ctx, head)
			if err != nil || found.Key == "" {
				return err
			}
			head = found
		}
		d, err := w.digest(ctx, head)
		if err != nil {
			return err
		}
		head = before(&d)
	}
	return nil
}

// before is the digest that d follows.
func before(d *Digest) Head {
	if d.PreviousDigestS3Key != nil && d.PreviousDigestSHA256 != nil {
		return Head{Chain: d.Chain, Key: *d.PreviousDigestS3Key, SHA256: *d.PreviousDigestSHA256}
	}
	return Head{Chain: d.AbandonsChain, SHA256: d.AbandonsDigestSHA256}
}

// find looks for the digest of head's chain by its hash.
func (w *walk) find(ctx context.Context, head Head) (Head, error) {
	chains, err := w.t.Chains(ctx)
	if err != nil {
		return Head{}, err
	}
	for i := range chains {
		if chains[i].ID != head.Chain {
			continue
		}
		list := chains[i].Digests
		for n := len(list) - 1; n >= max(0, len(list)-maxHeads); n-- {
			_, sha, err := w.t.Digest(ctx, list[n].Key)
			if err == nil && (head.SHA256 == "" || sha == head.SHA256) {
				return Head{Chain: head.Chain, Key: list[n].Key, SHA256: sha}, nil
			}
			if err != nil && Temporary(err) {
				return Head{}, err
			}
		}
	}
	if head.SHA256 == "" {
		return Head{}, nil // It has no digest.
	}
	return Head{}, &brokenError{head.Chain, fmt.Errorf("%w: no digest of this chain has the hash that is known of it", fs.ErrNotExist)}
}

// digest reads one digest and the records of its manifests.
func (w *walk) digest(ctx context.Context, head Head) (Digest, error) {
	d, sha, err := w.t.Digest(ctx, head.Key)
	if err == nil && sha != head.SHA256 {
		err = ErrHash
	}
	if err != nil {
		return d, walkError(ctx, head.Key, err)
	}
	w.steps++
	for _, m := range d.Manifests {
		if err := w.manifest(ctx, m); err != nil {
			return d, err
		}
	}
	return d, nil
}

func (w *walk) manifest(ctx context.Context, m archive.ManifestRef) error {
	s, err := w.t.fetch(ctx, m.S3Key, m.SHA256, w.tempDir)
	if err != nil {
		return walkError(ctx, m.S3Key, err)
	}
	defer s.close()
	return s.records(w.add)
}

// walkError tells an answer that did not come from a document that is wrong.
func walkError(ctx context.Context, key string, err error) error {
	if ctx.Err() != nil || Temporary(err) || Refused(err) {
		return err
	}
	return &brokenError{key, err}
}

// add keeps a record that says something of an object.
func (w *walk) add(r *archive.Record, raw []byte) error {
	if r.Status == archive.StatusFailed || len(r.S3Key) < len(w.prefix) || r.S3Key[:len(w.prefix)] != w.prefix {
		return nil
	}
	return w.sort.Add(r.S3Key, -w.steps, raw)
}

// foldObjects calls fn with the object that the records of each key leave.
func foldObjects(ctx context.Context, srt *extsort.Sorter, fn func(archive.Record) error) error {
	var held *archive.Record
	key := ""
	tell := func() error {
		if held == nil {
			return ctx.Err()
		}
		r := *held
		held = nil
		return errors.Join(ctx.Err(), fn(r))
	}
	err := srt.Each(func(k, raw []byte) error {
		if string(k) != key {
			if err := tell(); err != nil {
				return err
			}
			key = string(k)
		}
		r, err := parseRecord(raw)
		if err != nil {
			return err
		}
		held = objectAfter(held, &r)
		return nil
	})
	if err != nil {
		return err
	}
	return tell()
}

// objectAfter is the record of the object that is under a key after r, when
// held was the one before: a file that is gone says nothing of its object unless
// that was deleted too.
func objectAfter(held, r *archive.Record) *archive.Record {
	switch {
	case r.Status == archive.StatusDeleted && r.Attempt != 0:
		return nil
	case r.Status == archive.StatusDeleted, r.ETag == "" && r.VersionID == "":
		return held
	case held != nil && r.Status != archive.StatusUploaded:
		next := *r
		fillContent(&next, held)
		return &next
	}
	return r
}
