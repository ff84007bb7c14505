package manifest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// library is a trail in memory that tests write document by document.
type library struct {
	*bucket

	heads map[string]string // by chain: the hash and key of its last digest
}

func newLibrary() *library { return &library{bucket: newBucket(), heads: map[string]string{}} }

func (l *library) set(key string, data []byte) {
	l.objects[key] = data
	l.order = append(l.order, key)
}

var trailStart = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// add publishes a manifest of records as sequence seq of a chain, and its
// digest where digest is set. Records without an id get one.
func (l *library) add(t *testing.T, instance, chain string, seq uint64, digest bool, change func(*trail.Digest), records ...archive.Record) (manifest, key string) {
	t.Helper()
	at := trailStart.Add(time.Duration(seq) * time.Hour)
	m := trail.Name{Time: at, Instance: instance, Chain: chain, Sequence: seq, N: 1}
	for i := range records {
		r := &records[i]
		r.Instance, r.Source, r.Chain = instance, "data", chain
		if r.ID == "" {
			r.ID = archive.RecordID(chain, seq*1000+uint64(i))
		}
		if r.Timestamp == "" {
			r.Timestamp = archive.FormatTime(at)
		}
		r.S3URI = "s3://b/" + r.S3Key
	}
	d := trail.Digest{
		Version: 1, Instance: instance, Source: "data", Bucket: "b", Prefix: "p/", Chain: chain, Sequence: seq,
		StartTime: archive.FormatTime(at.Add(-time.Hour)), EndTime: archive.FormatTime(at), Manifests: []archive.ManifestRef{},
		Scans: []archive.ScanNote{}, Events: []archive.Note{}, ConfigSHA256: hexSHA(nil), Reason: trail.ReasonInterval,
	}
	d.NextDigestDue = timeOrNull(at.Add(time.Hour))
	if len(records) > 0 {
		data := encode(t, trail.LayoutFlat, records)
		manifest = "p/_manifests/" + m.Path()
		l.set(manifest, data)
		d.Manifests = append(d.Manifests, archive.ManifestRef{S3Key: manifest, SHA256: hexSHA(data), SizeBytes: int64(len(data)), Records: int64(len(records))})
		for i := range records {
			d.Counts.Add(records[i].Status)
		}
	}
	if !digest {
		return manifest, ""
	}
	if prev := l.heads[chain]; prev != "" {
		sha, prevKey, _ := strings.Cut(prev, " ")
		d.PreviousDigestSHA256, d.PreviousDigestS3Key = &sha, &prevKey
	} else {
		d.Begins = archive.BeginsNew
	}
	if change != nil {
		change(&d)
	}
	data, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	m.Digest = true
	key = "p/_manifests/" + m.Path()
	l.set(key, data)
	l.heads[chain] = hexSHA(data) + " " + key
	return manifest, key
}

func rec(status archive.Status, key, at string, change ...func(*archive.Record)) archive.Record {
	r := archive.Record{LocalPath: "/data/" + key, S3Key: "p/" + key, Status: status, Timestamp: at, Trigger: archive.TriggerEvent}
	for _, c := range change {
		c(&r)
	}
	return r
}

