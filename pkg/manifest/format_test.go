package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

var update = flag.Bool("update", false, "write the golden files of the current version")

// goldenRecords are one record of each status, with every field set somewhere.
func goldenRecords() []archive.Record {
	size, id := int64(204800), uint32(1000)
	uploaded := archive.Record{
		LocalPath: "/opt/app/data/report <1>.csv", S3Key: "backups/app-data/report <1>.csv",
		S3URI: "s3://my-company-data/backups/app-data/report <1>.csv", SizeBytes: &size, Status: archive.StatusUploaded,
		Timestamp: "2026-01-20T10:30:00Z", MD5: strings.Repeat("a", 32), SHA256: strings.Repeat("b", 64),
		ETag: "etag", VersionID: "v1", KMSKeyID: "arn:aws:kms:us-east-1:123456789012:key/abc-123", SSE: "aws:kms",
		Trigger: archive.TriggerEvent, Source: "app-data", Instance: "app-01", MTime: "2026-01-20T10:29:00.123456789Z",
		Mode: "0644", UID: &id, GID: &id, Chain: "0a1b2c3d", Attempt: 5, Recovered: true, ReplacedVID: "v0", ReplacedETag: "old",
		S3Time: "2026-01-20T10:30:00Z", RequestID: "R1", DetectedAt: "2026-01-20T10:29:58Z", ID: "0a1b2c3d-1",
	}
	skipped := archive.Record{
		LocalPath: "/opt/app/data/config.json", S3Key: "backups/app-data/config.json", SizeBytes: &size,
		S3URI: "s3://my-company-data/backups/app-data/config.json", Status: archive.StatusSkipped, Timestamp: "2026-01-20T10:30:01Z",
		Basis: archive.BasisIndex, Trigger: archive.TriggerSync, Source: "app-data", Instance: "app-01", Chain: "0a1b2c3d", ID: "0a1b2c3d-2",
	}
	failed := archive.Record{
		S3Key: "backups/app-data/%FF", S3URI: "s3://my-company-data/backups/app-data/%FF", Status: archive.StatusFailed,
		Timestamp: "2026-01-20T10:30:02Z", Error: "open: permission denied", ErrorClass: archive.ClassFile,
		Trigger: archive.TriggerRescan, Source: "app-data", Instance: "app-01", Chain: "0a1b2c3d", ID: "0a1b2c3d-3",
	}
	failed.SetPath("/opt/app/data/\xff")
	deleted := archive.Record{
		LocalPath: "/opt/app/data/gone", S3Key: "backups/app-data/gone", S3URI: "s3://my-company-data/backups/app-data/gone",
		Status: archive.StatusDeleted, Timestamp: "2026-01-20T10:30:03Z", Trigger: archive.TriggerPoll,
		Source: "app-data", Instance: "app-01", Chain: "0a1b2c3d", ID: "0a1b2c3d-9",
	}
	rekeyed := deleted
	rekeyed.Status, rekeyed.ID, rekeyed.KMSKeyID, rekeyed.SSE = archive.StatusRekeyed, "0a1b2c3d-10", "key", "aws:kms"
	return []archive.Record{uploaded, skipped, failed, deleted, rekeyed}
}

