package uploader

import (
	"bytes"
	"context"
	"maps"
	"testing"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// forge puts other bytes of the same size in the place of path's object, under the
// key and with the metadata that the writer of meta gives.
func (r *rig) forge(path string, size int, meta map[string]string) archive.Object {
	r.t.Helper()
	r.foreignObject(path, bytes.Repeat([]byte("!"), size), meta)
	o, _, _ := r.store.object("pre/" + path)
	return o
}

// wantNoRecordOf fails where the trail or the index names the forged object.
func (r *rig) wantNoRecordOf(forged archive.Object) {
	r.t.Helper()
	for _, rec := range r.records() {
		if rec.ETag == forged.ETag || rec.VersionID == forged.VersionID {
			r.t.Errorf("the trail says that the forged object is ours: %+v", rec)
		}
	}
	page, err := r.src.State.Range("", 100, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, it := range page {
		if it.Entry.ETag == forged.ETag {
			r.t.Errorf("the index says that the forged object is that of %s", it.Path)
		}
	}
}

// Whoever can write the bucket puts an object of the same size and metadata in the
// place of ours. Whenever we look at it, it is replaced from the file.
func TestAForgedObjectIsReplacedFromTheFile(t *testing.T) {
	const content = "what was archived"
	ways := map[string]struct {
		meta func(genuine map[string]string) map[string]string
		look func(r *rig)
	}{
		"the daily check": {maps.Clone[map[string]string], func(r *rig) { r.doubt("a") }},
		"the daily check, of an object without an id": {func(m map[string]string) map[string]string {
			return map[string]string{archive.MetaMD5: m[archive.MetaMD5], archive.MetaSHA256: m[archive.MetaSHA256]}
		}, func(r *rig) { r.doubt("a") }},
		"a touched file": {maps.Clone[map[string]string], func(r *rig) {
			r.doubt("a")
			r.write("a", []byte(content))
		}},
		"a lost index": {maps.Clone[map[string]string], func(r *rig) { r.forgets("a") }},
		"a lost index, of an object without an id": {func(m map[string]string) map[string]string {
			return map[string]string{archive.MetaMD5: m[archive.MetaMD5]}
		}, func(r *rig) {
			r.forgets("a")
			if err := r.src.State.BeginChain(r.t.Context(), "11111111", archive.BeginsStateLost, "0a1b2c3d", ""); err != nil {
				r.t.Fatal(err)
			}
		}},
		"another host's name": {func(m map[string]string) map[string]string {
			m = maps.Clone(m)
			m[archive.MetaHost] = "host-a"
			m[archive.MetaID] = "app-01/22222222/999999"
			return m
		}, func(r *rig) { r.doubt("a") }},
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, proven)
			r.start()
			r.write("a", []byte(content))
			r.look(archive.TriggerStartup, "a")
			genuine, _, _ := r.store.object("pre/a")
			forged := r.forge("a", len(content), way.meta(genuine.Metadata))
			way.look(r)
			r.look(archive.TriggerRescan, "a")
			r.wantObject("a", []byte(content))
			r.wantNoRecordOf(forged)
			r.wantTrail("uploaded", "uploaded")
			if rec := r.lastRecord(); rec.ReplacedETag != forged.ETag {
				t.Errorf("replaced_etag %q, want the forged object's %q", rec.ReplacedETag, forged.ETag)
			}
			r.noIntents()
		})
	}
}

// forgets takes path out of the index, as a lost state does.
func (r *rig) forgets(path string) {
	r.t.Helper()
	if _, err := r.src.State.Commit(r.t.Context(), archive.Outcome{Path: path, Remove: true}); err != nil {
		r.t.Fatal(err)
	}
}

// A lost index believes the bytes of what says that it is ours.
func TestALostIndexIsRebuiltFromTheBytes(t *testing.T) {
	r := newRig(t, proven)
	r.start()
	r.write("a", []byte("content"))
	r.look(archive.TriggerStartup, "a")
	r.forgets("a")
	r.look(archive.TriggerRescan, "a")
	r.wantTrail("uploaded", "skipped/metadata")
	if puts, gets := r.store.count("Put"), r.store.count("Get"); puts != 1 || gets != 1 {
		t.Errorf("%d PUT and %d GET, want 1 and 1", puts, gets)
	}
}

