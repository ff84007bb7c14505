package uploader

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/localfile"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a pool over a real directory, a real state and a store in memory.
type rig struct {
	t        testing.TB
	dir      string
	stateDir string
	store    *store
	db       *state.DB
	q        *queue.Queue
	p        *Pool
	reg      *prometheus.Registry
	src      Source
	o        Options
	stop     func()

	mu       sync.Mutex
	outcomes []Outcome
}

func newRig(tb testing.TB, change func(*Source, *Options)) *rig {
	tb.Helper()
	r := &rig{t: tb, dir: tb.TempDir(), stateDir: filepath.Join(tb.TempDir(), "state"), store: newStore(tb)}
	r.o = Options{
		Workers: 4, PartSize: 64 << 10, SinglePutMax: 256 << 10, MemoryLimit: 32 << 20, Drain: 5 * time.Second, Log: zap.NewNop(),
		OnOutcome: func(o Outcome) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.outcomes = append(r.outcomes, o)
		},
	}
	r.src = Source{
		Name: "data", Instance: "app-01", Bucket: "b", RealPath: r.dir, Mapper: archive.NewMapper("pre"),
		Root: safefs.NewRoot(r.dir, safefs.RootOptions{}), Objects: r.store, Multipart: r.store,
		Accept: func(o archive.Object) archive.KeyVerdict {
			switch {
			case o.SSE != "aws:kms":
				return archive.KeyMissing
			case o.KMSKeyID != testKey:
				return archive.KeyOther
			}
			return archive.KeyOK
		},
		Hardlinks: safefs.LinksSameOwner, Deletes: archive.DeletesKeep, Fetch: r.store.fetch, Host: "host-a",
	}
	if change != nil {
		change(&r.src, &r.o)
	}
	r.open()
	tb.Cleanup(func() { r.close() })
	return r
}

func newBenchRig(b *testing.B) *rig {
	b.Helper()
	return newRig(b, func(s *Source, o *Options) { s.Proven, o.Workers, o.OnOutcome = true, 16, nil })
}

// open opens the state and builds a queue and a pool.
func (r *rig) open() {
	r.t.Helper()
	var err error
	if r.db, err = state.Open(r.stateDir, state.Options{Instance: "app-01", MachineID: "m", Log: zap.NewNop()}); err != nil {
		r.t.Fatal(err)
	}
	if r.src.State, err = r.db.Source(r.t.Context(), state.SourceKey{Bucket: "b", Prefix: "pre", RealPath: r.dir}); err != nil {
		r.t.Fatal(err)
	}
	if c, err := r.src.State.Chain(); err != nil || c.ID == "" {
		if err := r.src.State.BeginChain(r.t.Context(), "0a1b2c3d", archive.BeginsNew, "", ""); err != nil {
			r.t.Fatal(err)
		}
	}
	r.reg = prometheus.NewPedanticRegistry()
	r.o.Metrics = NewMetrics(r.reg)
	r.q = queue.New(1000)
	if r.p, err = New(r.q, []Source{r.src}, r.o); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) close() {
	r.halt()
	if err := r.db.Close(); err != nil {
		r.t.Errorf("close state: %v", err)
	}
}

// start runs the pool until halt.
func (r *rig) start() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.p.Run(ctx) }()
	r.stop = func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run = %v", err)
		}
	}
}

func (r *rig) halt() {
	if r.stop != nil {
		r.stop()
		r.stop = nil
	}
}

// restart closes the state and opens everything anew, as after an end.
func (r *rig) restart() {
	r.t.Helper()
	r.close()
	r.open()
	r.start()
}

