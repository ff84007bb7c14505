package state

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/codec"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// farTimes are times of files, and how the trail writes them.
var farTimes = map[string]time.Time{
	"2026-01-20T10:30:00.123456789Z": time.Date(2026, 1, 20, 10, 30, 0, 123_456_789, time.UTC),
	"1970-01-01T00:00:00Z":           time.Unix(0, 0),
	"2262-04-11T23:47:16.854775807Z": time.Unix(0, math.MaxInt64),
	"2262-04-11T23:47:16.854775808Z": time.Unix(0, math.MaxInt64).Add(1),
	"2300-01-01T00:00:00.000000005Z": time.Date(2300, 1, 1, 0, 0, 0, 5, time.UTC),
	"2446-05-10T22:38:55Z":           time.Unix(15032385535, 0), // The last one of ext4.
	"9999-12-31T23:59:59.999999999Z": time.Date(9999, 12, 31, 23, 59, 59, 999_999_999, time.UTC),
	"1677-09-21T00:12:43.145224192Z": time.Unix(0, math.MinInt64),
	"1677-09-21T00:12:43.145224191Z": time.Unix(0, math.MinInt64).Add(-1),
	"1500-01-01T00:00:00.5Z":         time.Date(1500, 1, 1, 0, 0, 0, 5e8, time.UTC),
	"0001-01-01T00:00:00Z":           time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC),
}

// A time beyond what nanoseconds hold is the same in the record, the index and an
// intent.
func TestTimesBeyondNanosecondsStayWhatTheyAre(t *testing.T) {
	for want, at := range farTimes {
		f := archive.Fence{Dev: 1, Ino: 2, Size: 3, CtimeNs: 5}.WithMtime(at)
		if !f.Mtime().Equal(at) {
			t.Errorf("%s: Mtime = %v", want, f.Mtime())
		}
		var r archive.Record
		r.SetAttributes(f, archive.Attributes{})
		if r.MTime != want {
			t.Errorf("the record says %s, want %s", r.MTime, want)
		}
		e := archive.Entry{Fence: f, Stored: true, ETag: "x", FailClass: archive.ClassFile, FailFence: archive.Fence{Size: 1}}
		b := codec.EncodeEntry(&e)
		back, err := codec.DecodeEntry(b)
		if err != nil || back != e {
			t.Errorf("%s: the index has %+v, %v, want %+v", want, back, err, e)
		}
		if far := b[0] == codec.FarEntryVersion; far != (f.MtimeSec != 0) {
			t.Errorf("%s: encoding %d", want, b[0])
		}
		in := archive.Intent{Attempt: 1, Fence: f}
		data, err := json.Marshal(toIntentWire(&in))
		if err != nil {
			t.Fatal(err)
		}
		var w intentWire
		if err := json.Unmarshal(data, &w); err != nil || w.intent().Fence != f {
			t.Errorf("%s: the intent has %+v, %v", want, w.intent().Fence, err)
		}
	}
	// What no document can hold is the nearest that it can.
	for sec, want := range map[int64]string{math.MaxInt64: "9999-12-31T23:59:59.999999999Z", math.MinInt64: "0001-01-01T00:00:00Z"} {
		var r archive.Record
		r.SetAttributes(archive.Fence{MtimeNs: sec * int64(time.Second), MtimeSec: sec}, archive.Attributes{})
		if r.MTime != want {
			t.Errorf("%d s: the record says %s, want %s", sec, r.MTime, want)
		}
	}
}
