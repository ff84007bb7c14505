package s3store

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"maps"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/internal/s3test"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// storePlain stores an object as another program would have, without a key.
func storePlain(t *testing.T, s *Store, key string, body []byte) archive.Object {
	t.Helper()
	_, err := s.conn.Client.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: aws.String(s.dest.o.Bucket), Key: aws.String(key), Body: bytes.NewReader(body), ContentType: aws.String("text/html"),
		CacheControl: aws.String("no-cache"), Metadata: map[string]string{"theirs": "kept"}, Tagging: aws.String("a=1&b=x%20y"),
	})
	if err != nil {
		t.Fatal(err)
	}
	o, err := s.Head(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// wantCopied fails unless the object has its old content and dress, and the key.
func wantCopied(t *testing.T, s *Store, c archive.Copy, o archive.Object, body []byte) {
	t.Helper()
	h, err := s.conn.Client.HeadObject(t.Context(), headInput(s.dest.o.Bucket, c.Key))
	if err != nil {
		t.Fatal(err)
	}
	if aws.ToString(h.ContentType) != "text/html" || aws.ToString(h.CacheControl) != "no-cache" || aws.ToInt32(h.TagCount) != 2 || !maps.Equal(h.Metadata, c.Metadata) {
		t.Errorf("the copy has %q, %q, %d tags, metadata %v; want what the object had and %v",
			aws.ToString(h.ContentType), aws.ToString(h.CacheControl), aws.ToInt32(h.TagCount), h.Metadata, c.Metadata)
	}
	r, g, err := s.Get(t.Context(), c.Key)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, body) {
		t.Errorf("the copy has %d bytes, %v, want the object's %d", len(got), err, len(body))
	}
	if s.KeyVerdict(g) != archive.KeyOK || s.KeyVerdict(o) != archive.KeyOK || g.ETag != o.ETag || o.ETag == c.ETag {
		t.Errorf("Copy = %+v, now %+v; want the key and a new ETag", o, g)
	}
}

func TestCopyBringsAnObjectUnderTheKeyAndKeepsTheRest(t *testing.T) {
	eachServer(t, func(on server) {
		t, s := on.T, on.Store
		body := []byte("here before us")
		plain := storePlain(t, s, "data/a b+ü%.html", body)
		if s.KeyVerdict(plain) == archive.KeyOK || !plain.Dressed {
			t.Fatalf("Head = %+v, want an object without the key, and dressed", plain)
		}
		c := archive.Copy{
			Key: plain.Key, Size: plain.Size, ETag: plain.ETag, SHA256: sha256.Sum256(body),
			Metadata: map[string]string{"theirs": "kept", archive.MetaID: "host-1/0badcafe/1"},
		}
		o, err := s.Copy(t.Context(), c)
		if err != nil {
			t.Fatalf("Copy: %v", err)
		}
		wantCopied(t, s, c, o, body)
		if _, err := s.Copy(t.Context(), c); !errors.Is(err, archive.ErrPrecondition) {
			t.Errorf("Copy of what stood there before: %v, want ErrPrecondition", err)
		}
	})
}

func TestCopyInParts(t *testing.T) {
	for _, on := range []string{"minio", "fake"} {
		t.Run(on, func(t *testing.T) {
			var o Options
			if on == "minio" {
				srv := s3test.MinIO(t)
				srv.Setenv(t)
				o = options(srv.URL, srv.Bucket(t), s3test.KeyName)
			} else {
				f := s3test.NewFake(t, "bucket")
				f.Setenv(t)
				o = options(f.URL, "bucket", s3test.FakeKeyARN)
			}
			o.CopyMax, o.CopyPart = 6<<20, 5<<20
			s := openStore(t, o)
			body := bytes.Repeat([]byte("0123456789abcdef"), 12<<20/16)
			body = append(body, "the end"...)
			plain := storePlain(t, s, "data/large", body)
			opened := ""
			c := archive.Copy{
				Key: plain.Key, Size: plain.Size, ETag: plain.ETag, Metadata: map[string]string{"theirs": "kept"},
				Opened: func(id string) error { opened = id; return nil },
			}
			copied, err := s.Copy(t.Context(), c)
			if err != nil {
				t.Fatalf("Copy: %v", err)
			}
			if opened == "" {
				t.Error("nobody was told of the upload")
			}
			wantCopied(t, s, c, copied, body)
		})
	}
}

