package pipeline

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/internal/safefs"
	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/gate"
	"github.com/s3syncd/s3syncd/pkg/manifest"
	"github.com/s3syncd/s3syncd/pkg/queue"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
	"github.com/s3syncd/s3syncd/pkg/uploader"
)

// cloud is a bucket in memory that can be away. It counts the requests that it
// does not answer, and how many of those there are at once.
type cloud struct {
	mu      sync.Mutex
	away    bool
	objects map[string]archive.Object
	bodies  map[string][]byte
	order   []string // keys as they were created

	refused, data, active, most int
}

var errAway = errors.New("no route to host")

// ask is one request, which takes a while.
func (c *cloud) ask(ctx context.Context, op string) error {
	c.mu.Lock()
	away := c.away
	if away {
		c.active++
		c.most = max(c.most, c.active)
		c.refused++
		if op == "data" {
			c.data++
		}
	}
	c.mu.Unlock()
	select {
	case <-time.After(50 * time.Millisecond):
	case <-ctx.Done():
	}
	if !away {
		return ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.active--
	return archive.Classified(archive.ClassTransient, op, errAway)
}

func (c *cloud) set(away bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.away = away
	c.refused, c.data, c.most = 0, 0, 0
}

// sinceNow returns how many requests there were at once since its last call.
func (c *cloud) sinceNow() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.most
	c.most = c.active
	return n
}

func (c *cloud) store(key string, body []byte, meta map[string]string, absent bool) (archive.Object, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.objects[key]; ok && absent {
		return archive.Object{}, &archive.Error{Class: archive.ClassTransient, Op: "PutObject", Status: 412, Err: archive.ErrPrecondition}
	}
	sum := md5.Sum(body)
	o := archive.Object{Key: key, Size: int64(len(body)), ETag: hex.EncodeToString(sum[:]), SSE: "aws:kms", KMSKeyID: "k", Metadata: meta}
	c.objects[key], c.bodies[key] = o, body
	c.order = append(c.order, key)
	return o, nil
}

