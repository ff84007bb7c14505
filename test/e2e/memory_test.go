package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestLargeUploadsSideBySideStayWithinTheMemoryLimit(t *testing.T) {
	size := int64(96 << 20)
	if thorough {
		size = 1 << 30
	}
	const files, limit = 8, 150 << 20
	s := newSite(t, "", "")
	for i := range files {
		random(t, s.path(fmt.Sprintf("large%d", i)), size, uint64(20+i))
	}
	p := spawnProgram(t, plain(t), s.env, "run", "-c", s.file)
	peak := int64(0)
	deadline := time.After(10 * time.Minute)
	for n := 0; n < files; {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-deadline:
			t.Fatalf("%d of %d files uploaded", n, files)
		}
		peak = max(peak, anonymous(p.cmd.Process.Pid))
		n = strings.Count(p.stderr.String(), `"msg":"uploaded"`)
	}
	t.Logf("RssAnon was at most %d MiB", peak>>20)
	if peak > limit {
		t.Errorf("RssAnon rose to %d MiB, want at most %d", peak>>20, limit>>20)
	}
	if code := p.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	tr := s.bucket.readTrail(t)
	s.bucket.wantTree(t, s.dir, &tr)
}