func line(tb testing.TB, r archive.Record) []byte {
	tb.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		tb.Fatal(err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

func encode(tb testing.TB, l trail.Layout, records []archive.Record) []byte {
	tb.Helper()
	var b bytes.Buffer
	enc := trail.NewEncoder(&b, l)
	for _, r := range records {
		if err := enc.Write(line(tb, r)); err != nil {
			tb.Fatal(err)
		}
	}
	if err := enc.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s has changed:\n%s\nwant:\n%s", name, got, want)
	}
}

func readAll(tb testing.TB, data []byte) []archive.Record {
	tb.Helper()
	var out []archive.Record
	if err := trail.ReadManifest(bytes.NewReader(data), func(r archive.Record) error { out = append(out, r); return nil }); err != nil {
		tb.Fatalf("ReadManifest: %v", err)
	}
	return out
}

func TestFlatManifestIsTheGoldenOne(t *testing.T) {
	data := encode(t, trail.LayoutFlat, goldenRecords())
	golden(t, "manifest_v1.json", data)
	var array []map[string]any
	if err := json.Unmarshal(data, &array); err != nil || len(array) != 5 {
		t.Errorf("as JSON: %d records, %v, want 5", len(array), err)
	}
	if got := bytes.Count(data, []byte("\n")); got != 7 {
		t.Errorf("%d lines, want 7: two brackets and five records", got)
	}
	if got := string(encode(t, trail.LayoutFlat, nil)); got != "[\n]\n" {
		t.Errorf("no records = %q, want an empty array", got)
	}
}

func TestGoldenFilesAreReadInBothLayouts(t *testing.T) {
	want := goldenRecords()
	flat, err := os.ReadFile("testdata/manifest_v1.json")
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("testdata/manifest_v1.jsonl.gz", encode(t, trail.LayoutHive, want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	hive, err := os.ReadFile("testdata/manifest_v1.jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"flat": flat, "hive": hive} {
		got := readAll(t, data)
		if len(got) != len(want) {
			t.Fatalf("%s: %d records, want %d", name, len(got), len(want))
		}
		for i := range got {
			// What is not UTF-8 is replaced in the text and kept in base64.
			want[i].LocalPath = strings.ToValidUTF8(want[i].LocalPath, "\ufffd")
			if g, w := string(line(t, got[i])), string(line(t, want[i])); g != w {
				t.Errorf("%s: record %d = %s, want %s", name, i, g, w)
			}
		}
	}
}

func TestHiveBytesAreReproducible(t *testing.T) {
	a, b := encode(t, trail.LayoutHive, goldenRecords()), encode(t, trail.LayoutHive, goldenRecords())
	if !bytes.Equal(a, b) {
		t.Error("two encodings of equal records differ")
	}
	if a[3] != 0 || !bytes.Equal(a[4:8], make([]byte, 4)) {
		t.Errorf("gzip header % x has flags or a time", a[:10])
	}
}

// The sample that the script before s3syncd wrote.
const olderManifest = `[
  {
    "local_path": "/opt/app/data/report-2025-01.csv",
    "s3_key": "backups/app-data/report-2025-01.csv",
    "s3_uri": "s3://my-company-data/backups/app-data/report-2025-01.csv",
    "size_bytes": 204800,
    "status": "uploaded",
    "timestamp": "2025-01-20T10:30:00Z"
  },
  {
    "local_path": "/opt/app/data/config.json",
    "s3_key": "backups/app-data/config.json",
    "status": "failed",
    "error": "AccessDenied",
    "timestamp": "2025-01-20T10:30:01.123456Z"
  }
]`

func TestReadManifestReadsTheOlderScripts(t *testing.T) {
	got := readAll(t, []byte(olderManifest))
	if len(got) != 2 || got[0].Status != archive.StatusUploaded || *got[0].SizeBytes != 204800 || got[1].Error != "AccessDenied" {
		t.Errorf("ReadManifest = %+v", got)
	}
}

func TestReadManifestNamesFaults(t *testing.T) {
	whole := string(encode(t, trail.LayoutFlat, goldenRecords()))
	packed := encode(t, trail.LayoutHive, goldenRecords())
	for name, data := range map[string]string{
		"cut in a record":     whole[:len(whole)/2],
		"without its bracket": strings.TrimSuffix(whole, "]\n"),
		"with bytes behind":   whole + "{}",
		"with a number":       "[1]",
		"with null":           "[null]",
		"with a wrong type":   `[{"size_bytes":"1"}]`,
		"cut in gzip":         string(packed[:len(packed)-9]),
		"only a gzip magic":   "\x1f\x8b",
		"an endless record":   `[{"error":"` + strings.Repeat("x", 3*trail.MaxRecordBytes) + `"}]`,
	} {
		if err := trail.ReadManifest(strings.NewReader(data), func(archive.Record) error { return nil }); !errors.Is(err, trail.ErrFormat) {
			t.Errorf("a manifest %s: %v, want ErrFormat", name, err)
		}
	}
	if err := trail.ReadManifest(strings.NewReader(whole), func(archive.Record) error { return io.ErrClosedPipe }); !errors.Is(err, io.ErrClosedPipe) || errors.Is(err, trail.ErrFormat) {
		t.Errorf("an error of the caller comes back as %v", err)
	}
}

func FuzzReadManifest(f *testing.F) {
	f.Add(encode(f, trail.LayoutFlat, goldenRecords()))
	f.Add(encode(f, trail.LayoutHive, goldenRecords()))
	f.Add([]byte(olderManifest))
	f.Add([]byte("{}\n{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var records []archive.Record
		if trail.ReadManifest(bytes.NewReader(data), func(r archive.Record) error { records = append(records, r); return nil }) != nil {
			return
		}
		for _, l := range []trail.Layout{trail.LayoutFlat, trail.LayoutHive} {
			again := readAll(t, encode(t, l, records))
			if len(again) != len(records) {
				t.Fatalf("%s: %d records, want %d", l, len(again), len(records))
			}
			for i := range again {
				if g, w := line(t, again[i]), line(t, records[i]); !bytes.Equal(g, w) {
					t.Fatalf("%s: %s, want %s", l, g, w)
				}
			}
		}
	})
}

func goldenDigest() *trail.Digest {
	at := time.Date(2026, 1, 20, 10, 0, 0, 0, time.UTC)
	excluded, none := int64(3), int64(0)
	key, sha, due, since := "backups/app-data/_manifests/digest_20260120_100000_app-01_0a1b2c3d_00000001.json", strings.Repeat("c", 64), "2026-01-20T12:00:00Z", "2026-01-20T10:59:00Z"
	return &trail.Digest{
		Version: 1, Instance: "app-01", Source: "app-data", Bucket: "my-company-data", Prefix: "backups/app-data/",
		Chain: "0a1b2c3d", Sequence: 2, StartTime: archive.FormatTime(at), EndTime: archive.FormatTime(at.Add(time.Hour)),
		Manifests: []archive.ManifestRef{{S3Key: "backups/app-data/_manifests/m.json", SHA256: strings.Repeat("d", 64), SizeBytes: 10, Records: 5}},
		Counts:    trail.Counts{Uploaded: 1, Skipped: 1, Failed: 1, Deleted: 1, Rekeyed: 1}, UnchangedByIndex: 40,
		Excluded: &excluded, Unreadable: &none, Special: &none,
		Scans:        []archive.ScanNote{{Trigger: archive.TriggerRescan, Start: at, End: at.Add(time.Minute), Complete: true, Files: 41, New: 1, Excluded: 3}},
		Events:       []archive.Note{{Kind: archive.NoteReload, Time: at, Detail: "<ok>"}},
		ConfigSHA256: strings.Repeat("e", 64), S3syncdVersion: "1.0.0", PreviousDigestS3Key: &key, PreviousDigestSHA256: &sha,
		Reason: trail.ReasonInterval, NextDigestDue: &due, Pending: 2, OldestPendingSince: &since,
	}
}

func TestDigestIsTheGoldenOne(t *testing.T) {
	data, err := goldenDigest().Encode()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "digest_v1.json", data)
	stored, err := os.ReadFile("testdata/digest_v1.json")
	if err != nil {
		t.Fatal(err)
	}
	d, err := trail.ParseDigest(bytes.NewReader(stored))
	if err != nil {
		t.Fatal(err)
	}
	if again, err := d.Encode(); err != nil || !bytes.Equal(again, stored) {
		t.Errorf("read and written again: %v\n%s\nwant\n%s", err, again, stored)
	}
	if got := d.Counts.Total(); got != 5 {
		t.Errorf("Total() = %d, want 5", got)
	}
}

func TestParseDigestNamesFaults(t *testing.T) {
	whole, err := goldenDigest().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string][2]string{
		"no JSON":              {"}\n", ""},
		"bytes behind":         {"}\n", "}\n{}"},
		"a foreign chain":      {`"0a1b2c3d"`, `"xyz"`},
		"no sequence":          {`"sequence": 2`, `"sequence": 0`},
		"no version":           {`"version": 1`, `"version": 0`},
		"half a predecessor":   {`"previous_digest_sha256": "`, `"x": "`},
		"a short hash":         {strings.Repeat("d", 64), "dd"},
		"a short predecessor":  {strings.Repeat("c", 64), "cc"},
		"a negative size":      {`"size_bytes": 10`, `"size_bytes": -1`},
		"a string as a number": {`"pending": 2`, `"pending": "2"`},
	} {
		i := strings.LastIndex(string(whole), change[0])
		if i < 0 {
			t.Fatalf("%s: %q is not in the digest", name, change[0])
		}
		data := string(whole[:i]) + change[1] + string(whole[i+len(change[0]):])
		if _, err := trail.ParseDigest(strings.NewReader(data)); !errors.Is(err, trail.ErrFormat) {
			t.Errorf("a digest with %s: %v, want ErrFormat", name, err)
		}
	}
	later := strings.Replace(string(whole), `"version": 1`, `"version": 2`, 1)
	if _, err := trail.ParseDigest(strings.NewReader(later)); !errors.Is(err, trail.ErrNewerFormat) {
		t.Errorf("a digest of version 2: %v, want ErrNewerFormat", err)
	}
	more := strings.Replace(string(whole), `"version": 1`, `"version": 1, "a_later_field": true`, 1)
	if _, err := trail.ParseDigest(strings.NewReader(more)); err != nil {
		t.Errorf("a digest with a field of a later release: %v", err)
	}
}

func FuzzParseDigest(f *testing.F) {
	whole, err := goldenDigest().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add([]byte(`{"version":1,"chain":"00000000","sequence":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := trail.ParseDigest(bytes.NewReader(data))
		if err != nil {
			return
		}
		first, err := d.Encode()
		if err != nil {
			return // A time beyond what JSON can say.
		}
		d, err = trail.ParseDigest(bytes.NewReader(first))
		if err != nil {
			t.Fatalf("what was written is not read: %v\n%s", err, first)
		}
		if again, err := d.Encode(); err != nil || !bytes.Equal(first, again) {
			t.Fatalf("%v\n%s\nwant\n%s", err, again, first)
		}
	})
}