func newest(t *testing.T, l trail.Library, q trail.Query) []string {
	t.Helper()
	var got []string
	if err := trail.NewTrail(l, "p/").Newest(t.Context(), q, func(h trail.Held) error {
		r := h.Record
		got = append(got, fmt.Sprintf("%s %s %s%s%s", strings.TrimPrefix(r.S3Key, "p/"), r.Status, r.SHA256, r.Mode, r.VersionID))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

func wantLines(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func content(sha, mode string) func(*archive.Record) {
	return func(r *archive.Record) {
		r.SHA256, r.Mode, r.Attempt = sha, mode, 7
		if mode != "" {
			r.MTime = "2026-01-01T00:00:00Z"
		}
	}
}

func TestNewestFoldsTheRecordsOfEachKey(t *testing.T) {
	l := newLibrary()
	version := func(v string) func(*archive.Record) { return func(r *archive.Record) { r.VersionID = v } }
	l.add(t, "app-01", "0a1b2c3d", 1, true, nil,
		rec(archive.StatusUploaded, "a", "2026-03-01T10:00:00Z", content("A1 ", "0644 ")),
		rec(archive.StatusUploaded, "b", "2026-03-01T10:00:01Z", content("B1 ", "0644 ")),
		rec(archive.StatusUploaded, "c", "2026-03-01T10:00:02Z", content("C1 ", "0644 ")),
		rec(archive.StatusSkipped, "old", "2026-03-01T10:00:03Z", content("O1 ", "0600 ")),
		rec(archive.StatusFailed, "f", "2026-03-01T10:00:04Z"),
		rec(archive.StatusUploaded, "k", "2026-03-01T10:00:05Z", content("K1 ", "0640 ")),
	)
	l.add(t, "app-01", "0a1b2c3d", 2, true, nil,
		rec(archive.StatusSkipped, "a", "2026-03-01T11:00:00Z", content("A1 ", "0755 "), version("v2")),
		rec(archive.StatusDeleted, "b", "2026-03-01T11:00:01Z"),
		rec(archive.StatusFailed, "c", "2026-03-01T11:00:02Z"),
		rec(archive.StatusSkipped, "c", "2026-03-01T11:00:03Z"), // The index alone: nothing new.
		rec(archive.StatusRekeyed, "k", "2026-03-01T11:00:04Z", version("v9")),
		rec(archive.StatusDeleted, "old", "2026-03-01T11:00:05Z"),
	)
	l.add(t, "app-01", "0a1b2c3d", 3, true, nil,
		rec(archive.StatusSkipped, "old", "2026-03-01T12:00:00Z", content("O2 ", "0600 ")),
		rec(archive.StatusUploaded, "c", "2026-03-01T12:00:01Z", content("C2 ", "0600 ")),
	)
	wantLines(t, newest(t, l, trail.Query{}),
		"a uploaded A1 0755 v2", "b deleted ", "c uploaded C2 0600 ", "k rekeyed K1 0640 v9", "old skipped O2 0600 ")
	at := time.Date(2026, 3, 1, 11, 0, 1, 0, time.UTC)
	wantLines(t, newest(t, l, trail.Query{At: at}),
		"a uploaded A1 0755 v2", "b deleted ", "c uploaded C1 0644 ", "k uploaded K1 0640 ", "old skipped O1 0600 ")
	wantLines(t, newest(t, l, trail.Query{At: at, KeyPrefix: "p/c"}), "c uploaded C1 0644 ")
	wantLines(t, newest(t, l, trail.Query{Instance: "another"}))
}

// S3 dates its answers in whole seconds.
func TestNewestTellsWritesWithinASecondApart(t *testing.T) {
	l := newLibrary()
	dated := func(r *archive.Record) { r.S3Time = "2026-03-01T10:00:00Z" }
	l.add(t, "app-01", "0a1b2c3d", 1, true, nil,
		rec(archive.StatusUploaded, "x", "2026-03-01T10:00:00.1Z", content("first ", ""), dated),
		rec(archive.StatusUploaded, "x", "2026-03-01T10:00:00.7Z", content("second ", ""), dated))
	wantLines(t, newest(t, l, trail.Query{At: time.Date(2026, 3, 1, 10, 0, 0, 500_000_000, time.UTC)}), "x uploaded first ")
	wantLines(t, newest(t, l, trail.Query{}), "x uploaded second ")
}

func TestNewestOrdersChainsBySuccessionAndInstancesByTime(t *testing.T) {
	l := newLibrary()
	// The second chain's clock is behind, and its name sorts first.
	l.add(t, "app-01", "bbbbbbbb", 5, true, func(d *trail.Digest) { d.Begins = archive.BeginsNew },
		rec(archive.StatusUploaded, "x", "2026-03-01T10:00:00Z", content("first ", "")))
	l.add(t, "app-01", "aaaaaaaa", 1, true, func(d *trail.Digest) { d.AbandonsChain, d.Begins = "bbbbbbbb", archive.BeginsForked },
		rec(archive.StatusUploaded, "x", "2026-03-01T09:00:00Z", content("second ", "")))
	wantLines(t, newest(t, l, trail.Query{}), "x uploaded second ")
	l.add(t, "app-02", "cccccccc", 1, true, nil,
		rec(archive.StatusUploaded, "x", "2026-03-01T11:00:00Z", content("other ", ""), func(r *archive.Record) { r.S3Time = "2026-03-01T09:59:00Z" }))
	wantLines(t, newest(t, l, trail.Query{}), "x uploaded second ")
	l.add(t, "app-02", "cccccccc", 2, true, nil,
		rec(archive.StatusUploaded, "x", "2026-03-01T10:00:02Z", content("last ", "")))
	wantLines(t, newest(t, l, trail.Query{}), "x uploaded last ")
	wantLines(t, newest(t, l, trail.Query{Instance: "app-01"}), "x uploaded second ")
}

func TestNewestBelievesNoManifestWithAnotherHash(t *testing.T) {
	l := newLibrary()
	l.add(t, "app-01", "0a1b2c3d", 1, true, nil, rec(archive.StatusUploaded, "a", "", content("good ", "")))
	m, _ := l.add(t, "app-01", "0a1b2c3d", 2, true, nil, rec(archive.StatusUploaded, "a", "", content("then ", "")))
	l.objects[m] = []byte(strings.Replace(string(l.objects[m]), "then", "evil", 1))
	tail, _ := l.add(t, "app-01", "0a1b2c3d", 3, false, nil, rec(archive.StatusUploaded, "tail", ""))
	err := trail.NewTrail(l, "p/").Newest(t.Context(), trail.Query{}, func(trail.Held) error { return nil })
	if !errors.Is(err, trail.ErrHash) {
		t.Errorf("Newest = %v, want ErrHash", err)
	}
	var seen, unproven []string
	q := trail.Query{
		Distrust: func(key string, err error) error {
			seen = append(seen, key)
			if !errors.Is(err, trail.ErrHash) {
				t.Errorf("%s: %v, want ErrHash", key, err)
			}
			return nil
		},
		Unproven: func(key string) { unproven = append(unproven, key) },
	}
	wantLines(t, newest(t, l, q), "a uploaded good ", "tail uploaded ")
	wantLines(t, seen, m)
	wantLines(t, unproven, tail)
	q.ProvenOnly = true
	wantLines(t, newest(t, l, q), "a uploaded good ")
	delete(l.objects, m)
	q.Distrust = func(_ string, err error) error {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a removed manifest: %v, want ErrNotExist", err)
		}
		return nil
	}
	wantLines(t, newest(t, l, q), "a uploaded good ")
}

// A fork has two digests of one sequence: the one that follows is believed.
func TestNewestFollowsTheLinksOfAFork(t *testing.T) {
	l := newLibrary()
	l.add(t, "app-01", "0a1b2c3d", 1, true, nil, rec(archive.StatusUploaded, "a", "", content("one ", "")))
	head := l.heads["0a1b2c3d"]
	forged := strings.Repeat("f", 64)
	_, key := l.add(t, "app-01", "0a1b2c3d", 2, true, func(d *trail.Digest) {
		d.PreviousDigestSHA256 = &forged
	}, rec(archive.StatusUploaded, "a", "", content("forged ", "")))
	// The true one of the same sequence was named a second later.
	moved := strings.Replace(key, "_140000_", "_140001_", 1)
	d, _, err := trail.NewTrail(l, "p/").Digest(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	sha, prevKey, _ := strings.Cut(head, " ")
	d.PreviousDigestSHA256, d.PreviousDigestS3Key, d.Manifests = &sha, &prevKey, nil
	data, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	l.set(moved, data)
	wantLines(t, newest(t, l, trail.Query{ProvenOnly: true}), "a uploaded one ")
}

func TestNewestSortsOnDiskWithinItsMemory(t *testing.T) {
	l := newLibrary()
	const keys, rounds = 2000, 12
	pad := strings.Repeat("x", 300)
	for round := range rounds {
		var records []archive.Record
		for i := range keys {
			records = append(records, rec(archive.StatusUploaded, fmt.Sprintf("k%05d", (i*7919)%keys), "",
				content(fmt.Sprintf("r%d ", round), ""), func(r *archive.Record) { r.RequestID = pad }))
		}
		l.add(t, "app-01", "0a1b2c3d", uint64(round+1), true, nil, records...)
	}
	var want []string
	for i := range keys {
		want = append(want, fmt.Sprintf("k%05d uploaded r%d ", i, rounds-1))
	}
	dir := t.TempDir()
	got := newest(t, l, trail.Query{TempDir: dir, Memory: 1}) // The least that it works in: several runs.
	wantLines(t, got, want...)
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left in the temporary directory: %v, %v", left, err)
	}
}

func TestRecordsAreWithheldUntilTheHashIsKnown(t *testing.T) {
	l := newLibrary()
	big := rec(archive.StatusUploaded, "a", "", func(r *archive.Record) { r.RequestID = strings.Repeat("x", 1000) })
	var records []archive.Record
	for range 3000 { // More than waits in memory.
		records = append(records, big)
	}
	m, key := l.add(t, "app-01", "0a1b2c3d", 1, true, nil, records...)
	tr := trail.NewTrail(l, "p/")
	d, sha, err := tr.Digest(t.Context(), key)
	if err != nil || sha != hexSHA(l.objects[key]) {
		t.Fatal(sha, err)
	}
	n := 0
	count := func(archive.Record) error { n++; return nil }
	if err := tr.Records(t.Context(), d.Manifests[0], count); err != nil || n != 3000 {
		t.Errorf("Records = %d records, %v", n, err)
	}
	n = 0
	l.objects[m] = append(l.objects[m], '\n')
	if err := tr.Records(t.Context(), d.Manifests[0], count); !errors.Is(err, trail.ErrHash) || n != 0 {
		t.Errorf("Records of a changed manifest = %d records, %v; want none and ErrHash", n, err)
	}
	l.objects[m] = l.objects[m][:len(l.objects[m])/2]
	if err := tr.Unproven(t.Context(), m, count); !errors.Is(err, trail.ErrFormat) || n != 0 {
		t.Errorf("Unproven of half a manifest = %d records, %v; want none and ErrFormat", n, err)
	}
}

func TestIndexSortsEverythingUnderATrail(t *testing.T) {
	l := newLibrary()
	for _, key := range []string{
		"manifest_20260301_130000_app_01_0a1b2c3d_00000001-2.json",
		"manifest_20260301_130000_app_01_0a1b2c3d_00000001.json",
		"digest_20260301_140000_app_01_0a1b2c3d_00000002.json",
		"_digests/digest_20260301_130000_app_01_0a1b2c3d_00000001.json",
		"_digests/digest_20260301_130000_app_01_0a1b2c3d_00000001.sig",
		"digest_20260301_150000_app_01_0a1b2c3d_00000003.sig",
		"dt=2026-03-01/instance=app_01/manifest_20260301_150000_app_01_0a1b2c3d_00000003.jsonl.gz",
		"manifest_20260301_120000_b_0a1b2c3d_00000001.json",
		"config_" + strings.Repeat("0", 64) + ".json", "keys/" + strings.Repeat("0", 64) + ".pem",
		".canary/app-01-x", "notes.txt", "dt=2026-03-02/instance=app_01/manifest_20260301_150000_app_01_0a1b2c3d_00000004.jsonl.gz",
	} {
		l.set("p/_manifests/"+key, nil)
	}
	l.set("p/other", nil)
	x, err := trail.NewTrail(l, "p/").Index(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range x.Chains {
		for _, e := range slices.Concat(c.Digests, c.Manifests) {
			got = append(got, fmt.Sprintf("%s %s %d %d %v", c.Instance, c.ID, e.Name.Sequence, e.Name.N, e.Name.Hive))
		}
		got = append(got, fmt.Sprintf("%d signed, %d behind", len(c.Signatures), len(c.Tail())))
	}
	wantLines(t, got, "app_01 0a1b2c3d 1 0 true", "app_01 0a1b2c3d 2 0 false", "app_01 0a1b2c3d 1 1 false",
		"app_01 0a1b2c3d 1 2 false", "app_01 0a1b2c3d 3 1 true", "1 signed, 1 behind",
		"b 0a1b2c3d 1 1 false", "0 signed, 1 behind")
	if len(x.Configs) != 1 || len(x.Keys) != 1 || len(x.Signatures) != 1 || len(x.Others) != 2 {
		t.Errorf("configs %v, keys %v, signatures %v, others %v", x.Configs, x.Keys, x.Signatures, x.Others)
	}
}

func TestDirLibraryReadsWhatAFlusherKeeps(t *testing.T) {
	r := newRig(t, nil)
	r.begin(state.Report{})
	r.commit("a", 3)
	r.flush(trail.ReasonFlush)
	lib, err := trail.DirLibrary(r.local(), "p/_manifests/")
	if err != nil {
		t.Fatal(err)
	}
	list := func(l trail.Library) (keys []string) {
		if err := l.List(t.Context(), "p/_manifests/", "", func(o archive.Object) error {
			keys = append(keys, o.Key)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return keys
	}
	if got, want := list(lib), list(r.bucket); !slices.Equal(got, want) || len(got) < 2 {
		t.Errorf("the copies are %v, the bucket has %v", got, want)
	}
	var paths []string
	if err := trail.NewTrail(lib, "p/").Newest(t.Context(), trail.Query{}, func(h trail.Held) error {
		paths = append(paths, h.Record.S3Key)
		return nil
	}); err != nil || !slices.Equal(paths, []string{"p/a-0", "p/a-1", "p/a-2"}) {
		t.Errorf("the copies tell of %v, %v", paths, err)
	}
}

func TestDirLibraryStaysInItsDirectory(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	for _, err := range []error{
		os.WriteFile(filepath.Join(outside, "secret.json"), []byte("{}"), 0o600),
		os.Symlink(filepath.Join(outside, "secret.json"), filepath.Join(dir, "link.json")),
		os.Symlink(outside, filepath.Join(dir, "sub")),
		os.WriteFile(filepath.Join(dir, "own.json"), []byte("{}"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	lib, err := trail.DirLibrary(dir, "p/_manifests/")
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	if err := lib.List(context.Background(), "p/", "", func(o archive.Object) error { keys = append(keys, o.Key); return nil }); err != nil {
		t.Fatal(err)
	}
	wantLines(t, keys, "p/_manifests/own.json")
	for _, rel := range []string{"link.json", "sub/secret.json", "../" + filepath.Base(outside) + "/secret.json", "", "none.json"} {
		if r, _, err := lib.Get(t.Context(), "p/_manifests/"+rel); err == nil {
			r.Close()
			t.Errorf("Get(%q) opened a file", rel)
		}
	}
	if _, err := trail.DirLibrary(filepath.Join(dir, "none"), "p/"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that is not there: %v", err)
	}
}
