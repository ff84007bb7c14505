package s3store

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

var errStop = errors.New("stop")

func TestPutIsEncryptedAndReadBack(t *testing.T) {
	eachServer(t, func(on server) {
		t, s := on.T, on.Store
		body := []byte("hello\n")
		o, err := s.Put(t.Context(), put("data/a b+ü\n%41.txt", body, archive.Condition{Absent: true}))
		if err != nil {
			t.Fatalf("Put: %v", err)
		}
		if s.KeyVerdict(o) != archive.KeyOK || o.ETag == "" || strings.Contains(o.ETag, `"`) || o.RequestID == "" {
			t.Errorf("Put = %+v, want the key, an unquoted ETag and a request id", o)
		}
		if d := time.Since(o.ServerTime); d.Abs() > time.Minute {
			t.Errorf("ServerTime is %v away", d)
		}
		h, err := s.Head(t.Context(), o.Key)
		if err != nil {
			t.Fatalf("Head: %v", err)
		}
		sum := md5.Sum(body)
		if h.Size != 6 || h.ETag != o.ETag || h.Metadata[archive.MetaMD5] != hex.EncodeToString(sum[:]) || s.KeyVerdict(h) != archive.KeyOK || h.LastModified.IsZero() {
			t.Errorf("Head = %+v, want what Put wrote", h)
		}
		r, g, err := s.Get(t.Context(), o.Key)
		if err != nil {
			t.Fatalf("Get: %v", err)
		}
		defer r.Close()
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, body) || g.ETag != o.ETag {
			t.Errorf("Get = %q, %v, %+v, want %q", got, err, g, body)
		}
	})
}

func TestPutRefusesWhatChanged(t *testing.T) {
	eachServer(t, func(on server) {
		t, s := on.T, on.Store
		for name, change := range map[string]func(p *archive.Put){
			"MD5":     func(p *archive.Put) { p.MD5[3]++ },
			"SHA-256": func(p *archive.Put) { p.SHA256[3]++ },
			"shorter": func(p *archive.Put) { p.Size++ },
		} {
			p := put("data/changed", []byte("some bytes"), archive.Condition{})
			change(&p)
			if _, err := s.Put(t.Context(), p); archive.ClassOf(err) != archive.ClassChanged {
				t.Errorf("Put with another %s: %v (class %s), want class changed", name, err, archive.ClassOf(err))
			}
		}
		if _, err := s.Head(t.Context(), "data/changed"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Head after refused writes: %v, want fs.ErrNotExist", err)
		}
	})
}

func TestPutOnEmptyBody(t *testing.T) {
	eachServer(t, func(on server) {
		t, s := on.T, on.Store
		if _, err := s.Put(t.Context(), put("data/empty", nil, archive.Condition{})); err != nil {
			t.Fatalf("Put: %v", err)
		}
		if h, err := s.Head(t.Context(), "data/empty"); err != nil || h.Size != 0 || s.KeyVerdict(h) != archive.KeyOK {
			t.Errorf("Head = %+v, %v, want an empty encrypted object", h, err)
		}
	})
}

func TestConditions(t *testing.T) {
	eachServer(t, func(on server) {
		t, s := on.T, on.Store
		first, err := s.Put(t.Context(), put("data/c", []byte("1"), archive.Condition{Absent: true}))
		if err != nil {
			t.Fatalf("first Put: %v", err)
		}
		if _, err := s.Put(t.Context(), put("data/c", []byte("2"), archive.Condition{Absent: true})); !errors.Is(err, archive.ErrPrecondition) {
			t.Errorf("Put over an object: %v, want ErrPrecondition", err)
		}
		if _, err := s.Put(t.Context(), put("data/c", []byte("2"), archive.Condition{ETag: strings.Repeat("0", 32)})); !errors.Is(err, archive.ErrPrecondition) {
			t.Errorf("Put over another ETag: %v, want ErrPrecondition", err)
		}
		if _, err := s.Put(t.Context(), put("data/c", []byte("2"), archive.Condition{ETag: first.ETag})); err != nil {
			t.Errorf("Put over the known ETag: %v", err)
		}
		if _, err := s.Put(t.Context(), put("data/gone", []byte("2"), archive.Condition{ETag: first.ETag})); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Put over what is not there: %v, want fs.ErrNotExist", err)
		}
	})
}

