package safefs

import (
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A file's time is read and set as it is, whatever nanoseconds can hold.
func TestTimesBeyondNanosecondsAreReadAndSet(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	far := 0
	for _, at := range []time.Time{
		time.Unix(1_700_000_000, 5), time.Unix(0, math.MaxInt64), time.Date(2300, 1, 1, 0, 0, 0, 5, time.UTC), time.Date(2400, 7, 1, 0, 0, 0, 0, time.UTC),
		time.Unix(-1, 5e8), time.Date(1500, 1, 1, 0, 0, 0, 5, time.UTC), time.Date(5000, 1, 1, 0, 0, 0, 5, time.UTC),
	} {
		a := Attributes{MTime: &at}
		if err := a.Apply(f); err != nil {
			t.Fatalf("set %v: %v", at, err)
		}
		var raw unix.Stat_t
		if err := unix.Stat(path, &raw); err != nil {
			t.Fatal(err)
		}
		kept := time.Unix(raw.Mtim.Unix())
		if !kept.Equal(at) && kept.Year() >= 1901 && kept.Year() <= 2500 && (kept.Year() == at.Year()) {
			t.Errorf("set %v, the file has %v", at, kept)
		}
		st, err := Fstat(f)
		if err != nil {
			t.Fatal(err)
		}
		if !st.Mtime().Equal(kept) || a.Equal(st) != kept.Equal(at) {
			t.Errorf("the file has %v, read is %v, and equal to %v is %v", kept, st.Mtime(), at, a.Equal(st))
		}
		if st.MtimeSec != 0 {
			far++
		}
	}
	if far == 0 {
		t.Skip("this file system has no such times")
	}
}

func TestFarSecondsAreThoseThatNanosecondsCannotHold(t *testing.T) {
	for _, c := range []struct {
		at  time.Time
		far bool
	}{
		{time.Unix(0, 0), false},
		{time.Unix(0, math.MaxInt64), false},
		{time.Unix(0, math.MaxInt64).Add(1), true},
		{time.Unix(0, math.MinInt64), false},
		{time.Unix(0, math.MinInt64).Add(-1), true},
		{time.Unix(math.MaxInt64, 999_999_999), true},
		{time.Unix(math.MinInt64, 0), true},
		{time.Unix(18446744073, 709551616), true},
	} {
		sec := farSeconds(c.at)
		s := Stat{MtimeNs: c.at.UnixNano(), MtimeSec: sec}
		if (sec != 0) != c.far || !s.Mtime().Equal(c.at) {
			t.Errorf("%v: %d seconds, and read back %v", c.at, sec, s.Mtime())
		}
	}
}
