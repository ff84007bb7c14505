package uploader

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/breaker"
)

// denying is a store that refuses to take what lies below a prefix, while its
// canary passes: a policy that concerns a part of the data.
type denying struct {
	*store

	mu     sync.Mutex
	prefix string // "" refuses nothing
	puts   int
}

func (d *denying) Put(ctx context.Context, p archive.Put) (archive.Object, error) {
	d.mu.Lock()
	d.puts++
	refuse := d.prefix != "" && strings.HasPrefix(p.Key, d.prefix)
	d.mu.Unlock()
	if refuse {
		return archive.Object{}, remoteError(archive.ClassConfiguration, "AccessDenied", 403, os.ErrPermission)
	}
	return d.store.Put(ctx, p)
}

func (d *denying) grant() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.prefix = ""
}

func (d *denying) sent() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.puts
}

// deniedRig is a rig with many files below "denied/" that S3 refuses and a few
// others, and a log that is kept.
func deniedRig(t *testing.T, files int) (*rig, *denying, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zapcore.WarnLevel)
	r := newRig(t, func(s *Source, o *Options) { proven(s, o); o.Log = zap.New(core) })
	d := &denying{store: r.store, prefix: "pre/denied/"}
	r.p.dests["data"].store.Objects = d
	for i := range files {
		r.write(fmt.Sprintf("denied/f%04d", i), []byte("x"))
	}
	for i := range files {
		r.offer(archive.TriggerStartup, fmt.Sprintf("denied/f%04d", i))
	}
	return r, d, logs
}

func TestManyRefusedFilesCostOneRequestEachAndOneProbeAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const files = 300
		r, d, logs := deniedRig(t, files)
		r.start()
		time.Sleep(time.Hour)
		r.write("granted", []byte("y"))
		r.offer(archive.TriggerEvent, "granted")
		r.until("the other file went on", func() bool { _, _, ok := r.store.object("pre/granted"); return ok })
		t.Logf("%d PUT, %d canaries, %d log lines, %d held", d.sent(), r.store.count("Probe"), logs.Len(), r.q.Source("data").Held())
		if got := d.sent(); got < files || got > files+500 {
			t.Errorf("%d PUT in an hour, want one for each of %d files and about one a minute", got, files)
		}
		if got := r.store.count("Probe"); got > 20 {
			t.Errorf("%d canaries in an hour at a destination that works, want few", got)
		}
		if got := logs.Len(); got < 30 || got > 85 {
			t.Errorf("%d log lines in an hour, want about one a minute", got)
		}
		if got := len(r.trail()); got != files+1 {
			t.Errorf("%d records, want one failure for each of %d files and one upload", got, files)
		}
		d.grant()
		granted := time.Now()
		r.idle()
		if took := time.Since(granted); took > 90*time.Second {
			t.Errorf("all went on after %v, want within about a minute", took)
		}
		for i := range files {
			if _, _, ok := r.store.object(fmt.Sprintf("pre/denied/f%04d", i)); !ok {
				t.Fatalf("denied/f%04d is not there", i)
			}
		}
	})
}

// A person who has granted what was missing does not wait for a probe: a hang-up
// or a rescan lets everything go at once.
func TestReleaseLetsRefusedFilesGoAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, d, _ := deniedRig(t, 50)
		r.start()
		r.until("all are held", func() bool { return r.q.Source("data").Held() == 50 })
		d.grant()
		granted := time.Now()
		r.p.Release("data")
		r.idle()
		if took := time.Since(granted); took > 5*time.Second {
			t.Errorf("all went on after %v, want at once", took)
		}
	})
}

// The first file that is taken lets the others go, although it has changed
// meanwhile and is to be sent once more.
func TestAFileThatMovesLetsTheOthersGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const files = 40
		r, _, _ := deniedRig(t, files)
		var granted, moved atomic.Bool
		r.p.dests["data"].src.Requeue = func(string) {} // It comes back much later.
		r.p.dests["data"].store.Objects = &picky{r.store, func(_ context.Context, p archive.Put) error {
			if !granted.Load() {
				return remoteError(archive.ClassConfiguration, "AccessDenied", 403, os.ErrPermission)
			}
			if !moved.Swap(true) {
				r.write(strings.TrimPrefix(p.Key, "pre/"), []byte("another"))
			}
			return nil
		}}
		r.start()
		r.until("all are held", func() bool { return r.q.Source("data").Held() == files })
		granted.Store(true)
		time.Sleep(time.Minute) // Until the next probe, if the last one has just passed.
		r.until("a file is taken", moved.Load)
		time.Sleep(10 * time.Second)
		if held := r.q.Source("data").Held(); held != 0 {
			t.Errorf("%d are held, want none", held)
		}
	})
}

