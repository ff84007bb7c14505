package uploader

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/breaker"
	"github.com/s3syncd/s3syncd/pkg/queue"
)

// hurry makes what waits for a retry due, so that tests need not wait.
func (r *rig) hurry() {
	r.until("something waits or all is done", func() bool {
		q, f, d := r.q.Source("data").Depth()
		return d > 0 || q+f == 0
	})
	r.q.Source("data").Release(true)
}

func TestLostAnswerOfAPutIsRecognized(t *testing.T) {
	r := newRig(t, proven)
	r.store.plan(fault{op: "Put", times: 1, lost: true, err: reset()})
	r.start()
	r.write("a", []byte("x"))
	r.offer(archive.TriggerEvent, "a")
	r.hurry()
	r.idle()
	r.wantTrail("uploaded/recovered")
	r.wantObject("a", []byte("x"))
	if got := r.store.count("Put"); got != 1 {
		t.Errorf("%d PUT, want 1", got)
	}
	r.noIntents()
}

// The store's own retry of a request whose answer was lost gets 412.
func TestPreconditionFailedByOwnWriteIsSuccess(t *testing.T) {
	r := newRig(t, proven)
	r.store.plan(fault{op: "Put", times: 1, lost: true, err: remoteError(archive.ClassTransient, "PreconditionFailed", 412, archive.ErrPrecondition)})
	r.start()
	r.write("a", []byte("x"))
	r.look(archive.TriggerEvent, "a")
	r.wantTrail("uploaded/recovered")
	r.noIntents()
}

func TestRefusedPutIsTriedAgain(t *testing.T) {
	r := newRig(t, proven)
	r.store.plan(fault{op: "Put", times: 2, err: reset()})
	r.start()
	r.write("a", []byte("x"))
	r.offer(archive.TriggerEvent, "a")
	for r.store.count("Put") < 3 {
		r.hurry()
	}
	r.idle()
	r.wantTrail("uploaded")
	r.noIntents()
}

// A write that the server finishes after its key was asked for is recorded
// when the next write runs into it.
func TestUnresolvedWriteIsRecordedWhenItShows(t *testing.T) {
	r := newRig(t, proven)
	var late archive.Put
	r.store.plan(fault{op: "Put", times: 1, err: reset()})
	r.start()
	r.write("a", []byte("x"))
	r.offer(archive.TriggerEvent, "a")
	r.until("the write failed", func() bool { _, _, d := r.q.Source("data").Depth(); return d == 1 })
	intents, err := r.src.State.Intents()
	if err != nil || len(intents) != 1 {
		t.Fatalf("Intents = %+v, %v, want one", intents, err)
	}
	c, _ := r.src.State.Chain()
	id := archive.ObjectID{Instance: "app-01", Chain: c.ID, Attempt: intents[0].Attempt}
	late.Metadata = map[string]string{archive.MetaMD5: md5hex([]byte("x")), archive.MetaID: id.String()}
	r.store.plan(fault{op: "Put", times: 1, do: func() { r.foreignObject("a", []byte("x"), late.Metadata) }})
	r.hurry()
	r.idle()
	r.wantTrail("uploaded/recovered")
	r.noIntents()
}

// Two states of one instance draw the same numbers. What the other one wrote
// stands in its trail, also where this chain took the place of its chain.
func TestAnotherStatesWriteIsNotTakenForOurs(t *testing.T) {
	r := newRig(t, proven)
	if err := r.src.State.BeginChain(t.Context(), "11111111", archive.BeginsStateLost, "0a1b2c3d", ""); err != nil {
		t.Fatal(err)
	}
	theirs := map[string]string{archive.MetaMD5: md5hex([]byte("x")), archive.MetaID: "app-01/0a1b2c3d/1"}
	r.store.plan(fault{op: "Put", times: 1, do: func() { r.foreignObject("a", []byte("x"), theirs) }})
	r.start()
	r.write("a", []byte("x"))
	r.look(archive.TriggerStartup, "a")
	r.wantTrail("skipped/metadata")
	r.noIntents()
}

