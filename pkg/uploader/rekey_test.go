package uploader

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"maps"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/breaker"
	"github.com/s3syncd/s3syncd/pkg/queue"
)

const oldKey = "arn:aws:kms:us-east-1:1:key/old"

// copier makes copies in the rig's store.
type copier struct {
	*store
	opened bool // Copies are multipart uploads.
	trail  map[string]archive.Record
}

// knows makes the trail know the object under key, of the job's path.
func (s *copier) knows(path, key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, body := s.objects[key], s.bodies[key]
	size, sum := int64(len(body)), sha256.Sum256(body)
	s.trail[path] = archive.Record{
		S3Key: key, Status: archive.StatusSkipped, ETag: o.ETag, VersionID: o.VersionID, SizeBytes: &size, MD5: md5hex(body),
		SHA256: hex.EncodeToString(sum[:]),
	}
}

func (s *copier) archived(path string) (archive.Record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.trail[path]
	return r, ok
}

func (s *copier) Copy(ctx context.Context, c archive.Copy) (o archive.Object, err error) {
	err = s.call(ctx, "Copy", func() error {
		s.mu.Lock()
		old, there := s.objects[c.Key]
		body := s.bodies[c.Key]
		s.mu.Unlock()
		switch {
		case !there:
			return remoteError(archive.ClassTransient, "NoSuchKey", 404, fs.ErrNotExist)
		case old.ETag != c.ETag:
			return remoteError(archive.ClassTransient, "PreconditionFailed", 412, archive.ErrPrecondition)
		}
		if s.opened {
			id, _, err := s.Create(ctx, c.Key, c.Metadata)
			if err == nil {
				err = c.Opened(id)
			}
			if err != nil {
				return err
			}
		}
		o, err = s.store.store(c.Key, body, c.Metadata, archive.Condition{ETag: c.ETag})
		return err
	})
	return o, err
}

// rekeyRig is a rig with what an older key left: "same" as it is on disk,
// "edited" changed there since, "lost" gone there, and "theirs", of before us.
func rekeyRig(t *testing.T) (*rig, *copier) {
	t.Helper()
	var c *copier
	r := newRig(t, func(s *Source, o *Options) {
		s.Proven = true
		store, ok := s.Objects.(*store)
		if !ok {
			t.Fatal("the rig has another store")
		}
		c = &copier{store: store, trail: map[string]archive.Record{}}
		s.Copy, s.Archived = c.Copy, c.archived
		o.GiveUp = time.Minute
	})
	r.store.key = oldKey
	r.src.Accept, r.p.dests["data"].src.Accept = acceptOld, acceptOld
	r.start()
	for _, p := range []string{"same", "edited", "lost"} {
		r.write(p, []byte("content of "+p))
	}
	r.look(archive.TriggerSync, "same", "edited", "lost")
	r.halt()
	r.store.put("pre/theirs", []byte("before us"), map[string]string{"theirs": "kept"}, "")
	c.knows("theirs", "pre/theirs")
	r.write("edited", []byte("another content"))
	r.remove("lost")
	r.store.key = testKey
	r.src.Accept = acceptNew
	r.restart()
	return r, c
}

func acceptOld(o archive.Object) archive.KeyVerdict {
	if o.KMSKeyID == oldKey {
		return archive.KeyOK
	}
	return archive.KeyOther
}

func acceptNew(o archive.Object) archive.KeyVerdict {
	switch {
	case o.SSE != "aws:kms":
		return archive.KeyMissing
	case o.KMSKeyID != testKey:
		return archive.KeyOther
	}
	return archive.KeyOK
}

// put stores an object as another program would, under key or none.
func (s *store) put(key string, body []byte, meta map[string]string, kms string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := archive.Object{Key: key, Size: int64(len(body)), ETag: randomHex(16), Metadata: maps.Clone(meta), KMSKeyID: kms, Dressed: true}
	if kms != "" {
		o.SSE = "aws:kms"
	}
	s.objects[key], s.bodies[key] = o, body
}

func (r *rig) rekey(paths ...string) {
	r.t.Helper()
	for _, p := range paths {
		r.offerJob(queue.Job{Source: "data", Path: p, Kind: archive.Rekey, Trigger: archive.TriggerSync})
	}
	r.idle()
}

// settled waits until nothing that was interrupted is open.
func (r *rig) settled() {
	r.t.Helper()
	r.until("all is settled", func() bool {
		open, err := r.src.State.Intents()
		return err == nil && len(open) == 0
	})
	r.idle()
}

