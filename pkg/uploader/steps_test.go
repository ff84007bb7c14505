package uploader

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/queue"
)

// Whatever becomes of a file at whatever step: nothing is stored that it never
// was, and in the end S3 holds what it is, or the trail says that it is gone.
func TestAFileThatMovesAtEachStep(t *testing.T) {
	const small, whole, parts = 40 << 10, 300 << 10, 700 << 10
	sizes := map[string]int{"small": small, "whole": whole, "parts": parts}
	steps := map[string][]string{
		"small": {"Head", "Put"}, "whole": {"Head", "Put"}, "parts": {"Head", "Create", "UploadPart", "Complete"},
	}
	moves := map[string]func(r *rig, size int) []byte{
		"shrinks":     func(r *rig, size int) []byte { return r.rewrite(pattern(size, 1)[:size/3]) },
		"grows":       func(r *rig, size int) []byte { return r.rewrite(append(pattern(size, 1), pattern(size, 2)...)) },
		"is emptied":  func(r *rig, _ int) []byte { return r.rewrite(nil) },
		"is written":  func(r *rig, size int) []byte { return r.rewrite(pattern(size, 3)) },
		"is replaced": func(r *rig, size int) []byte { r.unlink(); return r.rewrite(pattern(size, 4)) },
		"vanishes":    func(r *rig, _ int) []byte { r.unlink(); return nil },
	}
	for kind, ops := range steps {
		for _, op := range ops {
			for name, move := range moves {
				t.Run(kind+" "+name+" at "+op, func(t *testing.T) {
					r := newRig(t, func(s *Source, o *Options) {
						proven(s, o)
						o.MemoryLimit, o.SinglePutMax = 256<<10, 512<<10 // Whole files are read twice.
					})
					var final []byte
					requeued := make(chan string, 100)
					r.p.dests["data"].src.Requeue = func(p string) { requeued <- p }
					before := pattern(sizes[kind], 1)
					r.write("f", before)
					r.store.plan(fault{op: op, times: 1, do: func() { final = move(r, sizes[kind]) }})
					r.start()
					r.offer(archive.TriggerEvent, "f")
					for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
						r.hurry()
						r.idle()
						if len(requeued) == 0 {
							break
						}
						for len(requeued) > 0 {
							r.offer(archive.TriggerEvent, <-requeued)
						}
					}
					r.look(archive.TriggerEvent, "f")
					if _, err := os.Lstat(filepath.Join(r.dir, "f")); err == nil {
						r.wantObject("f", final)
					} else if e, known, err := r.src.State.Get("f"); known || err != nil {
						t.Errorf("the index holds %+v, %v of a file that is gone", e, err)
					}
					for _, rec := range r.records() {
						if sum := rec.MD5; rec.Status == archive.StatusUploaded && sum != md5hex(before) && sum != md5hex(final) {
							t.Errorf("an upload of %s is recorded, which the file never was", sum)
						}
					}
					r.store.mu.Lock()
					defer r.store.mu.Unlock()
					if n := len(r.store.uploads); n != 0 {
						t.Errorf("%d multipart uploads are left", n)
					}
				})
			}
		}
	}
}

func (r *rig) rewrite(content []byte) []byte {
	r.write("f", content)
	return content
}

func (r *rig) unlink() {
	if err := os.Remove(filepath.Join(r.dir, "f")); err != nil {
		r.t.Error(err)
	}
}

// Small files are sent while all slots for large ones are taken by large files
// that do not end.
func TestSmallFilesPassLargeOnes(t *testing.T) {
	r := newRig(t, proven)
	r.o.Drain = time.Millisecond
	for _, name := range []string{"large0", "large1", "large2", "large3", "large4", "large5"} {
		r.write(name, pattern(600<<10, 1))
	}
	release := make(chan struct{})
	r.p.dests["data"].store.Multipart = &slowParts{store: r.store, let: release}
	r.start()
	for _, name := range []string{"large0", "large1", "large2", "large3", "large4", "large5"} {
		r.offer(archive.TriggerEvent, name)
	}
	r.until("large files are under way", func() bool { return r.store.count("Create") == r.o.Workers/2 })
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		r.write(name, []byte(name))
		r.offer(archive.TriggerEvent, name)
	}
	r.until("the small ones are there", func() bool { return len(r.trail()) == 8 })
	if n := r.store.count("Complete"); n != 0 {
		t.Errorf("%d large files ended before the small ones", n)
	}
	close(release)
	r.idle()
}

