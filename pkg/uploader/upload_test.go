package uploader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/breaker"
	"github.com/s3syncd/s3syncd/pkg/localfile"
	"github.com/s3syncd/s3syncd/pkg/queue"
)

func proven(s *Source, _ *Options) { s.Proven = true }

func TestSmallFileIsUploadedAndRecorded(t *testing.T) {
	r := newRig(t, proven)
	r.start()
	data := pattern(1000, 1)
	r.write("dir/a.txt", data)
	r.look(archive.TriggerEvent, "dir/a.txt")
	o := r.wantObject("dir/a.txt", data)
	r.noIntents()
	e := r.entry("dir/a.txt")
	if !e.Stored || e.ETag != o.ETag || e.VersionID != o.VersionID || e.KMSKeyID != testKey || e.Attempt == 0 || e.Racy {
		t.Errorf("entry = %+v, want one of %+v", e, o)
	}
	recs := r.records()
	if len(recs) != 1 {
		t.Fatalf("%d records, want 1", len(recs))
	}
	rec := recs[0]
	id, ok := archive.ParseObjectID(o.Metadata[archive.MetaID])
	if !ok || id.Attempt != rec.Attempt || id.Chain != rec.Chain || id.Instance != rec.Instance {
		t.Errorf("%s = %q, want the record's %s/%s/%d", archive.MetaID, o.Metadata[archive.MetaID], rec.Instance, rec.Chain, rec.Attempt)
	}
	for name, got := range map[string][2]string{
		"local_path": {rec.LocalPath, r.dir + "/dir/a.txt"}, "s3_key": {rec.S3Key, "pre/dir/a.txt"},
		"s3_uri": {rec.S3URI, "s3://b/pre/dir/a.txt"}, "status": {string(rec.Status), "uploaded"}, "etag": {rec.ETag, o.ETag},
		"version_id": {rec.VersionID, o.VersionID}, "kms_key_id": {rec.KMSKeyID, testKey}, "sse": {rec.SSE, "aws:kms"},
		"md5": {rec.MD5, o.Metadata[archive.MetaMD5]}, "sha256": {rec.SHA256, o.Metadata[archive.MetaSHA256]},
		"mode": {rec.Mode, "0644"}, "trigger": {string(rec.Trigger), "event"}, "s3_time": {rec.S3Time, "2023-11-14T22:13:20Z"},
		"request_id": {rec.RequestID, "req"}, "permissions": {o.Metadata[archive.MetaPermissions], "0644"},
	} {
		if got[0] != got[1] {
			t.Errorf("%s = %q, want %q", name, got[0], got[1])
		}
	}
	if rec.SizeBytes == nil || *rec.SizeBytes != 1000 || rec.MTime == "" || rec.UID == nil || rec.DetectedAt == "" || rec.Timestamp == "" {
		t.Errorf("record = %+v, want size, mtime, uid, detected_at and timestamp", rec)
	}
}

func TestEmptyFileIsUploaded(t *testing.T) {
	r := newRig(t, proven)
	r.start()
	r.write("empty", nil)
	r.look(archive.TriggerStartup, "empty")
	r.wantObject("empty", nil)
	r.wantTrail("uploaded")
}

func TestUnchangedFileCostsNoRequest(t *testing.T) {
	r := newRig(t, proven)
	r.start()
	r.write("a", pattern(10, 1))
	r.look(archive.TriggerStartup, "a")
	puts, heads := r.store.count("Put"), r.store.count("Head")
	r.look(archive.TriggerRescan, "a")
	r.wantTrail("uploaded") // A scan's skips by the index are only counted.
	r.look(archive.TriggerEvent, "a")
	r.wantTrail("uploaded", "skipped/index")
	if r.store.count("Put") != puts || r.store.count("Head") != heads {
		t.Errorf("an unchanged file cost %d PUT and %d HEAD", r.store.count("Put")-puts, r.store.count("Head")-heads)
	}
	r.halt()
	if c, err := r.src.State.Chain(); err != nil || c.IndexSkips != 1 {
		t.Errorf("IndexSkips = %d, %v, want 1", c.IndexSkips, err)
	}
}

func TestRacyFileIsHashedAgain(t *testing.T) {
	r := newRig(t, proven)
	r.start()
	r.write("a", []byte("one"))
	r.age("a", 0)
	r.look(archive.TriggerStartup, "a")
	if !r.entry("a").Racy {
		t.Fatal("an entry read right after its modification is not racy")
	}
	r.look(archive.TriggerRescan, "a")
	r.wantTrail("uploaded")
	if got := r.store.count("Put"); got != 1 {
		t.Errorf("%d PUT, want 1", got)
	}
}

