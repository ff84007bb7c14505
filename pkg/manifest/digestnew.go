package manifest

import (
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// timeOrNull renders t, or nothing for the zero time.
func timeOrNull(t time.Time) *string {
	if t.IsZero() {
		return nil
	}
	s := archive.FormatTime(t)
	return &s
}

// earliest returns when the first digest of a chain begins: with the first
// thing that it tells of.
func earliest(started time.Time, ch archive.Chain) time.Time {
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
func utcScans(scans []archive.ScanNote) []archive.ScanNote {
	out := make([]archive.ScanNote, len(scans))
	for i, s := range scans {
		s.Start, s.End = s.Start.UTC(), s.End.UTC()
		out[i] = s
	}
	return out
}

// utcNotes returns the notes with times as they are written.
func utcNotes(stored, extra []archive.Note) []archive.Note {
	out := make([]archive.Note, 0, len(stored)+len(extra))
	for _, n := range append(append([]archive.Note{}, stored...), extra...) {
		n.Time = n.Time.UTC()
		out = append(out, n)
	}
	return out
}

// newDigest describes what ch has gathered since its last digest.
func (s *sealer) newDigest(ch archive.Chain, counts trail.Counts, reason string, extra []archive.Note, end time.Time) *trail.Digest {
	pending, oldest := s.o.Pending()
	start := ch.LastDigest
	if start.IsZero() {
		if start = earliest(s.started, ch); end.Before(start) {
			start = end
		}
	}
	d := &trail.Digest{
		Version: trail.DigestVersion, Instance: s.o.Instance, Source: s.o.Source,
		Bucket: s.o.Bucket, Prefix: s.o.Mapper.Prefix(), Chain: ch.ID, Sequence: ch.Sequence,
		StartTime: archive.FormatTime(start), EndTime: archive.FormatTime(end),
		Manifests: append([]archive.ManifestRef{}, ch.Manifests...),
		Counts:    counts, UnchangedByIndex: ch.IndexSkips,
		Scans: utcScans(ch.Scans), Events: utcNotes(ch.Notes, extra),
		ConfigSHA256: s.o.ConfigSHA256, S3syncdVersion: s.o.Version,
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
		d.NextDigestDue = timeOrNull(end.Add(s.o.DigestInterval))
	}
	if pending > 0 {
		d.OldestPendingSince = timeOrNull(oldest)
	}
	return d
}
