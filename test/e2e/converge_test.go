package e2e_test

import (
	"cmp"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// keyOf is the key of a path by the documented rule: a component that is not
// UTF-8, or holds a percent sign and two upper-case hex digits, is escaped.
func (b bucketView) keyOf(rel string) string {
	parts := strings.Split(rel, "/")
	for i, p := range parts {
		if utf8.ValidString(p) && !escaped.MatchString(p) {
			continue
		}
		var out strings.Builder
		for _, r := range []byte(p) {
			if r == '%' || r >= utf8.RuneSelf { // No escaped name of these tests mixes in valid multi-byte text.
				fmt.Fprintf(&out, "%%%02X", r)
			} else {
				out.WriteByte(r)
			}
		}
		parts[i] = out.String()
	}
	return b.prefix + "/" + strings.Join(parts, "/")
}

var escaped = regexp.MustCompile(`%[0-9A-F]{2}`)

// treeSums are the MD5s of the files below dir by key.
func (s *site) treeSums(t *testing.T) map[string]string {
	t.Helper()
	sums := map[string]string{}
	err := filepath.WalkDir(s.dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		body, err := os.ReadFile(p)
		sum := md5.Sum(body)
		sums[s.bucket.keyOf(strings.TrimPrefix(p, s.dir+"/"))] = hex.EncodeToString(sum[:])
		return err
	})
	if err != nil {
		t.Fatalf("walk %s: %v", s.dir, err)
	}
	return sums
}

// bucketSums are the md5checksums of all objects by key. What an earlier call
// saw with the same ETag is not asked for again.
func (b bucketView) bucketSums(t *testing.T, seen map[string]string) map[string]string {
	t.Helper()
	sums := map[string]string{}
	p := s3.NewListObjectsV2Paginator(b.client, &s3.ListObjectsV2Input{Bucket: &b.bucket, Prefix: aws.String(b.prefix + "/")})
	for p.HasMorePages() {
		page, err := p.NextPage(t.Context())
		if err != nil {
			t.Fatalf("list %s: %v", b.bucket, err)
		}
		for _, o := range page.Contents {
			key := aws.ToString(o.Key)
			if strings.HasPrefix(key, b.prefix+"/_manifests/") {
				continue
			}
			id := key + " " + aws.ToString(o.ETag)
			if seen[id] == "" {
				head, err := b.client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &b.bucket, Key: o.Key})
				if err != nil {
					t.Fatalf("head %q: %v", key, err)
				}
				seen[id] = head.Metadata["md5checksum"]
			}
			sums[key] = seen[id]
		}
	}
	return sums
}

var waiting = regexp.MustCompile(`(?m)^s3syncd_(queue_depth|oldest_pending|parked_files|retries_total|rescans_total|event_overflows).* [1-9].*$`)

// converges waits until every file is in the bucket with its content and the
// daemon has nothing left to do.
func (s *site) converges(t *testing.T, d *process) {
	t.Helper()
	want, seen := s.treeSums(t), map[string]string{}
	var behind []string
	defer func() {
		if len(behind) > 0 {
			t.Errorf("%d of %d files are not in the bucket as they are, first %q", len(behind), len(want), behind[:min(len(behind), 10)])
		}
		if t.Failed() {
			_, page := d.get(t, "/metrics")
			t.Logf("what waits:\n%s", strings.Join(waiting.FindAllString(page, -1), "\n"))
		}
	}()
	eventually(t, "bucket and tree agree", func() bool {
		if !d.idle(t) {
			return false
		}
		got := s.bucket.bucketSums(t, seen)
		behind = behind[:0]
		for k, sum := range want {
			if got[k] != sum {
				behind = append(behind, k)
			}
		}
		return len(behind) == 0
	})
}

// idle reports whether nothing waits in the daemon.
func (p *process) idle(t *testing.T) bool {
	t.Helper()
	return p.metric(t, `s3syncd_oldest_pending_timestamp_seconds{source="app"}`) == 0
}

