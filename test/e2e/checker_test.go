package e2e_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

// The checker reads the bucket, the tree and the trail with nothing of the
// product but its documented format, so that it cannot share its mistakes.

// record is one line of a manifest, as the format documents it.
type record struct {
	LocalPath  string `json:"local_path"`
	S3Key      string `json:"s3_key"`
	SizeBytes  *int64 `json:"size_bytes"`
	Status     string `json:"status"`
	Timestamp  string `json:"timestamp"`
	Error      string `json:"error"`
	ErrorClass string `json:"error_class"`
	MD5        string `json:"md5"`
	SHA256     string `json:"sha256"`
	ETag       string `json:"etag"`
	VersionID  string `json:"version_id"`
	KMSKeyID   string `json:"kms_key_id"`
	SSE        string `json:"sse"`
	Basis      string `json:"basis"`
	MTime      string `json:"mtime"`
	Trigger    string `json:"trigger"`
	Chain      string `json:"chain"`
	Attempt    uint64 `json:"attempt"`
	Recovered  bool   `json:"recovered"`
	Replaced   string `json:"replaced_etag"`
	ID         string `json:"id"`
}

type digest struct {
	sum string // of its bytes

	Version   int     `json:"version"`
	Chain     string  `json:"chain"`
	Sequence  int     `json:"sequence"`
	Begins    string  `json:"begins"`
	Abandons  string  `json:"abandons_chain"`
	LeftAt    string  `json:"abandons_digest_sha256"`
	Due       *string `json:"next_digest_due"`
	Reason    string  `json:"reason"`
	Manifests []struct {
		S3Key     string `json:"s3_key"`
		SHA256    string `json:"sha256"`
		SizeBytes int64  `json:"size_bytes"`
		Records   int    `json:"records"`
	} `json:"manifests"`
	Counts         map[string]int `json:"counts"`
	PreviousKey    *string        `json:"previous_digest_s3_key"`
	PreviousSHA256 *string        `json:"previous_digest_sha256"`
	Scans          []struct {
		Trigger     string `json:"trigger"`
		Pseudo      int    `json:"pseudo"`
		DeletesHeld int    `json:"deletes_held"`
		IgnoreFiles []struct {
			Path   string `json:"path"`
			SHA256 string `json:"sha256"`
		} `json:"ignore_files"`
	} `json:"scans"`
	Unlisted int `json:"unchanged_by_index"`
	Events   []struct {
		Event  string `json:"event"`
		Detail string `json:"detail"`
	} `json:"events"`
}

// has reports whether the digest tells of an event.
func (d digest) has(event string) bool {
	for _, e := range d.Events {
		if e.Event == event {
			return true
		}
	}
	return false
}

// trail is everything under _manifests/ of one prefix.
type trail struct {
	records  []record // in order of chain, sequence and place
	digests  []digest
	manifest map[string][]byte
	unnamed  []string // manifests that no digest names: none after an orderly end
}

// bucketView reads one bucket.
type bucketView struct {
	client *s3.Client
	bucket string
	prefix string
}

// keys lists all keys under the prefix, outside the trail or inside it.
func (b bucketView) keys(t *testing.T, inTrail bool) []string {
	t.Helper()
	var keys []string
	p := s3.NewListObjectsV2Paginator(b.client, &s3.ListObjectsV2Input{Bucket: &b.bucket, Prefix: aws.String(b.prefix + "/")})
	for p.HasMorePages() {
		page, err := p.NextPage(t.Context())
		if err != nil {
			t.Fatalf("list %s: %v", b.bucket, err)
		}
		for _, o := range page.Contents {
			k := aws.ToString(o.Key)
			if strings.HasPrefix(k, b.prefix+"/_manifests/") == inTrail {
				keys = append(keys, k)
			}
		}
	}
	slices.Sort(keys)
	return keys
}

func (b bucketView) get(t *testing.T, key string) ([]byte, *s3.GetObjectOutput) {
	t.Helper()
	out, err := b.client.GetObject(context.WithoutCancel(t.Context()), &s3.GetObjectInput{Bucket: &b.bucket, Key: &key})
	if err != nil {
		t.Fatalf("get %q: %v", key, err)
	}
	defer out.Body.Close()
	body, err := io.ReadAll(out.Body)
	if err != nil {
		t.Fatalf("read %q: %v", key, err)
	}
	return body, out
}