// slowParts holds every part until it is let go.
type slowParts struct {
	*store
	let chan struct{}
}

func (s *slowParts) UploadPart(ctx context.Context, key, id string, n int32, body io.ReadSeeker, size int64, crc uint32) (archive.Part, error) {
	select {
	case <-s.let:
	case <-ctx.Done():
		return archive.Part{}, ctx.Err()
	}
	return s.store.UploadPart(ctx, key, id, n, body, size, crc)
}

// A server that takes only so many writes at once gets about as many, while it
// says so, and all that the workers can send when it does not.
func TestTheWindowFollowsWhatTheServerBears(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		bears, active, refused, taken := 1000, 0, 0, 0
		r := newRig(t, func(s *Source, o *Options) { proven(s, o); o.Workers = 16 })
		r.p.dests["data"].store.Objects = &picky{r.store, func(context.Context, archive.Put) error {
			mu.Lock()
			active++
			over := active > bears
			if over {
				refused++
			}
			taken++
			mu.Unlock()
			time.Sleep(50 * time.Millisecond)
			mu.Lock()
			defer mu.Unlock()
			active--
			if over {
				return remoteError(archive.ClassThrottled, "SlowDown", 503, errors.New("slow down"))
			}
			return nil
		}}
		r.start()
		n := 0
		// phase offers more than can be sent for a while, and returns how many requests and refusals there were a second.
		phase := func(capacity int, d time.Duration) (rate, refusals float64) {
			mu.Lock()
			bears, refused, taken = capacity, 0, 0
			mu.Unlock()
			for range int(d / (50 * time.Millisecond) * 16) {
				name := "f" + string(rune('a'+n%26)) + time.Duration(n).String()
				n++
				r.write(name, []byte("x"))
				r.q.TryOffer(queue.Job{Source: "data", Path: name, Trigger: archive.TriggerEvent, Detected: time.Now()})
			}
			time.Sleep(d)
			mu.Lock()
			defer mu.Unlock()
			return float64(taken) / d.Seconds(), float64(refused) / d.Seconds()
		}
		full, _ := phase(1000, 2*time.Second)
		phase(4, 3*time.Second) // It narrows.
		slow, refusals := phase(4, 3*time.Second)
		if slow > full*0.7 {
			t.Errorf("%.0f requests a second to a server that bears 4 at once, %.0f to one that bears all", slow, full)
		}
		if refusals > slow/3 {
			t.Errorf("%.0f of %.0f requests a second are refused, want few", refusals, slow)
		}
		phase(1000, 2*time.Second) // It widens.
		again, _ := phase(1000, 2*time.Second)
		if again < full*0.9 {
			t.Errorf("%.0f requests a second after the server has recovered, %.0f before", again, full)
		}
		t.Logf("%.0f, %.0f with %.0f refused, %.0f requests a second", full, slow, refusals, again)
	})
}

// A file that never holds still shows in a gauge, until it does.
func TestAFileThatNeverHoldsStillShows(t *testing.T) {
	r := newRig(t, proven)
	r.p.dests["data"].src.Requeue = func(string) {}
	r.store.plan(fault{op: "Put", times: 1 << 20, err: remoteError(archive.ClassChanged, "BadDigest", 400, errors.New("digest mismatch"))})
	r.start()
	r.write("a", []byte("x"))
	for i := range changedTries {
		r.offer(archive.TriggerEvent, "a")
		r.until("the look ended", func() bool { q, f, _ := r.q.Source("data").Depth(); return r.store.count("Put") > i && q+f == 0 })
	}
	shown := func() float64 {
		return testutil.ToFloat64(r.o.Metrics.parked.WithLabelValues("data", string(archive.ClassChanged)))
	}
	r.until("the gauge shows it", func() bool { return shown() == 1 })
	r.store.heal()
	r.hurry()
	r.idle()
	r.until("the gauge forgets it", func() bool { return shown() == 0 })
}
