package uploader

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

const testKey = "arn:aws:kms:us-east-1:1:key/one"

// fault is one planned failure of an operation.
type fault struct {
	op    string
	times int
	lost  bool  // The operation takes effect, its answer does not arrive.
	err   error // Nil: none, only do.
	do    func()
}

type fakeUpload struct {
	key   string
	meta  map[string]string
	parts map[int32][]byte
}

// store is an object store in memory that checks what S3 checks.
type store struct {
	mu      sync.Mutex
	objects map[string]archive.Object
	bodies  map[string][]byte
	uploads map[string]*fakeUpload
	calls   map[string]int
	faults  []*fault
	key     string // Encryption of what is written.
	version int
	active  int
	most    int
	hold    map[string]chan struct{} // By key: writes wait.
	entered chan string
}

func newStore(tb testing.TB) *store {
	tb.Helper()
	s := &store{
		objects: map[string]archive.Object{}, bodies: map[string][]byte{}, uploads: map[string]*fakeUpload{},
		calls: map[string]int{}, key: testKey, hold: map[string]chan struct{}{}, entered: make(chan string, 10000),
	}
	tb.Cleanup(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, f := range s.faults {
			if f.times > 0 && f.times < 1000 {
				tb.Errorf("fault of %s: %d planned times never happened", f.op, f.times)
			}
		}
	})
	return s
}

func (s *store) plan(f fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, &f)
}

func (s *store) heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

func (s *store) count(op string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[op]
}

func (s *store) object(key string) (archive.Object, []byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.objects[key]
	return o, s.bodies[key], ok
}

// enter counts a call and returns the fault that is planned for it.
func (s *store) enter(op string) *fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[op]++
	for _, f := range s.faults {
		if f.op == op && f.times > 0 {
			f.times--
			return f
		}
	}
	return nil
}

func (s *store) call(ctx context.Context, op string, apply func() error) error {
	f := s.enter(op)
	if f != nil && f.do != nil {
		f.do()
	}
	if f != nil && f.err != nil && !f.lost {
		return f.err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := apply(); err != nil {
		return err
	}
	if f != nil && f.err != nil {
		return f.err
	}
	return nil
}

func remoteError(c archive.Class, code string, status int, err error) error {
	return &archive.Error{Class: c, Op: "S3", Code: code, Status: status, Err: err}
}

func reset() error {
	return &archive.Error{Class: archive.ClassTransient, Op: "PutObject", Err: errors.New("connection reset by peer")}
}

func (s *store) holds(c archive.Condition, key string) error {
	o, ok := s.objects[key]
	switch {
	case c.Absent && ok, c.ETag != "" && ok && o.ETag != c.ETag:
		return remoteError(archive.ClassTransient, "PreconditionFailed", 412, archive.ErrPrecondition)
	case c.ETag != "" && !ok:
		return remoteError(archive.ClassTransient, "NoSuchKey", 404, fs.ErrNotExist)
	}
	return nil
}

func (s *store) Ping(ctx context.Context) error {
	return s.call(ctx, "Ping", func() error { return nil })
}

func (s *store) Probe(ctx context.Context) error {
	return s.call(ctx, "Probe", func() error { return nil })
}

func (s *store) Head(ctx context.Context, key string) (o archive.Object, err error) {
	err = s.call(ctx, "Head", func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		var ok bool
		if o, ok = s.objects[key]; !ok {
			return remoteError(archive.ClassTransient, "", 404, fs.ErrNotExist)
		}
		return nil
	})
	return o, err
}

// fetch reads the object that o is.
func (s *store) fetch(ctx context.Context, key string, o archive.Object) (body io.ReadCloser, got archive.Object, err error) {
	err = s.call(ctx, "Get", func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		var ok bool
		if got, ok = s.objects[key]; !ok {
			return remoteError(archive.ClassTransient, "NoSuchKey", 404, fs.ErrNotExist)
		}
		if got.ETag != o.ETag {
			return remoteError(archive.ClassTransient, "PreconditionFailed", 412, archive.ErrPrecondition)
		}
		body = io.NopCloser(bytes.NewReader(slices.Clone(s.bodies[key])))
		return nil
	})
	return body, got, err
}

func (s *store) Put(ctx context.Context, p archive.Put) (o archive.Object, err error) {
	s.busy(1)
	defer s.busy(-1)
	select {
	case s.entered <- p.Key:
	default:
	}
	s.mu.Lock()
	hold := s.hold[p.Key]
	s.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return o, ctx.Err()
		}
	}
	body, rerr := io.ReadAll(p.Body)
	err = s.call(ctx, "Put", func() error {
		if rerr != nil {
			return &archive.Error{Class: archive.ClassTransient, Op: "PutObject", Err: rerr}
		}
		if int64(len(body)) != p.Size || md5.Sum(body) != p.MD5 || sha256.Sum256(body) != p.SHA256 {
			return remoteError(archive.ClassChanged, "BadDigest", 400, errors.New("digest mismatch"))
		}
		o, err = s.store(p.Key, body, p.Metadata, p.If)
		return err
	})
	return o, err
}

