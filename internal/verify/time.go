package verify

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

const (
	// ClockGrace is how much clocks may differ.
	ClockGrace = 5 * time.Minute
	// A server that is further ahead of the verifier is not believed.
	clocksApart = 15 * time.Minute
	// The longest promise that a digest may make of the next one.
	longestPromise = 31 * 24 * time.Hour
)

// setNow takes the server's clock for the right one, where it is not far ahead
// of the verifier's: what has not come yet by both is never believed.
func (v *verifier) setNow() {
	if v.o.Server == nil {
		return
	}
	server := v.o.Server()
	ahead := server.Sub(v.o.Now)
	if ahead.Abs() > ClockGrace {
		v.noted.Add(Finding{Kind: NoteClock, Detail: fmt.Sprintf("the server's clock says %s, this machine's %s", archive.FormatTime(server), archive.FormatTime(v.o.Now))})
	}
	if ahead <= clocksApart {
		v.o.Now = server
	}
}

// latest returns the last moment that a document may be dated, and the same as
// times are written.
func (v *verifier) latest() (time.Time, string) {
	t := v.o.Now.Add(ClockGrace)
	return t, archive.FormatTime(t)
}

// names checks the times in the names of a chain's documents.
func (c *chainCheck) names() {
	latest, text := c.v.latest()
	for _, list := range [][]trail.Entry{c.index.Digests, c.index.Manifests} {
		for i := range list {
			if e := &list[i]; e.Name.Time.After(latest) {
				c.fault(FindingTime, e.Name.Sequence, e.Key, "its name is dated after "+text)
			}
		}
	}
}

// times checks that time advances and has not run ahead, and notes past silence.
func (c *chainCheck) times(d *digestCheck) {
	seq, key := d.at.Name.Sequence, d.at.Key
	start, err1 := parseUTC(d.d.StartTime)
	end, err2 := parseUTC(d.d.EndTime)
	var due time.Time
	var err3 error
	if d.d.NextDigestDue != nil {
		due, err3 = parseUTC(*d.d.NextDigestDue)
	}
	switch {
	case err1 != nil || err2 != nil || err3 != nil:
		c.fault(FindingTime, seq, key, "a time in it is none")
	case end.Before(start) && !d.goesBack():
		c.fault(FindingTime, seq, key, "it ends before it starts")
	case c.prev != nil && c.prev.at.Name.Sequence+1 == seq && c.prev.fault == nil:
		c.follows(d, start, end)
	}
	c.ahead(d, end, due)
	c.end, c.due = end, due
	if c.prev == nil {
		c.firstEnd = end
	}
}

// goesBack reports whether the digest says that the trail's time went back: it
// had been wrong.
func (d *digestCheck) goesBack() bool {
	return slices.ContainsFunc(d.d.Events, func(n archive.Note) bool { return n.Kind == archive.NoteClockBack })
}

// parseUTC reads a time as the documents write it.
func parseUTC(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err == nil && !strings.HasSuffix(s, "Z") {
		err = fmt.Errorf("%q is not in UTC", s)
	}
	return t, err
}

// ahead finds times that have not come yet: only a forger of documents
// can write them.
func (c *chainCheck) ahead(d *digestCheck, end, due time.Time) {
	_, latest := c.v.latest()
	newest, what := d.d.EndTime, "it ends"
	for i := range d.d.Events {
		if t := archive.FormatTime(d.d.Events[i].Time); t > newest {
			newest, what = t, "an event in it is dated"
		}
	}
	for i := range d.d.Scans {
		if t := archive.FormatTime(d.d.Scans[i].End); t > newest {
			newest, what = t, "a scan in it ends"
		}
		if t := archive.FormatTime(d.d.Scans[i].Start); t > newest {
			newest, what = t, "a scan in it begins"
		}
	}
	if p := d.d.OldestPendingSince; p != nil && *p > newest {
		newest, what = *p, "a path waits since a time in it,"
	}
	switch {
	case newest > latest:
		c.fault(FindingTime, d.at.Name.Sequence, d.at.Key, fmt.Sprintf("%s at %s, which has not come yet", what, newest))
	case !due.IsZero() && due.Sub(end) > longestPromise:
		c.fault(FindingTime, d.at.Name.Sequence, d.at.Key, fmt.Sprintf("it promises the next digest for %s, more than %d days later", archive.FormatTime(due), longestPromise/(24*time.Hour)))
	}
}

// follows checks that d begins where its predecessor ends.
func (c *chainCheck) follows(d *digestCheck, start, end time.Time) {
	seq, key := d.at.Name.Sequence, d.at.Key
	if !start.Equal(c.end) {
		c.fault(FindingTime, seq, key, fmt.Sprintf("it starts at %s, its predecessor ends at %s", d.d.StartTime, archive.FormatTime(c.end)))
	}
	if !c.due.IsZero() && end.After(c.due.Add(silenceGrace)) {
		c.note(NoteLate, seq, key, fmt.Sprintf("it was due at %s and ends at %s", archive.FormatTime(c.due), d.d.EndTime))
	}
}

// silence checks how long the chain has said nothing.
func (c *chainCheck) silence() {
	if c.prev.fault != nil || len(c.leftBy) > 0 || c.prev.d.Reason == trail.ReasonFinal {
		return
	}
	now, seq, key := c.v.o.Now, c.sum.LastSequence, c.sum.HeadKey
	age := now.Sub(c.end)
	stale := c.v.o.MaxAge > 0 && age > c.v.o.MaxAge
	if c.prev.d.Reason == trail.ReasonStop {
		detail := fmt.Sprintf("stopped since %s, %v ago", archive.FormatTime(c.end), age.Round(time.Second))
		if stale {
			c.fault(FindingStopped, seq, key, detail)
		} else {
			c.note(NoteStopped, seq, key, detail)
		}
		return
	}
	if !c.due.IsZero() && now.After(c.due.Add(silenceGrace)) {
		c.fault(FindingSilent, seq, key, fmt.Sprintf("the next digest was due at %s; the chain neither stopped nor ended%s", archive.FormatTime(c.due), c.claimed()))
	}
	if stale {
		c.fault(FindingStale, seq, key, fmt.Sprintf("its newest digest ends at %s, %v ago", archive.FormatTime(c.end), age.Round(time.Second)))
	}
}

// claimed says which chain claims to follow c without anything that vouches for
// it.
func (c *chainCheck) claimed() string {
	if len(c.claims) == 0 {
		return ""
	}
	return fmt.Sprintf("; chain %s says that it follows it, and nothing vouches for that chain (give its head as --expect-head, or the key as --public-key)", c.claims[0])
}
