package config

import (
	"testing"
	"time"
)

func TestParseDuration(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"0": 0, "0s": 0, "2s": 2 * time.Second, "1.5h": 90 * time.Minute, "10ms": 10 * time.Millisecond,
		"30d": 720 * time.Hour, "1d12h": 36 * time.Hour, "1h30m": 90 * time.Minute, "0d": 0,
	} {
		if got, problem := parseDuration(s); got != want || problem != "" {
			t.Errorf("parseDuration(%q) = %v, %q, want %v", s, got, problem, want)
		}
		if got, problem := parseDuration(formatDuration(want)); got != want || problem != "" {
			t.Errorf("parseDuration(formatDuration(%v)) = %v, %q", want, got, problem)
		}
	}
	for s, want := range map[string]string{
		"": "is not a duration", "5": "has no unit", "1.5": "has no unit", "-1s": "is not a duration", "+1s": "is not a duration", "1s2": "is not a duration",
		"d": "is not a duration", "1.5d": "is not a duration", "1d-1h": "is not a duration", "1d1d": "is not a duration", "3651d": "is too long", "99999999999999d": "is not a duration",
		"2 s": "is not a duration", "1w": "is not a duration", "1000000h": "is too long", "9999999h": "is not a duration",
	} {
		if got, problem := parseDuration(s); problem != want {
			t.Errorf("parseDuration(%q) = %v, %q, want %q", s, got, problem, want)
		}
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "1": 1, "500KiB": 500 << 10, "16MiB": 16 << 20, "1GiB": 1 << 30, "2TiB": 2 << 40, "7B": 7, "9223372036854775807": 1<<63 - 1,
	} {
		if got, problem := parseSize(s); got != want || problem != "" {
			t.Errorf("parseSize(%q) = %d, %q, want %d", s, got, problem, want)
		}
		if got, problem := parseSize(formatSize(want)); got != want || problem != "" {
			t.Errorf("parseSize(formatSize(%d)) = %d, %q", want, got, problem)
		}
	}
	for s, want := range map[string]string{
		"": "is not a size", "MiB": "is not a size", "1MB": "is not a size", "1M": "is not a size", "-1": "is not a size", "+1": "is not a size",
		"1.5GiB": "is not a size", "1 MiB": "is not a size", "1mib": "is not a size", "8388608TiB": "is out of range", "9223372036854775808": "is out of range",
	} {
		if got, problem := parseSize(s); problem != want {
			t.Errorf("parseSize(%q) = %d, %q, want %q", s, got, problem, want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{"", "abc", 3}, {"abc", "abc", 0}, {"workers", "wokrers", 1}, {"kitten", "sitting", 3}, {"a", "", 1}} {
		if got := distance(tt.a, tt.b); got != tt.want {
			t.Errorf("distance(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}