func TestAttributesAloneAreRecordedWithoutUpload(t *testing.T) {
	r := newRig(t, proven)
	r.start()
	r.write("a", []byte("one"))
	r.look(archive.TriggerStartup, "a")
	if err := os.Chmod(filepath.Join(r.dir, "a"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.look(archive.TriggerRescan, "a")
	r.wantTrail("uploaded", "skipped/attributes")
	rec := r.records()[1]
	if rec.Mode != "0600" || rec.ETag == "" {
		t.Errorf("record = %+v, want mode 0600 and the etag", rec)
	}
	if got := r.store.count("Put"); got != 1 {
		t.Errorf("%d PUT, want 1", got)
	}
	if e := r.entry("a"); e.Attributes.Mode != 0o600 || e.Attempt == 0 {
		t.Errorf("entry = %+v, want mode 0600 and the attempt kept", e)
	}
}

func TestChangedFileReplacesItsOwnObject(t *testing.T) {
	r := newRig(t, proven)
	r.start()
	r.write("a", []byte("one"))
	r.look(archive.TriggerStartup, "a")
	old := r.wantObject("a", []byte("one"))
	heads := r.store.count("Head")
	r.write("a", []byte("two!"))
	r.look(archive.TriggerEvent, "a")
	r.wantObject("a", []byte("two!"))
	rec := r.records()[1]
	if rec.ReplacedETag != old.ETag || rec.ReplacedVID != old.VersionID {
		t.Errorf("replaced = %q %q, want %q %q", rec.ReplacedETag, rec.ReplacedVID, old.ETag, old.VersionID)
	}
	if got := r.store.count("Head"); got != heads {
		t.Errorf("%d HEAD for an object that the index describes, want 0", got-heads)
	}
}

func TestObjectThatIsGoneIsWrittenAgain(t *testing.T) {
	r := newRig(t, proven)
	r.start()
	r.write("a", []byte("one"))
	r.look(archive.TriggerStartup, "a")
	r.store.mu.Lock()
	delete(r.store.objects, "pre/a")
	r.store.mu.Unlock()
	r.write("a", []byte("two"))
	r.look(archive.TriggerEvent, "a")
	r.wantObject("a", []byte("two"))
	r.wantTrail("uploaded", "uploaded")
	r.noIntents()
}

// foreignObject puts an object of another writer under path.
func (r *rig) foreignObject(path string, body []byte, meta map[string]string) archive.Object {
	r.t.Helper()
	o, err := r.store.store("pre/"+path, body, meta, archive.Condition{})
	if err != nil {
		r.t.Fatal(err)
	}
	return o
}

func TestObjectsOfTheOlderToolAreAdopted(t *testing.T) {
	r := newRig(t, proven)
	r.start()
	data := []byte("tutorial")
	r.write("a", data)
	r.foreignObject("a", data, map[string]string{archive.MetaMD5: "0bd1d1a8b1c08d0d2e6ae1c4ab0f1de9"})
	r.foreignObject("a", data, map[string]string{archive.MetaMD5: md5hex(data)})
	r.look(archive.TriggerSync, "a")
	r.wantTrail("skipped/metadata")
	if got := r.store.count("Put"); got != 0 {
		t.Errorf("%d PUT, want 0", got)
	}
	r.write("a", []byte("newer"))
	r.look(archive.TriggerEvent, "a")
	r.wantTrail("skipped/metadata", "uploaded")
}

func TestConflictIsParkedAndNeverOverwritten(t *testing.T) {
	r := newRig(t, proven)
	r.start()
	theirs := []byte("theirs")
	r.foreignObject("a", theirs, map[string]string{archive.MetaMD5: md5hex(theirs), archive.MetaID: "app-02/ffffffff/1"})
	r.write("a", []byte("ours!!"))
	r.write("b", []byte("other"))
	r.offer(archive.TriggerRescan, "a", "b")
	r.until("the conflict is held", func() bool { _, f, _ := r.q.Source("data").Depth(); return f == 0 && r.q.Source("data").Held() == 1 })
	r.until("the other file went on", func() bool { return len(r.trail()) == 2 })
	r.offer(archive.TriggerRescan, "a")
	r.until("it was looked at again", func() bool { return r.store.count("Head") >= 3 })
	r.until("and held again", func() bool { _, f, _ := r.q.Source("data").Depth(); return f == 0 && r.q.Source("data").Held() == 1 })
	failed := 0
	for _, s := range r.trail() {
		if s == "failed/conflict" {
			failed++
		}
	}
	if failed != 1 {
		t.Errorf("trail = %v, want one failed/conflict", r.trail())
	}
	if _, body, _ := r.store.object("pre/a"); string(body) != "theirs" {
		t.Errorf("the other instance's object = %q, want it untouched", body)
	}
	r.noIntents()
}

// An equal object of another instance is taken as it is, but a later change
// must not overwrite it.
func TestAdoptedForeignObjectIsNotOverwrittenLater(t *testing.T) {
	r := newRig(t, func(s *Source, o *Options) { s.Proven = true; o.GiveUp = time.Minute })
	r.start()
	data := []byte("same")
	r.foreignObject("a", data, map[string]string{archive.MetaMD5: md5hex(data), archive.MetaID: "app-02/ffffffff/1"})
	r.write("a", data)
	r.look(archive.TriggerSync, "a")
	r.write("a", []byte("changed"))
	r.look(archive.TriggerSync, "a")
	r.wantTrail("skipped/metadata", "failed/conflict")
	if _, body, _ := r.store.object("pre/a"); string(body) != "same" {
		t.Errorf("object = %q, want it untouched", body)
	}
}

func TestWrongKeyAtFirstSightIsReplaced(t *testing.T) {
	r := newRig(t, proven)
	r.start()
	data := []byte("data")
	r.write("a", data)
	r.store.key = "arn:aws:kms:us-east-1:1:key/old"
	old := r.foreignObject("a", data, map[string]string{archive.MetaMD5: md5hex(data)})
	r.store.key = testKey
	r.look(archive.TriggerSync, "a")
	r.wantTrail("uploaded")
	if rec := r.records()[0]; rec.ReplacedETag != old.ETag || rec.KMSKeyID != testKey {
		t.Errorf("record = %+v, want the old object replaced under the key", rec)
	}
}

func TestKeyChangeLeavesIndexedObjectsAlone(t *testing.T) {
	key := testKey
	r := newRig(t, func(s *Source, _ *Options) {
		s.Proven = true
		s.Accept = func(o archive.Object) archive.KeyVerdict {
			if o.KMSKeyID == key {
				return archive.KeyOK
			}
			return archive.KeyOther
		}
	})
	r.start()
	r.write("a", []byte("data"))
	r.look(archive.TriggerStartup, "a")
	r.halt()
	key = "arn:aws:kms:us-east-1:1:key/two"
	r.store.key = key
	r.start()
	r.look(archive.TriggerRescan, "a")
	if got := r.store.count("Put"); got != 1 {
		t.Errorf("%d PUT, want 1", got)
	}
}

func TestLostStateAsksAndUploadsNothing(t *testing.T) {
	r := newRig(t, proven)
	r.start()
	var paths []string
	for i := range 60 {
		p := fmt.Sprintf("f%02d", i)
		r.write(p, pattern(100+i, byte(i)))
		paths = append(paths, p)
	}
	r.look(archive.TriggerStartup, paths...)
	if got := r.store.count("Head"); got > 30 {
		t.Errorf("%d HEAD for 60 new files in an empty prefix, want few", got)
	}
	r.close()
	if err := os.RemoveAll(r.stateDir); err != nil {
		t.Fatal(err)
	}
	r.open()
	r.start()
	puts, heads := r.store.count("Put"), r.store.count("Head")
	r.look(archive.TriggerStartup, paths...)
	if got := r.store.count("Put") - puts; got != 0 {
		t.Errorf("%d PUT after the state was lost, want 0", got)
	}
	if got := r.store.count("Head") - heads; got != 60 {
		t.Errorf("%d HEAD, want 60", got)
	}
	for _, s := range r.trail() {
		if s != "skipped/metadata" {
			t.Errorf("trail has %q, want skipped/metadata only", s)
		}
	}
}

func TestHeadForbiddenMeansAbsentWithoutListing(t *testing.T) {
	forbidden := remoteError(archive.ClassConfiguration, "", 403, os.ErrPermission)
	t.Run("granted", func(t *testing.T) {
		r := newRig(t, func(s *Source, _ *Options) {
			s.Proven = true
			s.HeadForbiddenMeansUnknown = func() bool { return true }
		})
		r.store.plan(fault{op: "Head", times: 1, err: forbidden})
		r.start()
		r.write("a", []byte("x"))
		r.look(archive.TriggerSync, "a")
		r.wantTrail("uploaded")
	})
	t.Run("a fault", func(t *testing.T) {
		r := newRig(t, func(s *Source, o *Options) { s.Proven = true; o.GiveUp = time.Minute })
		r.store.plan(fault{op: "Head", times: 2, err: forbidden})
		r.start()
		r.write("a", []byte("x"))
		r.look(archive.TriggerSync, "a")
		r.wantTrail("failed/configuration")
	})
}

func TestFileFailuresAreRecordedOnceAndHeld(t *testing.T) {
	r := newRig(t, proven)
	r.start()
	long := strings.Repeat("n", 200) + "/" + strings.Repeat("n", 200) + "/" + strings.Repeat("n", 200) + "/" +
		strings.Repeat("n", 200) + "/" + strings.Repeat("n", 200) + "/" + strings.Repeat("n", 200)
	r.write(long, []byte("x"))
	jobs := []queue.Job{
		{Path: long}, {Path: "dir", Kind: archive.Refused, Err: os.ErrPermission}, {Path: "_manifests", Kind: archive.Refused, Err: os.ErrInvalid},
	}
	for range 2 {
		for _, j := range jobs {
			j.Source, j.Trigger = "data", archive.TriggerRescan
			r.offerJob(j)
		}
		r.until("all are held", func() bool {
			q, f, _ := r.q.Source("data").Depth()
			return q == 0 && f == 0 && r.q.Source("data").Held() == 3
		})
	}
	r.wantTrail("failed/file", "failed/file", "failed/file")
	if got := r.p.Destination("data").State; got != breaker.HealthOK {
		t.Errorf("destination = %v, want ok", got)
	}
	if got := r.p.Parked("data")[archive.ClassFile]; got != 3 {
		t.Errorf("%d parked files, want 3", got)
	}
	if err := os.RemoveAll(filepath.Join(r.dir, strings.Repeat("n", 200))); err != nil {
		t.Fatal(err)
	}
	r.offerJob(queue.Job{Source: "data", Path: long, Kind: archive.Gone, Trigger: archive.TriggerRescan})
	r.until("the one without a key is forgotten", func() bool { return r.p.Parked("data")[archive.ClassFile] == 2 })
	r.wantTrail("failed/file", "failed/file", "failed/file")
}

func TestVanishedPathLeavesNoRecord(t *testing.T) {
	r := newRig(t, proven)
	r.start()
	r.look(archive.TriggerEvent, "never/there")
	r.wantTrail()
}

func TestDeletedFileKeepsItsObject(t *testing.T) {
	r := newRig(t, proven)
	r.start()
	r.write("a", []byte("x"))
	r.write("b", []byte("y"))
	r.look(archive.TriggerStartup, "a", "b")
	for _, p := range []string{"a", "b"} {
		if err := os.Remove(filepath.Join(r.dir, p)); err != nil {
			t.Fatal(err)
		}
	}
	r.offerJob(queue.Job{Source: "data", Path: "a", Kind: archive.Gone, Trigger: archive.TriggerRescan})
	r.look(archive.TriggerEvent, "b")
	r.wantTrail("uploaded", "uploaded", "deleted", "deleted")
	r.wantObject("a", []byte("x"))
	if r.entry("a").Stored || r.entry("b").Stored {
		t.Error("the index still has a deleted file")
	}
}

func TestAFileThatIsGoneSoonAfterItsUploadIsCountedAsShortLived(t *testing.T) {
	r := newRig(t, func(s *Source, o *Options) {
		proven(s, o)
		s.ShortLife = time.Hour
	})
	r.start()
	r.write("soon", []byte("x"))
	r.write("late", []byte("y"))
	r.look(archive.TriggerStartup, "soon", "late")
	for _, p := range []string{"soon", "late"} {
		if err := os.Remove(filepath.Join(r.dir, p)); err != nil {
			t.Fatal(err)
		}
	}
	r.offerJob(queue.Job{Source: "data", Path: "soon", Kind: archive.Gone, Trigger: archive.TriggerEvent, Detected: time.Now()})
	r.offerJob(queue.Job{Source: "data", Path: "late", Kind: archive.Gone, Trigger: archive.TriggerEvent, Detected: time.Now().Add(2 * time.Hour)})
	r.idle()
	r.wantTrail("uploaded", "uploaded", "deleted", "deleted")
	if got := testutil.ToFloat64(r.o.Metrics.shortLived.WithLabelValues("data")); got != 1 {
		t.Errorf("%v short-lived files, want 1", got)
	}
}

func TestForgetLeavesNoSeriesOfASource(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	m := NewMetrics(reg)
	m.source("stays")
	left := gathered(t, reg)
	m.source("goes")
	if got := gathered(t, reg); got != 2*left {
		t.Fatalf("%d series of two sources, want %d", got, 2*left)
	}
	m.Forget("goes")
	if got := gathered(t, reg); got != left {
		t.Errorf("%d series after Forget, want %d", got, left)
	}
}

func gathered(t *testing.T, g prometheus.Gatherer) int {
	t.Helper()
	n, err := testutil.GatherAndCount(g)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestAFileThatSomethingElseReplacedIsGone(t *testing.T) {
	for name, put := range map[string]func(path string) error{
		"directory":            func(p string) error { return os.Mkdir(p, 0o755) },
		"symbolic link":        func(p string) error { return os.Symlink("target", p) },
		"dangling link":        func(p string) error { return os.Symlink("nowhere", p) },
		"link out of the tree": func(p string) error { return os.Symlink("/etc/passwd", p) },
		"FIFO":                 func(p string) error { return syscall.Mkfifo(p, 0o644) },
	} {
		for _, kind := range []archive.Kind{archive.Look, archive.Gone} {
			t.Run(fmt.Sprintf("%s %d", name, kind), func(t *testing.T) {
				r := newRig(t, proven)
				r.start()
				r.write("target", []byte("x"))
				r.write("f", []byte("y"))
				r.look(archive.TriggerStartup, "f")
				f := filepath.Join(r.dir, "f")
				if err := errors.Join(os.Remove(f), put(f)); err != nil {
					t.Fatal(err)
				}
				r.offerJob(queue.Job{Source: "data", Path: "f", Kind: kind, Trigger: archive.TriggerEvent})
				r.idle()
				r.wantTrail("uploaded", "deleted")
				r.offerJob(queue.Job{Source: "data", Path: "f", Kind: kind, Trigger: archive.TriggerEvent})
				r.idle()
				r.wantTrail("uploaded", "deleted")
			})
		}
	}
}

func TestGoneIsNotBelievedOfAFileThatIsThere(t *testing.T) {
	r := newRig(t, proven)
	r.start()
	r.write("a", []byte("x"))
	r.look(archive.TriggerStartup, "a")
	r.write("a", []byte("xyz"))
	r.offerJob(queue.Job{Source: "data", Path: "a", Kind: archive.Gone, Trigger: archive.TriggerRescan})
	r.idle()
	r.wantObject("a", []byte("xyz"))
	r.wantTrail("uploaded", "uploaded")
}

func TestNothingIsDeletedInAnotherDirectory(t *testing.T) {
	r := newRig(t, proven)
	r.start()
	r.write("a", []byte("x"))
	r.look(archive.TriggerStartup, "a")
	if err := os.Rename(r.dir, r.dir+".old"); err != nil {
		t.Fatal(err)
	}
	r.offerJob(queue.Job{Source: "data", Path: "a", Kind: archive.Gone, Trigger: archive.TriggerRescan})
	r.idle()
	if err := os.Mkdir(r.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r.offerJob(queue.Job{Source: "data", Path: "a", Kind: archive.Gone, Trigger: archive.TriggerRescan})
	r.look(archive.TriggerEvent, "a")
	r.wantTrail("uploaded")
	if !r.entry("a").Stored {
		t.Error("the index lost the file of a source that is away")
	}
}

func TestMirrorDeletesOnlyWhenConfirmed(t *testing.T) {
	r := newRig(t, func(s *Source, _ *Options) { s.Proven, s.Deletes = true, archive.DeletesMirror })
	r.start()
	r.write("a", []byte("x"))
	r.look(archive.TriggerStartup, "a")
	old := r.wantObject("a", []byte("x"))
	if err := os.Remove(filepath.Join(r.dir, "a")); err != nil {
		t.Fatal(err)
	}
	r.offerJob(queue.Job{Source: "data", Path: "a", Kind: archive.Gone, Trigger: archive.TriggerRescan})
	r.idle()
	r.wantObject("a", []byte("x"))
	r.offerJob(queue.Job{Source: "data", Path: "a", Kind: archive.Gone, Trigger: archive.TriggerRescan, Confirmed: true})
	r.idle()
	if _, _, ok := r.store.object("pre/a"); ok {
		t.Error("the object is still there")
	}
	r.wantTrail("uploaded", "deleted")
	if rec := r.records()[1]; rec.ReplacedETag != old.ETag {
		t.Errorf("replaced_etag = %q, want %q", rec.ReplacedETag, old.ETag)
	}
	r.noIntents()
}

func TestHardLinksAreSkippedWhereTheConfigurationSaysSo(t *testing.T) {
	r := newRig(t, func(s *Source, _ *Options) { s.Proven, s.Hardlinks = true, safefs.LinksSkip })
	r.start()
	r.write("a", []byte("x"))
	if err := os.Link(filepath.Join(r.dir, "a"), filepath.Join(r.dir, "b")); err != nil {
		t.Fatal(err)
	}
	r.look(archive.TriggerStartup, "a", "b")
	r.wantTrail()
}

func TestNewRejectsWhatCannotWork(t *testing.T) {
	r := newRig(t, nil)
	for name, change := range map[string]func(*Source, *Options){
		"workers": func(_ *Source, o *Options) { o.Workers = 0 },
		"memory":  func(_ *Source, o *Options) { o.MemoryLimit = 1 },
		"part":    func(_ *Source, o *Options) { o.PartSize = 0 },
		"store":   func(s *Source, _ *Options) { s.Objects = nil },
		"links":   func(s *Source, _ *Options) { s.Hardlinks = "perhaps" },
		"deletes": func(s *Source, _ *Options) { s.Deletes = "perhaps" },
	} {
		s, o := r.src, r.o
		change(&s, &o)
		if _, err := New(queue.New(1), []Source{s}, o); err == nil {
			t.Errorf("New with bad %s = nil, want an error", name)
		}
	}
}

// giveAway makes path, relative to the source, another user's.
func (r *rig) giveAway(path string) {
	r.t.Helper()
	if os.Getuid() != 0 {
		r.t.Skip("only root can give a file away")
	}
	if err := os.Lchown(filepath.Join(r.dir, path), 4711, 4711); err != nil {
		r.t.Fatal(err)
	}
}

func TestSecondNameElsewhereDoesNotEndArchiving(t *testing.T) {
	r := newRig(t, func(s *Source, _ *Options) { s.Proven = true })
	r.start()
	r.write("d/f", []byte("one"))
	r.giveAway("d/f")
	if err := os.Chmod(filepath.Join(r.dir, "d"), 0o777); err != nil {
		t.Fatal(err)
	}
	r.look(archive.TriggerStartup, "d/f")
	if err := os.Link(r.dir+"/d/f", filepath.Join(t.TempDir(), "backup")); err != nil {
		t.Fatal(err)
	}
	r.write("d/f", []byte("second"))
	r.look(archive.TriggerEvent, "d/f")
	r.wantObject("d/f", []byte("second"))
	r.wantTrail("uploaded", "uploaded")
}

func TestForeignHardLinkIsAFailureOnRecord(t *testing.T) {
	for name, before := range map[string]string{"new name": "", "in the place of an archived file": "mine"} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(s *Source, _ *Options) { s.Proven = true })
			r.start()
			secret := filepath.Join(r.dir, "secret")
			r.write("secret", []byte("not for everybody"))
			r.giveAway("secret")
			want := []string{"failed/file"}
			r.write("d/x", []byte(before))
			if err := os.Chmod(filepath.Join(r.dir, "d"), 0o777); err != nil {
				t.Fatal(err)
			}
			if before != "" {
				r.look(archive.TriggerStartup, "d/x")
				want = []string{"uploaded", "failed/file"}
			}
			if err := os.Remove(r.dir + "/d/x"); err != nil {
				t.Fatal(err)
			}
			if err := os.Link(secret, r.dir+"/d/x"); err != nil {
				t.Fatal(err)
			}
			r.offer(archive.TriggerEvent, "d/x")
			r.until("the failure is on record", func() bool { return len(r.records()) == len(want) })
			r.wantTrail(want...)
			if rec := r.records()[len(want)-1]; !strings.Contains(rec.Error, "hardlinks: allow") {
				t.Errorf("error = %q, want what to do", rec.Error)
			}
			if _, body, _ := r.store.object("pre/d/x"); string(body) != before {
				t.Errorf("the object is %q, want %q", body, before)
			}
		})
	}
}

