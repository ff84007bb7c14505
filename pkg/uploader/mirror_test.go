package uploader

import (
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/queue"
)

// mirrors is a source that mirrors deletions, in a run that gives up at once on
// what needs a person.
func mirrors(s *Source, o *Options) {
	s.Proven, s.Deletes, o.GiveUp = true, archive.DeletesMirror, time.Hour
}

func (r *rig) remove(path string) {
	r.t.Helper()
	if err := os.Remove(filepath.Join(r.dir, path)); err != nil {
		r.t.Fatal(err)
	}
}

// confirmGone offers path as a scan does that found it gone.
func (r *rig) confirmGone(path string) {
	r.t.Helper()
	r.offerJob(queue.Job{Source: "data", Path: path, Kind: archive.Gone, Trigger: archive.TriggerRescan, Confirmed: true})
}

func (r *rig) doubt(paths ...string) {
	r.t.Helper()
	var items []archive.Item
	for _, p := range paths {
		items = append(items, archive.Item{Path: p, Entry: r.entry(p)})
	}
	if n, err := r.src.State.MarkSuspect(r.t.Context(), items); err != nil || n != len(paths) {
		r.t.Fatalf("Doubt = %d, %v, want %d", n, err, len(paths))
	}
}

func TestMirrorRecordsADeletionWhoseAnswerWasLostOnce(t *testing.T) {
	r := newRig(t, mirrors)
	r.start()
	r.write("a", []byte("x"))
	r.look(archive.TriggerStartup, "a")
	r.remove("a")
	r.store.plan(fault{op: "Delete", times: 1, lost: true, err: reset()})
	r.confirmGone("a")
	r.hurry()
	r.idle()
	r.wantTrail("uploaded", "deleted")
	if got := r.store.count("Delete"); got != 1 {
		t.Errorf("%d DELETE, want 1: the first was done", got)
	}
	r.noIntents()
}

// The process ends after the server has deleted and before that is recorded.
func TestMirrorRecoversADeletionThatACrashInterrupted(t *testing.T) {
	r := newRig(t, func(s *Source, o *Options) { mirrors(s, o); o.GiveUp = 0 })
	r.start()
	r.write("a", []byte("x"))
	r.write("b", []byte("y"))
	r.look(archive.TriggerStartup, "a", "b")
	r.remove("a")
	r.store.plan(fault{op: "Delete", times: 1, lost: true, err: reset()})
	r.confirmGone("a")
	r.until("the answer is lost", func() bool { _, f, d := r.q.Source("data").Depth(); return f == 0 && d == 1 })
	if list, err := r.src.State.Intents(); err != nil || len(list) != 1 || list[0].Op != archive.OpDelete {
		t.Fatalf("Intents = %+v, %v, want the deletion", list, err)
	}
	r.wantTrail("uploaded", "uploaded")
	r.restart()
	r.until("it is recorded", func() bool { return len(r.trail()) == 3 })
	r.idle()
	r.confirmGone("a") // The scan of the start, had it still found the entry.
	r.idle()
	r.wantTrail("uploaded", "uploaded", "deleted")
	if _, known, err := r.src.State.Get("a"); known || err != nil {
		t.Errorf("Get = %v, %v, want no entry", known, err)
	}
	r.wantObject("b", []byte("y"))
	r.noIntents()
}

func TestMirrorNeverDeletesWhatSomebodyElseWrote(t *testing.T) {
	for name, meta := range map[string]map[string]string{
		"another instance": {archive.MetaID: "app-02/ffffffff/1"},
		"a person":         {},
	} {
		r := newRig(t, mirrors)
		r.start()
		r.write("a", []byte("ours"))
		r.look(archive.TriggerStartup, "a")
		r.remove("a")
		r.foreignObject("a", []byte("theirs"), meta)
		r.confirmGone("a")
		r.idle()
		r.wantTrail("uploaded", "failed/conflict")
		if _, body, _ := r.store.object("pre/a"); string(body) != "theirs" {
			t.Errorf("%s: object = %q, want theirs", name, body)
		}
		if !r.entry("a").Stored {
			t.Errorf("%s: the index forgot the file", name)
		}
		r.noIntents()
	}
}

func TestMirrorDeletesWhatItAdopted(t *testing.T) {
	r := newRig(t, mirrors)
	r.start()
	data := []byte("from the older tool")
	r.foreignObject("a", data, map[string]string{archive.MetaMD5: md5hex(data)})
	r.write("a", data)
	r.look(archive.TriggerStartup, "a")
	r.remove("a")
	r.confirmGone("a")
	r.idle()
	r.wantTrail("skipped/metadata", "deleted")
	if _, _, ok := r.store.object("pre/a"); ok {
		t.Error("the object is still there")
	}
}

func TestMirrorOfAnObjectThatIsGoneAlreadyIsRecorded(t *testing.T) {
	r := newRig(t, mirrors)
	r.start()
	r.write("a", []byte("x"))
	r.look(archive.TriggerStartup, "a")
	r.remove("a")
	r.store.mu.Lock()
	delete(r.store.objects, "pre/a")
	r.store.mu.Unlock()
	r.confirmGone("a")
	r.idle()
	r.wantTrail("uploaded", "deleted")
	r.noIntents()
}

