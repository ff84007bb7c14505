package manifest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/internal/verify"
)

// A file that is gone is a finding, unless its directory has changed since the
// newest digest of a chain that goes on.
func TestWhatIsGoneSinceTheNewestDigestIsANote(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 5, 6, 7, 0, 0, 0, time.UTC)
	for _, sub := range []string{"a/b", "a", ""} {
		if err := os.Chtimes(filepath.Join(dir, sub), at, at); err != nil {
			t.Fatal(err)
		}
	}
	root := safefs.NewRoot(dir, safefs.RootOptions{})
	for _, row := range []struct {
		path string
		end  time.Duration // of the digest, from the directories' time
		want verify.FindingKind
	}{
		{"a/b/f", -time.Second, verify.NoteChangedSince},
		{"a/b/f", 0, verify.FindingSource},
		{"a/b/f", time.Hour, verify.FindingSource},
		{"f", -time.Second, verify.NoteChangedSince},
		{"f", time.Second, verify.FindingSource},
		{"a/gone/too/f", -time.Second, verify.NoteChangedSince}, // Judged by a.
		{"a/gone/too/f", time.Second, verify.FindingSource},
	} {
		v := &verify.Result{CheckedAt: "2026-05-06T08:30:00Z", Chains: []verify.ChainSummary{
			{Instance: "app-02", HeadTime: "2026-05-06T06:00:00Z", NextDigestDue: "2026-05-06T09:00:00Z"},
			{Instance: "app-01", HeadTime: at.Add(row.end).Format(time.RFC3339), NextDigestDue: "2026-05-06T08:30:00Z"},
		}}
		if kind, _ := verify.JudgeGone(root, row.path, v.ToldTo("app-01")); kind != row.want {
			t.Errorf("%s, %v: %s, want %s", row.path, row.end, kind, row.want)
		}
		for _, late := range []string{"2026-05-06T08:24:59Z", ""} { // Late, or stopped.
			v.Chains[1].NextDigestDue = late
			if kind, detail := verify.JudgeGone(root, row.path, v.ToldTo("app-01")); kind != verify.FindingSource || !strings.Contains(detail, "not in the tree") {
				t.Errorf("%s, due %q: %s", row.path, late, kind)
			}
		}
	}
}
