package journal

import (
	"encoding/json"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/localfile"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// counter counts what a Journal tells it.
type counter struct {
	files                map[archive.Status]int
	failures             map[archive.Class]int
	repaired, shortLived int
}

func (c *counter) File(s archive.Status)   { c.files[s]++ }
func (c *counter) Failure(f archive.Class) { c.failures[f]++ }
func (c *counter) Repaired()               { c.repaired++ }
func (c *counter) ShortLived()             { c.shortLived++ }
func (c *counter) Uploaded(s archive.Status, _ int64, _, _ time.Time) {
	c.files[s]++
}

// rig is the journal of one source over a real state.
type rig struct {
	*Journal

	t     *testing.T
	db    *state.DB
	count *counter
}

func newRig(t *testing.T, o Options) *rig {
	t.Helper()
	dir := t.TempDir()
	db, err := state.Open(filepath.Join(t.TempDir(), "state"), state.Options{Instance: "app-01", MachineID: "m", Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() }) // Twice is no error.
	src, err := db.Source(t.Context(), state.SourceKey{Bucket: "b", Prefix: "pre", RealPath: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := src.BeginChain(t.Context(), "0a1b2c3d", archive.BeginsNew, "", ""); err != nil {
		t.Fatal(err)
	}
	o.Source, o.Instance, o.Bucket, o.RealPath, o.State = "data", "app-01", "b", dir, src
	o.Root = safefs.NewRoot(dir, safefs.RootOptions{})
	c := &counter{files: map[archive.Status]int{}, failures: map[archive.Class]int{}}
	return &rig{New(o, c), t, db, c}
}

// attempt begins an attempt at path, whose file has size bytes and the times at.
func (r *rig) attempt(path string, kind archive.Kind, size, at int64) *Attempt {
	r.t.Helper()
	job := &queue.Job{Source: "data", Path: path, Kind: kind, Trigger: archive.TriggerRescan}
	f := &localfile.File{Fence: archive.Fence{Ino: 1, Size: size, MtimeNs: at, CtimeNs: at}}
	a := r.Attempt(job, "pre/"+path, f)
	if err := a.Load(); err != nil {
		r.t.Fatal(err)
	}
	return a
}

// upload records an upload of path, as write n.
func (r *rig) upload(path string, size, at int64) *Attempt {
	r.t.Helper()
	a := r.attempt(path, archive.Refused, size, at)
	in := archive.Intent{Op: archive.OpPut, Path: path, Key: a.key, Chain: "0a1b2c3d", Fence: a.file.Fence, Trigger: archive.TriggerEvent}
	n, err := r.State.Begin(r.t.Context(), in)
	if err != nil {
		r.t.Fatal(err)
	}
	in.Attempt = n
	if err := a.Stored(r.t.Context(), &in, archive.Object{ETag: "e", VersionID: "v"}, false); err != nil {
		r.t.Fatal(err)
	}
	return a
}

// trail is the status of each record, with its class or basis.
func (r *rig) trail() []string {
	r.t.Helper()
	var list []string
	err := r.State.Records(0, 1<<60, func(_ uint64, s archive.Status, line []byte) error {
		var rec archive.Record
		if err := json.Unmarshal(line, &rec); err != nil {
			return err
		}
		list = append(list, string(s)+"/"+string(rec.ErrorClass)+string(rec.Basis))
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return list
}

func (r *rig) want(what string, trail ...string) {
	r.t.Helper()
	if got := r.trail(); !slices.Equal(got, trail) {
		r.t.Errorf("%s: the trail is %q, want %q", what, got, trail)
	}
}

func failure(c archive.Class) error { return archive.Classified(c, "open", errors.New(string(c))) }

// fail records err, and checks whether that made a new record.
func (r *rig) fail(a *Attempt, err error, again, recorded bool) {
	r.t.Helper()
	if got, ferr := a.Failed(r.t.Context(), err, again); got != recorded || ferr != nil {
		r.t.Errorf("Failed(%v, %v) = %v, %v, want %v", err, again, got, ferr, recorded)
	}
}

func TestAFailureIsRecordedOnceForItsClassAndContent(t *testing.T) {
	r := newRig(t, Options{})
	denied, odd := failure(archive.ClassConfiguration), failure(archive.ClassFile)
	r.fail(r.attempt("a", archive.Refused, 1, 1), denied, false, true)
	r.fail(r.attempt("a", archive.Refused, 1, 1), denied, false, false)
	r.fail(r.attempt("a", archive.Refused, 1, 1), denied, true, true) // A run ends with it.
	r.fail(r.attempt("a", archive.Refused, 2, 1), denied, false, true)
	r.fail(r.attempt("a", archive.Refused, 2, 1), odd, false, true)
	r.want("one path", "failed/configuration", "failed/configuration", "failed/configuration", "failed/file")
	if got, want := r.Parked(), map[archive.Class]int64{archive.ClassFile: 1}; !maps.Equal(got, want) {
		t.Errorf("Parked() = %v, want %v", got, want)
	}
	if r.count.failures[archive.ClassConfiguration] != 3 || r.count.failures[archive.ClassFile] != 1 {
		t.Errorf("counted %v", r.count.failures)
	}
}

func TestParkedPathsAreKnownToTheNextRunAndGoWithTheirCause(t *testing.T) {
	r := newRig(t, Options{})
	r.fail(r.attempt("a", archive.Refused, 1, 1), failure(archive.ClassConflict), false, true)
	r.fail(r.attempt("b", archive.Refused, 1, 1), failure(archive.ClassConflict), false, true)
	next := &rig{New(r.Options, r.count), t, r.db, r.count}
	if err := next.Load(); err != nil {
		t.Fatal(err)
	}
	if got, want := next.Parked(), map[archive.Class]int64{archive.ClassConflict: 2}; !maps.Equal(got, want) {
		t.Errorf("Parked() = %v after a start, want %v", got, want)
	}
	next.upload("a", 1, 1)
	if err := next.attempt("b", archive.Gone, 0, 0).Deleted(t.Context(), nil, archive.Object{}); err != nil {
		t.Fatal(err)
	}
	if got := next.Parked(); len(got) != 0 {
		t.Errorf("Parked() = %v after both causes went, want none", got)
	}
}

// That an object could not be rekeyed says nothing of the file.
func TestAFailedRekeyLeavesTheIndexAsItIs(t *testing.T) {
	r := newRig(t, Options{})
	before := r.upload("a", 1, 1).Index
	a := r.attempt("a", archive.Rekey, 1, 1)
	r.fail(a, failure(archive.ClassConfiguration), false, true)
	if after := r.attempt("a", archive.Rekey, 1, 1).Index; after != before {
		t.Errorf("the index has %+v, want %+v", after, before)
	}
	if len(r.Parked()) != 0 {
		t.Errorf("Parked() = %v, want none", r.Parked())
	}
}

func TestSkipsByTheIndexAreCountedAndNotRecorded(t *testing.T) {
	r := newRig(t, Options{})
	r.upload("a", 1, 1)
	for range 3 {
		if err := r.attempt("a", archive.Refused, 1, 1).SkipByIndex(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.FlushSkips(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.want("a scan", "uploaded/")
	if c, err := r.State.Chain(); err != nil || c.IndexSkips != 3 {
		t.Errorf("the chain counts %d skips, %v, want 3", c.IndexSkips, err)
	}
	event := r.attempt("a", archive.Refused, 1, 1)
	event.job.Trigger = archive.TriggerEvent
	if err := event.SkipByIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.want("an event", "uploaded/", "skipped/index")
}

func TestSkipsThatCouldNotBeCountedAreCountedLater(t *testing.T) {
	r := newRig(t, Options{})
	r.upload("a", 1, 1)
	if err := r.attempt("a", archive.Refused, 1, 1).SkipByIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.FlushSkips(t.Context()); !errors.Is(err, state.ErrClosed) {
		t.Errorf("FlushSkips = %v with a closed state, want ErrClosed", err)
	}
	if n := r.tallies.takeSkips(); n != 1 {
		t.Errorf("%d skips are left to count, want 1", n)
	}
}

func TestAnUploadThatPutsASuspectObjectBackIsARepair(t *testing.T) {
	r := newRig(t, Options{})
	for _, suspect := range []bool{false, true} {
		if suspect {
			a := r.attempt("a", archive.Refused, 1, 1)
			e := a.Index.Entry
			e.Suspect = true
			if err := a.Commit(t.Context(), archive.Outcome{Path: "a", Entry: &e}); err != nil {
				t.Fatal(err)
			}
		}
		a := r.upload("a", 1, 1)
		if a.Index.Entry.Suspect || (r.count.repaired == 1) != suspect {
			t.Errorf("suspect %v: the entry is %+v with %d repairs", suspect, a.Index.Entry, r.count.repaired)
		}
	}
}

func TestAFileThatWasUploadedInVainIsShortLived(t *testing.T) {
	r := newRig(t, Options{ShortLife: time.Minute})
	now := time.Now().UnixNano()
	for path, changed := range map[string]int64{"short": now, "long": now - int64(time.Hour)} {
		r.upload(path, 1, changed)
		if err := r.attempt(path, archive.Gone, 0, 0).Deleted(t.Context(), nil, archive.Object{}); err != nil {
			t.Fatal(err)
		}
	}
	if r.count.shortLived != 1 || r.count.files[archive.StatusDeleted] != 2 {
		t.Errorf("%d short-lived files of %v", r.count.shortLived, r.count.files)
	}
}
