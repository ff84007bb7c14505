package manifest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/restore"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// archive is a trail in memory with the objects that it tells of.
type fakeArchive struct {
	*library

	onGet func(key string) error // before each answer
}

func (a *fakeArchive) GetFrom(ctx context.Context, key, version string, from int64, _ string) (io.ReadCloser, archive.Object, error) {
	if a.onGet != nil {
		if err := a.onGet(key); err != nil {
			return nil, archive.Object{}, err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	data, ok := a.objects[key+"?"+version]
	if !ok {
		return nil, archive.Object{}, archive.Classified(archive.ClassTransient, "GetObject", fs.ErrNotExist)
	}
	return io.NopCloser(bytes.NewReader(data[from:])), archive.Object{Key: key, Size: int64(len(data))}, ctx.Err()
}

// upload stores an object and returns its record.
func (a *fakeArchive) upload(rel, text, at string, change ...func(*archive.Record)) archive.Record {
	a.set("p/"+rel+"?", []byte(text))
	size := int64(len(text))
	r := rec(archive.StatusUploaded, rel, at, change...)
	r.SizeBytes, r.SHA256 = &size, hexSHA([]byte(text))
	return r
}

// outcomes collects what a restore says of each file.
type outcomes struct {
	mu    sync.Mutex
	files map[string]string
}

func (*outcomes) Anchored(int, int) {}

func (*outcomes) Planned(int64, int64) {}

func (*outcomes) Received(int64) {}

func (o *outcomes) Done(f restore.RestoredFile) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.files[f.Key] = string(f.Status)
	if f.Err != nil {
		o.files[f.Key] += ": " + f.Err.Error()
	}
}

// restore runs one restore into dir.
func (a *fakeArchive) restore(t *testing.T, dir string, change func(*restore.Options)) (map[string]string, restore.Summary, error) {
	t.Helper()
	said := &outcomes{files: map[string]string{}}
	o := restore.Options{Prefix: "p/", Target: dir, DirMode: 0o700, Workers: 1, GiveUp: time.Minute, CheckSpace: true, Progress: said}
	if change != nil {
		change(&o)
	}
	sum, err := restore.Run(t.Context(), trail.NewTrail(a, "p/"), a, o)
	return said.files, sum, err
}

// wantSaid checks that what is said of each key begins as given.
func wantSaid(t *testing.T, got, want map[string]string) {
	t.Helper()
	for key, w := range want {
		if !strings.HasPrefix(got["p/"+key], w) {
			t.Errorf("%s is %q, want %q", key, got["p/"+key], w)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d files, want %d: %v", len(got), len(want), got)
	}
}

func newArchive() *fakeArchive { return &fakeArchive{library: newLibrary()} }

const (
	atTen    = "2026-03-01T10:00:00Z"
	atEleven = "2026-03-01T11:00:00Z"
)

func TestRestoreOfAPathThatWasAFileAndADirectory(t *testing.T) {
	a := newArchive()
	a.add(t, "h", "0a0a0a0a", 1, true, nil,
		a.upload("x", "a file first", atTen), a.upload("x-y", "between", atTen), a.upload("x/f", "then a directory", atEleven),
		a.upload("y/f", "a directory first", atTen), a.upload("y", "then a file", atEleven))
	dir := t.TempDir()
	said, sum, err := a.restore(t, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	wantSaid(t, said, map[string]string{
		"x": "failed: at that time the trail has p/x/f", "x-y": "restored", "x/f": "restored", "y": "restored", "y/f": "failed: at that time the trail has p/y, newer, as a file",
	})
	if sum.Restored != 3 || sum.Failed != 2 {
		t.Errorf("the summary is %+v", sum)
	}
}

func TestRestoreRefusesKeysThatAreNoPaths(t *testing.T) {
	a := newArchive()
	var records []archive.Record
	want := map[string]string{"good": "restored"}
	for _, key := range []string{"../../etc/passwd", "a/../../b", "/abs", "a//b", "dir/", "./x", "%2e"} {
		records = append(records, a.upload(key, "attack", atTen))
		want[key] = "failed: no path below a source has this key"
	}
	want["%2e"] = "restored" // Not an escape, as its digits are not upper-case: a file of this name.
	records = append(records, a.upload("good", "good", atTen))
	a.add(t, "h", "0a0a0a0a", 1, true, nil, records...)
	base := t.TempDir()
	said, _, err := a.restore(t, filepath.Join(base, "deep", "target"), nil)
	if err != nil {
		t.Fatal(err)
	}
	wantSaid(t, said, want)
	var found []string
	if err := filepath.WalkDir(base, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			found = append(found, strings.TrimPrefix(p, base))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(found, []string{"/deep/target/%2e", "/deep/target/good"}) {
		t.Errorf("there is %q", found)
	}
}

func TestRestoreDoesNotReplaceWhatItWrote(t *testing.T) {
	a := newArchive()
	a.add(t, "h", "0a0a0a0a", 1, true, nil, a.upload("a", "first", atTen), a.upload("b", "second", atTen))
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.onGet = func(key string) error { // On a file system that does not tell them apart, writing one writes the other.
		if key != "p/a" {
			return nil
		}
		// The clock of a file system goes in steps of some milliseconds.
		for begun := writtenAt(t, filepath.Join(dir, "b")); ; {
			if writtenAt(t, filepath.Join(dir, "b")) > begun {
				return nil
			}
		}
	}
	said, _, err := a.restore(t, dir, func(o *restore.Options) { o.Overwrite = true })
	if err != nil {
		t.Fatal(err)
	}
	wantSaid(t, said, map[string]string{"a": "restored", "b": "failed: it was written since this restore began"})
}

// writtenAt writes a file and returns its ctime.
func writtenAt(t *testing.T, path string) int64 {
	t.Helper()
	if err := os.WriteFile(path, []byte("first"), 0o600); err != nil {
		t.Error(err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Error(err)
	}
	return st.Ctim.Nano()
}

func TestRestoreChecksTheRoomFirst(t *testing.T) {
	a := newArchive()
	r := a.upload("huge", "x", atTen)
	size := int64(1) << 52
	r.SizeBytes = &size
	a.add(t, "h", "0a0a0a0a", 1, true, nil, r)
	dir := t.TempDir()
	said, _, err := a.restore(t, dir, nil)
	if !errors.Is(err, restore.ErrNoSpace) || len(said) > 0 {
		t.Errorf("Restore = %v, %v, want ErrNoSpace and nothing begun", said, err)
	}
	if _, _, err := a.restore(t, dir, func(o *restore.Options) { o.CheckSpace = false }); err != nil {
		t.Errorf("Restore without the check = %v", err)
	}
}

func TestRestoreEndsWithAnOutage(t *testing.T) {
	a := newArchive()
	var records []archive.Record
	for i := range 50 {
		records = append(records, a.upload(fmt.Sprintf("f%02d", i), "x", atTen))
	}
	a.add(t, "h", "0a0a0a0a", 1, true, nil, records...)
	a.onGet = func(string) error {
		return archive.Classified(archive.ClassTransient, "GetObject", errors.New("no answer"))
	}
	said, sum, err := a.restore(t, t.TempDir(), func(o *restore.Options) { o.GiveUp = time.Nanosecond })
	if !errors.Is(err, restore.ErrOutage) || len(said) > 0 || sum.Failed > 0 {
		t.Errorf("Restore = %v, %+v, %v, want ErrOutage and no file that failed for it", said, sum, err)
	}
	a.onGet = func(string) error {
		return archive.Classified(archive.ClassCredentials, "GetObject", errors.New("expired"))
	}
	if said, _, err := a.restore(t, t.TempDir(), nil); archive.ClassOf(err) != archive.ClassCredentials || len(said) > 0 {
		t.Errorf("Restore without credentials = %v, %v, want that error", said, err)
	}
}

func TestRestoreNeedsAHash(t *testing.T) {
	a := newArchive()
	r := a.upload("f", "content", atTen)
	r.SHA256 = ""
	a.add(t, "h", "0a0a0a0a", 1, true, nil, r)
	said, _, err := a.restore(t, t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	wantSaid(t, said, map[string]string{"f": "failed: the trail has no hash of it"})
	said, sum, err := a.restore(t, t.TempDir(), func(o *restore.Options) { o.Unverified = true })
	if err != nil || sum.Unverified != 1 {
		t.Fatalf("Restore = %+v, %v, want one file that nothing proves", sum, err)
	}
	wantSaid(t, said, map[string]string{"f": "restored"})
}

func TestRestoreLeavesHalfWrittenFilesOut(t *testing.T) {
	a := newArchive()
	junk := "d/.s3syncd-restore-0123456789abcdef0123456789abcdef"
	a.add(t, "h", "0a0a0a0a", 1, true, nil, a.upload(junk, "half", atTen), a.upload("d/f", "whole", atTen))
	said, sum, err := a.restore(t, t.TempDir(), nil)
	if err != nil || sum.LeftOut != 1 {
		t.Fatalf("Restore = %+v, %v, want one file left out", sum, err)
	}
	wantSaid(t, said, map[string]string{"d/f": "restored"})
}

func TestRestoreKeepsOtherNamesOfAFile(t *testing.T) {
	a := newArchive()
	a.add(t, "h", "0a0a0a0a", 1, true, nil, a.upload("f", "content", atTen, func(r *archive.Record) { r.Mode, r.MTime = "0640", "2020-02-02T02:02:02.123456789Z" }))
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "other"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "other"), filepath.Join(dir, "f")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.restore(t, dir, func(o *restore.Options) { o.Overwrite = true }); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{"f": 0o640, "other": 0o600} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode() != want {
			t.Errorf("%s has mode %v, %v; want %v", name, st.Mode(), err, want)
		}
	}
}

func TestTimesOfMetadataAreRead(t *testing.T) {
	for text, want := range map[string]int64{
		"1700000000.123456789": 1_700_000_000_123_456_789, "1700000000": 1_700_000_000_000_000_000, "1.5": 1_500_000_000, "-1.000000001": -1_000_000_001, "-0.5": -500_000_000,
	} {
		if got, ok := restore.ParseMTime("", text); !ok || got.UnixNano() != want {
			t.Errorf("parseMTime(%q) = %v, %v, want %d ns", text, got, ok, want)
		}
	}
	for _, text := range []string{"", "x", "1.x", "1.-5"} {
		if got, ok := restore.ParseMTime("", text); ok {
			t.Errorf("parseMTime(%q) = %v, want none", text, got)
		}
	}
}