// write writes a file that has been quiet for a while.
func (r *rig) write(path string, content []byte) {
	r.t.Helper()
	full := filepath.Join(r.dir, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(full, content, 0o644); err != nil {
		r.t.Fatal(err)
	}
	r.age(path, time.Hour)
}

func (r *rig) age(path string, by time.Duration) {
	r.t.Helper()
	at := time.Now().Add(-by)
	if err := os.Chtimes(filepath.Join(r.dir, path), at, at); err != nil {
		r.t.Fatal(err)
	}
	st, err := r.src.Root.Lstat(path)
	if err != nil {
		r.t.Fatal(err)
	}
	r.until("a ctime that no change repeats", func() bool { return by < localfile.RacyWindow || !localfile.Racy(localfile.FenceOf(st), time.Now()) })
}

func (r *rig) offer(trigger archive.Trigger, paths ...string) {
	r.t.Helper()
	for _, p := range paths {
		r.offerJob(queue.Job{Source: "data", Path: p, Trigger: trigger, Detected: time.Now()})
	}
}

func (r *rig) offerJob(j queue.Job) {
	r.t.Helper()
	if err := r.q.Offer(r.t.Context(), j); err != nil {
		r.t.Fatalf("Offer(%q) = %v", j.Path, err)
	}
}

// idle waits until the queue is empty.
func (r *rig) idle() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	if err := r.q.Source("data").Wait(ctx); err != nil {
		q, f, d := r.q.Source("data").Depth()
		r.t.Fatalf("Wait = %v with %d queued, %d in flight, %d delayed; destination %+v; outcomes %+v",
			err, q, f, d, r.p.Destination("data"), r.outcomesSoFar())
	}
}

// look offers paths and waits until they are done.
func (r *rig) look(trigger archive.Trigger, paths ...string) {
	r.t.Helper()
	r.offer(trigger, paths...)
	r.idle()
}

// until polls for a condition.
func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			r.t.Fatalf("never: %s; destination %+v; outcomes %+v", what, r.p.Destination("data"), r.outcomesSoFar())
		}
	}
}

func (r *rig) outcomesSoFar() []Outcome {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.outcomes)
}

// records returns the trail.
func (r *rig) records() []archive.Record {
	r.t.Helper()
	var list []archive.Record
	err := r.src.State.Records(0, 1<<60, func(_ uint64, _ archive.Status, line []byte) error {
		var rec archive.Record
		if err := json.Unmarshal(line, &rec); err != nil {
			return err
		}
		list = append(list, rec)
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return list
}

// trail renders the trail shortly: "status/basis-or-class" of each record.
func (r *rig) trail() []string {
	r.t.Helper()
	var list []string
	for _, rec := range r.records() {
		s := string(rec.Status)
		if rec.Basis != "" {
			s += "/" + string(rec.Basis)
		}
		if rec.ErrorClass != "" {
			s += "/" + string(rec.ErrorClass)
		}
		if rec.Recovered {
			s += "/recovered"
		}
		list = append(list, s)
	}
	return list
}

func (r *rig) wantTrail(want ...string) {
	r.t.Helper()
	if got := r.trail(); !slices.Equal(got, want) {
		r.t.Errorf("trail = %v, want %v", got, want)
	}
}

func (r *rig) entry(path string) archive.Entry {
	r.t.Helper()
	e, _, err := r.src.State.Get(path)
	if err != nil {
		r.t.Fatal(err)
	}
	return e
}

func (r *rig) wantObject(path string, content []byte) archive.Object {
	r.t.Helper()
	o, body, ok := r.store.object("pre/" + path)
	if !ok || !bytes.Equal(body, content) {
		r.t.Fatalf("object %q = %d bytes, %v, want %d bytes", path, len(body), ok, len(content))
	}
	sum := md5.Sum(content)
	if got, want := o.Metadata[archive.MetaMD5], hex.EncodeToString(sum[:]); got != want {
		r.t.Errorf("%s of %q = %q, want %q", archive.MetaMD5, path, got, want)
	}
	return o
}

func (r *rig) noIntents() {
	r.t.Helper()
	list, err := r.src.State.Intents()
	if err != nil || len(list) != 0 {
		r.t.Errorf("Intents() = %+v, %v, want none", list, err)
	}
	open := &r.p.dests["data"].open
	open.mu.Lock()
	defer open.mu.Unlock()
	if n := len(open.unresolved); n != 0 {
		r.t.Errorf("%d keys are still open", n)
	}
}

// pattern is n bytes that differ from place to place.
func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7) ^ byte(i>>8) ^ seed
	}
	return b
}

func md5hex(b []byte) string {
	sum := md5.Sum(b)
	return hex.EncodeToString(sum[:])
}