// A chain that was begun meanwhile does not hide what was announced before.
func TestAWriteIsRecoveredUnderALaterChain(t *testing.T) {
	r := newRig(t, proven)
	r.store.plan(fault{op: "Put", times: 1, lost: true, err: reset()})
	r.start()
	r.write("a", []byte("x"))
	r.offer(archive.TriggerEvent, "a")
	r.until("the answer is lost", func() bool { _, _, d := r.q.Source("data").Depth(); return d == 1 })
	for _, id := range []string{"11111111", "22222222"} {
		if err := r.src.State.BeginChain(t.Context(), id, archive.BeginsForked, "0a1b2c3d", ""); err != nil {
			t.Fatal(err)
		}
	}
	r.restart()
	r.until("it is recovered", func() bool { return len(r.trail()) == 1 })
	r.idle()
	r.wantTrail("uploaded/recovered")
	r.noIntents()
}

func TestInterruptedUploadIsRecoveredByTheNextRun(t *testing.T) {
	r := newRig(t, proven)
	r.store.plan(fault{op: "Put", times: 1, lost: true, err: reset()})
	r.start()
	r.write("a", []byte("x"))
	r.write("b", []byte("y"))
	r.offer(archive.TriggerEvent, "a")
	r.until("the answer is lost", func() bool { _, _, d := r.q.Source("data").Depth(); return d == 1 })
	r.restart()
	r.until("it is recovered", func() bool { return len(r.trail()) == 1 })
	r.look(archive.TriggerStartup, "a", "b")
	r.wantTrail("uploaded/recovered", "uploaded")
	if got := r.store.count("Put"); got != 2 {
		t.Errorf("%d PUT, want 2", got)
	}
	r.noIntents()
}

func TestInterruptedWriteThatNeverArrivedStaysUnresolved(t *testing.T) {
	r := newRig(t, proven)
	r.store.plan(fault{op: "Put", times: 1, err: reset()})
	r.start()
	r.write("a", []byte("x"))
	r.offer(archive.TriggerEvent, "a")
	r.until("the write failed", func() bool { _, _, d := r.q.Source("data").Depth(); return d == 1 })
	r.restart()
	r.until("it is unresolved", func() bool {
		list, err := r.src.State.Intents()
		return err == nil && len(list) == 1 && list[0].Unresolved
	})
	r.idle()
	r.halt()
	if got := testutil.ToFloat64(r.o.Metrics.unresolved.WithLabelValues("data")); got != 1 {
		t.Errorf("unresolved_intents = %v, want 1", got)
	}
	r.start()
	r.look(archive.TriggerStartup, "a")
	r.wantTrail("uploaded")
	r.noIntents()
}

func TestMultipartUploadsWhatWasRead(t *testing.T) {
	r := newRig(t, proven)
	r.start()
	data := pattern(700<<10, 3)
	r.write("big", data)
	r.look(archive.TriggerEvent, "big")
	r.wantObject("big", data)
	r.wantTrail("uploaded")
	if got := r.store.count("UploadPart"); got != 11 {
		t.Errorf("%d parts, want 11", got)
	}
	r.noIntents()
}

func TestMultipartResumesAfterARestart(t *testing.T) {
	r := newRig(t, proven)
	r.start()
	data := pattern(700<<10, 3)
	r.write("big", data)
	r.store.plan(fault{op: "UploadPart", times: 5}) // These arrive.
	r.store.plan(fault{op: "UploadPart", times: 1 << 20, err: reset()})
	r.offer(archive.TriggerEvent, "big")
	r.until("a part failed", func() bool { _, _, d := r.q.Source("data").Depth(); return d == 1 })
	r.store.heal()
	sent := r.store.count("UploadPart")
	r.restart()
	r.until("it was taken up again", func() bool { return len(r.trail()) == 1 })
	r.idle()
	r.wantObject("big", data)
	r.wantTrail("uploaded")
	if got := r.store.count("UploadPart") - sent; got > 8 || got < 1 {
		t.Errorf("%d parts after the restart, want only the missing ones", got)
	}
	if got := r.store.count("Create"); got != 1 {
		t.Errorf("%d uploads were opened, want 1", got)
	}
	r.noIntents()
}

func TestMultipartOfAFileThatChangedIsAborted(t *testing.T) {
	r := newRig(t, proven)
	r.start()
	r.write("big", pattern(700<<10, 3))
	r.store.plan(fault{op: "UploadPart", times: 4, err: reset()})
	r.offer(archive.TriggerEvent, "big")
	r.until("a part failed", func() bool { _, _, d := r.q.Source("data").Depth(); return d == 1 })
	r.store.heal()
	newer := pattern(600<<10, 9)
	r.write("big", newer)
	r.restart()
	r.look(archive.TriggerStartup, "big")
	r.wantObject("big", newer)
	if n := len(r.store.uploads); n != 0 {
		t.Errorf("%d multipart uploads are left, want 0", n)
	}
	r.noIntents()
}

