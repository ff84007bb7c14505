// Package journal makes the results of attempts at files durable: the entries of
// the index, the records for the trail, and the counts of both.
package journal

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/localfile"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// Options describe the source whose results a Journal keeps.
type Options struct {
	Source    string
	Instance  string
	Bucket    string
	RealPath  string // The directory, for the local paths of the records.
	Root      *safefs.Root
	State     *state.Source
	ListSkips bool          // Skips that the index alone decided are recorded for all triggers, not for events only.
	ShortLife time.Duration // A file that is gone so soon after its last change counts as short-lived.
}

// Counter counts what is recorded.
type Counter interface {
	// File counts an outcome of a file.
	File(s archive.Status)
	// Failure counts a record of a failure.
	Failure(c archive.Class)
	// Uploaded counts a recorded upload of size bytes, first seen at detected.
	Uploaded(s archive.Status, size int64, detected, now time.Time)
	// Repaired counts an upload of an object that was missing or replaced in S3.
	Repaired()
	// ShortLived counts a file that was uploaded in vain.
	ShortLived()
}

// Journal keeps the results of one source. Its methods may be called
// concurrently.
type Journal struct {
	Options

	count   Counter
	tallies tallies
}

// loadPage is how many index entries are read in one short transaction.
const loadPage = 4096

// New returns a Journal that tells c what it records.
func New(o Options, c Counter) *Journal {
	return &Journal{Options: o, count: c, tallies: tallies{parked: map[archive.Class]int64{}}}
}

// Load counts the paths that earlier runs left with a failure that needs an
// operator.
func (j *Journal) Load() error {
	var page []archive.Item
	var err error
	for after := ""; ; after = page[len(page)-1].Path {
		if page, err = j.State.Range(after, loadPage, page[:0]); err != nil {
			return fmt.Errorf("read index of %s: %w", j.Source, err)
		}
		for i := range page {
			j.tallies.park("", page[i].Entry.FailClass)
		}
		if len(page) < loadPage {
			return nil
		}
	}
}

// Parked returns how many paths have a failure that needs an operator, by class;
// classes without any are left out.
func (j *Journal) Parked() map[archive.Class]int64 { return j.tallies.byClass() }

// FlushSkips adds the skips that the index alone decided to the next digest. They
// stay where it fails.
func (j *Journal) FlushSkips(ctx context.Context) error {
	n := j.tallies.takeSkips()
	if n == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err := j.State.AddCounts(ctx, nil, n)
	if err != nil {
		j.tallies.addSkips(n)
	}
	return err
}

// Attempt returns the journal of one attempt at job, whose object key is key and
// whose file f describes. It reads job and f when something is recorded.
func (j *Journal) Attempt(job *queue.Job, key string, f *localfile.File) *Attempt {
	return &Attempt{j: j, job: job, key: key, file: f}
}

// tallies count what is known of a source's paths.
type tallies struct {
	mu     sync.Mutex
	parked map[archive.Class]int64
	skips  int64 // Decided by the index alone, not yet counted in the state.
}

// park moves one path from one class of failure to another; "" is none.
func (t *tallies) park(from, to archive.Class) {
	if from == to {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if from != "" {
		t.parked[from] = max(0, t.parked[from]-1)
	}
	if to != "" {
		t.parked[to]++
	}
}

// byClass returns how many paths have a failure of each class that has any.
func (t *tallies) byClass() map[archive.Class]int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	parked := maps.Clone(t.parked)
	maps.DeleteFunc(parked, func(_ archive.Class, n int64) bool { return n == 0 })
	return parked
}

// takeSkips returns the skips that are not yet counted in the state, for the
// caller to count.
func (t *tallies) takeSkips() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.skips
	t.skips = 0
	return n
}

func (t *tallies) addSkips(n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.skips += n
}
