package manifest

import (
	"bytes"
	"errors"
	"os"
	"time"

	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// statusOf returns the status that a line of our own says. The key cannot occur
// in a string before it, where its quotes would be escaped.
func statusOf(line []byte) state.Status {
	_, rest, _ := bytes.Cut(line, []byte(`"status":"`))
	status, _, _ := bytes.Cut(rest, []byte{'"'})
	return state.Status(status)
}

// countFile counts the records of a local manifest by status.
func countFile(file string) (c trail.Counts, err error) {
	r, err := os.Open(file)
	if err != nil {
		return c, err
	}
	n, _ := trail.ParseName(file)
	err = trail.EachLine(r, n.Hive, func(line []byte) error {
		c.Add(statusOf(line))
		return nil
	})
	return c, errors.Join(err, r.Close())
}

// timeOrNull renders t, or nothing for the zero time.
func timeOrNull(t time.Time) *string {
	if t.IsZero() {
		return nil
	}
	s := state.FormatTime(t)
	return &s
}

// earliest returns when the first digest of a chain begins: with the first
// thing that it tells of.
func earliest(started time.Time, ch state.Chain) time.Time {
	for _, n := range ch.Notes {
		if n.Time.Before(started) {
			started = n.Time
		}
	}
	for _, s := range ch.Scans {
		if s.Start.Before(started) {
			started = s.Start
		}
	}
	return started
}

// utcScans returns the scans with times as they are written.
func utcScans(scans []state.ScanNote) []state.ScanNote {
	out := make([]state.ScanNote, len(scans))
	for i, s := range scans {
		s.Start, s.End = s.Start.UTC(), s.End.UTC()
		out[i] = s
	}
	return out
}

// utcNotes returns the notes with times as they are written.
func utcNotes(stored, extra []state.Note) []state.Note {
	out := make([]state.Note, 0, len(stored)+len(extra))
	for _, n := range append(append([]state.Note{}, stored...), extra...) {
		n.Time = n.Time.UTC()
		out = append(out, n)
	}
	return out
}

// newDigest describes what ch has gathered since its last digest.
func (f *Flusher) newDigest(ch state.Chain, counts trail.Counts, reason string, extra []state.Note, end time.Time) *trail.Digest {
	pending, oldest := f.o.Pending()
	start := ch.LastDigest
	if start.IsZero() {
		if start = earliest(f.started, ch); end.Before(start) {
			start = end
		}
	}
	d := &trail.Digest{
		Version: trail.DigestVersion, Instance: f.o.Instance, Source: f.o.Source,
		Bucket: f.o.Bucket, Prefix: f.o.Mapper.Prefix(), Chain: ch.ID, Sequence: ch.Sequence,
		StartTime: state.FormatTime(start), EndTime: state.FormatTime(end),
		Manifests: append([]state.ManifestRef{}, ch.Manifests...),
		Counts:    counts, UnchangedByIndex: ch.IndexSkips,
		Scans: utcScans(ch.Scans), Events: utcNotes(ch.Notes, extra),
		ConfigSHA256: f.o.ConfigSHA256, S3syncdVersion: f.o.Version,
		Reason: reason, Pending: pending,
	}
	if ch.ConfigSHA != "" {
		d.ConfigSHA256 = ch.ConfigSHA
	}
	if n := len(d.Scans); n > 0 {
		last := d.Scans[n-1]
		d.Excluded, d.Unreadable, d.Special = &last.Excluded, &last.Unreadable, &last.Special
		d.Hardlinks = last.Hardlinks
	}
	if ch.PrevKey == "" {
		d.Begins, d.AbandonsChain, d.AbandonsDigestSHA256 = ch.Begins, ch.AbandonsChain, ch.AbandonsSHA256
	} else {
		d.PreviousDigestS3Key, d.PreviousDigestSHA256 = &ch.PrevKey, &ch.PrevSHA256
	}
	if reason != trail.ReasonStop && reason != trail.ReasonFinal {
		d.NextDigestDue = timeOrNull(end.Add(f.o.DigestInterval))
	}
	if pending > 0 {
		d.OldestPendingSince = timeOrNull(oldest)
	}
	return d
}