func TestMultipartOfAFileThatWasExcludedIsAborted(t *testing.T) {
	excluded := false
	r := newRig(t, func(s *Source, o *Options) {
		proven(s, o)
		s.LeftOut = func(string) bool { return excluded }
	})
	r.start()
	r.write("big", pattern(700<<10, 3))
	r.write("small", []byte("one"))
	r.look(archive.TriggerStartup, "small")
	r.store.plan(fault{op: "UploadPart", times: 4, err: reset()})
	r.offer(archive.TriggerEvent, "big")
	r.until("a part failed", func() bool { _, _, d := r.q.Source("data").Depth(); return d == 1 })
	r.store.heal()
	excluded = true
	reads := r.store.count("UploadPart")
	r.restart()
	r.offerJob(queue.Job{Source: "data", Path: "small", Kind: archive.Reread, Trigger: archive.TriggerRescan})
	r.until("the upload was aborted", func() bool { return r.store.count("Abort") == 1 })
	r.idle()
	if n := r.store.count("UploadPart") - reads; n != 0 {
		t.Errorf("%d parts were sent of a file that is excluded", n)
	}
	if n := len(r.store.uploads); n != 0 {
		t.Errorf("%d multipart uploads are left, want 0", n)
	}
	r.wantTrail("uploaded")
	r.noIntents()
}

func TestLostAnswerOfACompleteIsRecognized(t *testing.T) {
	r := newRig(t, proven)
	r.store.plan(fault{op: "Complete", times: 1, lost: true, err: reset()})
	r.start()
	data := pattern(300<<10, 1)
	r.write("big", data)
	r.offer(archive.TriggerEvent, "big")
	r.hurry()
	r.idle()
	r.wantObject("big", data)
	r.wantTrail("uploaded/recovered")
	r.noIntents()
}

// The server was still completing the upload when its key was asked for. The
// object stands there by the time the upload is given up for newer content.
func TestUploadCompletedWhileItIsGivenUpIsRecorded(t *testing.T) {
	r := newRig(t, proven)
	r.store.plan(fault{op: "Complete", times: 1, err: reset()})
	r.start()
	r.write("big", pattern(700<<10, 3))
	r.offer(archive.TriggerEvent, "big")
	r.until("the upload is cut off", func() bool { _, _, d := r.q.Source("data").Depth(); return d == 1 })
	r.halt()
	newer := pattern(600<<10, 4)
	r.write("big", newer)
	r.store.plan(fault{op: "Abort", times: 1, do: r.store.completeAll})
	r.restart()
	r.look(archive.TriggerStartup, "big")
	r.wantTrail("uploaded/recovered", "uploaded")
	r.wantObject("big", newer)
	r.noIntents()
}

func TestUploadThatTheServerForgotIsBegunAnew(t *testing.T) {
	r := newRig(t, proven)
	r.store.plan(fault{op: "Complete", times: 1, do: func() {
		r.store.mu.Lock()
		defer r.store.mu.Unlock()
		clear(r.store.uploads)
	}})
	r.start()
	data := pattern(300<<10, 1)
	r.write("big", data)
	r.look(archive.TriggerEvent, "big")
	r.wantObject("big", data)
	r.wantTrail("uploaded")
	r.noIntents()
}

// A file that is rewritten while it is sent is never stored torn: not in one
// request, not in parts, and whatever the writer does to the times.
func TestTornFileIsNeverStored(t *testing.T) {
	for _, size := range []int{200 << 10, 900 << 10} {
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			r := newRig(t, func(s *Source, o *Options) {
				s.Proven = true
				o.MemoryLimit, o.SinglePutMax = 256<<10, 512<<10
				if size > 256<<10 {
					o.SinglePutMax = 256 << 10
				}
			})
			r.start()
			path := filepath.Join(r.dir, "torn")
			stop := make(chan struct{})
			var wg sync.WaitGroup
			r.write("torn", pattern(size, 0))
			wg.Go(func() {
				for seed := byte(1); ; seed++ {
					select {
					case <-stop:
						return
					default:
					}
					f, err := os.OpenFile(path, os.O_WRONLY, 0)
					if err != nil {
						t.Error(err)
						return
					}
					_, _ = f.WriteAt(pattern(size, seed), 0)
					_ = f.Close()
				}
			})
			for range 15 {
				r.offer(archive.TriggerEvent, "torn")
				r.hurry()
			}
			close(stop)
			wg.Wait()
			r.q.Source("data").Release(true)
			r.offer(archive.TriggerEvent, "torn")
			r.idle()
			final, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			r.wantObject("torn", final)
			for _, rec := range r.records() {
				if rec.Status == archive.StatusUploaded && rec.MD5 == "" {
					t.Errorf("record without a hash: %+v", rec)
				}
			}
			r.noIntents()
		})
	}
}