func TestACopyInPartsThatFailsIsAborted(t *testing.T) {
	f, s := fakeStore(t, func(o *Options) { o.CopyMax, o.CopyPart = 6<<20, 5<<20 })
	plain := storePlain(t, s, "data/large", make([]byte, 11<<20))
	f.Answer(s3test.Match{Op: s3conn.OpPartCopy, Query: "partNumber", Skip: 1}, 403, "AccessDenied")
	c := archive.Copy{Key: plain.Key, Size: plain.Size, ETag: plain.ETag}
	if _, err := s.Copy(t.Context(), c); archive.ClassOf(err) != archive.ClassConfiguration {
		t.Errorf("Copy: %v, want class configuration", err)
	}
	stop := errors.New("not durable")
	c.Opened = func(string) error { return stop }
	if _, err := s.Copy(t.Context(), c); !errors.Is(err, stop) {
		t.Errorf("Copy: %v, want the caller's error", err)
	}
	if n := f.Uploads(); n != 0 {
		t.Errorf("%d uploads are left open", n)
	}
}

func TestCopyNeverTrustsTheServer(t *testing.T) {
	for _, c := range []struct {
		name  string
		plan  func(f *s3test.Fake)
		class archive.Class
	}{
		{"it ignores encryption", func(f *s3test.Fake) { f.Behave(func(b *s3test.Behavior) { b.IgnoreEncryption = true }) }, archive.ClassEncryption},
		{"it uses another key", func(f *s3test.Fake) { f.Behave(func(b *s3test.Behavior) { b.UseKey = s3test.FakeOtherARN }) }, archive.ClassEncryption},
		{"its answer is silent and the object in the clear", func(f *s3test.Fake) {
			f.Behave(func(b *s3test.Behavior) { b.IgnoreEncryption = true })
			f.Strip(s3test.Match{Op: s3conn.OpCopy}, "X-Amz-Server-Side-Encryption")
		}, archive.ClassEncryption},
		{"a disabled key", func(f *s3test.Fake) { f.Behave(func(b *s3test.Behavior) { b.KMSError = "KMS.DisabledException" }) }, archive.ClassConfiguration},
		{"an archived object", func(f *s3test.Fake) { f.Answer(s3test.Match{Op: s3conn.OpCopy}, 403, "InvalidObjectState") }, archive.ClassFile},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, s := fakeStore(t, nil)
			plain := storePlain(t, s, "data/a", []byte("x"))
			c.plan(f)
			_, err := s.Copy(t.Context(), archive.Copy{Key: plain.Key, Size: plain.Size, ETag: plain.ETag})
			if err == nil || archive.ClassOf(err) != c.class {
				t.Errorf("Copy: %v, want class %s", err, c.class)
			}
		})
	}
}

func TestCopyLooksForItselfWhereTheServerIgnoresConditions(t *testing.T) {
	f, s := fakeStore(t, nil)
	f.Behave(func(b *s3test.Behavior) { b.IgnoreConditions = true })
	plain := storePlain(t, s, "data/a", []byte("x"))
	_, err := s.Copy(t.Context(), archive.Copy{Key: plain.Key, Size: plain.Size, ETag: "another"})
	if !errors.Is(err, archive.ErrPrecondition) || f.Count(s3test.Match{Op: s3conn.OpCopy}) != 0 {
		t.Errorf("Copy: %v after %d copies, want ErrPrecondition and none", err, f.Count(s3test.Match{Op: s3conn.OpCopy}))
	}
}

func TestCopyComparesTheContentWithItsHash(t *testing.T) {
	_, s := fakeStore(t, nil)
	plain := storePlain(t, s, "data/a", []byte("x"))
	_, err := s.Copy(t.Context(), archive.Copy{Key: plain.Key, Size: plain.Size, ETag: plain.ETag, SHA256: sha256.Sum256([]byte("y"))})
	if archive.ClassOf(err) != archive.ClassFile || !strings.Contains(err.Error(), "SHA-256") {
		t.Errorf("Copy: %v, want class file", err)
	}
}

func TestCopyKeepsRetention(t *testing.T) {
	srv := s3test.MinIO(t)
	srv.Setenv(t)
	s := openStore(t, options(srv.URL, srv.Bucket(t, s3test.BucketOptions{Versioning: true, ObjectLock: true}), s3test.KeyName))
	o := storePlain(t, s, "data/held", []byte("evidence"))
	_, err := s.conn.Client.PutObjectLegalHold(t.Context(), &s3.PutObjectLegalHoldInput{
		Bucket: aws.String(s.dest.o.Bucket), Key: aws.String(o.Key),
		LegalHold: &types.ObjectLockLegalHold{Status: types.ObjectLockLegalHoldStatusOn},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Copy(t.Context(), archive.Copy{Key: o.Key, Size: o.Size, ETag: o.ETag, Metadata: o.Metadata}); err != nil {
		t.Fatalf("Copy: %v", err)
	}
	h, err := s.conn.Client.HeadObject(t.Context(), headInput(s.dest.o.Bucket, o.Key))
	if err != nil || h.ObjectLockLegalHoldStatus != types.ObjectLockLegalHoldStatusOn {
		t.Errorf("legal hold of the copy = %q, %v, want ON", h.ObjectLockLegalHoldStatus, err)
	}
}