// The answer to a write is lost, and before it is asked for somebody replaces the
// object by another one with its metadata: no word of it is believed.
func TestAForgedObjectIsNotRecovered(t *testing.T) {
	for name, size := range map[string]int{"whole": 17, "parts": 700 << 10} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, proven)
			op := map[string]string{"whole": "Put", "parts": "Complete"}[name]
			data := pattern(size, 1)
			r.store.plan(fault{op: op, times: 1, lost: true, err: reset()})
			r.write("a", data)
			r.start()
			r.offer(archive.TriggerEvent, "a")
			r.until("the answer is lost", func() bool { _, _, d := r.q.Source("data").Depth(); return d == 1 })
			taken, _, _ := r.store.object("pre/a")
			forged := r.forge("a", size, taken.Metadata)
			r.restart()
			r.look(archive.TriggerStartup, "a")
			r.wantObject("a", data)
			r.wantNoRecordOf(forged)
			r.wantTrail("uploaded")
			r.noIntents()
		})
	}
}

// Somebody who knows the file and the next number is there first.
func TestAForgedObjectInTheWayIsNotRecovered(t *testing.T) {
	r := newRig(t, proven)
	r.write("a", []byte("content"))
	var forged archive.Object
	r.store.plan(fault{op: "Put", times: 1, do: func() {
		in, err := r.src.State.Intents()
		if err != nil || len(in) != 1 {
			t.Errorf("Intents = %+v, %v", in, err)
			return
		}
		id := archive.ObjectID{Instance: "app-01", Chain: in[0].Chain, Attempt: in[0].Attempt}
		forged = r.forge("a", 7, map[string]string{archive.MetaMD5: md5hex([]byte("content")), archive.MetaID: id.String(), archive.MetaHost: "host-a"})
	}})
	r.start()
	r.look(archive.TriggerEvent, "a")
	r.wantObject("a", []byte("content"))
	r.wantNoRecordOf(forged)
	r.wantTrail("uploaded")
	r.noIntents()
}

// Without the right to read, what cannot be proven is sent again.
func TestWhatMayNotBeReadIsSentAgain(t *testing.T) {
	r := newRig(t, func(s *Source, o *Options) { proven(s, o); s.Fetch = nil })
	r.start()
	r.write("a", []byte("content"))
	r.look(archive.TriggerStartup, "a")
	r.forgets("a")
	r.look(archive.TriggerRescan, "a")
	r.wantTrail("uploaded", "uploaded")
}

// Two hosts by one name: what the other one wrote is a conflict, until its chain
// is known to have ended.
func TestAnotherHostOfThisNameIsNotOverwritten(t *testing.T) {
	for name, host := range map[string]string{"another host": "host-b", "an earlier release": ""} {
		t.Run(name, func(t *testing.T) {
			ended := false
			r := newRig(t, func(s *Source, o *Options) {
				proven(s, o)
				s.Ended = func(_ context.Context, o archive.Object) (bool, error) {
					if o.Metadata[archive.MetaID] != "app-01/22222222/5" {
						t.Errorf("asked whether %q ended", o.Metadata[archive.MetaID])
					}
					return ended, nil
				}
			})
			r.start()
			meta := map[string]string{archive.MetaMD5: "00", archive.MetaID: "app-01/22222222/5"}
			if host != "" {
				meta[archive.MetaHost] = host
			}
			r.foreignObject("a", []byte("theirs"), meta)
			r.write("a", []byte("ours"))
			r.offer(archive.TriggerEvent, "a")
			r.until("the conflict", func() bool { return len(r.trail()) == 1 })
			r.wantTrail("failed/conflict")
			if _, body, _ := r.store.object("pre/a"); string(body) != "theirs" {
				t.Errorf("object = %q, want theirs", body)
			}
			r.until("it waits", func() bool { return r.q.Source("data").Held() == 1 })
			ended = true
			r.q.Source("data").Release(true)
			r.idle()
			r.wantObject("a", []byte("ours"))
			r.wantTrail("failed/conflict", "uploaded")
		})
	}
}

// An object that this host wrote says so.
func TestEveryWriteCarriesTheHost(t *testing.T) {
	r := newRig(t, proven)
	r.start()
	r.write("small", []byte("x"))
	r.write("large", pattern(700<<10, 1))
	r.look(archive.TriggerStartup, "small", "large")
	for _, p := range []string{"small", "large"} {
		if o, _, _ := r.store.object("pre/" + p); o.Metadata[archive.MetaHost] != "host-a" {
			t.Errorf("%s carries %v, want the host", p, o.Metadata)
		}
	}
}