func TestWhereInodesSayNothingALinkIsNotTheFileThatWasArchived(t *testing.T) {
	r := newRig(t, func(s *Source, _ *Options) {
		s.Proven, s.Root = true, safefs.NewRoot(s.RealPath, safefs.RootOptions{SizeMtime: true})
	})
	r.start()
	r.write("secret", []byte("not for everybody"))
	r.write("d/x", []byte("mine"))
	r.giveAway("secret")
	r.giveAway("d/x")
	if err := os.Chmod(filepath.Join(r.dir, "d"), 0o777); err != nil {
		t.Fatal(err)
	}
	r.look(archive.TriggerStartup, "d/x")
	if err := os.Remove(r.dir + "/d/x"); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(r.dir+"/secret", r.dir+"/d/x"); err != nil {
		t.Fatal(err)
	}
	r.offer(archive.TriggerEvent, "d/x")
	r.until("it was looked at", func() bool { return len(r.records()) == 2 })
	r.wantTrail("uploaded", "failed/file")
	r.wantObject("d/x", []byte("mine"))
}

func TestRereadFindsContentThatChangedWithoutItsTimes(t *testing.T) {
	r := newRig(t, func(s *Source, _ *Options) { s.Proven = true })
	r.start()
	r.write("same", []byte("one"))
	r.write("f", []byte("one"))
	r.look(archive.TriggerStartup, "f", "same")
	old := r.wantObject("f", []byte("one"))

	// As a store through a mapping leaves it: the index has the times of now.
	r.write("f", []byte("two"))
	e := r.entry("f")
	st, err := r.src.Root.Lstat("f")
	if err != nil {
		t.Fatal(err)
	}
	e.Fence = localfile.FenceOf(st)
	if _, err := r.src.State.Commit(t.Context(), archive.Outcome{Path: "f", Entry: &e}); err != nil {
		t.Fatal(err)
	}
	r.look(archive.TriggerRescan, "f")
	r.wantObject("f", []byte("one")) // That is why files are read again.

	for _, p := range []string{"f", "same"} {
		r.offerJob(queue.Job{Source: "data", Path: p, Kind: archive.Reread, Trigger: archive.TriggerRescan})
	}
	r.idle()
	r.wantObject("f", []byte("two"))
	r.wantTrail("uploaded", "uploaded", "uploaded/reread")
	if rec := r.records()[2]; rec.ReplacedETag != old.ETag || rec.Trigger != archive.TriggerRescan {
		t.Errorf("replaced_etag %q, trigger %q, want %q, rescan", rec.ReplacedETag, rec.Trigger, old.ETag)
	}
	want := `
# HELP s3syncd_rereads_total Files read again although their times did not change, by what was found.
# TYPE s3syncd_rereads_total counter
s3syncd_rereads_total{result="changed",source="data"} 1
s3syncd_rereads_total{result="same",source="data"} 1
`
	if err := testutil.GatherAndCompare(r.reg, strings.NewReader(want), "s3syncd_rereads_total"); err != nil {
		t.Error(err)
	}
}

func TestWhatIsToBeReadAgainAndIsNotAsIndexedIsLeftToTheWatcher(t *testing.T) {
	var mu sync.Mutex // Several workers hand paths back.
	var left []string
	r := newRig(t, func(s *Source, _ *Options) {
		s.Proven, s.Requeue = true, func(path string) {
			mu.Lock()
			defer mu.Unlock()
			left = append(left, path)
		}
	})
	r.start()
	r.write("changed", []byte("one"))
	r.write("gone", []byte("one"))
	r.look(archive.TriggerStartup, "changed", "gone")
	r.write("changed", []byte("second"))
	r.write("new", []byte("second"))
	if err := os.Remove(filepath.Join(r.dir, "gone")); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"changed", "gone", "new"} {
		r.offerJob(queue.Job{Source: "data", Path: p, Kind: archive.Reread, Trigger: archive.TriggerRescan})
	}
	r.idle()
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(left)
	if want := []string{"changed", "new"}; !slices.Equal(left, want) {
		t.Errorf("left to the watcher: %q, want %q", left, want)
	}
	r.wantObject("changed", []byte("one"))
	r.wantTrail("uploaded", "uploaded")
}