func (r *rig) lastRecord() archive.Record {
	r.t.Helper()
	all := r.records()
	return all[len(all)-1]
}

func TestRekeySendsTheFileWhereItIsTheSameElseCopies(t *testing.T) {
	r, c := rekeyRig(t)
	puts := c.count("Put")
	for path, content := range map[string]string{
		"same": "content of same", "edited": "content of edited", "lost": "content of lost", "theirs": "before us",
	} {
		before := r.entry(path)
		old, _, _ := r.store.object("pre/" + path)
		r.rekey(path)
		o, body, _ := r.store.object("pre/" + path)
		if o.KMSKeyID != testKey || string(body) != content {
			t.Errorf("%s is %q under %s, want %q under the new key", path, body, o.KMSKeyID, content)
		}
		rec := r.lastRecord()
		if rec.Status != archive.StatusRekeyed || rec.ETag != o.ETag || rec.VersionID != o.VersionID || rec.KMSKeyID != testKey ||
			rec.ReplacedETag != old.ETag || rec.Attempt == 0 || rec.SizeBytes == nil || *rec.SizeBytes != int64(len(body)) {
			t.Errorf("%s: record %+v, want one of the rekeyed object %+v", path, rec, o)
		}
		if path != "theirs" && (rec.MD5 != md5hex(body) || rec.Mode == "" || rec.MTime == "") {
			t.Errorf("%s: record %+v, want the content's MD5 and the file's attributes", path, rec)
		}
		e := r.entry(path)
		if path == "theirs" {
			if e != (archive.Entry{}) || o.Metadata["theirs"] != "kept" {
				t.Errorf("%s: entry %+v, metadata %v; want none, and the object's own", path, e, o.Metadata)
			}
			continue
		}
		if e.ETag != o.ETag || e.KMSKeyID != testKey || e.Attempt != rec.Attempt || e.Fence != before.Fence || e.MD5 != before.MD5 {
			t.Errorf("%s: entry %+v, want that of the object, and the fence of %+v", path, e, before)
		}
	}
	if got := c.count("Put") - puts; got != 1 || c.count("Copy") != 3 {
		t.Errorf("%d files sent and %d objects copied, want 1 and 3", got, c.count("Copy"))
	}
	r.noIntents()
	r.rekey("same", "edited", "lost", "theirs")
	if c.count("Copy") != 3 {
		t.Error("what is under the key was copied again")
	}
	r.look(archive.TriggerSync, "edited")
	r.wantObject("edited", []byte("another content"))
}

func TestRekeyLeavesWhatIsNotOurs(t *testing.T) {
	r, c := rekeyRig(t)
	r.store.put("pre/other", []byte("x"), map[string]string{archive.MetaID: "app-02/0badcafe/1"}, oldKey)
	r.store.put("pre/b/_manifests/manifest_1.json", []byte("[]"), map[string]string{"s3syncd-instance": "app-02"}, oldKey)
	r.rekey("other", "b/_manifests/manifest_1.json", "absent")
	if c.count("Copy") != 0 {
		t.Errorf("%d copies, want none", c.count("Copy"))
	}
	if rec := r.lastRecord(); rec.Status != archive.StatusFailed || rec.ErrorClass != archive.ClassConflict {
		t.Errorf("record %+v, want a conflict", rec)
	}
	if e := r.entry("other"); e != (archive.Entry{}) {
		t.Errorf("entry %+v of an object that failed, want none", e)
	}
}

func TestRekeyOfAKeyThatNoPathMapsTo(t *testing.T) {
	r, c := rekeyRig(t)
	r.store.put("pre/dir/", nil, nil, "")
	c.knows(queue.KeyPath("pre/dir/"), "pre/dir/")
	r.rekey(queue.KeyPath("pre/dir/"))
	o, _, _ := r.store.object("pre/dir/")
	if rec := r.lastRecord(); o.KMSKeyID != testKey || rec.Status != archive.StatusRekeyed || rec.S3Key != "pre/dir/" || rec.LocalPath != "" {
		t.Errorf("object %+v, record %+v; want it under the key, and a record without a path", o, rec)
	}
	r.noIntents()
}

