package manifest

import (
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/pkg/trail"
)

func TestNamesAreReadBack(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	for _, row := range []struct {
		name trail.Name
		path string
	}{
		{trail.Name{Time: at, Instance: "app-01", Chain: "0a1b2c3d", Sequence: 7, N: 1}, "manifest_20260304_050607_app-01_0a1b2c3d_00000007.json"},
		{trail.Name{Time: at, Instance: "app-01", Chain: "0a1b2c3d", Sequence: 7, N: 12}, "manifest_20260304_050607_app-01_0a1b2c3d_00000007-12.json"},
		{trail.Name{Time: at, Instance: "a_b_00000001", Chain: "0a1b2c3d", Sequence: 123456789, N: 1}, "manifest_20260304_050607_a_b_00000001_0a1b2c3d_123456789.json"},
		{
			trail.Name{Time: at, Instance: "app-01", Chain: "0a1b2c3d", Sequence: 7, N: 2, Hive: true},
			"dt=2026-03-04/instance=app-01/manifest_20260304_050607_app-01_0a1b2c3d_00000007-2.jsonl.gz",
		},
		{trail.Name{Digest: true, Time: at, Instance: "app-01", Chain: "0a1b2c3d", Sequence: 7}, "digest_20260304_050607_app-01_0a1b2c3d_00000007.json"},
	} {
		if got := row.name.Path(); got != row.path {
			t.Errorf("Path() = %s, want %s", got, row.path)
		}
		got, ok := trail.ParseName("some/prefix/" + row.path)
		if !ok || got != row.name {
			t.Errorf("ParseName(%s) = %+v, %v, want %+v", row.path, got, ok, row.name)
		}
	}
	hive := trail.Name{Digest: true, Time: at, Instance: "i", Chain: "0a1b2c3d", Sequence: 7, Hive: true}
	if got, want := hive.Path(), "_digests/digest_20260304_050607_i_0a1b2c3d_00000007.json"; got != want {
		t.Errorf("Path() = %s, want %s", got, want)
	}
}

func TestParseNameRefusesWhatNobodyWrites(t *testing.T) {
	for _, s := range []string{
		"", "manifest_20260304_050607.json",
		"manifest_20260304_050607_app_0a1b2c3d_7.json",
		"manifest_20260304_050607_app_0a1b2c3d_000000007.json",
		"manifest_20260304_050607_app_0a1b2c3d_00000007-1.json",
		"manifest_20261304_050607_app_0a1b2c3d_00000007.json",
		"manifest_20260304_050607_app_0A1B2C3D_00000007.json",
		"digest_20260304_050607_app_0a1b2c3d_00000007-2.json",
		"digest_20260304_050607_app_0a1b2c3d_00000007.jsonl.gz",
		"digest_20260304_050607_app_0a1b2c3d_00000007.json.bak",
	} {
		if n, ok := trail.ParseName(s); ok {
			t.Errorf("ParseName(%q) = %+v, want none", s, n)
		}
	}
}

func TestNotBeforeStandsStillForAMinute(t *testing.T) {
	last := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	if got := trail.NotBefore(last.Add(-30*time.Second), last); !got.Equal(last) {
		t.Errorf("notBefore(30 s earlier) = %v, want %v", got, last)
	}
	if got, want := trail.NotBefore(last.Add(-time.Hour), last), last.Add(-time.Hour); !got.Equal(want) {
		t.Errorf("notBefore(an hour earlier) = %v, want %v", got, want)
	}
	if got, want := trail.NotBefore(last.Add(1500*time.Millisecond), last), last.Add(time.Second); !got.Equal(want) {
		t.Errorf("notBefore(1.5 s later) = %v, want %v", got, want)
	}
}

func TestNextTickSpreadsInstances(t *testing.T) {
	now := time.Unix(1_800_000_000, 123)
	seen := map[time.Duration]bool{}
	for _, host := range []string{"app-01", "app-02", "app-03", "app-04"} {
		wait := nextTick(now, 5*time.Minute, host)
		if wait <= 0 || wait > 5*time.Minute {
			t.Errorf("nextTick(%s) = %v, want within the interval", host, wait)
		}
		if again := nextTick(now.Add(wait), 5*time.Minute, host); again != 5*time.Minute {
			t.Errorf("nextTick(%s) a tick later = %v, want 5m", host, again)
		}
		seen[wait] = true
	}
	if len(seen) != 4 {
		t.Errorf("%d hosts flush at different times, want 4", len(seen))
	}
}