func TestFileThatChangesBetweenThePassesIsRefusedByTheServer(t *testing.T) {
	r := newRig(t, func(s *Source, o *Options) {
		s.Proven = true
		o.MemoryLimit, o.SinglePutMax = 256<<10, 2<<20
	})
	data := pattern(1<<20, 1)
	newer := pattern(1<<20, 2)
	r.write("a", data)
	r.store.plan(fault{op: "Head", times: 1, do: func() { r.write("a", newer) }}) // After the hash, before the body.
	requeued := make(chan string, 10)
	r.p.dests["data"].src.Requeue = func(p string) { requeued <- p }
	r.start()
	r.look(archive.TriggerEvent, "a")
	if got := <-requeued; got != "a" {
		t.Errorf("requeued %q, want a", got)
	}
	if _, _, ok := r.store.object("pre/a"); ok {
		t.Error("a torn object was stored")
	}
	r.wantTrail()
	r.noIntents()
	r.look(archive.TriggerEvent, "a")
	r.wantObject("a", newer)
}

func TestFileThatMovesAfterItsReadingIsRecordedAndLookedAtAgain(t *testing.T) {
	r := newRig(t, proven)
	requeued := make(chan string, 10)
	r.p.dests["data"].src.Requeue = func(p string) { requeued <- p }
	r.write("a", []byte("one"))
	r.store.plan(fault{op: "Put", times: 1, do: func() { r.write("a", []byte("two!")) }})
	r.start()
	r.look(archive.TriggerEvent, "a")
	if got := <-requeued; got != "a" {
		t.Errorf("requeued %q, want a", got)
	}
	r.wantObject("a", []byte("one"))
	r.look(archive.TriggerEvent, "a")
	r.wantObject("a", []byte("two!"))
	r.wantTrail("uploaded", "uploaded")
}

// The file has another name, and a write through that makes no event here: the
// look itself must notice, whatever it decided.
func TestFileThatMovesBeforeItsSkipIsCommittedIsLookedAtAgain(t *testing.T) {
	r := newRig(t, proven)
	requeued := make(chan string, 10)
	r.p.dests["data"].src.Requeue = func(p string) { requeued <- p }
	r.write("a", []byte("one"))
	r.foreignObject("a", []byte("one"), map[string]string{archive.MetaMD5: md5hex([]byte("one"))})
	r.store.plan(fault{op: "Head", times: 1, do: func() { r.write("a", []byte("two!")) }})
	r.start()
	r.look(archive.TriggerEvent, "a")
	if got := <-requeued; got != "a" {
		t.Errorf("requeued %q, want a", got)
	}
	r.look(archive.TriggerEvent, "a")
	r.wantObject("a", []byte("two!"))
	r.wantTrail("skipped/metadata", "uploaded")
}

func TestFileThatNeverHoldsStillIsRecordedOnce(t *testing.T) {
	r := newRig(t, proven)
	r.p.dests["data"].src.Requeue = func(string) {}
	moved := remoteError(archive.ClassChanged, "BadDigest", 400, errors.New("digest mismatch"))
	r.store.plan(fault{op: "Put", times: 7, err: moved})
	r.start()
	r.write("a", []byte("x"))
	for i := range 7 {
		r.offer(archive.TriggerEvent, "a")
		r.until("the look ended", func() bool { return r.store.count("Put") == i+1 })
		r.until("nothing is in hand", func() bool { q, f, _ := r.q.Source("data").Depth(); return q+f == 0 })
	}
	r.wantTrail("failed/changed")
	r.offer(archive.TriggerEvent, "a")
	r.idle()
	r.wantTrail("failed/changed", "uploaded")
	if e := r.entry("a"); e.FailClass != "" {
		t.Errorf("FailClass = %q after an upload, want none", e.FailClass)
	}
}

