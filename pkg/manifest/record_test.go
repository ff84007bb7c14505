package manifest

import (
	"strings"
	"testing"

	"github.com/s3syncd/s3syncd/internal/verify"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

// A record that cannot stand where it does is a finding, and so is each of a
// manifest; what a restore would make of it is nothing.
func TestARecordStandsBelowItsDigestsBucketAndPrefix(t *testing.T) {
	for name, c := range map[string]struct {
		change func(r *archive.Record)
		fault  string
	}{
		"as it should be":            {func(*archive.Record) {}, ""},
		"a key outside the prefix":   {func(r *archive.Record) { r.S3Key, r.S3URI = "other/a", "s3://b/other/a" }, "not below"},
		"a key above the prefix":     {func(r *archive.Record) { r.S3Key, r.S3URI = "p", "s3://b/p" }, "not below"},
		"a prefix that only begins":  {func(r *archive.Record) { r.S3Key, r.S3URI = "pp/a", "s3://b/pp/a" }, "not below"},
		"no key":                     {func(r *archive.Record) { r.S3Key, r.S3URI = "", "s3://b/" }, "not below"},
		"another bucket":             {func(r *archive.Record) { r.S3URI = "s3://other/p/a" }, "not below"},
		"a bucket that only begins":  {func(r *archive.Record) { r.S3URI = "s3://bb/p/a" }, "not below"},
		"another key in its URI":     {func(r *archive.Record) { r.S3URI = "s3://b/p/b" }, "not below"},
		"no URI":                     {func(r *archive.Record) { r.S3URI = "" }, "not below"},
		"a key of the trail":         {func(r *archive.Record) { r.S3Key, r.S3URI = "p/_manifests/x", "s3://b/p/_manifests/x" }, "the trail itself"},
		"a key that only looks so":   {func(r *archive.Record) { r.S3Key, r.S3URI = "p/_manifests-x", "s3://b/p/_manifests-x" }, ""},
		"another chain":              {func(r *archive.Record) { r.Chain, r.ID = "ffffffff", "ffffffff-1000" }, "not one of chain"},
		"an id of another chain":     {func(r *archive.Record) { r.ID = "ffffffff-1000" }, "not one of chain"},
		"another instance":           {func(r *archive.Record) { r.Instance = "app-02" }, "of instance"},
		"a time with another offset": {func(r *archive.Record) { r.Timestamp = "2026-03-01T10:00:00+00:00" }, "not a time in UTC"},
	} {
		r := rec(archive.StatusUploaded, "a", atTen)
		r.S3URI, r.Instance, r.Chain, r.ID = "s3://b/p/a", "app-01", "0a1b2c3d", "0a1b2c3d-1000"
		c.change(&r)
		// As other programs write it, and as this one does: each has a reader.
		for form, data := range map[string][]byte{"own": encode(t, trail.LayoutFlat, []archive.Record{r}), "other": append([]byte(" "), r.AppendLine(nil)...)} {
			l := newLibrary()
			l.objects["p/m"] = data
			d := &trail.Digest{Bucket: "b", Prefix: "p/", Instance: "app-01", Chain: "0a1b2c3d"}
			m, err := verify.ScanManifest(t.Context(), trail.NewTrail(l, "p/"), d, archive.ManifestRef{S3Key: "p/m"})
			if err != nil || m.Format != nil || m.Records != 1 {
				t.Fatalf("%s, %s form: %+v, %v", name, form, m, err)
			}
			if got := strings.Join(m.Faults, "; "); (got == "") != (c.fault == "") || !strings.Contains(got, c.fault) {
				t.Errorf("%s, %s form: faults %q, want %q", name, form, got, c.fault)
			}
		}
	}
}

// Nobody takes a record of the trail's own documents for one of a file.
func TestARecordOfTheTrailItselfTellsNothing(t *testing.T) {
	l := newLibrary()
	l.add(t, "app-01", "0a1b2c3d", 1, true, nil, rec(archive.StatusUploaded, "_manifests/config_x.json", atTen), rec(archive.StatusUploaded, "a", atTen))
	wantLines(t, newest(t, l, trail.Query{}), "a uploaded ")
}