func TestRekeyIsTakenUpAfterALostAnswer(t *testing.T) {
	for _, path := range []string{"lost", queue.KeyPath("pre/dir/")} {
		t.Run(path, func(t *testing.T) {
			r, c := rekeyRig(t)
			r.store.put("pre/dir/", nil, nil, "")
			c.knows(queue.KeyPath("pre/dir/"), "pre/dir/")
			r.store.plan(fault{op: "Copy", times: 1, lost: true, err: reset()})
			r.offerJob(queue.Job{Source: "data", Path: path, Kind: archive.Rekey, Trigger: archive.TriggerSync})
			r.until("the copy", func() bool { return c.count("Copy") == 1 })
			r.until("the retry waits", func() bool { _, _, d := r.q.Source("data").Depth(); return d > 0 })
			r.restart() // The daemon, say: it settles what is open.
			r.settled()
			if rec := r.lastRecord(); rec.Status != archive.StatusRekeyed || !rec.Recovered || rec.KMSKeyID != testKey || rec.Attempt == 0 {
				t.Errorf("%s: record %+v, want a recovered one", path, rec)
			}
			if c.count("Copy") != 1 {
				t.Errorf("%s: %d copies, want 1", path, c.count("Copy"))
			}
			r.noIntents()
		})
	}
}

func TestAnInterruptedCopyLeavesNoUploadAndNoIntent(t *testing.T) {
	r, c := rekeyRig(t)
	c.opened = true
	r.store.plan(fault{op: "Copy", times: 1, err: reset()})
	r.offerJob(queue.Job{Source: "data", Path: "lost", Kind: archive.Rekey, Trigger: archive.TriggerSync})
	r.until("the retry waits", func() bool { _, _, d := r.q.Source("data").Depth(); return d > 0 })
	r.restart()
	r.settled()
	r.noIntents()
	if o, _, _ := r.store.object("pre/lost"); o.KMSKeyID != oldKey {
		t.Fatalf("the object is under %s, want the old key still", o.KMSKeyID)
	}
	r.rekey("lost")
	if o, _, _ := r.store.object("pre/lost"); o.KMSKeyID != testKey {
		t.Errorf("the object is under %s, want the new key", o.KMSKeyID)
	}
}

func TestRekeyGivesWayToAConcurrentChange(t *testing.T) {
	r, c := rekeyRig(t)
	r.store.plan(fault{op: "Copy", times: 1, do: func() {
		r.store.put("pre/theirs", []byte("newer"), map[string]string{"theirs": "newer"}, "")
	}})
	r.rekey("theirs")
	o, body, _ := r.store.object("pre/theirs")
	if !bytes.Equal(body, []byte("newer")) || o.Metadata["theirs"] != "newer" || o.KMSKeyID != "" || c.count("Copy") != 1 {
		t.Errorf("object %q %+v after %d copies; want the newer content left as it is", body, o, c.count("Copy"))
	}
	if rec := r.lastRecord(); rec.Status != archive.StatusFailed || rec.ErrorClass != archive.ClassConflict {
		t.Errorf("record %+v, want one that says that nobody archived it", rec)
	}
	r.noIntents()
}

func TestRekeyThatIsRefusedIsAFailedRecord(t *testing.T) {
	r, _ := rekeyRig(t)
	before := r.entry("lost")
	r.store.plan(fault{op: "Copy", times: 1, err: remoteError(archive.ClassFile, "InvalidObjectState", 403, errors.New("archived"))})
	r.rekey("lost")
	rec := r.lastRecord()
	if rec.Status != archive.StatusFailed || rec.ErrorClass != archive.ClassFile || r.entry("lost") != before {
		t.Errorf("record %+v, entry %+v; want a failure, and the entry as it was", rec, r.entry("lost"))
	}
	r.noIntents()
}

func TestAnObjectThatSomebodyElseRekeyedIsNoted(t *testing.T) {
	r, c := rekeyRig(t)
	r.store.mu.Lock()
	o := r.store.objects["pre/lost"]
	o.KMSKeyID = testKey
	r.store.objects["pre/lost"] = o
	r.store.mu.Unlock()
	r.rekey("lost")
	rec := r.lastRecord()
	if rec.Status != archive.StatusRekeyed || rec.KMSKeyID != testKey || c.count("Copy") != 0 || r.entry("lost").KMSKeyID != testKey {
		t.Errorf("record %+v, entry %+v, %d copies; want it noted", rec, r.entry("lost"), c.count("Copy"))
	}
}

func TestRekeyStopsAtAServerThatDoesNotConfirmTheKey(t *testing.T) {
	r, c := rekeyRig(t)
	r.store.plan(fault{op: "Copy", times: 1, err: remoteError(archive.ClassEncryption, "", 200, errors.New("no key"))})
	r.store.plan(fault{op: "Probe", times: 1000, err: remoteError(archive.ClassEncryption, "", 200, errors.New("no key"))})
	r.rekey("lost")
	if got := r.p.Destination("data").State; got != breaker.HealthStopped {
		t.Errorf("destination is %s, want stopped", got)
	}
	r.rekey("edited", "theirs")
	if c.count("Copy") != 1 {
		t.Errorf("%d copies, want none after the first", c.count("Copy"))
	}
}