func TestEncryptionMismatchStopsTheDestination(t *testing.T) {
	r := newRig(t, func(s *Source, o *Options) { s.Proven = true; o.Workers = 1 })
	r.store.key = ""
	r.start()
	r.write("a", []byte("x"))
	r.write("b", []byte("y"))
	r.offer(archive.TriggerEvent, "a", "b")
	r.until("it is stopped", func() bool { return r.p.Destination("data").State == breaker.HealthStopped })
	r.until("nothing is in hand", func() bool { _, f, _ := r.q.Source("data").Depth(); return f == 0 })
	if got := r.store.count("Put"); got != 1 {
		t.Errorf("%d PUT, want 1: nothing is sent after a mismatch", got)
	}
	r.wantTrail("failed/encryption")
	if got := testutil.ToFloat64(r.o.Metrics.mismatches.WithLabelValues("data")); got != 1 {
		t.Errorf("encryption_mismatches_total = %v, want 1", got)
	}
	r.store.mu.Lock()
	r.store.key = testKey
	r.store.mu.Unlock()
	r.p.Release("data") // Has it probed at once.
	r.idle()
	r.wantObject("a", []byte("x"))
	r.wantTrail("failed/encryption", "uploaded", "uploaded")
	if got := r.p.Destination("data"); got.State != breaker.HealthOK {
		t.Errorf("destination = %+v, want ok", got)
	}
}

func TestUnprovenDestinationIsProbedBeforeTheFirstFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.store.plan(fault{op: "Probe", times: 3, err: reset()})
		r.start()
		r.write("a", []byte("x"))
		r.offer(archive.TriggerStartup, "a")
		synctest.Wait()
		if got := r.p.Destination("data"); got.State != breaker.HealthWaiting || r.store.count("Put") != 0 {
			t.Errorf("destination = %+v with %d PUT, want waiting with none", got, r.store.count("Put"))
		}
		r.idle()
		r.wantTrail("uploaded")
		if got := r.store.count("Probe"); got != 4 {
			t.Errorf("%d canaries, want 4", got)
		}
	})
}

func TestOutageCostsProbesOnlyAndEndsWithinOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, proven)
		r.start()
		var paths []string
		for i := range 40 {
			p := fmt.Sprintf("f%02d", i)
			r.write(p, []byte(p))
			paths = append(paths, p)
		}
		for _, op := range []string{"Head", "Put", "Ping"} {
			r.store.plan(fault{op: op, times: 1 << 20, err: reset()})
		}
		r.offer(archive.TriggerStartup, paths...)
		time.Sleep(time.Minute)
		if got := r.p.Destination("data").State; got != breaker.HealthWaiting {
			t.Fatalf("destination = %v, want waiting", got)
		}
		heads, pings := r.store.count("Head"), r.store.count("Ping")
		time.Sleep(time.Hour)
		if got := r.store.count("Head") - heads; got != 0 {
			t.Errorf("%d HEAD during the outage, want none but probes", got)
		}
		if got := r.store.count("Ping") - pings; got < 200 || got > 400 {
			t.Errorf("%d probes in an hour, want one each 11 to 15 s", got)
		}
		r.store.heal()
		back := time.Now()
		r.idle()
		if took := time.Since(back); took > 15*time.Second {
			t.Errorf("idle %v after the outage, want at most one probe interval", took)
		}
		if got := len(r.trail()); got != 40 {
			t.Errorf("%d records, want 40 uploads and no failure", got)
		}
	})
}

func TestRefusedDestinationParksAndResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(s *Source, o *Options) { s.Proven = true; o.Workers = 2 })
		r.start()
		denied := remoteError(archive.ClassConfiguration, "AccessDenied", 403, os.ErrPermission)
		r.store.plan(fault{op: "Put", times: 1 << 20, err: denied})
		r.store.plan(fault{op: "Probe", times: 1 << 20, err: denied})
		var paths []string
		for i := range 20 {
			p := fmt.Sprintf("f%02d", i)
			r.write(p, []byte(p))
			paths = append(paths, p)
		}
		r.offer(archive.TriggerStartup, paths...)
		time.Sleep(time.Hour)
		d := r.p.Destination("data")
		if d.State != breaker.HealthParked || d.Class != archive.ClassConfiguration || time.Until(d.NextProbe) > time.Minute {
			t.Fatalf("destination = %+v, want parked with a probe within a minute", d)
		}
		if got := r.store.count("Put"); got > queue.Ahead*(2+int(spare)) {
			t.Errorf("%d PUT to a parked destination, want those of the looks in hand", got)
		}
		if got := len(r.trail()); got > queue.Ahead*(2+int(spare)) {
			t.Errorf("%d records, want only of the files that met the refusal", got)
		}
		r.store.heal()
		if err := r.q.Source("data").Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := r.store.count("Probe"); got < 55 || got > 130 {
			t.Errorf("%d probes in an hour, want about one a minute", got)
		}
		if got := r.p.Destination("data").State; got != breaker.HealthOK {
			t.Errorf("destination = %v, want ok", got)
		}
		uploaded := 0
		for _, s := range r.trail() {
			if strings.HasPrefix(s, "uploaded") {
				uploaded++
			}
		}
		if uploaded != 20 {
			t.Errorf("%d uploads, want 20", uploaded)
		}
	})
}

// One file that alone is refused must not hold up the others for ever.
func TestRefusalOfOneFileHoldsThatFileAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(s *Source, o *Options) { s.Proven = true; o.Workers = 1 })
		r.start()
		r.p.dests["data"].store.Objects = &denyOne{store: r.store, key: "pre/denied"}
		r.write("denied", []byte("x"))
		paths := []string{"denied"}
		for i := range 20 {
			p := fmt.Sprintf("f%02d", i)
			r.write(p, []byte(p))
			paths = append(paths, p)
		}
		r.offer(archive.TriggerStartup, paths...)
		time.Sleep(10 * time.Second)
		if got := r.store.count("Put"); got != 20 {
			t.Errorf("%d other files went on, want 20", got)
		}
		if q, f, d := r.q.Source("data").Depth(); q != 0 || f != 0 || d != 0 || r.q.Source("data").Held() != 1 {
			t.Errorf("Depth = %d, %d, %d, want the refused file held", q, f, d)
		}
		if got := r.p.Destination("data").State; got != breaker.HealthOK {
			t.Errorf("destination = %v, want ok", got)
		}
	})
}

type denyOne struct {
	*store
	key string
}

func (d *denyOne) Put(ctx context.Context, p archive.Put) (archive.Object, error) {
	if p.Key == d.key {
		return archive.Object{}, remoteError(archive.ClassConfiguration, "AccessDenied", 403, os.ErrPermission)
	}
	return d.store.Put(ctx, p)
}

func TestThrottledFilesAllArrive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, proven)
		r.store.plan(fault{op: "Put", times: 30, err: remoteError(archive.ClassThrottled, "SlowDown", 503, errors.New("slow down"))})
		r.start()
		var paths []string
		for i := range 30 {
			p := fmt.Sprintf("f%02d", i)
			r.write(p, []byte(p))
			paths = append(paths, p)
		}
		r.offer(archive.TriggerStartup, paths...)
		if err := r.q.Source("data").Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := len(r.trail()); got != 30 {
			t.Errorf("%d records, want 30", got)
		}
	})
}

func TestGiveUpEndsASyncDuringAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(_ *Source, o *Options) { o.GiveUp = 10 * time.Minute })
		r.store.plan(fault{op: "Probe", times: 1 << 20, err: reset()})
		r.start()
		start := time.Now()
		r.write("a", []byte("x"))
		r.write("b", []byte("y"))
		r.offer(archive.TriggerSync, "a", "b")
		if err := r.q.Source("data").Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 10*time.Minute || took > 10*time.Minute+5*time.Second {
			t.Errorf("given up after %v, want 10 min", took)
		}
		r.wantTrail("failed/transient", "failed/transient")
		if r.p.Destination("data").Answered {
			t.Error("Answered = true, want false")
		}
	})
}

func TestSyncDoesNotWaitForAPerson(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(_ *Source, o *Options) { o.GiveUp = 10 * time.Minute })
		r.store.plan(fault{op: "Probe", times: 1 << 20, err: remoteError(archive.ClassConfiguration, "NoSuchBucket", 404, errors.New("no bucket"))})
		r.start()
		start := time.Now()
		for i := range 20 {
			r.write(strconv.Itoa(i), []byte("x"))
			r.offer(archive.TriggerSync, strconv.Itoa(i))
		}
		if err := r.q.Source("data").Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("ended after %v, want at once", took)
		}
		trail := r.trail()
		if len(trail) != 20 || slices.ContainsFunc(trail, func(s string) bool { return s != "failed/configuration" }) {
			t.Errorf("trail = %v, want 20 failed/configuration", trail)
		}
	})
}