// What vanishes before a worker came to it is told to the watcher, because no
// event may follow.
func TestMirrorHandsBackWhatVanishedUnconfirmed(t *testing.T) {
	var mu sync.Mutex
	var back []string
	r := newRig(t, func(s *Source, o *Options) {
		mirrors(s, o)
		o.GiveUp = 0
		s.Requeue = func(path string) {
			mu.Lock()
			defer mu.Unlock()
			back = append(back, path)
		}
	})
	r.start()
	r.write("a", []byte("x"))
	r.look(archive.TriggerStartup, "a")
	r.remove("a")
	r.look(archive.TriggerEvent, "a")
	r.offerJob(queue.Job{Source: "data", Path: "a", Kind: archive.Gone, Trigger: archive.TriggerEvent})
	r.idle()
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(back, []string{"a", "a"}) {
		t.Errorf("handed back %v, want a after either look", back)
	}
	r.wantObject("a", []byte("x"))
	r.wantTrail("uploaded")
}

func TestDoubtedObjectsArePutBack(t *testing.T) {
	r := newRig(t, func(s *Source, o *Options) { s.Proven, o.GiveUp = true, time.Hour })
	r.start()
	paths := []string{"equal", "foreign", "missing", "replaced"}
	for _, p := range paths {
		r.write(p, []byte("content of "+p))
	}
	r.look(archive.TriggerStartup, paths...)
	r.store.mu.Lock()
	delete(r.store.objects, "pre/missing")
	r.store.mu.Unlock()
	r.foreignObject("replaced", []byte("by hand"), nil)
	r.foreignObject("foreign", []byte("theirs"), map[string]string{archive.MetaID: "app-02/ffffffff/1"})
	theirs, _, _ := r.store.object("pre/replaced")
	r.doubt(paths...)
	for _, p := range paths {
		r.look(archive.TriggerRescan, p)
	}
	r.wantTrail("uploaded", "uploaded", "uploaded", "uploaded", "skipped/etag", "failed/conflict", "uploaded", "uploaded")
	for _, p := range []string{"equal", "missing", "replaced"} {
		r.wantObject(p, []byte("content of "+p))
		if r.entry(p).Suspect {
			t.Errorf("%s is still doubted", p)
		}
	}
	if _, body, _ := r.store.object("pre/foreign"); string(body) != "theirs" {
		t.Errorf("the other instance's object = %q, want it untouched", body)
	}
	recs := r.records()
	if got := recs[7]; got.ReplacedETag != theirs.ETag || got.ReplacedVID != theirs.VersionID {
		t.Errorf("replaced_etag %q, want %q", got.ReplacedETag, theirs.ETag)
	}
	if recs[6].ReplacedETag != "" {
		t.Errorf("the missing object's record says that it replaced %q", recs[6].ReplacedETag)
	}
	if got := testutil.ToFloat64(r.o.Metrics.repaired.WithLabelValues("data")); got != 2 {
		t.Errorf("remote_repaired_files_total = %v, want 2", got)
	}
	r.noIntents()
}

// Where listing is not granted a refused HEAD may mean that nothing is there, or
// that the object may not be looked at. It is no proof that it is gone.
func TestMirrorDoesNotTakeARefusalForADeletion(t *testing.T) {
	forbidden := remoteError(archive.ClassConfiguration, "", 403, os.ErrPermission)
	unlisted := func(s *Source, o *Options) {
		mirrors(s, o)
		s.HeadForbiddenMeansUnknown = func() bool { return true }
	}
	for name, put := range map[string]func(r *rig){
		"our object": func(*rig) {},
		"another object": func(r *rig) {
			r.foreignObject("a", []byte("theirs"), map[string]string{archive.MetaID: "app-02/ffffffff/1"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, unlisted)
			r.start()
			r.write("a", []byte("x"))
			r.look(archive.TriggerStartup, "a")
			r.doubt("a")
			r.remove("a")
			put(r)
			r.store.plan(fault{op: "Head", times: 2, err: forbidden})
			r.confirmGone("a")
			r.idle()
			r.wantTrail("uploaded", "failed/configuration")
			if _, _, there := r.store.object("pre/a"); !there || !r.entry("a").Stored {
				t.Error("the object, or the index's entry, is gone")
			}
			r.noIntents()
		})
	}
	t.Run("after a deletion that was interrupted and not done", func(t *testing.T) {
		r := newRig(t, func(s *Source, o *Options) { unlisted(s, o); o.GiveUp = 0 })
		r.start()
		r.write("a", []byte("x"))
		r.look(archive.TriggerStartup, "a")
		r.remove("a")
		r.store.plan(fault{op: "Delete", times: 1, err: reset()})
		r.confirmGone("a")
		r.until("the request fails", func() bool { _, f, d := r.q.Source("data").Depth(); return f == 0 && d == 1 })
		r.store.plan(fault{op: "Head", times: 1, err: forbidden})
		r.restart()
		r.until("it is settled", func() bool { list, err := r.src.State.Intents(); return err == nil && len(list) == 0 })
		r.idle()
		if _, _, there := r.store.object("pre/a"); there && len(r.trail()) > 1 {
			t.Errorf("the trail has %q, and the object is there", r.trail())
		}
	})
	t.Run("after a precondition that did not hold", func(t *testing.T) {
		r := newRig(t, unlisted)
		r.start()
		r.write("a", []byte("x"))
		r.look(archive.TriggerStartup, "a")
		r.remove("a")
		r.foreignObject("a", []byte("theirs"), map[string]string{archive.MetaID: "app-02/ffffffff/1"})
		r.store.plan(fault{op: "Head", times: 2, err: forbidden})
		r.confirmGone("a")
		r.idle()
		r.wantTrail("uploaded", "failed/configuration")
		if _, _, there := r.store.object("pre/a"); !there || !r.entry("a").Stored {
			t.Error("the object, or the index's entry, is gone")
		}
		r.noIntents()
	})
}
