package extsort

import (
	"fmt"
	"testing"
)

func TestManyRunsAreMergedInBetween(t *testing.T) {
	srt := NewSorter(t.TempDir(), 1)
	srt.max = 10
	defer srt.Close()
	for i := range 10 * (2*sorterRuns + 3) {
		if err := srt.Add(fmt.Sprintf("%04d", (i*7919)%1310), int64(i), []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	n, last := 0, ""
	if err := srt.Each(func(key, _ []byte) error {
		if string(key) < last {
			t.Fatalf("%s after %s", key, last)
		}
		last = string(key)
		n++
		return nil
	}); err != nil || n != 10*(2*sorterRuns+3) {
		t.Errorf("%d records, %v", n, err)
	}
}