func TestStopLetsWorkInHandFinish(t *testing.T) {
	r := newRig(t, proven)
	hold := make(chan struct{})
	r.store.hold["pre/a"] = hold
	r.start()
	r.write("a", []byte("x"))
	r.write("b", []byte("y"))
	r.offer(archive.TriggerEvent, "a")
	<-r.store.entered
	if got := r.p.InFlight(); len(got) != 1 || got[0].Path != "a" || got[0].Phase != PhaseSend {
		t.Errorf("InFlight = %+v, want a in phase send", got)
	}
	ended := make(chan struct{})
	go func() { r.halt(); close(ended) }()
	close(hold)
	<-ended
	r.wantTrail("uploaded")
}

func TestStopCutsWhatDoesNotFinish(t *testing.T) {
	r := newRig(t, func(s *Source, o *Options) { s.Proven, o.Drain = true, 50*time.Millisecond })
	r.store.hold["pre/a"] = make(chan struct{})
	r.start()
	r.write("a", []byte("x"))
	r.offer(archive.TriggerEvent, "a")
	<-r.store.entered
	r.halt()
	r.wantTrail()
	if list, err := r.src.State.Intents(); err != nil || len(list) != 1 {
		t.Errorf("Intents = %v, %v, want the cut write for the next run", list, err)
	}
	r.store.hold = map[string]chan struct{}{}
	r.restart()
	r.look(archive.TriggerStartup, "a")
	r.wantTrail("uploaded")
	r.noIntents()
}

func TestPausedSourceWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		paused := true
		r := newRig(t, func(s *Source, o *Options) {
			s.Proven = true
			o.Paused = func(string) bool { mu.Lock(); defer mu.Unlock(); return paused }
		})
		r.start()
		r.write("a", []byte("x"))
		r.offer(archive.TriggerEvent, "a")
		time.Sleep(time.Minute)
		if got := r.store.count("Put") + r.store.count("Head"); got != 0 {
			t.Errorf("%d requests of a paused source, want 0", got)
		}
		mu.Lock()
		paused = false
		mu.Unlock()
		r.idle()
		r.wantTrail("uploaded")
	})
}

func TestBandwidthLimitHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(s *Source, o *Options) { s.Proven, o.BandwidthLimit = true, 100<<10 })
		r.start()
		r.write("a", pattern(250<<10, 1))
		start := time.Now()
		r.look(archive.TriggerEvent, "a")
		if took := time.Since(start); took < 2*time.Second || took > 4*time.Second {
			t.Errorf("250 KiB at 100 KiB/s took %v, want about 2.4 s", took)
		}
	})
}