// readTrail reads the whole trail and checks the chain: gapless sequences, each
// predecessor's hash, each manifest's hash and count, ids that are unique and
// rise within a chain.
func (b bucketView) readTrail(t *testing.T) trail {
	t.Helper()
	tr := trail{manifest: map[string][]byte{}}
	type stored struct {
		key  string
		body []byte
		d    digest
	}
	var digests []stored
	for _, k := range b.keys(t, true) {
		name := filepath.Base(k)
		switch {
		case strings.HasPrefix(name, "manifest_"):
			body, out := b.get(t, k)
			b.wantEncrypted(t, k, string(out.ServerSideEncryption), aws.ToString(out.SSEKMSKeyId))
			tr.manifest[k] = body
		case strings.HasPrefix(name, "digest_") && strings.HasSuffix(name, ".json"):
			body, out := b.get(t, k)
			b.wantEncrypted(t, k, string(out.ServerSideEncryption), aws.ToString(out.SSEKMSKeyId))
			var d digest
			if err := json.Unmarshal(body, &d); err != nil {
				t.Fatalf("%s: %v", k, err)
			}
			digests = append(digests, stored{k, body, d})
		}
	}
	begin := map[string]string{} // The first key of each chain: two may go on side by side.
	for _, s := range digests {
		if first, ok := begin[s.d.Chain]; !ok || s.key < first {
			begin[s.d.Chain] = s.key
		}
	}
	slices.SortFunc(digests, func(x, y stored) int {
		if x.d.Chain != y.d.Chain {
			return strings.Compare(begin[x.d.Chain], begin[y.d.Chain])
		}
		return x.d.Sequence - y.d.Sequence
	})
	named := map[string]bool{}
	seen := map[string]bool{}
	lastID := map[string]uint64{}
	for i, s := range digests {
		first := i == 0 || digests[i-1].d.Chain != s.d.Chain
		if first {
			if s.d.Sequence != 1 || s.d.PreviousKey != nil || s.d.Begins == "" {
				t.Errorf("%s begins chain %s with sequence %d, previous %v, begins %q", s.key, s.d.Chain, s.d.Sequence, s.d.PreviousKey, s.d.Begins)
			}
		} else {
			p := digests[i-1]
			sum := sha256.Sum256(p.body)
			if s.d.Sequence != p.d.Sequence+1 || aws.ToString(s.d.PreviousKey) != p.key || aws.ToString(s.d.PreviousSHA256) != hex.EncodeToString(sum[:]) {
				t.Errorf("%s does not follow %s", s.key, p.key)
			}
		}
		sum := sha256.Sum256(s.body)
		s.d.sum = hex.EncodeToString(sum[:])
		tr.digests = append(tr.digests, s.d)
		counts := map[string]int{}
		for _, m := range s.d.Manifests {
			body, ok := tr.manifest[m.S3Key]
			if !ok {
				t.Errorf("%s names %s, which is not there", s.key, m.S3Key)
				continue
			}
			named[m.S3Key] = true
			sum := sha256.Sum256(body)
			if hex.EncodeToString(sum[:]) != m.SHA256 || int64(len(body)) != m.SizeBytes {
				t.Errorf("%s has another hash or size than %s says", m.S3Key, s.key)
			}
			recs := parseManifest(t, m.S3Key, body)
			if len(recs) != m.Records {
				t.Errorf("%s has %d records, %s says %d", m.S3Key, len(recs), s.key, m.Records)
			}
			for _, r := range recs {
				counts[r.Status]++
				if seen[r.ID] {
					t.Errorf("record %s stands twice", r.ID)
				}
				seen[r.ID] = true
				chain, num, _ := strings.Cut(r.ID, "-")
				n, err := strconv.ParseUint(num, 10, 64)
				if err != nil || chain != r.Chain {
					t.Errorf("record id %q of chain %q", r.ID, r.Chain)
				}
				if n <= lastID[chain] {
					t.Errorf("record %s comes after %s-%d", r.ID, chain, lastID[chain])
				}
				lastID[chain] = n
			}
			tr.records = append(tr.records, recs...)
		}
		for status, n := range counts {
			if s.d.Counts[status] != n {
				t.Errorf("%s counts %d %s, its manifests hold %d", s.key, s.d.Counts[status], status, n)
			}
		}
	}
	for k := range tr.manifest {
		if !named[k] {
			tr.unnamed = append(tr.unnamed, k)
		}
	}
	return tr
}