func (s *store) busy(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active += n
	s.most = max(s.most, s.active)
}

// store keeps an object as one encrypted under the store's key.
func (s *store) store(key string, body []byte, meta map[string]string, c archive.Condition) (archive.Object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.holds(c, key); err != nil {
		return archive.Object{}, err
	}
	s.version++
	o := archive.Object{
		Key: key, Size: int64(len(body)), ETag: randomHex(16), VersionID: "v" + strconv.Itoa(s.version), SSE: "aws:kms",
		KMSKeyID: s.key, Metadata: maps.Clone(meta), ServerTime: time.Unix(1_700_000_000, 0), RequestID: "req",
	}
	s.objects[key], s.bodies[key] = o, slices.Clone(body)
	if s.key == "" {
		o.SSE = ""
		s.objects[key] = o
		return o, archive.Classified(archive.ClassEncryption, "PutObject", errors.New("the answer names no key"))
	}
	return o, nil
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

func (s *store) Delete(ctx context.Context, key string, c archive.Condition) (o archive.Object, err error) {
	err = s.call(ctx, "Delete", func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if err := s.holds(c, key); err != nil {
			return err
		}
		delete(s.objects, key)
		return nil
	})
	return o, err
}

func (s *store) Create(ctx context.Context, key string, meta map[string]string) (id string, o archive.Object, err error) {
	err = s.call(ctx, "Create", func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		id = randomHex(4)
		s.uploads[id] = &fakeUpload{key: key, meta: maps.Clone(meta), parts: map[int32][]byte{}}
		return nil
	})
	return id, o, err
}

func (s *store) UploadPart(ctx context.Context, _, id string, n int32, body io.ReadSeeker, size int64, crc uint32) (p archive.Part, err error) {
	data, rerr := io.ReadAll(body)
	err = s.call(ctx, "UploadPart", func() error {
		if rerr != nil {
			return &archive.Error{Class: archive.ClassTransient, Op: "UploadPart", Err: rerr}
		}
		if int64(len(data)) != size || crc32.ChecksumIEEE(data) != crc {
			return remoteError(archive.ClassChanged, "BadDigest", 400, errors.New("digest mismatch"))
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		u := s.uploads[id]
		if u == nil {
			return remoteError(archive.ClassTransient, "NoSuchUpload", 404, archive.ErrNoUpload)
		}
		u.parts[n] = data
		p = archive.Part{Number: n, Size: size, ETag: "p" + strconv.Itoa(int(n)), CRC32: crc}
		return nil
	})
	return p, err
}

func (s *store) Complete(ctx context.Context, c archive.Complete) (o archive.Object, err error) {
	err = s.call(ctx, "Complete", func() error {
		s.mu.Lock()
		u := s.uploads[c.UploadID]
		if u == nil {
			s.mu.Unlock()
			return remoteError(archive.ClassTransient, "NoSuchUpload", 404, archive.ErrNoUpload)
		}
		var body []byte
		for _, p := range c.Parts {
			body = append(body, u.parts[p.Number]...)
		}
		s.mu.Unlock()
		if int64(len(body)) != c.Size || crc32.ChecksumIEEE(body) != c.CRC32 {
			return remoteError(archive.ClassChanged, "XAmzContentChecksumMismatch", 400, errors.New("checksum mismatch"))
		}
		if o, err = s.store(c.Key, body, u.meta, c.If); err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.uploads, c.UploadID)
		return nil
	})
	return o, err
}

func (s *store) Abort(ctx context.Context, _, id string) error {
	return s.call(ctx, "Abort", func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.uploads[id] == nil {
			return remoteError(archive.ClassTransient, "NoSuchUpload", 404, archive.ErrNoUpload)
		}
		delete(s.uploads, id)
		return nil
	})
}

func (s *store) ListParts(ctx context.Context, _, id string) (list []archive.Part, err error) {
	err = s.call(ctx, "ListParts", func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		u := s.uploads[id]
		if u == nil {
			return remoteError(archive.ClassTransient, "NoSuchUpload", 404, archive.ErrNoUpload)
		}
		for n, data := range u.parts {
			list = append(list, archive.Part{Number: n, Size: int64(len(data)), ETag: "p" + strconv.Itoa(int(n)), CRC32: crc32.ChecksumIEEE(data)})
		}
		return nil
	})
	return list, err
}

// completeAll makes objects of all uploads, as a server does that had not
// finished doing so.
func (s *store) completeAll() {
	s.mu.Lock()
	uploads := s.uploads
	s.uploads = map[string]*fakeUpload{}
	s.mu.Unlock()
	for _, u := range uploads {
		var body []byte
		for n := range int32(len(u.parts)) {
			body = append(body, u.parts[n+1]...)
		}
		if _, err := s.store(u.key, body, u.meta, archive.Condition{}); err != nil {
			panic(err)
		}
	}
}
