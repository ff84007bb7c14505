package audit

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/s3syncd/s3syncd/internal/bundle"
	"github.com/s3syncd/s3syncd/internal/pipeline"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/verify"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// historyWorkers is how many requests a history makes at once.
const historyWorkers = 8

// HistoryOptions are what a history needs from outside.
type HistoryOptions struct {
	Origin   Origin
	Instance string    // "": of all
	File     string    // a key, an s3:// URI, or a path
	At       time.Time // up to then; zero: all
	Bundle   string    // also write what proves the last record to this file, "": no
	Head     string    // the SHA-256 of the digest that the bundle ends with, "": the first signed one, else the newest
	Stderr   io.Writer

	Show func(trail.HistoryItem) error // each record, oldest first
}

// HistorySummary is what a history found.
type HistorySummary struct {
	Records int64
	Faults  []string // documents that were not read or not believed, and why
	Proven  string   // the id of the record in the bundle
	Digests int      // in the bundle
}

// History shows every record of one file, oldest first, and writes the bundle
// that proves what S3 holds of it. A file that the trail does not know is an
// error.
func History(ctx context.Context, o HistoryOptions) (HistorySummary, error) {
	log, err := plainLogger(o.Stderr)
	if err != nil {
		return HistorySummary{}, err
	}
	store, err := o.Origin.open(ctx, historyWorkers, log)
	if err != nil {
		return HistorySummary{}, err
	}
	defer store.CloseIdle()
	h := &history{o: o, trail: trail.NewTrail(store, o.Origin.mapper().Prefix()), objects: store}
	err = h.run(ctx)
	return h.sum, pipeline.Interrupted(ctx, err)
}

type history struct {
	o       HistoryOptions
	trail   *trail.Trail
	objects bundle.Header
	sum     HistorySummary
	latest  trail.Latest
}

func (h *history) run(ctx context.Context) error {
	for _, match := range h.meanings() {
		if err := h.read(ctx, match); err != nil {
			return err
		}
		if h.sum.Records > 0 {
			break
		}
	}
	if n := len(h.sum.Faults); h.sum.Records == 0 && n > 0 {
		return fmt.Errorf("no record of %q in what could be read under %s; documents that could not be: %d", h.o.File, h.o.Origin.trail(), n)
	}
	if h.sum.Records == 0 {
		return fmt.Errorf("no record of %q under %s", h.o.File, h.o.Origin.trail())
	}
	if h.o.Bundle == "" {
		return nil
	}
	return h.bundle(ctx)
}

// meanings are what the file that was asked for can be, in the order in which
// they are tried: a key of the prefix, then a path.
func (h *history) meanings() []func(*archive.Record) bool {
	file, o := h.o.File, h.o.Origin
	prefix := o.mapper().Prefix()
	byKey := func(key string) func(*archive.Record) bool {
		return func(r *archive.Record) bool { return r.S3Key == key }
	}
	if key, ok := strings.CutPrefix(file, "s3://"+o.Bucket+"/"); ok {
		return []func(*archive.Record) bool{byKey(key)}
	}
	var all []func(*archive.Record) bool
	if strings.HasPrefix(file, prefix) && !strings.HasPrefix(file, "/") {
		all = append(all, byKey(file))
	}
	if rel, err := o.below(file); err == nil && rel != "" {
		if key, err := o.mapper().Key(rel); err == nil && (len(all) == 0 || key != file) {
			all = append(all, byKey(key))
		}
	}
	if strings.HasPrefix(file, "/") {
		all = append(all, func(r *archive.Record) bool { return localPath(r) == file })
	}
	return all
}

// localPath returns the raw path of a record's file.
func localPath(r *archive.Record) string {
	if raw, err := base64.StdEncoding.DecodeString(r.LocalPathB64); err == nil && len(raw) > 0 {
		return string(raw)
	}
	return r.LocalPath
}

func (h *history) read(ctx context.Context, match func(*archive.Record) bool) error {
	h.sum.Faults = nil
	return h.trail.History(ctx, trail.HistoryQuery{
		Match: match, At: h.o.At, Instance: h.o.Instance,
		Distrust: func(key string, err error) error {
			why := "not read: "
			if verify.Unbelieved(err) {
				why = "not believed: "
			}
			h.sum.Faults = append(h.sum.Faults, why+key+": "+strings.TrimPrefix(strings.TrimPrefix(err.Error(), "get "), key+": "))
			return nil
		},
	}, func(it trail.HistoryItem) error {
		h.sum.Records++
		h.latest.Add(it)
		return h.o.Show(it)
	})
}

// bundle writes what proves the last record that says what S3 holds.
func (h *history) bundle(ctx context.Context) error {
	if !h.latest.OK {
		return errors.New("--bundle: no record says what S3 holds of this file")
	}
	b, err := bundle.New(ctx, h.trail, h.objects, h.latest.Item, strings.ToLower(h.o.Head), time.Now())
	if err != nil {
		return fmt.Errorf("--bundle: %w", err)
	}
	data, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return fmt.Errorf("--bundle: %w", err)
	}
	h.sum.Proven, h.sum.Digests = h.latest.Item.Record.ID, len(b.Digests)
	if err := safefs.WriteFile(h.o.Bundle, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("--bundle: %w", err)
	}
	return nil
}
