package manifest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/internal/anchor"
	"github.com/s3syncd/s3syncd/internal/verify"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// writeCopies writes the local copies of one chain: digests of per records each,
// in one manifest a digest.
func writeCopies(tb testing.TB, dir string, digests, per int) {
	tb.Helper()
	size, id, sha, key := int64(204800), uint32(1000), "", ""
	save := func(rel string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, rel), data, 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	save("config_"+hexSHA(nil)+".json", nil)
	for seq := 1; seq <= digests; seq++ {
		at := trailStart.Add(time.Duration(seq) * time.Hour)
		name := trail.Name{Time: at, Instance: "app-01", Chain: "0a1b2c3d", Sequence: uint64(seq), N: 1}
		records := make([]archive.Record, per)
		for i := range records {
			path := fmt.Sprintf("dir-%03d/some-file-of-an-application-%07d.csv", i%1000, i)
			records[i] = archive.Record{
				LocalPath: "/opt/app/data/" + path, S3Key: "p/" + path, S3URI: "s3://b/p/" + path, SizeBytes: &size,
				Status: archive.StatusUploaded, Timestamp: archive.FormatTime(at), MD5: strings.Repeat("a", 32), SHA256: strings.Repeat("b", 64),
				ETag: strings.Repeat("c", 32), VersionID: strings.Repeat("d", 32), KMSKeyID: "arn:aws:kms:us-east-1:123456789012:key/abc-123",
				SSE: "aws:kms", Trigger: archive.TriggerEvent, Source: "data", Instance: "app-01", MTime: archive.FormatTime(at), Mode: "0644",
				UID: &id, GID: &id, Chain: "0a1b2c3d", Attempt: uint64(i), S3Time: archive.FormatTime(at), RequestID: "R1234567890", DetectedAt: archive.FormatTime(at),
				ID: archive.RecordID("0a1b2c3d", uint64((seq-1)*per+i+1)),
			}
		}
		data := encode(tb, trail.LayoutFlat, records)
		save(name.String(), data)
		d := trail.Digest{
			Version: 1, Instance: "app-01", Source: "data", Bucket: "b", Prefix: "p/", Chain: "0a1b2c3d", Sequence: uint64(seq),
			StartTime: archive.FormatTime(at.Add(-time.Hour)), EndTime: archive.FormatTime(at), Counts: trail.Counts{Uploaded: int64(per)},
			Manifests:    []archive.ManifestRef{{S3Key: "p/_manifests/" + name.String(), SHA256: hexSHA(data), SizeBytes: int64(len(data)), Records: int64(per)}},
			ConfigSHA256: hexSHA(nil), Reason: trail.ReasonStop,
		}
		if seq == 1 {
			d.Begins = archive.BeginsNew
		} else {
			d.PreviousDigestS3Key, d.PreviousDigestSHA256 = &key, &sha
		}
		raw, err := d.Encode()
		if err != nil {
			tb.Fatal(err)
		}
		name.Digest = true
		save(name.String(), raw)
		key, sha = "p/_manifests/"+name.String(), hexSHA(raw)
	}
}

// BenchmarkVerifyMillionRecords checks a million records in twenty manifests
// from local copies.
func BenchmarkVerifyMillionRecords(b *testing.B) {
	dir := b.TempDir()
	writeCopies(b, dir, 20, 50_000)
	copies, err := anchor.OpenCopies(b.Context(), dir)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		v, err := verify.Run(b.Context(), copies[0].Trail, verify.Options{Bucket: "b", Now: trailStart.Add(24 * time.Hour)})
		if err != nil || !v.Clean || v.Chains[0].Records != 1_000_000 {
			b.Fatalf("%+v, %v", v, err)
		}
	}
}

// Copies are found with and without _manifests/, and below a directory of many.
func TestCopiesAreFoundWhereverTheyStand(t *testing.T) {
	base := t.TempDir()
	for _, dir := range []string{"all/one", "all/two", "downloaded/" + archive.ReservedDir} {
		if err := os.MkdirAll(filepath.Join(base, dir), 0o700); err != nil {
			t.Fatal(err)
		}
		writeCopies(t, filepath.Join(base, dir), 2, 3)
	}
	for dir, want := range map[string]int{"all": 2, "all/one": 1, "downloaded": 1, "downloaded/" + archive.ReservedDir: 1, ".": 1} {
		found, err := anchor.OpenCopies(t.Context(), filepath.Join(base, dir))
		if err != nil || len(found) != want {
			t.Errorf("%s: %d trails, %v; want %d", dir, len(found), err, want)
			continue
		}
		v, err := verify.Run(t.Context(), found[0].Trail, verify.Options{Bucket: found[0].Bucket, Now: trailStart.Add(24 * time.Hour)})
		if err != nil || !v.Clean || v.Chains[0].Records != 6 {
			t.Errorf("%s: %+v, %v", dir, v, err)
		}
	}
	if _, err := anchor.OpenCopies(t.Context(), t.TempDir()); err == nil {
		t.Error("an empty directory holds a trail")
	}
}