func TestDelete(t *testing.T) {
	eachServer(t, func(on server) {
		t, s := on.T, on.Store
		if _, err := s.Put(t.Context(), put("data/d", []byte("1"), archive.Condition{})); err != nil {
			t.Fatalf("Put: %v", err)
		}
		if _, err := s.Delete(t.Context(), "data/d", archive.Condition{ETag: strings.Repeat("0", 32)}); !errors.Is(err, archive.ErrPrecondition) {
			t.Errorf("Delete of another ETag: %v, want ErrPrecondition", err)
		}
		h, err := s.Head(t.Context(), "data/d")
		if err != nil {
			t.Fatalf("Head: %v", err)
		}
		if o, err := s.Delete(t.Context(), "data/d", archive.Condition{ETag: h.ETag}); err != nil || o.ServerTime.IsZero() {
			t.Errorf("Delete = %+v, %v", o, err)
		}
		if _, err := s.Head(t.Context(), "data/d"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Head after Delete: %v, want fs.ErrNotExist", err)
		}
	})
}

func TestCreateDocWritesOnce(t *testing.T) {
	eachServer(t, func(on server) {
		t, s := on.T, on.Store
		body := []byte("[\n]\n")
		doc := func() (archive.Object, error) {
			return s.CreateDoc(t.Context(), "data/_manifests/m.json", bytes.NewReader(body), int64(len(body)), md5.Sum(body), sha256.Sum256(body), "application/json")
		}
		if o, err := doc(); err != nil || s.KeyVerdict(o) != archive.KeyOK {
			t.Fatalf("CreateDoc = %+v, %v", o, err)
		}
		if _, err := doc(); !errors.Is(err, archive.ErrPrecondition) {
			t.Errorf("second CreateDoc: %v, want ErrPrecondition", err)
		}
	})
}

func TestListInOrderWithOddKeys(t *testing.T) {
	eachServer(t, func(on server) {
		t, s := on.T, on.Store
		keys := []string{"data/a", "data/b c+d%41", "data/ctl\x01\n", "data/é", "data/z"}
		for _, k := range append([]string{"other/x"}, keys...) {
			if _, err := s.Put(t.Context(), put(k, []byte(k), archive.Condition{})); err != nil {
				t.Fatalf("Put %q: %v", k, err)
			}
		}
		var got []string
		collect := func(o archive.Object) error {
			got = append(got, o.Key)
			if o.Size != int64(len(o.Key)) || o.ETag == "" {
				t.Errorf("List gave %+v", o)
			}
			return nil
		}
		slices.Sort(keys)
		if err := s.List(t.Context(), "data/", "", collect); err != nil || !slices.Equal(got, keys) {
			t.Errorf("List = %q, %v, want %q", got, err, keys)
		}
		got = nil
		if err := s.List(t.Context(), "data/", keys[2], collect); err != nil || !slices.Equal(got, keys[3:]) {
			t.Errorf("List after %q = %q, %v, want %q", keys[2], got, err, keys[3:])
		}
		if err := s.List(t.Context(), "data/", "", func(archive.Object) error { return errStop }); !errors.Is(err, errStop) {
			t.Errorf("List = %v, want the error of the function", err)
		}
	})
}

const partSize = 5 << 20

// upload sends body in parts and returns what Complete needs.
func upload(t *testing.T, s *Store, key string, body []byte) archive.Complete {
	t.Helper()
	id, o, err := s.Create(t.Context(), key, map[string]string{archive.MetaMD5: "00"})
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	if o.SSE != "" && s.KeyVerdict(o) != archive.KeyOK { // MinIO does not say.
		t.Errorf("Create = %+v, want the key", o)
	}
	c := archive.Complete{Key: key, UploadID: id, Size: int64(len(body)), CRC32: crc32.ChecksumIEEE(body)}
	for n := int32(1); len(body) > 0; n++ {
		b := body[:min(partSize, len(body))]
		body = body[len(b):]
		p, err := s.UploadPart(t.Context(), key, id, n, bytes.NewReader(b), int64(len(b)), crc32.ChecksumIEEE(b))
		if err != nil {
			t.Fatalf("UploadPart %d: %v", n, err)
		}
		c.Parts = append(c.Parts, p)
	}
	return c
}

