package pipeline

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/ignore"
	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/scan"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/watcher"
)

// noteTimeout bounds the writing of a note about a scan or a source.
const noteTimeout = 30 * time.Second

// Counters are what callbacks of several goroutines share.
type Counters struct {
	gone     atomic.Bool  // the trail says that the source is unavailable
	Unlisted atomic.Int64 // skips of a scan under way that could not be listed
	goneAt   atomic.Int64 // Unix nanoseconds since when it is unavailable, 0: it is available
	LastScan atomic.Pointer[watcher.ScanResult]
	Ended    atomic.Int64 // attempts whose outcome was reported
}

// GoneSince returns since when the source is unavailable, zero when it is available.
func (c *Counters) GoneSince() time.Time {
	if ns := c.goneAt.Load(); ns != 0 {
		return time.Unix(0, ns)
	}
	return time.Time{}
}

// onScan puts a finished scan into the next digest. Unless skips are listed one
// by one, the files that it found unchanged are counted there.
func (s *Source) onScan(r watcher.ScanResult) {
	s.Counters.LastScan.Store(&r)
	s.Session.Metrics.uploader.AddUnchanged(s.Config.Name, r.Unchanged)
	note := archive.ScanNote{
		Trigger: r.Trigger, Start: r.Start, End: r.End, Complete: r.Complete,
		Files: r.Files, New: r.New, Changed: r.Changed, Unchanged: r.Unchanged, Gone: r.Gone,
		Excluded: r.Excluded, Unreadable: r.Unreadable, Special: r.Special, Hardlinks: r.Hardlinks,
		Pseudo: r.Pseudo, Limited: r.Limited, DeletesWithheld: r.Withheld, DeletesHeld: r.Held,
	}
	note.IgnoreFiles, note.IgnoreFilesOmitted = ignoreFiles(r.ConfigFiles)
	ctx, cancel := context.WithTimeout(context.Background(), noteTimeout)
	defer cancel()
	err := s.State.AddScan(ctx, note)
	unlisted := r.Unchanged
	if s.Session.ListSkips {
		unlisted = s.Counters.Unlisted.Swap(0)
	}
	if unlisted > 0 {
		err = errors.Join(err, s.State.AddCounts(ctx, nil, unlisted))
	}
	if err != nil {
		s.Log.Warn("a scan is missing from the next digest", zap.Error(err))
	}
}

// ignoreFiles renders the ignore files that a scan honored, as many as a note
// names, and counts the rest.
func ignoreFiles(found []ignore.File) (list []archive.IgnoreFile, omitted int64) {
	for _, f := range found[:min(len(found), archive.MaxIgnoreFiles)] {
		n := archive.IgnoreFile{Path: f.Path, SHA256: f.SHA256}
		if !utf8.ValidString(f.Path) {
			n.PathB64 = base64.StdEncoding.EncodeToString([]byte(f.Path))
		}
		list = append(list, n)
	}
	return list, int64(len(found) - len(list))
}

// OnAvailable records in the trail that the source became unavailable or came back.
func (s *Source) OnAvailable(ok bool, reason string) {
	if ok {
		s.Counters.goneAt.Store(0)
	} else {
		s.Counters.goneAt.CompareAndSwap(0, time.Now().UnixNano())
	}
	if s.Counters.gone.Swap(!ok) == !ok {
		return // The trail says so already.
	}
	note := archive.Note{Kind: archive.NoteSourceBack, Time: s.Store.Now(), Detail: reason}
	if !ok {
		note.Kind = archive.NoteSourceGone
	}
	ctx, cancel := context.WithTimeout(context.Background(), noteTimeout)
	defer cancel()
	if err := s.State.AddNote(ctx, note); err != nil {
		s.Log.Warn("the source's state is missing from the next digest", zap.Error(err))
	}
}

// SkipRecord is the record of a file that the index alone shows as unchanged.
func (s *Source) SkipRecord(k scan.Known, st safefs.Stat, trigger archive.Trigger) archive.Record {
	key, _ := s.Mapper.Key(k.Path) // No error: it was uploaded under this key.
	r := archive.Record{
		S3Key: key, S3URI: "s3://" + s.Config.Bucket + "/" + key, SizeBytes: &st.Size,
		Status: archive.StatusSkipped, Timestamp: archive.FormatTime(s.Store.Now()),
		Basis: archive.BasisIndex, Trigger: trigger, Source: s.Config.Name, Instance: s.Session.Config.Instance,
	}
	r.SetPath(s.Config.Path + "/" + k.Path)
	return r
}

// Unpublished reports whether documents of the trail still wait for the bucket.
func (s *Source) Unpublished() (bool, error) {
	docs, err := s.State.Outbox()
	if err != nil {
		return false, fmt.Errorf("source %s: %w", s.Config.Name, err)
	}
	if len(docs) > 0 {
		s.Log.Error("documents of the trail are not published yet, the next run publishes them", zap.Int("documents", len(docs)))
	}
	return len(docs) > 0, nil
}