func (c *cloud) Head(ctx context.Context, key string) (archive.Object, error) {
	if err := c.ask(ctx, "data"); err != nil {
		return archive.Object{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	o, ok := c.objects[key]
	if !ok {
		return o, &archive.Error{Class: archive.ClassTransient, Op: "HeadObject", Status: 404, Err: fs.ErrNotExist}
	}
	return o, nil
}

func (c *cloud) Put(ctx context.Context, p archive.Put) (archive.Object, error) {
	if err := c.ask(ctx, "data"); err != nil {
		return archive.Object{}, err
	}
	body, err := io.ReadAll(p.Body)
	if err != nil {
		return archive.Object{}, err
	}
	return c.store(p.Key, body, p.Metadata, p.If.Absent)
}

func (*cloud) Delete(context.Context, string, archive.Condition) (archive.Object, error) {
	return archive.Object{}, errors.ErrUnsupported
}

func (c *cloud) Ping(ctx context.Context) error  { return c.ask(ctx, "ping") }
func (c *cloud) Probe(ctx context.Context) error { return c.ask(ctx, "probe") }

func (c *cloud) CreateDoc(ctx context.Context, key string, body io.ReadSeeker, _ int64, _ [16]byte, _ [32]byte, _ string) (archive.Object, error) {
	if err := c.ask(ctx, "trail"); err != nil {
		return archive.Object{}, err
	}
	b, err := io.ReadAll(body)
	if err != nil {
		return archive.Object{}, err
	}
	return c.store(key, b, nil, true)
}

func (c *cloud) Get(ctx context.Context, key string) (io.ReadCloser, archive.Object, error) {
	if err := c.ask(ctx, "trail"); err != nil {
		return nil, archive.Object{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	b, ok := c.bodies[key]
	if !ok {
		return nil, archive.Object{}, fs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(b)), c.objects[key], nil
}

func (*cloud) List(context.Context, string, string, func(archive.Object) error) error { return nil }

// noMultipart is for files that are too small for it.
type noMultipart struct{ gate.Multipart }

// station is the middle of the pipeline: queue, pool, state and flusher.
type station struct {
	t     *testing.T
	dir   string
	cloud *cloud
	st    *state.Source
	q     *queue.Queue
	pool  *uploader.Pool
	end   func()
}

// newStation runs queue, pool, state and flusher of one source until its end.
func newStation(t *testing.T, base string, c *cloud) *station {
	t.Helper()
	s := &station{t: t, dir: filepath.Join(base, "data"), cloud: c, q: queue.New(100_000)}
	db, err := state.Open(filepath.Join(base, "state"), state.Options{Instance: "i", MachineID: "m", Log: zap.NewNop()})
	must(t, err)
	s.st, err = db.Source(t.Context(), state.SourceKey{Bucket: "b", Prefix: "p", RealPath: s.dir})
	must(t, err)
	reg := prometheus.NewRegistry()
	flusher, err := manifest.New(s.st, c, manifest.Options{
		Source: "data", Instance: "i", Bucket: "b", Mapper: archive.NewMapper("p"), FlushInterval: 5 * time.Minute, DigestInterval: time.Hour,
		StopTimeout: time.Minute, MaxRecords: 50_000, Layout: trail.LayoutFlat, LocalDir: filepath.Join(base, "local"),
		Now: time.Now, Pending: func() (int64, time.Time) { return 0, time.Time{} }, Log: zap.NewNop(), Metrics: manifest.NewMetrics(reg),
	})
	must(t, err)
	must(t, flusher.Begin(t.Context(), db.Report()))
	s.pool, err = uploader.New(s.q, []uploader.Source{{
		Name: "data", Instance: "i", Bucket: "b", RealPath: s.dir, Mapper: archive.NewMapper("p"),
		Root: safefs.NewRoot(s.dir, safefs.RootOptions{}), Objects: c, Multipart: noMultipart{}, State: s.st,
		Accept: func(archive.Object) archive.KeyVerdict { return archive.KeyOK }, Proven: true, ProvenAt: time.Now(),
		OnProven: flusher.Retry, Hardlinks: safefs.LinksAllow, Deletes: archive.DeletesKeep,
	}}, uploader.Options{
		Workers: 16, PartSize: 16 << 20, SinglePutMax: 64 << 20, MemoryLimit: 64 << 20, Drain: 25 * time.Second,
		Log: zap.NewNop(), Metrics: uploader.NewMetrics(reg), OnOutcome: func(uploader.Outcome) { flusher.Nudge() },
	})
	must(t, err)
	uploads, stopUploads := context.WithCancel(t.Context())
	trail, stopTrail := context.WithCancel(t.Context())
	var up, down sync.WaitGroup
	up.Go(func() { must(t, s.pool.Run(uploads)) })
	down.Go(func() { must(t, flusher.Run(trail)) })
	s.end = func() {
		stopUploads()
		up.Wait()
		stopTrail()
		down.Wait()
		must(t, db.Close())
	}
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func (s *station) change(path, content string) {
	s.t.Helper()
	must(s.t, os.WriteFile(filepath.Join(s.dir, path), []byte(content), 0o600))
	must(s.t, os.Chtimes(filepath.Join(s.dir, path), time.Now().Add(-time.Hour), time.Now().Add(-time.Hour)))
	must(s.t, s.q.Offer(s.t.Context(), queue.Job{Source: "data", Path: path, Trigger: archive.TriggerEvent, Detected: time.Now()}))
}

// Two days without S3 (ten hours where it is not `make e2e`), with changes in every hour, some of them of the same
// files, and a restart in between: probes are all that it costs, one at a time;
// nothing is dropped; the trail's documents wait and are published in order; and
// all goes on at full speed within one interval of the probes.
func TestTwoDaysOfOutage(t *testing.T) {
	hours := 10
	if os.Getenv("S3SYNCD_E2E") != "" {
		hours = 48
	}
	base := t.TempDir()
	must(t, os.Mkdir(filepath.Join(base, "data"), 0o700))
	synctest.Test(t, func(t *testing.T) {
		c := &cloud{objects: map[string]archive.Object{}, bodies: map[string][]byte{}}
		s := newStation(t, base, c)
		for i := range 20 {
			s.change(fmt.Sprintf("before%02d", i), "b")
		}
		must(t, s.q.Source("data").Wait(t.Context()))
		c.set(true)
		want := map[string]string{}
		for hour := range hours {
			if hour == hours/2 {
				s.end()
				s = newStation(t, base, c) // The scan of the start finds again what waited.
				for path := range want {
					s.change(path, want[path])
				}
			}
			for i := range 20 {
				path := fmt.Sprintf("f%03d", (hour*13+i)%200) // Many of them again and again.
				want[path] = fmt.Sprintf("%d in hour %d", i, hour)
				s.change(path, want[path])
			}
			time.Sleep(time.Minute)
			before := c.sinceNow()
			time.Sleep(time.Hour - time.Minute)
			if n := c.sinceNow(); before > 0 && n > 2 {
				t.Errorf("%d requests at once in hour %d of the outage, want a probe and the trail's try", n, hour)
			}
		}
		c.mu.Lock()
		refused, data := c.refused, c.data
		c.mu.Unlock()
		t.Logf("%d requests in %d hours, %d of them for data", refused, hours, data)
		if queued, _, delayed := s.q.Source("data").Depth(); queued+delayed != len(want) {
			t.Errorf("%d paths wait, want each of %d once", queued+delayed, len(want))
		}
		// Pings each 11 to 15 s, and the trail's own tries beside them.
		if limit := hours*3600/11 + hours*3600/10; refused > limit {
			t.Errorf("%d requests in the outage, want at most %d", refused, limit)
		}
		if data > 3*2*16 {
			t.Errorf("%d requests for data in the outage, want those that met its begin", data)
		}
		c.set(false)
		back := time.Now()
		must(t, s.q.Source("data").Wait(t.Context()))
		if took := time.Since(back); took > 15*time.Second+time.Duration(len(want)/16+2)*time.Second {
			t.Errorf("all was there %v after the end of the outage, want one probe's interval", took)
		}
		s.end()
		c.wantTree(t, want)
		c.wantTrail(t, len(want), hours)
	})
}

func (c *cloud) wantTree(t *testing.T, want map[string]string) {
	t.Helper()
	for path, content := range want {
		if got := string(c.bodies["p/"+path]); got != content {
			t.Errorf("%s holds %q, want %q", path, got, content)
		}
	}
}

// wantTrail checks that the documents were created in order, each digest after
// its manifests and its predecessor, and that every object has its record.
func (c *cloud) wantTrail(t *testing.T, atLeast, hours int) {
	t.Helper()
	var last string
	recorded := map[string]int{}
	digests := 0
	for _, key := range c.order {
		if !strings.Contains(key, "/_manifests/") {
			continue
		}
		if strings.Contains(key, "/manifest_") {
			var list []struct {
				Path   string `json:"local_path"`
				Status string `json:"status"`
				MD5    string `json:"md5"`
			}
			must(t, json.Unmarshal(c.bodies[key], &list))
			for _, r := range list {
				if r.Status != "uploaded" {
					t.Errorf("%s is recorded as %s in an outage that passed", r.Path, r.Status)
				}
				recorded[r.Path+" "+r.MD5]++
			}
			continue
		}
		if !strings.Contains(key, "/digest_") {
			continue
		}
		var d struct {
			Previous  string `json:"previous_digest_s3_key"`
			Manifests []struct {
				Key string `json:"s3_key"`
			} `json:"manifests"`
		}
		must(t, json.Unmarshal(c.bodies[key], &d))
		if d.Previous != last {
			t.Errorf("%s follows %q, want %q", key, d.Previous, last)
		}
		for _, m := range d.Manifests {
			if slices.Index(c.order, m.Key) > slices.Index(c.order, key) {
				t.Errorf("%s was published before %s", key, m.Key)
			}
		}
		last = key
		digests++
	}
	if digests < hours-2 {
		t.Errorf("%d digests, want one an hour", digests)
	}
	if len(recorded) < atLeast {
		t.Errorf("%d uploads are recorded, want %d at least", len(recorded), atLeast)
	}
	for what, n := range recorded {
		if n != 1 {
			t.Errorf("%s is recorded %d times", what, n)
		}
	}
}
