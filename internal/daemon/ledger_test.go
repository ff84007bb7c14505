package daemon

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/admin"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/breaker"
	"github.com/s3syncd/s3syncd/pkg/uploader"
)

func failed(path string, c archive.Class) uploader.Outcome {
	return uploader.Outcome{Path: path, Class: c, Err: errors.New("broken\nin two lines"), Status: archive.StatusFailed, Retry: true}
}

func TestLedgerKeepsTheLastFailures(t *testing.T) {
	l, now := newLedger(), time.Unix(1000, 0)
	for i := range 3 * ledgerFailures {
		l.add(failed(fmt.Sprintf("f%d", i), archive.ClassFile), now)
	}
	l.add(failed("f55", archive.ClassFile), now.Add(time.Minute))
	l.add(uploader.Outcome{Path: "f58", Status: archive.StatusUploaded}, now.Add(time.Hour))
	counts, failures, _ := l.list()
	if len(failures) != ledgerFailures || counts["failed"] != 3*ledgerFailures+1 || counts["uploaded"] != 1 || counts["skipped"] != 0 {
		t.Fatalf("%d failures and counts %v", len(failures), counts)
	}
	first := failures[0]
	if first.Path != "f55" || first.Count != 2 || !first.FirstAt.Equal(now) || first.Retried || first.Error != `broken\nin two lines` {
		t.Errorf("the newest is %+v, want f55 twice, waiting for a person", first)
	}
	for _, f := range failures {
		if (f.ResolvedAt != nil) != (f.Path == "f58") {
			t.Errorf("%s is resolved at %v", f.Path, f.ResolvedAt)
		}
	}
}

func TestAFlushIsToldOfWhatFailedAndMoved(t *testing.T) {
	l, now := newLedger(), time.Unix(1000, 0)
	l.add(failed("before", archive.ClassFile), now)
	record, forget := l.follow()
	for path, c := range map[string]archive.Class{
		"b": archive.ClassFile, "a": archive.ClassConflict, "mended": archive.ClassFile, "waits": archive.ClassTransient, "moved": archive.ClassChanged, "held": archive.ClassChanged,
	} {
		l.add(failed(path, c), now)
	}
	l.add(uploader.Outcome{Path: "mended", Status: archive.StatusUploaded}, now)
	l.add(uploader.Outcome{Path: "held", Status: archive.StatusUploaded}, now)
	if n, first := record.failures(); n != 2 || first.Path != "a" {
		t.Errorf("failures = %d, first %q, want 2 and a", n, first.Path)
	}
	if moved, all := record.takeMoved(); len(moved) != 1 || moved[0] != "moved" || all {
		t.Errorf("moved = %q, %v, want one", moved, all)
	}
	if moved, _ := record.takeMoved(); len(moved) != 0 {
		t.Errorf("moved again = %q, want none", moved)
	}
	stuck := failed("stuck", archive.ClassTransient)
	stuck.Stuck = true
	l.add(stuck, now)
	if n, _ := record.failures(); n != 3 {
		t.Errorf("%d failures with one that keeps failing, want 3", n)
	}
	for range restlessMax {
		l.add(failed("restless", archive.ClassChanged), now)
	}
	if moved, _ := record.takeMoved(); len(moved) != 0 {
		t.Errorf("moved = %q, want none: it never holds still", moved)
	}
	if n, _ := record.failures(); n != 4 {
		t.Errorf("%d failures with one that never holds still, want 4", n)
	}
	forget()
	l.add(failed("after", archive.ClassFile), now)
	if n, _ := record.failures(); n != 4 {
		t.Errorf("%d failures after the end, want 4", n)
	}
}