// Somebody without the key puts an object in the place of an archived one, with
// the metadata of that. It is neither brought under the key nor recorded as what
// was archived, by whichever way the archived one is known.
func TestRekeyMovesOnlyWhatWasArchived(t *testing.T) {
	for _, path := range []string{"same", "edited", "lost", "theirs"} {
		for _, kms := range []string{"", oldKey, testKey} {
			r, c := rekeyRig(t)
			was, body, _ := r.store.object("pre/" + path)
			forged := bytes.Repeat([]byte("!"), len(body))
			r.store.put("pre/"+path, forged, was.Metadata, kms)
			puts := r.store.count("Put")
			records := len(r.records())
			r.rekey(path)
			o, now, _ := r.store.object("pre/" + path)
			if !bytes.Equal(now, forged) || o.KMSKeyID != kms || c.count("Copy")+r.store.count("Put")-puts != 0 {
				t.Errorf("%s under %q: %q is under %q after a rekey, want it untouched", path, kms, now, o.KMSKeyID)
			}
			for _, rec := range r.records()[records:] {
				if rec.Status != archive.StatusFailed || rec.ErrorClass != archive.ClassConflict {
					t.Errorf("%s under %q: record %+v", path, kms, rec)
				}
			}
			if reported := len(r.records()) > records; reported != (kms != testKey || path != "theirs") {
				t.Errorf("%s under %q: reported %v", path, kms, reported)
			}
		}
	}
}

// The same bytes under another version are the same content: somebody copied the
// object. What its metadata says of them does not get into the record.
func TestRekeyRecordsWhatIsKnownAndNotWhatTheObjectSays(t *testing.T) {
	r, _ := rekeyRig(t)
	_, body, _ := r.store.object("pre/lost")
	r.store.put("pre/lost", body, map[string]string{archive.MetaMD5: "00", archive.MetaSHA256: "11", archive.MetaPermissions: "6755"}, "")
	want := r.entry("lost")
	r.rekey("lost")
	rec := r.lastRecord()
	if rec.Status != archive.StatusRekeyed || rec.MD5 != md5hex(body) || rec.SHA256 != hex.EncodeToString(want.SHA256[:]) || rec.Mode == "6755" {
		t.Errorf("record %+v, want the hashes and attributes that are known", rec)
	}
	if o, _, _ := r.store.object("pre/lost"); o.Metadata[archive.MetaMD5] != md5hex(body) || o.Metadata[archive.MetaHost] != "host-a" {
		t.Errorf("metadata %v, want the known MD5, and this host's", o.Metadata)
	}
}

// A rekey is about the object. A file that is gone stays gone.
func TestRekeyDoesNotBringAFileBack(t *testing.T) {
	for _, opened := range []bool{false, true} { // Or its answer is lost, and the daemon settles it.
		r, c := rekeyRig(t)
		r.look(archive.TriggerSync, "lost")
		if rec := r.lastRecord(); rec.Status != archive.StatusDeleted {
			t.Fatalf("record %+v, want a deleted one", rec)
		}
		c.knows("lost", "pre/lost")
		files, size := r.src.State.Totals()
		if opened {
			r.store.plan(fault{op: "Copy", times: 1, lost: true, err: reset()})
		}
		r.offerJob(queue.Job{Source: "data", Path: "lost", Kind: archive.Rekey, Trigger: archive.TriggerSync})
		r.hurry()
		r.idle()
		if rec := r.lastRecord(); rec.Status != archive.StatusRekeyed {
			t.Errorf("record %+v, want a rekeyed one", rec)
		}
		if _, known, err := r.src.State.Get("lost"); known || err != nil {
			t.Errorf("the index knows the file again (%v)", err)
		}
		if f, s := r.src.State.Totals(); f != files || s != size {
			t.Errorf("Totals = %d files of %d bytes, want %d of %d as before", f, s, files, size)
		}
		records := len(r.records())
		r.look(archive.TriggerRescan, "lost")
		r.offerJob(queue.Job{Source: "data", Path: "lost", Kind: archive.Gone, Trigger: archive.TriggerRescan})
		r.idle()
		if n := len(r.records()); n != records {
			t.Errorf("%d records after another look at a file that is gone, want %d", n, records)
		}
	}
}
