package s3store

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap/zaptest"

	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/internal/s3test"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

func TestReaderReadsVersionsAndRanges(t *testing.T) {
	srv := s3test.MinIO(t)
	srv.Setenv(t)
	o := options(srv.URL, srv.Bucket(t, s3test.BucketOptions{Versioning: true}), s3test.KeyName)
	s := openStore(t, o)
	first, err := s.Put(t.Context(), put("data/f", []byte("the first content"), archive.Condition{}))
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.Put(t.Context(), put("data/f", []byte("the second content"), archive.Condition{}))
	if err != nil {
		t.Fatal(err)
	}
	r, err := OpenReader(t.Context(), Options{
		Region: o.Region, EndpointURL: o.EndpointURL, PathStyle: true, Bucket: o.Bucket,
		Log: zaptest.NewLogger(t), Metrics: s3conn.NewMetrics(prometheus.NewPedanticRegistry()),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer r.CloseIdle()
	cases := []struct {
		name, version string
		from          int64
		etag, want    string
		fault         error
	}{
		{name: "the current object", want: "the second content"},
		{name: "an older version", version: first.VersionID, want: "the first content"},
		{name: "from a byte on", version: first.VersionID, from: 4, want: "first content"},
		{name: "from a byte on with its ETag", from: 4, etag: second.ETag, want: "second content"},
		{name: "with another ETag", from: 4, etag: first.ETag, fault: archive.ErrPrecondition},
		{name: "a version that is not there", version: "11111111-2222-3333-4444-555555555555", fault: fs.ErrNotExist},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			body, obj, err := r.GetFrom(t.Context(), "data/f", c.version, c.from, c.etag)
			if c.fault != nil {
				if !errors.Is(err, c.fault) {
					t.Errorf("GetFrom = %v, want %v", err, c.fault)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			got, err := io.ReadAll(body)
			if err != nil || !bytes.Equal(got, []byte(c.want)) || obj.Size != int64(len(c.want))+c.from {
				t.Errorf("GetFrom = %q of %d bytes, %v; want %q", got, obj.Size, err, c.want)
			}
		})
	}
	if _, _, err := r.GetFrom(t.Context(), "data/none", "", 0, ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("GetFrom of nothing = %v, want fs.ErrNotExist", err)
	}
	if obj, err := r.HeadVersion(t.Context(), "data/f", first.VersionID); err != nil || obj.VersionID != first.VersionID || obj.Size != 17 {
		t.Errorf("HeadVersion = %+v, %v", obj, err)
	}
}

func TestAReaderNeedsABucketAndASafeEndpoint(t *testing.T) {
	for name, o := range map[string]Options{
		"no bucket": {Region: "us-east-1"}, "plain http to another host": {Region: "us-east-1", Bucket: "b", EndpointURL: "http://192.0.2.1"},
	} {
		o.Log, o.Metrics = zaptest.NewLogger(t), s3conn.NewMetrics(prometheus.NewPedanticRegistry())
		if r, err := OpenReader(t.Context(), o); err == nil {
			t.Errorf("%s: OpenReader = %v, want an error", name, r)
		}
	}
}

func TestARangeOfAnotherPlaceIsRefused(t *testing.T) {
	for _, c := range []string{"", "bytes 0-9/10", "bytes 5-9/*", "bytes 50-9/10", "5-9"} {
		if size, err := wholeSize(c, 5); err == nil {
			t.Errorf("wholeSize(%q, 5) = %d, want an error", c, size)
		}
	}
	if size, err := wholeSize("bytes 5-9/10", 5); err != nil || size != 10 {
		t.Errorf("wholeSize = %d, %v, want 10", size, err)
	}
}

// A reader says in the log that it corrects the host's clock, as a Store does.
func TestAReaderFollowsTheServersClock(t *testing.T) {
	f := s3test.NewFake(t, "bucket")
	f.Setenv(t)
	const ahead = 5 * time.Hour
	k := &timekeeper{ahead: ahead, date: func(int64) time.Duration { return ahead }}
	o := options(k.before(t, f), "bucket", "")
	o.Log, o.Metrics = zaptest.NewLogger(t), s3conn.NewMetrics(prometheus.NewPedanticRegistry())
	r, err := OpenReader(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.CloseIdle)
	for range 6 {
		if _, err := r.Head(t.Context(), "data/missing"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Head: %v, want absence", err)
		}
	}
	if d := time.Until(r.Now()) - ahead; d.Abs() > 3*time.Second {
		t.Errorf("the reader's time is %v off", d)
	}
}
