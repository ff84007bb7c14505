package e2e_test

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

const (
	partSize   = 5 << 20
	smallParts = "upload: {part_size: 5MiB, single_put_max: 5MiB, workers: 4}\nmanifest: {flush_interval: 1s, digest_interval: 1s}"
)

// newPartSite makes a site over a versioned bucket, whose files above 5 MiB are
// multipart uploads.
func newPartSite(t *testing.T) *site {
	t.Helper()
	s := newSite(t, "", smallParts)
	s.bucket.bucket = s.server.Bucket(t, s3test.BucketOptions{Versioning: true})
	s.configure(t, "settle: 20ms", smallParts)
	return s
}

// killedAfterParts starts an upload of five parts of the file big and kills the
// daemon when the server has so many of them.
func (s *site) killedAfterParts(t *testing.T, parts int) {
	t.Helper()
	random(t, s.path("big"), 4*partSize+1234, 5)
	stall := s.proxy.Stall(s3test.Match{Op: "UploadPart", Skip: parts, Times: -1})
	d := spawn(t, s.env, "run", "-c", s.file)
	stall.Wait(t)
	eventually(t, "the first parts", func() bool { return s.partsTaken() == parts })
	d.kill(t)
	s.proxy.Lift(stall)
}

// partsTaken counts the parts that the server has acknowledged.
func (s *site) partsTaken() int {
	n := 0
	for _, q := range s.proxy.Ledger() {
		if q.Op == "UploadPart" && q.Status == 200 {
			n++
		}
	}
	return n
}

// finishes runs the daemon until all is in the bucket and the trail, and ends it
// in an orderly way.
func (s *site) finishes(t *testing.T) *process {
	t.Helper()
	d := s.daemon(t)
	s.mustFlush(t)
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	return d
}

func TestAKilledMultipartUploadGoesOnWhereItWas(t *testing.T) {
	for _, parts := range []int{0, 3} { // With none the id alone is in the state.
		if parts == 0 && !thorough {
			continue
		}
		t.Run(strconv.Itoa(parts), func(t *testing.T) {
			s := newPartSite(t)
			s.killedAfterParts(t, parts)
			s.finishes(t)
			taken := map[string]int{}
			for _, q := range s.proxy.Ledger() {
				if q.Op == "UploadPart" && q.Status == 200 {
					taken[q.Query.Get("uploadId")+" "+q.Query.Get("partNumber")]++
				}
			}
			for part, n := range taken {
				if n != 1 {
					t.Errorf("part %s was sent %d times after the server had it", part, n-1)
				}
			}
			if len(taken) != 5 {
				t.Errorf("parts sent: %v, want 5 of one upload", taken)
			}
			if n := s.data("CreateMultipartUpload"); n != 1 {
				t.Errorf("%d uploads were opened, want 1", n)
			}
			t.Log(s.wantNothingLost(t))
		})
	}
}

// foreignUpload opens a multipart upload that is not the daemon's, with a part,
// and checks in the end that it is as it was.
func (s *site) foreignUpload(t *testing.T, key string) (check func()) {
	t.Helper()
	c := s.bucket.client
	up, err := c.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: &s.bucket.bucket, Key: &key})
	if err != nil {
		t.Fatalf("foreign upload: %v", err)
	}
	_, err = c.UploadPart(t.Context(), &s3.UploadPartInput{
		Bucket: &s.bucket.bucket, Key: &key, UploadId: up.UploadId, PartNumber: aws.Int32(1), Body: bytes.NewReader([]byte("not ours")),
	})
	if err != nil {
		t.Fatalf("foreign upload: %v", err)
	}
	return func() {
		t.Helper()
		if left := s.bucket.uploadsOf(t, key); len(left) != 1 || left[0] != aws.ToString(up.UploadId) {
			t.Errorf("open uploads of %s: %v, want somebody else's %s alone", key, left, aws.ToString(up.UploadId))
			return
		}
		if n := len(s.bucket.partsOf(t, key, aws.ToString(up.UploadId))); n != 1 {
			t.Errorf("somebody else's upload of %s has %d parts, want 1", key, n)
		}
		if _, err := c.AbortMultipartUpload(t.Context(), &s3.AbortMultipartUploadInput{
			Bucket: &s.bucket.bucket, Key: &key, UploadId: up.UploadId,
		}); err != nil {
			t.Fatalf("foreign upload: %v", err)
		}
	}
}

func TestOnlyTheUploadOfAChangedFileIsAborted(t *testing.T) {
	s := newPartSite(t)
	checkSame := s.foreignUpload(t, s.bucket.prefix+"/big")
	checkOther := s.foreignUpload(t, s.bucket.prefix+"/other")
	s.killedAfterParts(t, 2)
	random(t, s.path("big"), 3*partSize, 6)
	s.finishes(t)
	if n := s.data("AbortMultipartUpload"); n != 1 {
		t.Errorf("%d uploads were aborted, want 1", n)
	}
	checkSame()
	checkOther()
	t.Log(s.wantNothingLost(t))
}

func TestAFileThatIsGoneLeavesNoUpload(t *testing.T) {
	if !thorough {
		t.Skip("one more interrupted upload: S3SYNCD_E2E is not set")
	}
	s := newPartSite(t)
	s.killedAfterParts(t, 2)
	remove(t, s.path("big"))
	d := s.daemon(t)
	eventually(t, "the end of the upload", func() bool { return len(s.bucket.uploadsOf(t, s.bucket.prefix+"/big")) == 0 })
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if keys := s.bucket.keys(t, false); len(keys) != 0 {
		t.Errorf("the bucket holds %v, want nothing", keys)
	}
	t.Log(s.wantNothingLost(t))
}

// An upload whose id the daemon never learned cannot be told from somebody
// else's. It takes no space, and the file is uploaded all the same.
func TestAnUploadWhoseIdWasLostIsLeftEmpty(t *testing.T) {
	for _, killed := range []bool{false, true} {
		if !killed && !thorough {
			continue
		}
		t.Run(fmt.Sprintf("killed=%v", killed), func(t *testing.T) {
			s := newPartSite(t)
			check := s.foreignUpload(t, s.bucket.prefix+"/other")
			m := s3test.Match{Op: "CreateMultipartUpload", Key: "big"}
			random(t, s.path("big"), 2*partSize, 7)
			if killed {
				hold := s.proxy.Hold(m)
				d := spawn(t, s.env, "run", "-c", s.file)
				hold.Wait(t)
				d.kill(t)
				hold.Release()
			} else {
				s.proxy.Lose(m)
			}
			d := s.finishes(t)
			if killed && !strings.Contains(d.stderr.String(), "multipart upload of unknown id may be open") {
				t.Error("the log does not tell of the upload that may be left")
			}
			if n := s.wantNoUploads(t); n != 1 {
				t.Errorf("%d empty uploads are left, want the one whose id was lost", n)
			}
			check()
			t.Log(s.wantNothingLost(t))
		})
	}
}
