package admin

import (
	"os"
	"strings"
	"testing"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

func TestEveryErrorClassHasAnAdviceOfItsOwn(t *testing.T) {
	seen := map[string]archive.Class{}
	for _, c := range archive.Classes() {
		a := Advice(string(c), "some error")
		if other, taken := seen[a]; taken || a == Advice("unheard-of", "some error") {
			t.Errorf("Advice(%s) = %q, which is not its own (%s)", c, a, other)
		}
		seen[a] = c
	}
}

func TestAnAdviceNamesWhatTheErrorNames(t *testing.T) {
	cases := []struct{ text, want string }{
		{"PutObject: AccessDenied (403): x is not authorized to perform: kms:GenerateDataKey on y", "Grant kms:GenerateDataKey "},
		{"PutObject: AccessDenied (403)", "s3:PutObject and kms:GenerateDataKey"},
		{"HeadBucket: NoSuchBucket (404)", "bucket's name"},
		{"PutObject: KMS.DisabledException (400)", "Enable the KMS key"},
		{"RequestTimeTooSkewed", "clock"},
		{"open: permission denied", "CAP_DAC_READ_SEARCH"},
	}
	for _, c := range cases {
		if got := Advice("configuration", c.text); !strings.Contains(got, c.want) {
			t.Errorf("Advice(configuration, %q) = %q, want it to say %q", c.text, got, c.want)
		}
	}
}

func TestEveryCodeWithAnAdviceIsInTheRunbook(t *testing.T) {
	book, err := os.ReadFile("../../docs/OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hints() {
		if h.code != "permission denied" && !strings.Contains(string(book), h.code) {
			t.Errorf("docs/OPERATIONS.md does not know %s", h.code)
		}
	}
}

func TestWhatToDoGoesWithTheState(t *testing.T) {
	with := func(change func(s *SourceStatus)) *SourceStatus {
		s := &SourceStatus{Name: "it's; rm", State: StateParked}
		change(s)
		return s
	}
	cases := []struct {
		name string
		s    *SourceStatus
		want string
	}{
		{"a destination", with(func(s *SourceStatus) { s.Destination = Destination{Class: "credentials", Error: "ExpiredToken"} }), "Renew the credentials"},
		{"files", with(func(s *SourceStatus) { s.Parked = map[string]int64{"file": 1} }), `s3syncd rescan 'it'\''s; rm'`},
		{"deletions", with(func(s *SourceStatus) { s.Name = "logs" }), "s3syncd rescan logs --confirm-deletes"},
		{"the trail", with(func(s *SourceStatus) { s.State, s.Trail.Error = StateBehind, "AccessDenied" }), "The trail needs"},
		{"too much", with(func(s *SourceStatus) { s.State = StateBehind }), "upload.workers"},
		{"the directory", with(func(s *SourceStatus) { s.State = StateUnavailable }), "Mount"},
		{"the key", with(func(s *SourceStatus) { s.State = StateStopped }), "did not name your key"},
	}
	for _, c := range cases {
		if got := c.s.Todo(); !strings.Contains(got, c.want) {
			t.Errorf("%s: Todo() = %q, want it to say %q", c.name, got, c.want)
		}
	}
	for _, st := range []string{StateCurrent, StateWorking, StateStarting} {
		if got := (&SourceStatus{State: st}).Todo(); got != "" {
			t.Errorf("Todo() of %s = %q, want nothing", st, got)
		}
	}
}
