package mounts

import (
	"maps"
	"testing"
)

func TestTheUppermostMountBelowTheRootCounts(t *testing.T) {
	const info = `21 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
30 21 0:5 / /data/a\040b rw - tmpfs tmpfs rw
31 21 0:6 / /data/c/d rw - tmpfs tmpfs rw
32 31 0:7 / /data/c/d rw - tmpfs tmpfs rw
33 21 0:8 / /database rw - tmpfs tmpfs rw
34 21 0:9 / /data rw - tmpfs tmpfs rw
short line
`
	for root, want := range map[string]map[string]string{
		"/data": {"a b": "30", "c/d": "32"},
		"/":     {"data/a b": "30", "data/c/d": "32", "database": "33", "data": "34"},
		"/none": {},
	} {
		if got := mountsBelow(info, root); !maps.Equal(got, want) {
			t.Errorf("below %s: got %v, want %v", root, got, want)
		}
	}
}