func parseManifest(t *testing.T, key string, body []byte) []record {
	t.Helper()
	var recs []record
	if err := json.Unmarshal(body, &recs); err != nil {
		t.Fatalf("%s is no JSON array: %v", key, err)
	}
	if want := len(recs) + 2; bytes.Count(body, []byte("\n")) != want {
		t.Errorf("%s has %d lines for %d records, want %d", key, bytes.Count(body, []byte("\n")), len(recs), want)
	}
	return recs
}

func (b bucketView) wantEncrypted(t *testing.T, key, sse, kms string) {
	t.Helper()
	if sse != "aws:kms" || !strings.HasSuffix(kms, testKey()) && kms != s3test.FakeKeyARN {
		t.Errorf("%q has encryption %q under %q, want aws:kms under %s", key, sse, kms, testKey())
	}
}

// checkObject checks that the stored bytes are those that the object's metadata
// and a record of the trail claim, and returns their MD5.
func (b bucketView) checkObject(t *testing.T, key string, tr *trail) string {
	t.Helper()
	body, out := b.get(t, key)
	b.wantEncrypted(t, key, string(out.ServerSideEncryption), aws.ToString(out.SSEKMSKeyId))
	m, s := md5.Sum(body), sha256.Sum256(body)
	sum := hex.EncodeToString(m[:])
	if got := out.Metadata["md5checksum"]; got != sum {
		t.Errorf("%q hashes to %s, its md5checksum says %s", key, sum, got)
	}
	if got, ok := out.Metadata["sha256"]; ok && got != hex.EncodeToString(s[:]) {
		t.Errorf("%q hashes to %x, its sha256 says %s", key, s, got)
	}
	if tr != nil && !slices.ContainsFunc(tr.records, func(r record) bool { return r.S3Key == key && r.MD5 == sum }) {
		t.Errorf("%q holds %s, which no record of the trail says", key, sum)
	}
	return sum
}

// wantTree checks that every regular file below dir is in the bucket with its
// bytes, that nothing else is, and that the trail claims each.
func (b bucketView) wantTree(t *testing.T, dir string, tr *trail) {
	t.Helper()
	b.wantTreeBut(t, dir, tr, "\x00")
}

// wantTreeBut is wantTree without the keys that contain without.
func (b bucketView) wantTreeBut(t *testing.T, dir string, tr *trail, without string) {
	t.Helper()
	want := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		body, err := os.ReadFile(p)
		sum := md5.Sum(body)
		want[b.prefix+"/"+rel] = hex.EncodeToString(sum[:])
		return err
	})
	if err != nil {
		t.Fatalf("walk %s: %v", dir, err)
	}
	for _, k := range b.keys(t, false) {
		if strings.Contains(k, without) {
			delete(want, k)
			continue
		}
		sum, ok := want[k]
		delete(want, k)
		if got := b.checkObject(t, k, tr); ok && got != sum {
			t.Errorf("%q holds %s, the file %s", k, got, sum)
		}
	}
	for k := range want {
		t.Errorf("%q is not in the bucket", k)
	}
}

// uploads counts the records of status uploaded by key and content.
func (tr trail) uploads() map[string]int {
	n := map[string]int{}
	for _, r := range tr.records {
		if r.Status == "uploaded" {
			n[r.S3Key+" "+r.MD5+" "+r.Chain+" "+strconv.FormatUint(r.Attempt, 10)]++
		}
	}
	return n
}

func (tr trail) count(status string) int {
	n := 0
	for _, r := range tr.records {
		if r.Status == status {
			n++
		}
	}
	return n
}