// metric returns the value of one series.
func (p *process) metric(t *testing.T, series string) float64 {
	t.Helper()
	_, page := p.get(t, "/metrics")
	for line := range strings.Lines(page) {
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("no series %s", series)
	return 0
}

func (p *process) overflows(t *testing.T) float64 {
	t.Helper()
	return p.metric(t, `s3syncd_event_overflows_total{source="app"}`)
}

// scans counts the completed scans by what asked for them.
func (p *process) scans(t *testing.T) map[string]float64 {
	t.Helper()
	n := map[string]float64{}
	for _, trigger := range []string{"startup", "rescan", "hangup", "sync", "poll", "overflow"} {
		if v := p.metric(t, fmt.Sprintf("s3syncd_rescans_total{source=\"app\",trigger=%q}", trigger)); v != 0 {
			n[trigger] = v
		}
	}
	return n
}

// noScanHelped checks that only the scan of the start ran.
func (p *process) noScanHelped(t *testing.T) {
	t.Helper()
	if n := p.scans(t); !maps.Equal(n, map[string]float64{"startup": 1}) {
		t.Errorf("scans by trigger: %v, want that of the start alone", n)
	}
}

// scanLine is what the log says of a scan.
type scanLine struct {
	Trigger   string `json:"trigger"`
	Took      string `json:"took"`
	Files     int64  `json:"files"`
	New       int64  `json:"new"`
	Changed   int64  `json:"changed"`
	Unchanged int64  `json:"unchanged"`
	Gone      int64  `json:"gone"`
	Missed    int64  `json:"missed"`
}

// hangup asks for a rescan and waits for what it found.
func (p *process) hangup(t *testing.T) scanLine {
	t.Helper()
	find := func() []scanLine {
		var lines []scanLine
		for line := range strings.Lines(p.stderr.String()) {
			var l scanLine
			if strings.Contains(line, `"msg":"scanned"`) && json.Unmarshal([]byte(line), &l) == nil && l.Trigger == "hangup" {
				lines = append(lines, l)
			}
		}
		return lines
	}
	before := len(find())
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatalf("SIGHUP: %v", err)
	}
	eventually(t, "the rescan", func() bool { return len(find()) > before })
	return find()[before]
}

// nothingMissed checks by a rescan that the events told of everything.
func (p *process) nothingMissed(t *testing.T) {
	t.Helper()
	await(t, 2*time.Second) // What changed more recently does not count as missed.
	if l := p.hangup(t); l.New != 0 || l.Gone != 0 || l.Missed != 0 {
		t.Errorf("a rescan found new %d, gone %d, missed %d: %+v", l.New, l.Gone, l.Missed, l)
	}
	if n := p.metric(t, `s3syncd_rescan_missed_files_total{source="app"}`); n != 0 {
		t.Errorf("rescan_missed_files_total = %v, want 0", n)
	}
}

// await lets time pass that the program measures by its own clock.
func await(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}

// wantAgreement checks bucket, tree and trail after the daemon has ended: each
// file is in the bucket with its bytes, each object is what the trail says, and
// the newest record of a path says whether it is there.
func (s *site) wantAgreement(t *testing.T) trail {
	t.Helper()
	tr := s.bucket.readTrail(t)
	want := s.treeSums(t)
	newest, hashes := map[string]record{}, map[string]bool{}
	for _, r := range tr.records {
		newest[r.S3Key] = r
		hashes[r.S3Key+" "+r.MD5] = true
	}
	keys := s.bucket.keys(t, false)
	for _, k := range keys {
		sum, there := want[k]
		got := s.bucket.checkObject(t, k, nil)
		r := newest[k]
		switch {
		case !hashes[k+" "+got]:
			t.Errorf("%q holds %s, which no record of the trail says", k, got)
		case there && got != sum:
			t.Errorf("%q holds %s, the file %s", k, got, sum)
		case there && (!slices.Contains([]string{"uploaded", "skipped"}, r.Status) || cmp.Or(r.MD5, sum) != sum):
			t.Errorf("%q is there, its newest record says %s of %s: %+v", k, r.Status, r.MD5, r)
		case !there && r.Status != "deleted":
			t.Errorf("%q is gone, its newest record says %s: %+v", k, r.Status, r)
		}
		delete(want, k)
	}
	for k := range want {
		t.Errorf("%q is not in the bucket", k)
	}
	t.Logf("%d objects, %d records: %d uploaded, %d deleted", len(keys), len(tr.records), tr.count("uploaded"), tr.count("deleted"))
	return tr
}
