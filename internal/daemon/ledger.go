package daemon

import (
	"slices"
	"sync"
	"time"

	"github.com/s3syncd/s3syncd/internal/admin"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/uploader"
)

const (
	ledgerFailures = 20     // kept of each source
	flushPaths     = 10_000 // that a flush remembers of each kind
	errorText      = 400    // runes of an error that status shows
	ledgerOutcomes = 12     // kept of each source
)

// ledger remembers what became of the files of one source, as long as the
// process lives. Its methods may be called concurrently.
type ledger struct {
	mu       sync.Mutex
	counts   map[archive.Status]int64
	failures []admin.Failure // the last one that happened at the end
	raw      []string        // their paths
	flushes  map[*flushRecord]struct{}

	last  [ledgerOutcomes]lastOutcome
	ended int // outcomes ever put into last
	meter meter
}

// lastOutcome is what became of one file.
type lastOutcome struct {
	path   string
	status archive.Status
	size   int64
	at     time.Time
}

// meter measures the uploads of one source.
type meter struct {
	bytes   int64         // acknowledged since the start
	slowest time.Duration // from the first sight to the record, since it was last taken
	uploads int64         // since it was last taken
}

func newLedger() *ledger {
	l := &ledger{counts: map[archive.Status]int64{}, flushes: map[*flushRecord]struct{}{}}
	for _, s := range archive.Statuses() {
		l.counts[s] = 0
	}
	return l
}

// add records how an attempt ended.
func (l *ledger) add(o uploader.Outcome, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if o.Status != "" {
		l.counts[o.Status]++
		l.last[l.ended%ledgerOutcomes] = lastOutcome{path: o.Path, status: o.Status, size: o.Size, at: now}
		l.ended++
	}
	if o.Status == archive.StatusUploaded {
		l.meter.add(o, now)
	}
	for f := range l.flushes {
		f.add(o)
	}
	i := slices.IndexFunc(l.raw, func(p string) bool { return p == o.Path })
	if o.Err == nil {
		if i >= 0 && l.failures[i].ResolvedAt == nil {
			l.failures[i].ResolvedAt = &now
		}
		return
	}
	l.fail(i, o, now)
}

func (m *meter) add(o uploader.Outcome, now time.Time) {
	m.bytes += o.Bytes
	m.uploads++
	if !o.Detected.IsZero() {
		m.slowest = max(m.slowest, now.Sub(o.Detected))
	}
}

// takeMeter returns the meter and begins another interval. There may be one
// caller.
func (l *ledger) takeMeter() meter {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.meter
	l.meter.slowest, l.meter.uploads = 0, 0
	return m
}

// fail notes a failure; i is the last one of the same path, or -1.
func (l *ledger) fail(i int, o uploader.Outcome, now time.Time) {
	f := admin.Failure{
		Name: admin.NewName(o.Path), Class: string(o.Class), Error: admin.Plain(o.Err.Error(), errorText),
		FirstAt: now, LastAt: now, Count: 1,
		Retried: o.Retry && o.Status != archive.StatusFailed, Advice: admin.Advice(string(o.Class), o.Err.Error()),
	}
	if i >= 0 {
		if old := l.failures[i]; old.Class == f.Class && old.ResolvedAt == nil {
			f.FirstAt, f.Count = old.FirstAt, old.Count+1
			f.Retried = f.Retried && old.Retried // The first one has its record.
		}
		l.failures, l.raw = slices.Delete(l.failures, i, i+1), slices.Delete(l.raw, i, i+1)
	}
	if len(l.failures) >= ledgerFailures {
		l.failures, l.raw = slices.Delete(l.failures, 0, 1), slices.Delete(l.raw, 0, 1)
	}
	l.failures, l.raw = append(l.failures, f), append(l.raw, o.Path)
}

// list returns the counts by status, the failures and the last outcomes, both
// the newest first.
func (l *ledger) list() (counts map[string]int64, failures []admin.Failure, last []admin.Outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	counts = make(map[string]int64, len(l.counts))
	for s, n := range l.counts {
		counts[string(s)] = n
	}
	failures = append(make([]admin.Failure, 0, len(l.failures)), l.failures...)
	slices.Reverse(failures)
	last = make([]admin.Outcome, 0, ledgerOutcomes)
	for i := l.ended - 1; i >= max(0, l.ended-ledgerOutcomes); i-- {
		o := l.last[i%ledgerOutcomes]
		last = append(last, admin.Outcome{Name: admin.NewName(o.path), Status: string(o.status), Size: o.size, At: o.at})
	}
	return counts, failures, last
}

// follow gives a flush every outcome until stop is called.
func (l *ledger) follow() (f *flushRecord, stop func()) {
	f = &flushRecord{mu: &l.mu, moved: map[string]struct{}{}, failed: map[string]uploader.Outcome{}, restless: map[string]int{}}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flushes[f] = struct{}{}
	return f, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.flushes, f)
	}
}

// flushRecord is what a flush knows of the attempts that ended since it began.
type flushRecord struct {
	mu       *sync.Mutex         // of the ledger
	moved    map[string]struct{} // changed while they were read, went back to the watcher
	failed   map[string]uploader.Outcome
	overflow bool           // more moved than can be remembered
	lost     int            // failures that were not remembered
	restless map[string]int // how often a path has moved
}

// add records an outcome. The caller holds mu.
func (f *flushRecord) add(o uploader.Outcome) {
	switch {
	case o.Err == nil:
		delete(f.moved, o.Path)
		delete(f.failed, o.Path)
	case o.Class.Rereads() && f.again(o.Path):
		if len(f.moved) >= flushPaths {
			f.overflow = true
			return
		}
		f.moved[o.Path] = struct{}{}
	case o.Class.Passes() && !o.Stuck:
		// It stays in the queue.
	case len(f.failed) >= flushPaths:
		f.lost++
	default:
		f.failed[o.Path] = o
		delete(f.moved, o.Path)
	}
}

// restlessMax is how often a flush offers a path that changes each time it is read.
const restlessMax = 5

// again reports whether a path that moved is worth another attempt in this flush.
func (f *flushRecord) again(path string) bool {
	if len(f.restless) >= flushPaths {
		return true
	}
	f.restless[path]++
	return f.restless[path] < restlessMax
}

// takeMoved returns the paths that moved and forgets them; all is true when
// there were too many.
func (f *flushRecord) takeMoved() (paths []string, all bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for p := range f.moved {
		paths = append(paths, p)
	}
	all, f.overflow = f.overflow, false
	clear(f.moved)
	slices.Sort(paths)
	return paths, all
}

// failures returns how many paths failed, and the first of them by name.
func (f *flushRecord) failures() (n int, first uploader.Outcome) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for p, o := range f.failed {
		if first.Path == "" || p < first.Path {
			first = o
		}
	}
	return len(f.failed) + f.lost, first
}
