package manifest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
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
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/state"
	"github.com/s3syncd/s3syncd/pkg/trail"
)

func TestMain(m *testing.M) {
	if os.Getenv(sealerRole) != "" {
		if err := playSealer(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// bucket is a Publisher in memory. Before each request fault is asked, and lose
// after it was done and before its answer, where they are set.
type bucket struct {
	mu       sync.Mutex
	objects  map[string][]byte
	order    []string // keys as they were created
	modified map[string]time.Time
	requests []string
	sse      string
	fault    func(op, key string) error
	lose     func(op, key string) error
	body     func(key string, data []byte) io.Reader // of a GET, where it is set
}

func newBucket() *bucket { return &bucket{objects: map[string][]byte{}, sse: "aws:kms"} }

func (b *bucket) ask(op, key string) error {
	b.requests = append(b.requests, op+" "+key)
	if b.fault != nil {
		return b.fault(op, key)
	}
	return nil
}

func (b *bucket) CreateDoc(ctx context.Context, key string, body io.ReadSeeker, size int64, _ [16]byte, sha [32]byte, _ string) (archive.Object, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := errors.Join(ctx.Err(), b.ask("PUT", key)); err != nil {
		return archive.Object{}, err
	}
	data, err := io.ReadAll(body)
	if err != nil {
		return archive.Object{}, err
	}
	if int64(len(data)) != size || sha256.Sum256(data) != sha {
		return archive.Object{}, fmt.Errorf("%s: size or hash differ from the body", key)
	}
	if _, ok := b.objects[key]; ok {
		return archive.Object{}, archive.ErrPrecondition
	}
	b.objects[key] = data
	b.order = append(b.order, key)
	if b.lose != nil {
		return archive.Object{}, b.lose("PUT", key)
	}
	return archive.Object{Key: key, SSE: b.sse}, nil
}

func (b *bucket) Get(_ context.Context, key string) (io.ReadCloser, archive.Object, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.ask("GET", key); err != nil {
		return nil, archive.Object{}, err
	}
	data, ok := b.objects[key]
	if !ok {
		return nil, archive.Object{}, fs.ErrNotExist
	}
	if b.body != nil {
		return io.NopCloser(b.body(key, data)), archive.Object{Key: key, Size: int64(len(data)), SSE: b.sse}, nil
	}
	return io.NopCloser(bytes.NewReader(data)), archive.Object{Key: key, Size: int64(len(data)), SSE: b.sse}, nil
}

func (b *bucket) List(_ context.Context, prefix, after string, fn func(archive.Object) error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.ask("LIST", prefix); err != nil {
		return err
	}
	keys := slices.Sorted(func(yield func(string) bool) {
		for k := range b.objects {
			if !yield(k) {
				return
			}
		}
	})
	for _, k := range keys {
		if strings.HasPrefix(k, prefix) && k > after {
			if err := fn(archive.Object{Key: k, Size: int64(len(b.objects[k])), LastModified: b.modified[k]}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bucket) set(fault, lose func(op, key string) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fault, b.lose = fault, lose
}

func (b *bucket) asked() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.requests)
}

func (b *bucket) created() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.order)
}

// rig is one source with its state, bucket and flusher. A process that dies and
// starts again is a call of reopen.
type rig struct {
	*testing.T
	dir    string
	bucket *bucket
	db     *state.DB
	st     *state.Source
	f      *Flusher
	host   string

	mu  sync.Mutex
	now time.Time
	opt func(*Options)
}

func newRig(t *testing.T, opt func(*Options)) *rig {
	t.Helper()
	r := &rig{
		T: t, dir: t.TempDir(), bucket: newBucket(), host: "machine-1",
		now: time.Date(2026, 1, 20, 10, 30, 0, 0, time.UTC), opt: opt,
	}
	r.open()
	t.Cleanup(func() { r.close() })
	return r
}

func (r *rig) clock() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

func (r *rig) advance(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = r.now.Add(d)
}

func (r *rig) local() string { return filepath.Join(r.dir, "manifests") }

// open opens the state and a flusher, without Begin.
func (r *rig) open() {
	r.Helper()
	var err error
	r.db, err = state.Open(filepath.Join(r.dir, "state"), state.Options{Instance: "app-01", MachineID: r.host, Log: zap.NewNop()})
	if err != nil {
		r.Fatal(err)
	}
	r.st, err = r.db.Source(r.Context(), state.SourceKey{Bucket: "b", Prefix: "p", RealPath: "/data"})
	if err != nil {
		r.Fatal(err)
	}
	o := Options{
		Source: "data", Instance: "app-01", Bucket: "b", Mapper: archive.NewMapper("p"),
		FlushInterval: 50 * time.Millisecond, DigestInterval: time.Hour, StopTimeout: 5 * time.Second,
		MaxRecords: 1000, Layout: trail.LayoutFlat, LocalDir: r.local(), Version: "test", ConfigSHA256: strings.Repeat("0", 64),
		Now: r.clock, Pending: func() (int64, time.Time) { return 0, time.Time{} },
		Log: zap.NewNop(), Metrics: NewMetrics(prometheus.NewPedanticRegistry()),
	}
	if r.opt != nil {
		r.opt(&o)
	}
	if r.f, err = New(r.st, r.bucket, o); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) close() {
	if r.db == nil {
		return
	}
	if err := errors.Join(r.f.Close(), r.db.Close()); err != nil {
		r.Error(err)
	}
	r.db = nil
}

func (r *rig) reopen() {
	r.Helper()
	r.close()
	r.open()
}

func (r *rig) begin(report state.Report) {
	r.Helper()
	if err := r.f.Begin(r.Context(), report); err != nil {
		r.Fatal(err)
	}
}

// commit records n uploads of files named from prefix.
func (r *rig) commit(prefix string, n int) {
	r.Helper()
	for i := range n {
		path := fmt.Sprintf("%s-%d", prefix, i)
		rec := archive.Record{LocalPath: "/data/" + path, S3Key: "p/" + path, Status: archive.StatusUploaded, Trigger: archive.TriggerEvent, Source: "data", Instance: "app-01"}
		if _, err := r.st.Commit(r.Context(), archive.Outcome{Path: path, Key: "p/" + path, Record: &rec}); err != nil {
			r.Fatal(err)
		}
	}
}

func (r *rig) flush(reason string) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), 20*time.Second)
	defer cancel()
	if err := r.f.Flush(ctx, reason); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) glance(t *testing.T) Status {
	t.Helper()
	st, err := r.f.Glance()
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func (r *rig) chain() archive.Chain {
	r.Helper()
	ch, err := r.st.Chain()
	if err != nil {
		r.Fatal(err)
	}
	return ch
}

// trail checks what is in the bucket as an auditor would: chains without gaps,
// hashes, names, counts, and ids that increase. It returns the digests in order
// and the paths that the named manifests list as something else than a skip.
func (r *rig) trail() (digests []trail.Digest, paths []string) {
	r.Helper()
	ids := map[string]bool{}
	prev := map[string]string{}
	lastID := map[string]uint64{}
	for _, key := range r.bucket.created() {
		n, ok := trail.ParseName(key)
		if !ok || !n.Digest {
			continue
		}
		data := r.bucket.objects[key]
		d, err := trail.ParseDigest(bytes.NewReader(data))
		if err != nil {
			r.Fatalf("%s: %v", key, err)
		}
		if d.Chain != n.Chain || d.Sequence != n.Sequence {
			r.Errorf("%s says chain %s, sequence %d", key, d.Chain, d.Sequence)
		}
		want := prev[d.Chain]
		if got := deref(d.PreviousDigestSHA256); got != want || (want == "") != (d.Begins != "") || (want == "") != (d.Sequence == 1) {
			r.Errorf("%s follows %q and begins %q, want %q", key, got, d.Begins, want)
		}
		prev[d.Chain] = hexSHA(data)
		paths = append(paths, r.manifests(&d, ids, lastID)...)
		digests = append(digests, d)
	}
	return digests, paths
}

func (r *rig) manifests(d *trail.Digest, ids map[string]bool, lastID map[string]uint64) (paths []string) {
	r.Helper()
	var counts trail.Counts
	for _, m := range d.Manifests {
		data, ok := r.bucket.objects[m.S3Key]
		if !ok || hexSHA(data) != m.SHA256 || int64(len(data)) != m.SizeBytes {
			r.Errorf("%s is not what digest %d names", m.S3Key, d.Sequence)
			continue
		}
		records := readAll(r, data)
		if int64(len(records)) != m.Records {
			r.Errorf("%s has %d records, want %d", m.S3Key, len(records), m.Records)
		}
		for _, rec := range records {
			var number uint64
			if _, err := fmt.Sscanf(rec.ID, rec.Chain+"-%d", &number); err != nil || rec.Chain != d.Chain || number <= lastID[rec.Chain] || ids[rec.ID] {
				r.Errorf("%s: id %s of chain %s after %d (%v)", m.S3Key, rec.ID, d.Chain, lastID[rec.Chain], err)
			}
			lastID[rec.Chain], ids[rec.ID] = number, true
			counts.Add(rec.Status)
			if rec.Status != archive.StatusSkipped {
				paths = append(paths, rec.S3Key)
			}
		}
	}
	if counts != d.Counts {
		r.Errorf("digest %d counts %+v, its manifests hold %+v", d.Sequence, d.Counts, counts)
	}
	return paths
}

// wantOnce checks that paths are those of the commits named prefix, in order
// and each once.
func (r *rig) wantOnce(paths []string, committed map[string]int, order ...string) {
	r.Helper()
	var want []string
	for _, prefix := range order {
		for i := range committed[prefix] {
			want = append(want, fmt.Sprintf("p/%s-%d", prefix, i))
		}
	}
	if !slices.Equal(paths, want) {
		r.Errorf("the trail lists %d records %.200v, want %d %.200v", len(paths), paths, len(want), want)
	}
}

func (r *rig) files() (names []string) {
	r.Helper()
	err := filepath.WalkDir(r.local(), func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			rel, _ := filepath.Rel(r.local(), path)
			names = append(names, rel)
		}
		return err
	})
	if err != nil {
		r.Fatal(err)
	}
	return names
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func hexSHA(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