func TestBuffersKeepBelowTheirLimit(t *testing.T) {
	b := newBuffers(1<<20, 0, "a")
	one, err := b.get(t.Context(), "a", 900<<10)
	if err != nil || len(one) != 900<<10 {
		t.Fatalf("get = %d bytes, %v", len(one), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.get(ctx, "a", 200<<10); err == nil {
		t.Error("get beyond the limit = nil, want it to wait")
	}
	b.put("a", one)
	for range 8 {
		if _, err := b.get(t.Context(), "a", 1000); err != nil {
			t.Fatal(err)
		}
	}
	if b.held > b.limit {
		t.Errorf("%d bytes are held, want at most %d", b.held, b.limit)
	}
}

func TestMetricsExistAtZero(t *testing.T) {
	r := newRig(t, nil)
	for name, want := range map[string]int{
		"s3syncd_files_total": 5, "s3syncd_failures_total": 8, "s3syncd_retries_total": 8, "s3syncd_bytes_uploaded_total": 1,
		"s3syncd_hash_bytes_total": 1, "s3syncd_encryption_mismatches_total": 1, "s3syncd_conflicts_total": 1,
		"s3syncd_remote_repaired_files_total": 1, "s3syncd_short_lived_files_total": 1,
		"s3syncd_destination_state": 4, "s3syncd_parked_files": 8, "s3syncd_blocked_since_timestamp_seconds": 8,
		"s3syncd_last_upload_timestamp_seconds": 1, "s3syncd_unresolved_intents": 1,
		"s3syncd_event_to_durable_seconds": 1,
	} {
		if got, err := testutil.GatherAndCount(r.reg, name); err != nil || got != want {
			t.Errorf("%s has %d series, %v, want %d", name, got, err, want)
		}
	}
	if problems, err := testutil.GatherAndLint(r.reg); err != nil || len(problems) != 0 {
		t.Errorf("lint = %v, %v, want nothing", problems, err)
	}
}

// slowHead holds the HEAD of one key until it is let go.
type slowHead struct {
	*store
	key string
	let chan struct{}
}

func (s *slowHead) Head(ctx context.Context, key string) (archive.Object, error) {
	if key == s.key {
		<-s.let
	}
	return s.store.Head(ctx, key)
}

// A file that another worker has in hand when the destination is stopped is
// not sent any more.
func TestNothingInHandIsSentAfterAMismatch(t *testing.T) {
	r := newRig(t, func(s *Source, o *Options) { s.Proven, o.Workers = true, 2 })
	hooked := &slowHead{store: r.store, key: "pre/b", let: make(chan struct{})}
	r.p.dests["data"].store.Objects = hooked
	r.store.key = ""
	r.start()
	r.write("a", []byte("x"))
	r.write("b", []byte("y"))
	r.offer(archive.TriggerEvent, "b", "a")
	r.until("it is stopped", func() bool { return r.p.Destination("data").State == breaker.HealthStopped })
	close(hooked.let)
	r.until("nothing is in hand", func() bool { _, f, _ := r.q.Source("data").Depth(); return f == 0 })
	if got := r.store.count("Put"); got != 1 {
		t.Errorf("%d PUT, want 1: nothing is sent after a mismatch", got)
	}
	r.wantTrail("failed/encryption")
}

// As package breaker has them.
const (
	failsToOpen = 5
	firstPing   = time.Second
)

func TestGoodProbeClearsTheBackoffs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(s *Source, o *Options) { s.Proven, o.Workers = true, 8 })
		r.store.plan(fault{op: "Head", times: failsToOpen, err: reset()})
		r.start()
		for i := range failsToOpen {
			r.write(strconv.Itoa(i), []byte("x"))
			r.offer(archive.TriggerEvent, strconv.Itoa(i))
		}
		start := time.Now()
		r.idle()
		if took := time.Since(start); took > firstPing+500*time.Millisecond {
			t.Errorf("all done after %v, want right after the first probe", took)
		}
	})
}

func TestDrainGivesWorkInHandItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, proven)
		hold := make(chan struct{})
		r.store.hold["pre/a"] = hold
		r.start()
		r.write("a", []byte("x"))
		r.offer(archive.TriggerEvent, "a")
		synctest.Wait()
		time.AfterFunc(r.o.Drain-time.Second, func() { close(hold) })
		r.halt()
		r.wantTrail("uploaded")
		r.noIntents()
	})
}

func TestPartThatTheServerHasWrongIsSentAgain(t *testing.T) {
	r := newRig(t, proven)
	r.start()
	data := pattern(700<<10, 3)
	r.write("big", data)
	r.store.plan(fault{op: "UploadPart", times: 5}) // These arrive.
	r.store.plan(fault{op: "UploadPart", times: 1 << 20, err: reset()})
	r.offer(archive.TriggerEvent, "big")
	r.until("a part failed", func() bool { _, _, d := r.q.Source("data").Depth(); return d == 1 })
	r.store.heal()
	r.store.mu.Lock()
	for _, u := range r.store.uploads {
		for n, part := range u.parts {
			u.parts[n] = pattern(len(part), 99)
		}
	}
	r.store.mu.Unlock()
	r.hurry()
	r.idle()
	r.wantObject("big", data)
	r.wantTrail("uploaded")
	if got := r.store.count("Create"); got != 1 {
		t.Errorf("%d uploads were opened, want 1", got)
	}
}

// A run that ends by itself must not end before a file that moved is looked at
// again.
func TestSyncLooksAgainItselfAtAFileThatMoved(t *testing.T) {
	r := newRig(t, func(s *Source, o *Options) {
		s.Proven, o.GiveUp = true, time.Minute
		s.Requeue = func(string) {}
	})
	r.write("a", []byte("one"))
	r.store.plan(fault{op: "Put", times: 1, do: func() { r.write("a", []byte("two!")) }})
	r.start()
	r.look(archive.TriggerSync, "a")
	r.wantObject("a", []byte("two!"))
	r.wantTrail("uploaded", "uploaded")
}