func TestMultipart(t *testing.T) {
	eachServer(t, func(on server) {
		t, s := on.T, on.Store
		body := bytes.Repeat([]byte("0123456789abcdef"), (partSize+1024)/16)
		c := upload(t, s, "data/big", body)
		parts, err := s.ListParts(t.Context(), c.Key, c.UploadID)
		if err != nil || !slices.Equal(parts, c.Parts) {
			t.Errorf("ListParts = %+v, %v, want %+v", parts, err, c.Parts)
		}
		c.If = archive.Condition{Absent: true}
		o, err := s.Complete(t.Context(), c)
		if err != nil {
			t.Fatalf("Complete: %v", err)
		}
		if s.KeyVerdict(o) != archive.KeyOK || o.Size != int64(len(body)) || o.ServerTime.IsZero() {
			t.Errorf("Complete = %+v, want key, size and time", o)
		}
		h, err := s.Head(t.Context(), c.Key)
		if err != nil || h.ETag != o.ETag || h.Metadata[archive.MetaMD5] != "00" || h.Size != o.Size {
			t.Errorf("Head = %+v, %v, want what Complete made", h, err)
		}
		c = upload(t, s, "data/big", body[:10])
		c.If = archive.Condition{Absent: true}
		if _, err := s.Complete(t.Context(), c); !errors.Is(err, archive.ErrPrecondition) {
			t.Errorf("Complete over an object: %v, want ErrPrecondition", err)
		}
		_ = s.Abort(t.Context(), c.Key, c.UploadID) // Whether it outlives a 412 is the server's choice.
	})
}

func TestMultipartRefusesWhatChanged(t *testing.T) {
	eachServer(t, func(on server) {
		t, s := on.T, on.Store
		c := upload(t, s, "data/torn", []byte("what was hashed"))
		wrong := bytes.NewReader([]byte("what was sent.."))
		if _, err := s.UploadPart(t.Context(), c.Key, c.UploadID, 1, wrong, 15, c.Parts[0].CRC32); archive.ClassOf(err) != archive.ClassChanged {
			t.Errorf("UploadPart of other bytes: %v, want class changed", err)
		}
		c.CRC32++
		if _, err := s.Complete(t.Context(), c); archive.ClassOf(err) != archive.ClassChanged {
			t.Errorf("Complete with another CRC: %v, want class changed", err)
		}
		if _, err := s.Head(t.Context(), c.Key); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Head: %v, want fs.ErrNotExist", err)
		}
		if err := s.Abort(t.Context(), c.Key, c.UploadID); err != nil {
			t.Errorf("Abort: %v", err)
		}
		if _, err := s.ListParts(t.Context(), c.Key, c.UploadID); !errors.Is(err, archive.ErrNoUpload) {
			t.Errorf("ListParts after Abort: %v, want ErrNoUpload", err)
		}
	})
}

func TestProbe(t *testing.T) {
	eachServer(t, func(on server) {
		t, s := on.T, on.Store
		if err := s.Probe(t.Context()); err != nil {
			t.Fatalf("Probe: %v", err)
		}
		c := s.Capabilities()
		if !c.ContentMD5 || !c.IfNoneMatch || !c.IfMatch || c.ListDenied || c.CheckedAt.IsZero() || !s.MatchesKey(c.PinnedKey) {
			t.Errorf("Capabilities = %+v, want all and the key", c)
		}
		if err := s.Ping(t.Context()); err != nil {
			t.Errorf("Ping: %v", err)
		}
	})
}

func TestAbsentBucketIsConfiguration(t *testing.T) {
	eachServer(t, func(on server) {
		t, o := on.T, *on.dest.o
		o.Bucket = "no-such-bucket-here"
		s := openStore(t, o)
		_, err := s.Put(t.Context(), put("data/a", []byte("1"), archive.Condition{}))
		if archive.ClassOf(err) != archive.ClassConfiguration || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Put: %v (class %s), want configuration and not fs.ErrNotExist", err, archive.ClassOf(err))
		}
	})
}

func TestUnknownKeyIsConfiguration(t *testing.T) {
	eachServer(t, func(on server) {
		t, s := on.T, on.Store
		s.dest.enc.keyID = "no-such-key"
		_, err := s.Put(t.Context(), put("data/a", []byte("1"), archive.Condition{}))
		if archive.ClassOf(err) != archive.ClassConfiguration || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Put: %v (class %s), want configuration and not fs.ErrNotExist", err, archive.ClassOf(err))
		}
	})
}

func TestEncryptionContextIsAccepted(t *testing.T) {
	eachServer(t, func(on server) {
		t, s := on.T, on.Store
		s.dest.o.EncryptionContext = map[string]string{"team": "ops"}
		enc, err := newEncryption(*s.dest.o)
		if err != nil {
			t.Fatal(err)
		}
		*s.dest.enc = enc
		if _, err := s.Put(t.Context(), put("data/a", []byte("1"), archive.Condition{})); err != nil {
			t.Errorf("Put: %v", err)
		}
		if _, err := s.Head(t.Context(), "data/a"); err != nil {
			t.Errorf("Head: %v", err)
		}
	})
}
