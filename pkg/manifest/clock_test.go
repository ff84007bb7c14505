package manifest

import (
	"bytes"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/verify"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// A clock that ran ahead does not date the chain for ever: the next digest goes
// back to the truth and says so, and verify takes that and nothing less.
func TestTheTrailsTimeGoesBackWithAnEvent(t *testing.T) {
	const ahead = 10 * time.Hour
	for name, c := range map[string]struct {
		back   time.Duration
		events int
	}{"hours": {ahead, 1}, "seconds": {30 * time.Second, 0}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			r.begin(state.Report{New: true})
			r.advance(ahead)
			r.commitFull("a", 2)
			r.flush(trail.ReasonFlush)
			last := r.clock()
			r.advance(-c.back)
			r.commitFull("b", 2)
			r.flush(trail.ReasonFlush)
			r.advance(c.back) // The digests have to be in the past.
			s := signedTrail{objects: maps.Clone(r.bucket.objects), now: r.clock().Add(time.Minute), chain: r.chain().ID}
			digests := s.documents("digest_")
			slices.SortFunc(digests, func(a, b string) int {
				x, _ := trail.ParseName(a)
				y, _ := trail.ParseName(b)
				return int(x.Sequence) - int(y.Sequence)
			})
			d, err := trail.ParseDigest(bytes.NewReader(s.objects[digests[len(digests)-1]]))
			if err != nil {
				t.Fatal(err)
			}
			events := slices.DeleteFunc(slices.Clone(d.Events), func(n archive.Note) bool { return n.Kind != archive.NoteClockBack })
			if len(events) != c.events {
				t.Errorf("events %v, want %d of the clock", d.Events, c.events)
			}
			wantEnd := archive.FormatTime(last)
			if c.events > 0 {
				wantEnd = archive.FormatTime(last.Add(-c.back))
			}
			if d.StartTime != archive.FormatTime(last) || d.EndTime != wantEnd {
				t.Errorf("the digest covers %s to %s, want %s to %s", d.StartTime, d.EndTime, archive.FormatTime(last), wantEnd)
			}
			check := func(l trail.Library) bool {
				t.Helper()
				v, err := verify.Run(t.Context(), trail.NewTrail(l, "p/"), verify.Options{Bucket: "b", Now: s.now})
				if err != nil {
					t.Fatal(err)
				}
				return slices.ContainsFunc(v.Findings, func(f verify.Finding) bool { return f.Kind == verify.FindingTime })
			}
			if check(s.library(nil)) {
				t.Error("verify finds fault with the time")
			}
			found := check(s.library(func(o map[string][]byte) {
				key := digests[len(digests)-1]
				d.Events = nil
				data, _ := d.Encode()
				o[key] = data
			}))
			if found != (c.events > 0) {
				t.Errorf("without the event verify finds fault with the time: %v, want %v", found, c.events > 0)
			}
		})
	}
}
