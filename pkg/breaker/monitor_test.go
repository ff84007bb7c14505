package breaker

import (
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// moved is a body that last moved at a time.
type moved struct{ at time.Time }

func (m *moved) LastMoved(time.Time) time.Time { return m.at }

// A request that makes no progress is seen within half a minute, and is logged
// once a minute.
func TestAStalledRequestIsSeen(t *testing.T) {
	now := time.Now()
	var m Monitor
	body := &moved{}
	end := m.Begin(body)
	if n, _ := m.Stalled(now.Add(stallAfter - time.Second)); n != 0 {
		t.Errorf("%d requests are stalled after %v", n, stallAfter-time.Second)
	}
	if n, since := m.Stalled(now.Add(stallAfter + time.Second)); n != 1 || since.Sub(now).Abs() > time.Second {
		t.Errorf("%d requests are stalled since %v, want one since %v", n, since, now)
	}
	body.at = now.Add(10 * time.Second)
	if n, _ := m.Stalled(now.Add(20 * time.Second)); n != 0 {
		t.Error("a request that moved counts as stalled")
	}
	core, logs := observer.New(zap.WarnLevel)
	log := zap.New(core)
	m.Report(now.Add(30*time.Second), log)
	if n := m.Report(now.Add(31*time.Second), log); n != 1 {
		t.Errorf("Report() = %d, want 1", n)
	}
	if n := logs.FilterMessageSnippet("no progress").Len(); n != 1 {
		t.Errorf("%d lines of the log say so, want 1", n)
	}
	end()
	if n, _ := m.Stalled(now.Add(time.Hour)); n != 0 {
		t.Error("a request that has ended counts as stalled")
	}
}

func TestAFailureOfManyFilesIsNamedOnceAMinute(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	log, now := zap.New(core), time.Now()
	kind := LogKind{Class: archive.ClassTransient, Again: true}
	l := NewLogLimiter(true)
	for i := range 100 {
		if named := l.Name(kind, now); named != (i == 0) {
			t.Errorf("file %d is named: %v", i, named)
		}
	}
	l.Flush(now.Add(limitEvery), log)
	if n := logs.FilterMessageSnippet("more attempts were postponed").FilterField(zap.Int("files", 99)).Len(); n != 1 {
		t.Errorf("%d lines count the others, want 1", n)
	}
	if !l.Name(LogKind{Class: archive.ClassFile}, now) {
		t.Error("a run that ends does not name what it gives up")
	}
}
