package e2e_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

// allVersions lists every version of every object under the prefix, and the
// keys that have a delete marker.
func (b bucketView) allVersions(t *testing.T) (versions []types.ObjectVersion, marked map[string]int) {
	t.Helper()
	marked = map[string]int{}
	pages := s3.NewListObjectVersionsPaginator(b.client, &s3.ListObjectVersionsInput{Bucket: &b.bucket, Prefix: aws.String(b.prefix + "/")})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatalf("list versions of %s: %v", b.bucket, err)
		}
		versions = append(versions, page.Versions...)
		for _, m := range page.DeleteMarkers {
			marked[aws.ToString(m.Key)]++
		}
	}
	return versions, marked
}

// wantNothingLost checks a versioned bucket after an orderly end, whatever had
// happened before: tree, bucket and trail agree; every version that the server
// ever took, superseded ones as well, stands in the trail as uploaded exactly
// once, and as recovered where its answer was kept back; nothing of the trail
// was overwritten, removed or left out of the digests, which are one chain; and
// no multipart upload is left.
func (s *site) wantNothingLost(t *testing.T) (summary string) {
	t.Helper()
	return s.wantNothingLostIn(t, 1)
}

// wantNothingLostIn is wantNothingLost for a prefix with so many chains.
func (s *site) wantNothingLostIn(t *testing.T, chains int) (summary string) {
	t.Helper()
	tr := s.wantOnce(t)
	versions, marked := s.bucket.allVersions(t)
	records := map[string][]record{}
	for _, r := range tr.records {
		if r.Status == "uploaded" {
			records[r.VersionID] = append(records[r.VersionID], r)
		}
	}
	inTrail := map[string]int{}
	taken := 0
	for _, v := range versions {
		key, id := aws.ToString(v.Key), aws.ToString(v.VersionId)
		if strings.HasPrefix(key, s.bucket.prefix+"/_manifests/") {
			inTrail[key]++
			continue
		}
		taken++
		found := records[id]
		delete(records, id)
		if len(found) != 1 {
			t.Errorf("version %s of %s (%d bytes, %s) has %d records, want 1", id, key, aws.ToInt64(v.Size), v.LastModified, len(found))
			continue
		}
		if r := found[0]; r.S3Key != key || r.ETag != strings.Trim(aws.ToString(v.ETag), `"`) || aws.ToInt64(r.SizeBytes) != aws.ToInt64(v.Size) {
			t.Errorf("version %s of %s has ETag %s and %d bytes, its record says %+v", id, key, aws.ToString(v.ETag), aws.ToInt64(v.Size), r)
		}
	}
	for id, r := range records {
		t.Errorf("the trail has an upload of %s as version %s, the bucket has not", r[0].S3Key, id)
	}
	for key, n := range inTrail {
		if n != 1 {
			t.Errorf("%s was written %d times, want once", key, n)
		}
		if marked[key] > 0 {
			t.Errorf("%s was deleted", key)
		}
	}
	if len(tr.unnamed) > 0 {
		t.Errorf("no digest names %v", tr.unnamed)
	}
	seen := map[string]bool{}
	for _, d := range tr.digests {
		seen[d.Chain] = true
	}
	if len(seen) != chains {
		t.Errorf("%d chains, want %d", len(seen), chains)
	}
	recovered, lost := s.wantRecovered(t, tr)
	idle := s.wantNoUploads(t)
	return fmt.Sprintf("%s: %d versions, %d recovered (%d answers kept back), %d digests, %d manifests, %d empty multipart uploads left",
		s.bucket.prefix, taken, recovered, lost, len(tr.digests), len(tr.manifest), idle)
}

// wantRecovered checks that each upload whose answer the proxy kept back until
// the daemon was dead is marked as recovered.
func (s *site) wantRecovered(t *testing.T, tr trail) (recovered, lost int) {
	t.Helper()
	byVersion := map[string]record{}
	for _, r := range tr.records {
		if r.Status == "uploaded" {
			byVersion[r.VersionID] = r
		}
		if r.Recovered {
			recovered++
		}
	}
	for _, q := range s.proxy.Ledger() {
		write := q.Op == "PutObject" || q.Op == "CompleteMultipartUpload"
		ours := strings.HasPrefix(q.Key, s.bucket.prefix+"/") && !strings.Contains(q.Key, "/_manifests/")
		if !q.Held || !write || q.Status != 200 || !ours {
			continue
		}
		lost++
		if r, ok := byVersion[q.VersionID]; !ok || !r.Recovered {
			t.Errorf("nobody received the answer to %s of %s as version %q, its record says %+v", q.Op, q.Key, q.VersionID, r)
		}
	}
	return recovered, lost
}

// wantNoUploads checks that no multipart upload of a key of the trail is left.
// One whose id never reached the daemon, or was not durable when the daemon
// died, cannot be told from somebody else's; it has no part and takes no space.
func (s *site) wantNoUploads(t *testing.T) (empty int) {
	t.Helper()
	keys := map[string]bool{}
	for _, q := range s.proxy.Ledger() {
		if q.Op == "CreateMultipartUpload" && strings.HasPrefix(q.Key, s.bucket.prefix+"/") {
			keys[q.Key] = true
		}
	}
	for key := range keys {
		for _, id := range s.bucket.uploadsOf(t, key) {
			if n := len(s.bucket.partsOf(t, key, id)); n > 0 {
				t.Errorf("multipart upload %s of %s is left with %d parts", id, key, n)
				continue
			}
			if slices.ContainsFunc(s.proxy.Ledger(), func(q s3test.Request) bool { return q.Query.Get("uploadId") == id }) {
				t.Errorf("multipart upload %s of %s was in use and is left", id, key)
				continue
			}
			empty++
		}
	}
	return empty
}

// uploadsOf lists the multipart uploads of one key. MinIO lists them by key
// only.
func (b bucketView) uploadsOf(t *testing.T, key string) []string {
	t.Helper()
	out, err := b.client.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &b.bucket, Prefix: &key})
	if err != nil {
		t.Fatalf("list uploads of %s: %v", key, err)
	}
	var ids []string
	for _, u := range out.Uploads {
		ids = append(ids, aws.ToString(u.UploadId))
	}
	return ids
}

func (b bucketView) partsOf(t *testing.T, key, id string) []types.Part {
	t.Helper()
	out, err := b.client.ListParts(t.Context(), &s3.ListPartsInput{Bucket: &b.bucket, Key: &key, UploadId: &id})
	if err != nil {
		t.Fatalf("list parts of %s: %v", key, err)
	}
	return out.Parts
}

// wantNoMore checks that the bucket holds nothing that the tree has not.
func (s *site) wantNoMore(t *testing.T) {
	t.Helper()
	for _, k := range s.bucket.keys(t, false) {
		if _, err := os.Lstat(s.path(strings.TrimPrefix(k, s.bucket.prefix+"/"))); err != nil {
			t.Errorf("%s has no file", k)
		}
	}
}