// Where two things are refused for two causes, the end of one lets go what it
// held, and costs the other nothing.
func TestEachCauseIsReleasedByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _, _ := deniedRig(t, 40)
		var granted atomic.Bool
		r.p.dests["data"].store.Objects = &picky{r.store, func(_ context.Context, p archive.Put) error {
			switch {
			case strings.HasPrefix(p.Key, "pre/locked/"):
				return remoteError(archive.ClassConfiguration, "InvalidRequest", 400, os.ErrPermission)
			case !granted.Load():
				return remoteError(archive.ClassConfiguration, "AccessDenied", 403, os.ErrPermission)
			}
			return nil
		}}
		for i := range 40 {
			r.write(fmt.Sprintf("locked/f%02d", i), []byte("x"))
			r.offer(archive.TriggerStartup, fmt.Sprintf("locked/f%02d", i))
		}
		r.start()
		r.until("all are held", func() bool { return r.q.Source("data").Held() == 80 })
		granted.Store(true)
		time.Sleep(2 * time.Minute)
		if held := r.q.Source("data").Held(); held < 39 || held > 40 {
			t.Errorf("%d are held, want those of the other cause", held)
		}
		if _, _, ok := r.store.object("pre/denied/f0039"); !ok {
			t.Error("what was granted is not there")
		}
	})
}

// refusing is a store that refuses everything, its canary too, while code is set.
type refusing struct {
	*denying

	code atomic.Value // string
}

func (r *refusing) refusal() error {
	if c, _ := r.code.Load().(string); c != "" {
		return remoteError(archive.ClassConfiguration, c, 400, os.ErrPermission)
	}
	return nil
}

func (r *refusing) Put(ctx context.Context, p archive.Put) (archive.Object, error) {
	if err := r.refusal(); err != nil {
		return archive.Object{}, err
	}
	return r.denying.Put(ctx, p)
}

func (r *refusing) Probe(ctx context.Context) error {
	if err := r.refusal(); err != nil {
		return err
	}
	return r.store.Probe(ctx)
}

// A key that is disabled right after the canary passed is not the fault of the
// one file that changes: the destination is parked within minutes.
func TestOneHotFileDoesNotHideThatTheKeyWasDisabled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		s := &refusing{denying: &denying{store: r.store}}
		r.p.dests["data"].store.Objects = s
		r.start()
		r.until("the canary passed", func() bool { return r.p.Destination("data").State == breaker.HealthOK })
		time.Sleep(20 * time.Second)
		s.code.Store("KMS.DisabledException")
		for i := range 20 {
			r.write("hot", fmt.Appendf(nil, "%d", i))
			r.offer(archive.TriggerEvent, "hot")
			time.Sleep(10 * time.Second)
		}
		if st := r.p.Destination("data"); st.State != breaker.HealthParked {
			t.Errorf("three minutes after its key was disabled the destination is %s, want parked", st.State)
		}
		s.code.Store("")
		time.Sleep(2 * time.Minute)
		r.wantObject("hot", []byte("19"))
		if st := r.p.Destination("data"); st.State != breaker.HealthOK {
			t.Errorf("two minutes after its key was enabled the destination is %s, want ok", st.State)
		}
	})
}

// What a canary showed of one refusal says nothing of another: a file that a
// policy refuses does not hide that the key is disabled later.
func TestARefusedFileDoesNotHideAnotherRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, d, _ := deniedRig(t, 1)
		s := &refusing{denying: d}
		r.p.dests["data"].store.Objects = s
		r.start()
		time.Sleep(time.Hour)
		if st := r.p.Destination("data"); st.State != breaker.HealthOK || r.q.Source("data").Held() != 1 {
			t.Fatalf("the destination is %s with %d held files, want ok with one", st.State, r.q.Source("data").Held())
		}
		s.code.Store("KMS.DisabledException")
		time.Sleep(3 * time.Minute)
		if st := r.p.Destination("data"); st.State != breaker.HealthParked {
			t.Errorf("three minutes after its key was disabled the destination is %s, want parked", st.State)
		}
	})
}

// A file that was taken to be refused alone because the canary had just passed
// costs one more canary, not one for each time it is tried.
func TestAFileRefusedAloneCostsOneMoreCanary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.p.dests["data"].store.Objects = &denying{store: r.store, prefix: "pre/denied/"}
		r.start()
		r.until("the canary passed", func() bool { return r.p.Destination("data").State == breaker.HealthOK })
		r.write("denied/f", []byte("x"))
		r.offer(archive.TriggerEvent, "denied/f")
		r.until("it is held", func() bool { return r.q.Source("data").Held() == 1 })
		if got := r.store.count("Probe"); got != 1 {
			t.Errorf("%d canaries when the file was held, want the first only", got)
		}
		time.Sleep(6 * time.Hour)
		if got := r.store.count("Probe"); got != 2 {
			t.Errorf("%d canaries in six hours for one refused file, want one more", got)
		}
		if got := r.q.Source("data").Held(); got != 1 {
			t.Errorf("%d held, want one", got)
		}
	})
}

// Looks that are postponed are named once a minute, however many there are.
func TestPostponedLooksCostALineAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const files = 200
		r, _, logs := deniedRig(t, files)
		r.p.dests["data"].store.Objects = &picky{r.store, func(context.Context, archive.Put) error {
			r.p.dests["data"].breaker.Wrote()
			r.p.dests["data"].breaker.Observe(nil) // Others are taken: the destination is not away.
			return remoteError(archive.ClassTransient, "InternalError", 500, os.ErrInvalid)
		}}
		r.start()
		time.Sleep(time.Hour)
		named := logs.FilterMessageSnippet("postponed").Len()
		if named < 30 || named > 62 {
			t.Errorf("%d warnings of %d files that are tried again for an hour, want about one a minute", named, files)
		}
	})
}
