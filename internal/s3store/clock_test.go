package s3store

import (
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/s3syncd/s3syncd/internal/s3test"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// timekeeper stands before a fake: it checks the time of signatures as S3 does,
// for a server that is ahead, and writes a Date of its own.
type timekeeper struct {
	ahead   time.Duration
	date    func(n int64) time.Duration // what the n-th answer claims to be ahead
	answers atomic.Int64
	skewed  atomic.Int64
}

type dateWriter struct {
	http.ResponseWriter

	date string
	done bool
}

func (w *dateWriter) WriteHeader(status int) {
	if !w.done {
		w.done = true
		w.Header().Set("Date", w.date)
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *dateWriter) Write(p []byte) (int, error) {
	if !w.done {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(p)
}

func (k *timekeeper) before(t *testing.T, f *s3test.Fake) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		claim := time.Now().Add(k.date(k.answers.Add(1)))
		dw := &dateWriter{ResponseWriter: w, date: claim.UTC().Format(http.TimeFormat)}
		signed, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
		if err != nil || time.Until(signed.Add(-k.ahead)).Abs() > 15*time.Minute {
			k.skewed.Add(1)
			refuse(dw, r, http.StatusForbidden, "RequestTimeTooSkewed")
			return
		}
		f.ServeHTTP(dw, r)
	}))
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	return srv.URL
}

const years = 10 * 365 * 24 * time.Hour

// Whatever Date a proxy writes, uploads go on while the server accepts this
// host's time, and the trail's time is the truth.
func TestAWrongDateIsNotBelieved(t *testing.T) {
	for name, c := range map[string]struct {
		ahead  time.Duration // of the server's real clock
		date   func(n int64) time.Duration
		want   time.Duration
		skewed int64 // the most requests that may be refused
	}{
		"one answer ten years ahead":        {0, func(n int64) time.Duration { return map[bool]time.Duration{true: years}[n == 3] }, 0, 0},
		"one answer a minute ahead":         {0, func(n int64) time.Duration { return map[bool]time.Duration{true: time.Minute}[n == 3] }, 0, 0},
		"every second answer":               {0, func(n int64) time.Duration { return time.Duration(n%2) * years }, 0, 0},
		"always ten years ahead":            {0, func(int64) time.Duration { return years }, 0, 0},
		"always ten years behind":           {0, func(int64) time.Duration { return -years }, 0, 0},
		"always an hour ahead":              {0, func(int64) time.Duration { return time.Hour }, 0, 2},
		"always an hour behind":             {0, func(int64) time.Duration { return -time.Hour }, 0, 2},
		"a server that is a minute ahead":   {time.Minute, func(int64) time.Duration { return time.Minute }, time.Minute, 0},
		"a server that is a year ahead":     {years / 10, func(int64) time.Duration { return years / 10 }, years / 10, 2},
		"a server ahead, one wrong Date":    {3 * time.Hour, func(n int64) time.Duration { return 3*time.Hour + map[bool]time.Duration{true: years}[n == 1] }, 3 * time.Hour, 6},
		"a server ahead, wrong Dates later": {3 * time.Hour, func(n int64) time.Duration { return 3*time.Hour + map[bool]time.Duration{true: years}[n > 8] }, 3 * time.Hour, 2},
	} {
		t.Run(name, func(t *testing.T) {
			f := s3test.NewFake(t, "bucket")
			f.Setenv(t)
			k := &timekeeper{ahead: c.ahead, date: c.date}
			s := openStore(t, options(k.before(t, f), "bucket", s3test.FakeKeyARN))
			failed := 0
			for range 12 {
				if _, err := s.Put(t.Context(), put("data/a", []byte("1"), archive.Condition{})); err != nil {
					t.Logf("Put: %v", err)
					failed++
				}
				if _, err := s.Head(t.Context(), "data/missing"); !errors.Is(err, fs.ErrNotExist) {
					t.Logf("Head: %v", err)
					failed++
				}
			}
			if most := int(min(c.skewed, 1)); failed > most {
				t.Errorf("%d requests failed, want at most %d", failed, most)
			}
			if n := k.skewed.Load(); n > c.skewed {
				t.Errorf("%d requests were refused for their time, want at most %d", n, c.skewed)
			}
			if d := s.ClockOffset() - c.want; d.Abs() > 3*time.Second {
				t.Errorf("ClockOffset = %v, want %v", s.ClockOffset(), c.want)
			}
			if d := time.Duration(testutil.ToFloat64(s.dest.o.Metrics.ClockOffset))*time.Second - c.want; d.Abs() > 3*time.Second {
				t.Errorf("the gauge is %v off", d)
			}
		})
	}
}

// A correction that was right is forgotten once it is refused: somebody has set
// this host's clock, or the server's.
func TestACorrectionThatStopsHelpingIsForgotten(t *testing.T) {
	f := s3test.NewFake(t, "bucket")
	f.Setenv(t)
	ahead := 5 * time.Hour
	k := &timekeeper{ahead: ahead, date: func(int64) time.Duration { return ahead }}
	s := openStore(t, options(k.before(t, f), "bucket", s3test.FakeKeyARN))
	work := func() {
		t.Helper()
		if _, err := s.Put(t.Context(), put("data/a", []byte("1"), archive.Condition{})); err != nil {
			t.Errorf("Put: %v", err)
		}
	}
	work()
	if d := s.ClockOffset() - ahead; d.Abs() > 3*time.Second {
		t.Fatalf("ClockOffset = %v, want %v", s.ClockOffset(), ahead)
	}
	ahead, k.ahead = 0, 0
	work()
	if s.ClockOffset() != 0 || s.conn.Clock.Signs() != 0 {
		t.Errorf("corrections %v and %v are left, want none", s.ClockOffset(), s.conn.Clock.Signs())
	}
	for result, want := range map[string]float64{"adopted": 1, "dropped": 1, "ignored": 0} {
		if got := testutil.ToFloat64(s.dest.o.Metrics.ClockCorrections.WithLabelValues(result)); got != want {
			t.Errorf("clock_corrections_total{%s} = %v, want %v", result, got, want)
		}
	}
}
