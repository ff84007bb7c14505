package admin

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// timeForm is how times are shown: UTC, to the second.
const timeForm = "2006-01-02 15:04:05Z"

// shown bounds the lines of each list that Text writes.
const shown = 10

// Text writes s for an operator: a sentence per source first, then the details. It
// has no escape sequences and one line a fact, so that watch(1) shows it well.
func (s *Status) Text(w io.Writer) error {
	var b strings.Builder
	for i := range s.Sources {
		b.WriteString(s.Sources[i].Sentence + "\n")
	}
	if len(s.Sources) == 0 {
		fmt.Fprintf(&b, "%s for %s: no source is in use yet\n", s.State, Duration(s.Time.Sub(s.StartedAt)))
	}
	fmt.Fprintf(&b, "\ns3syncd %s on %s, process %d, %s for %s; now %s\n",
		s.Version, s.Instance, s.PID, s.State, Duration(s.Time.Sub(s.StartedAt)), s.Time.Format(timeForm))
	if l := s.LastReload; l != nil && !l.Successful {
		fmt.Fprintf(&b, "the configuration that was read at %s is not in force: %s\n", l.At.Format(timeForm), l.Error)
	}
	for i := range s.Sources {
		s.Sources[i].text(&b, s.Time)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// line writes one fact under its heading.
func line(b *strings.Builder, heading, format string, args ...any) {
	fmt.Fprintf(b, "  %-10s %s\n", heading, fmt.Sprintf(format, args...))
}

func (s *SourceStatus) text(b *strings.Builder, now time.Time) {
	fmt.Fprintf(b, "\n%s: %s -> s3://%s\n", s.Name, strconv.Quote(s.Path), strings.TrimSuffix(s.Bucket+"/"+s.Prefix, "/"))
	if !s.Available {
		reason := s.UnavailableReason
		if reason == "" {
			reason = "not looked at yet"
		}
		line(b, "directory", "not available: %s", reason)
	}
	if s.DeletesWithheld {
		line(b, "directory", "another one is in its place: nothing counts as deleted until 'rescan --confirm-deletes'")
	}
	line(b, "in S3", "%s files, %s", Count(s.Indexed.Files), Bytes(s.Indexed.Bytes))
	line(b, "outcomes", "%s since the start", counts(s.Outcomes))
	oldest := ""
	if s.Queue.Oldest != nil {
		oldest = "; the oldest since " + s.Queue.Oldest.Format(timeForm)
	}
	line(b, "queue", "%s settling, %s queued, %s in flight, %s delayed%s", Count(s.Queue.Settling), Count(s.Queue.Queued),
		Count(s.Queue.InFlight), Count(s.Queue.Delayed), oldest)
	if len(s.Parked) > 0 {
		line(b, "parked", "%s: wait for a person, 'rescan' tries them again", counts(s.Parked))
	}
	s.destinationText(b, now)
	s.Trail.text(b)
	s.scanText(b)
	s.lists(b, now)
}

func (s *SourceStatus) destinationText(b *strings.Builder, now time.Time) {
	d := &s.Destination
	if d.Error == "" {
		line(b, "server", "%s", d.State)
		return
	}
	since, probe := "", ""
	if d.Since != nil {
		since = " since " + d.Since.Format(timeForm)
	}
	if d.NextProbe != nil {
		probe = "; next probe in " + Duration(d.NextProbe.Sub(now))
	}
	line(b, "server", "%s%s (%s)%s", d.State, since, d.Class, probe)
	line(b, "", "%s", d.Error)
}

func (t *Trail) text(b *strings.Builder) {
	chain := "no chain yet"
	if t.Chain != "" {
		chain = fmt.Sprintf("chain %s at digest %d", t.Chain, t.Sequence)
	}
	if t.LastDigestAt != nil {
		chain += ", up to " + t.LastDigestAt.Format(timeForm)
	}
	line(b, "trail", "%s; %s records and %d documents not published", chain, Count(t.UnpublishedRecords), t.WaitingDocuments)
	if t.LastManifest != "" && t.LastManifestAt != nil {
		line(b, "", "last manifest %s %s", t.LastManifestAt.Format(timeForm), strconv.Quote(t.LastManifest))
	}
	if t.Error != "" {
		since := ""
		if t.ErrorSince != nil {
			since = " since " + t.ErrorSince.Format(timeForm)
		}
		line(b, "", "not published%s: %s", since, t.Error)
	}
	if t.UnsignedDigests > 0 && t.UnsignedSince != nil {
		line(b, "", "unsigned since %s, %s", t.UnsignedSince.Format(timeForm), t.unsigned())
	}
	if t.LeftBy != "" && t.LeftAt != nil {
		line(b, "", "left by chain %s of this instance, seen %s", t.LeftBy, t.LeftAt.Format(timeForm))
	}
}

// unsigned says how many digests wait for a signature, and why.
func (t *Trail) unsigned() string {
	text := Count(t.UnsignedDigests) + " digests"
	if t.UnsignedDigests == 1 {
		text = "1 digest"
	}
	if t.SigningError != "" {
		text += ": " + t.SigningError
	}
	return text
}

func (s *SourceStatus) scanText(b *strings.Builder) {
	watched := fmt.Sprintf("%s directories watched, %s polled", Count(s.Watched), Count(s.Polled))
	sc := s.LastScan
	if sc == nil {
		line(b, "scan", "none yet; %s", watched)
		return
	}
	how := "ended"
	if !sc.Complete {
		how = "ended early"
	}
	line(b, "scan", "%s %s (%s): %s files, %s new, %s changed, %s gone, %s unreadable; %s", how, sc.EndedAt.Format(timeForm),
		sc.Trigger, Count(sc.Files), Count(sc.New), Count(sc.Changed), Count(sc.Gone), Count(sc.Unreadable), watched)
	if sc.Error != "" {
		line(b, "", "%s", sc.Error)
	}
}

func (s *SourceStatus) lists(b *strings.Builder, now time.Time) {
	for i, f := range s.InFlight[:min(shown, len(s.InFlight))] {
		line(b, heading(i, "in flight"), "%4s %s of %s %-6s for %s %s", percent(f.Progress(), f.Size), Bytes(f.Progress()), Bytes(f.Size),
			f.Phase, Duration(now.Sub(f.StartedAt)), f.Short())
	}
	more(b, len(s.InFlight))
	for i, f := range s.Failures[:min(shown, len(s.Failures))] {
		fate := "waits for a person"
		switch {
		case f.ResolvedAt != nil:
			fate = "done since"
		case f.Retried:
			fate = "tried again"
		}
		line(b, heading(i, "failures"), "%s %s %s (%s, %s times, %s)", f.LastAt.Format(timeForm), f.Class, f.Short(), f.Error, Count(f.Count), fate)
	}
	more(b, len(s.Failures))
	for i, d := range s.Busy {
		path := d.Short()
		if d.Path == "" {
			path = "the source's own directory"
		}
		line(b, heading(i, "busy"), "%s events in %s: %s", Count(d.Events), Duration(time.Duration(d.Window)*time.Second), path)
	}
}

func heading(i int, text string) string {
	if i > 0 {
		return ""
	}
	return text
}

func more(b *strings.Builder, n int) {
	if n > shown {
		line(b, "", "and %d more: --json has them all", n-shown)
	}
}

// counts renders numbers by name, in the order of the names.
func counts(m map[string]int64) string {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	parts := make([]string, len(names))
	for i, n := range names {
		parts[i] = Count(m[n]) + " " + n
	}
	return strings.Join(parts, ", ")
}

func percent(part, whole int64) string {
	if whole <= 0 {
		return "-"
	}
	return strconv.FormatInt(min(100, 100*part/whole), 10) + "%"
}

// Count renders n with commas between thousands.
func Count[N int | int64](n N) string {
	s := strconv.FormatInt(int64(n), 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// Bytes renders n with a binary unit.
func Bytes(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	div, exp := int64(unit), 0
	for m := n / unit; m >= unit; m /= unit {
		div *= unit
		exp++
	}
	return fmt.Sprintf("%.1f %ciB", float64(n)/float64(div), "KMGTPE"[exp])
}

// Duration renders d for an operator, with one unit or two.
func Duration(d time.Duration) string {
	d = max(0, d)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int64(d.Round(time.Second)/time.Second))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int64(d/time.Minute))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", int64(d/time.Hour), int64(d%time.Hour/time.Minute))
	default:
		return fmt.Sprintf("%d d %d h", int64(d/(24*time.Hour)), int64(d%(24*time.Hour)/time.Hour))
	}
}

// Plain makes text of an error fit one line of a terminal: what is not
// printable is escaped, and what is too long is cut.
func Plain(text string, limit int) string {
	q := strconv.QuoteToGraphic(text)
	q = strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
	r := []rune(q)
	if len(r) > limit {
		return string(r[:limit-1]) + "…"
	}
	return q
}
