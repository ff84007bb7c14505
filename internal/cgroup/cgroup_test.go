package cgroup

import (
	"strings"
	"testing"
	"testing/fstest"
)

func TestMemoryLimit(t *testing.T) {
	const (
		v1 = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n36 31 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
		v2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
	)
	for name, tt := range map[string]struct {
		mounts, groups string
		files          map[string]string
		want           int64
	}{
		"nothing is mounted": {"", "0::/x\n", nil, 0},
		"no limit":           {v2, "0::/x\n", map[string]string{"sys/fs/cgroup/x/memory.max": "max\n"}, 0},
		"version 2":          {v2, "0::/x\n", map[string]string{"sys/fs/cgroup/x/memory.max": "134217728\n"}, 128 << 20},
		"version 2, throttled below its limit": {
			v2, "0::/x\n", map[string]string{"sys/fs/cgroup/x/memory.max": "134217728\n", "sys/fs/cgroup/x/memory.high": "67108864\n"}, 64 << 20,
		},
		"version 2, a slice around it": {
			v2, "0::/a.slice/b.service\n", map[string]string{
				"sys/fs/cgroup/a.slice/b.service/memory.max": "max\n", "sys/fs/cgroup/a.slice/memory.max": "1000000\n",
			}, 1000000,
		},
		"version 2 in a namespace": {v2, "0::/\n", map[string]string{"sys/fs/cgroup/memory.max": "5000\n"}, 5000},
		"version 2 beside a namespace": {
			v2, "0::/../other\n", map[string]string{"sys/fs/cgroup/memory.max": "5000\n"}, 5000,
		},
		"version 1":           {v1, "4:memory:/x\n0::/\n", map[string]string{"sys/fs/cgroup/memory/x/memory.limit_in_bytes": "1048576\n"}, 1 << 20},
		"version 1, no limit": {v1, "4:memory:/x\n", map[string]string{"sys/fs/cgroup/memory/x/memory.limit_in_bytes": "9223372036854771712\n"}, 0},
		"version 1, nested": {
			v1, "4:cpu,memory:/x/y\n", map[string]string{
				"sys/fs/cgroup/memory/x/y/memory.limit_in_bytes": "9223372036854771712\n", "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "77\n",
			}, 77,
		},
		"version 1, a container without a namespace": {
			"35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n", "4:memory:/docker/abc\n",
			map[string]string{"sys/fs/cgroup/memory/memory.limit_in_bytes": "4096\n"},
			4096,
		},
		"version 1, whose path is the host's": {
			v1, "4:memory:/docker/abc\n", map[string]string{"sys/fs/cgroup/memory/memory.limit_in_bytes": "4096\n"}, 4096,
		},
		"both are mounted": {
			v1 + "40 31 0:40 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n", "4:memory:/x\n0::/\n",
			map[string]string{"sys/fs/cgroup/memory/x/memory.limit_in_bytes": "1048576\n"},
			1 << 20,
		},
		"behind a mount of many layers": {
			"20 1 0:20 / / rw - overlay overlay rw,lowerdir=" + strings.Repeat("/layer:", 10_000) + "/last\n" + v2, "0::/\n",
			map[string]string{"sys/fs/cgroup/memory.max": "5000\n"},
			5000,
		},
		"nonsense": {v2 + "\x00 - \n", "0::\n::\nx\n", map[string]string{"sys/fs/cgroup/memory.max": "-5\n"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			host := fstest.MapFS{"proc/self/cgroup": {Data: []byte(tt.groups)}, "proc/self/mountinfo": {Data: []byte(tt.mounts)}}
			for f, content := range tt.files {
				host[f] = &fstest.MapFile{Data: []byte(content)}
			}
			got, ok := MemoryLimit(host)
			if !ok {
				got = 0
			}
			if got != tt.want {
				t.Errorf("MemoryLimit() = %d, want %d", got, tt.want)
			}
		})
	}
}
