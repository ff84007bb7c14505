package daemon

import (
	"slices"
	"testing"
)

func TestWhatLivesAsLongAsTheProcessNeedsARestart(t *testing.T) {
	keys := []string{
		"admin.listen", "admin.socket", "instance", "log.format", "log.level", "manifest.flush_interval",
		"s3.endpoint_url", "sources[app].exclude", "sources[new]", "state_dir", "upload.workers", "watch.settle",
	}
	want := []string{"admin.listen", "admin.socket", "instance", "log.format", "state_dir"}
	if got := needRestart(keys); !slices.Equal(got, want) {
		t.Errorf("needRestart() = %q, want %q", got, want)
	}
}

func TestTheTrailOfASourceNamesItsOwnChangesOnly(t *testing.T) {
	changed := []string{"log.level", "sources[app].exclude", "sources[apple].prefix", "sources[new]", "upload.workers"}
	for source, want := range map[string]string{
		"app":   "v1; changed: sources[app].exclude, upload.workers",
		"new":   "v1; changed: sources[new], upload.workers",
		"other": "v1; changed: upload.workers",
	} {
		if got := reloadDetail("v1", source, changed); got != want {
			t.Errorf("reloadDetail(%s) = %q, want %q", source, got, want)
		}
	}
	if got := reloadDetail("v1", "app", []string{"log.level"}); got != "v1" {
		t.Errorf("reloadDetail() without a change of the source = %q, want v1", got)
	}
}