func TestTheSentenceSaysItAll(t *testing.T) {
	now := time.Date(2026, 3, 2, 9, 14, 5, 0, time.UTC)
	since := time.Date(2026, 3, 2, 2, 14, 0, 0, time.UTC)
	old := since.AddDate(0, 0, -3)
	denied := &archive.Error{
		Class: archive.ClassConfiguration, Op: "PutObject", Code: "AccessDenied", Status: 403,
		Err: errors.New("User: arn:aws:sts::1:role/x is not authorized to perform: kms:GenerateDataKey on resource: arn:…"),
	}
	parked := breaker.Status{State: breaker.HealthParked, Err: denied, Since: since, NextProbe: now.Add(40 * time.Second)}
	ok := breaker.Status{State: breaker.HealthOK}
	cases := []struct {
		name string
		ss   admin.SourceStatus
		dest breaker.Status
		want string
	}{
		{"nothing to say", admin.SourceStatus{State: admin.StateCurrent}, ok, "current"},
		{
			"work",
			admin.SourceStatus{State: admin.StateWorking, Queue: admin.Queue{Total: 1200, Oldest: &since}},
			ok,
			"working: 1,200 waiting, the oldest since 02:14:00Z",
		},
		{
			"a parked destination",
			admin.SourceStatus{State: admin.StateParked, Since: &since, Reason: reasonOf(denied), Queue: admin.Queue{Total: 8412}},
			parked,
			"behind since 02:14:00Z: kms:GenerateDataKey denied; 8,412 waiting; next probe in 40 s",
		},
		{
			"parked files",
			admin.SourceStatus{State: admin.StateParked, Reason: parkedReason(map[string]int64{"file": 2, "conflict": 1})},
			ok,
			"parked: failed files that wait for a person: 3 (conflict, file)",
		},
		{"days ago", admin.SourceStatus{State: admin.StateUnavailable, Since: &old, Reason: "away"}, ok, "behind since 2026-02-27 02:14Z: away"},
	}
	for _, c := range cases {
		if got := sentence(&c.ss, c.dest, now); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	denied.Err = errors.New("no")
	if got := reasonOf(fmt.Errorf("canary: %w", denied)); got != "PutObject: AccessDenied" {
		t.Errorf("reasonOf = %q", got)
	}
}

func TestATrailWithoutAnAnswerIsBehind(t *testing.T) {
	now := time.Date(2026, 3, 2, 2, 15, 0, 0, time.UTC)
	for age, want := range map[time.Duration]string{silentAfter - time.Second: "", silentAfter: admin.StateBehind} {
		since := now.Add(-age)
		o := trailObstacle(&admin.Trail{RequestSince: &since, WaitingDocuments: 2}, now)
		if o.state != want || want != "" && !o.since.Equal(since) {
			t.Errorf("a request under way for %v: state %q since %v, want %q since %v", age, o.state, o.since, want, since)
		}
	}
}

func TestLedgerKeepsTheLastOutcomesAndMetersUploads(t *testing.T) {
	l, now := newLedger(), time.Unix(1000, 0)
	if _, _, last := l.list(); last == nil || len(last) != 0 {
		t.Errorf("a new ledger has the outcomes %v, want an empty list", last)
	}
	for i := range 3*ledgerOutcomes + 1 {
		l.add(uploader.Outcome{
			Path: fmt.Sprintf("f%d", i), Status: archive.StatusUploaded, Size: int64(i), Bytes: 10, Detected: now.Add(-time.Duration(i) * time.Second),
		}, now)
	}
	l.add(uploader.Outcome{Path: "same", Status: archive.StatusSkipped, Bytes: 0}, now.Add(time.Second))
	l.add(uploader.Outcome{Path: "moved", Class: archive.ClassChanged, Err: errors.New("moved")}, now) // Nothing was recorded.
	_, failures, last := l.list()
	if len(last) != ledgerOutcomes || last[0].Path != "same" || last[1].Path != fmt.Sprintf("f%d", 3*ledgerOutcomes) || last[1].Size != 3*ledgerOutcomes {
		t.Errorf("last outcomes %+v, want %d, the newest first", last, ledgerOutcomes)
	}
	if len(failures) != 1 || failures[0].Advice != admin.Advice("changed", "") {
		t.Errorf("failures %+v, want one with its advice", failures)
	}
	const uploads = 3*ledgerOutcomes + 1
	if m := l.takeMeter(); m != (meter{bytes: 10 * uploads, uploads: uploads, slowest: 3 * ledgerOutcomes * time.Second}) {
		t.Errorf("the meter shows %+v", m)
	}
	if m := l.takeMeter(); m != (meter{bytes: 10 * uploads}) {
		t.Errorf("the meter of an interval without uploads shows %+v", m)
	}
}
