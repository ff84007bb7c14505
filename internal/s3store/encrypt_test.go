package s3store

import (
	"bytes"
	"errors"
	"hash/crc32"
	"testing"

	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/internal/s3test"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

func TestSameKey(t *testing.T) {
	const arn = "arn:aws:kms:eu-west-1:123456789012:key/abc-123"
	for _, c := range []struct {
		name, configured, server string
		want                     bool
	}{
		{"the ARN", arn, arn, true},
		{"the id of the ARN", "abc-123", arn, true},
		{"another id", "abc-124", arn, false},
		{"another account", "arn:aws:kms:eu-west-1:999999999999:key/abc-123", arn, false},
		{"the id in another region", "abc-123", "arn:aws:kms:us-east-1:123456789012:key/abc-123", false},
		{"a multi-region key in another region", "mrk-1", "arn:aws:kms:us-east-1:123456789012:key/mrk-1", false},
		{"a multi-region key", "mrk-1", "arn:aws:kms:eu-west-1:123456789012:key/mrk-1", true},
		{"another partition", "abc-123", "arn:aws-us-gov:kms:eu-west-1:123456789012:key/abc-123", true},
		{"an alias for an ARN", "alias/x", arn, false},
		{"a name on MinIO", "my-key", "arn:aws:kms:my-key", true},
		{"MinIO's form of a name", "arn:aws:kms:my-key", "arn:aws:kms:my-key", true},
		{"MinIO's form for the name", "arn:aws:kms:my-key", "my-key", true},
		{"another name on MinIO", "my-key", "arn:aws:kms:other", false},
		{"an ARN for its id", arn, "abc-123", false},
		{"nothing", arn, "", false},
		{"nothing for nothing", "", "", false},
	} {
		if got := sameKey(c.configured, c.server, "eu-west-1"); got != c.want {
			t.Errorf("%s: sameKey(%q, %q) = %v, want %v", c.name, c.configured, c.server, got, c.want)
		}
	}
}

func TestKeyVerdict(t *testing.T) {
	_, s := fakeStore(t, func(o *Options) { o.AcceptKeys = []string{s3test.FakeOtherARN} })
	_, strict := fakeStore(t, func(o *Options) { o.SSE = "aws:kms:dsse" })
	for _, c := range []struct {
		name  string
		store *Store
		sse   string
		key   string
		want  archive.KeyVerdict
	}{
		{"plain", s, "", "", archive.KeyMissing},
		{"S3's own key", s, "AES256", "", archive.KeyMissing},
		{"the configured key", s, "aws:kms", s3test.FakeKeyARN, archive.KeyOK},
		{"an accepted key", s, "aws:kms", s3test.FakeOtherARN, archive.KeyOK},
		{"a foreign key", s, "aws:kms", s3test.FakeKeyARN + "0", archive.KeyOther},
		{"no key named", s, "aws:kms", "", archive.KeyOther},
		{"two layers where one is asked for", s, "aws:kms:dsse", s3test.FakeKeyARN, archive.KeyOK},
		{"one layer where two are asked for", strict, "aws:kms", s3test.FakeKeyARN, archive.KeyOther},
	} {
		if got := c.store.KeyVerdict(archive.Object{SSE: c.sse, KMSKeyID: c.key}); got != c.want {
			t.Errorf("%s: verdict = %v, want %v", c.name, got, c.want)
		}
	}
}

// Liars, each unlike the one before.
func liars() map[string]func(b *s3test.Behavior) {
	return map[string]func(b *s3test.Behavior){
		"ignores encryption": func(b *s3test.Behavior) { b.IgnoreEncryption = true },
		"uses another key":   func(b *s3test.Behavior) { b.UseKey = s3test.FakeOtherARN },
	}
}

func TestLiarIsRefused(t *testing.T) {
	for name, lie := range liars() {
		t.Run(name, func(t *testing.T) {
			// An accepted key counts for what is there, never for a write.
			f, s := fakeStore(t, func(o *Options) { o.AcceptKeys = []string{s3test.FakeOtherARN} })
			f.Behave(lie)
			if err := s.Probe(t.Context()); archive.ClassOf(err) != archive.ClassEncryption {
				t.Errorf("Probe: %v, want class encryption", err)
			}
			if _, err := s.Put(t.Context(), put("data/a", []byte("1"), archive.Condition{})); archive.ClassOf(err) != archive.ClassEncryption {
				t.Errorf("Put: %v, want class encryption", err)
			}
			body := []byte("part")
			id, _, err := s.Create(t.Context(), "data/m", nil)
			if err == nil {
				_, err = s.UploadPart(t.Context(), "data/m", id, 1, bytes.NewReader(body), 4, crc32.ChecksumIEEE(body))
			} else if f.Uploads() != 0 {
				t.Errorf("%d uploads are left open, want none", f.Uploads())
			}
			if archive.ClassOf(err) != archive.ClassEncryption {
				t.Errorf("Create and UploadPart: %v, want class encryption", err)
			}
		})
	}
}

func TestEchoIsRefusedByProbe(t *testing.T) {
	f, s := fakeStore(t, nil)
	f.Behave(func(b *s3test.Behavior) { b.IgnoreEncryption, b.EchoEncryption = true, true })
	if err := s.Probe(t.Context()); archive.ClassOf(err) != archive.ClassEncryption {
		t.Errorf("Probe: %v, want class encryption", err)
	}
}

func TestCompleteAsksForTheKeyThatItWasNotTold(t *testing.T) {
	f, s := fakeStore(t, nil)
	f.Behave(func(b *s3test.Behavior) { b.Unkeyed = true })
	o, err := s.Complete(t.Context(), upload(t, s, "data/m", []byte("x")))
	if err != nil || o.KMSKeyID != s3test.FakeKeyARN || f.Count(s3test.Match{Op: "HeadObject"}) != 1 {
		t.Errorf("Complete = %+v, %v, want the key by one HEAD", o, err)
	}
	c := upload(t, s, "data/m", []byte("x"))
	f.Strip(s3test.Match{Op: "HeadObject"}, "x-amz-server-side-encryption")
	if _, err := s.Complete(t.Context(), c); archive.ClassOf(err) != archive.ClassEncryption {
		t.Errorf("Complete without a key: %v, want class encryption", err)
	}
}

func TestEveryWriteAsksForEncryption(t *testing.T) {
	f, s := fakeStore(t, func(o *Options) { o.EncryptionContext = map[string]string{"b": "2", "a": "1"} })
	if err := s.Probe(t.Context()); err != nil {
		t.Fatalf("Probe: %v", err)
	}
	if _, err := s.Put(t.Context(), put("data/a", []byte("1"), archive.Condition{})); err != nil {
		t.Fatalf("Put: %v", err)
	}
	if _, err := s.Complete(t.Context(), upload(t, s, "data/m", []byte("x"))); err != nil {
		t.Fatalf("Complete: %v", err)
	}
	writes := 0
	for _, r := range f.Ledger() {
		if r.Op != s3conn.OpPut && r.Op != s3conn.OpCreate {
			if v := r.Header.Get("X-Amz-Server-Side-Encryption"); v != "" {
				t.Errorf("%s carries encryption %q, which only a write may", r.Op, v)
			}
			continue
		}
		writes++
		for name, want := range map[string]string{
			"": "aws:kms", "-Aws-Kms-Key-Id": s3test.FakeKeyARN, "-Bucket-Key-Enabled": "true", "-Context": "eyJhIjoiMSIsImIiOiIyIn0=",
		} {
			if got := r.Header.Get("X-Amz-Server-Side-Encryption" + name); got != want {
				t.Errorf("%s %s: encryption%s = %q, want %q", r.Op, r.Key, name, got, want)
			}
		}
	}
	if writes < 6 {
		t.Errorf("saw %d writes, want at least 6", writes)
	}
}

func TestAliasIsPinnedAndFollowed(t *testing.T) {
	f, s := fakeStore(t, func(o *Options) { o.KMSKeyID = s3test.FakeAlias })
	if _, err := s.Put(t.Context(), put("data/a", []byte("1"), archive.Condition{})); err != nil {
		t.Fatalf("Put: %v", err)
	}
	if got := s.Capabilities().PinnedKey; got != s3test.FakeKeyARN {
		t.Errorf("pinned key = %q, want %q", got, s3test.FakeKeyARN)
	}
	f.Behave(func(b *s3test.Behavior) { b.UseKey = s3test.FakeOtherARN })
	f.Alias(s3test.FakeAlias, s3test.FakeOtherARN)
	if o, err := s.Put(t.Context(), put("data/b", []byte("1"), archive.Condition{})); err != nil || o.KMSKeyID != s3test.FakeOtherARN {
		t.Errorf("Put after the alias moved = %+v, %v, want the new key", o, err)
	}
	if s.KeyVerdict(archive.Object{SSE: "aws:kms", KMSKeyID: s3test.FakeKeyARN}) != archive.KeyOther {
		t.Error("an object under the old key counts as right")
	}
}

func TestRestore(t *testing.T) {
	_, s := fakeStore(t, nil)
	if err := s.Probe(t.Context()); err != nil {
		t.Fatalf("Probe: %v", err)
	}
	again := openStore(t, *s.dest.o)
	if !again.Restore(s.Capabilities()) || again.Capabilities() != s.Capabilities() {
		t.Errorf("Restore kept %+v, want %+v", again.Capabilities(), s.Capabilities())
	}
	o := *s.dest.o
	o.KMSKeyID = s3test.FakeOtherARN
	if other := openStore(t, o); other.Restore(s.Capabilities()) || other.Capabilities().PinnedKey != "" {
		t.Error("Restore took what was learned with another key")
	}
}

func TestDocumentsAreLocked(t *testing.T) {
	srv := s3test.MinIO(t)
	srv.Setenv(t)
	o := options(srv.URL, srv.Bucket(t, s3test.BucketOptions{ObjectLock: true}), s3test.KeyName)
	o.ObjectLock = ObjectLock{Mode: "GOVERNANCE", Days: 1}
	s := openStore(t, o)
	body := []byte("[]")
	p := put("data/_manifests/m", body, archive.Condition{})
	d, err := s.CreateDoc(t.Context(), p.Key, p.Body, p.Size, p.MD5, p.SHA256, "application/json")
	if err != nil || d.VersionID == "" {
		t.Fatalf("CreateDoc = %+v, %v, want a version", d, err)
	}
	if h, err := s.conn.Client.HeadObject(t.Context(), headInput(o.Bucket, p.Key)); err != nil || h.ObjectLockMode != "GOVERNANCE" || h.ObjectLockRetainUntilDate == nil {
		t.Errorf("HEAD of a document: %+v, %v, want a retention", h, err)
	}
	if _, err := s.Put(t.Context(), put("data/a", body, archive.Condition{})); err != nil {
		t.Fatalf("Put: %v", err)
	}
	if h, err := s.conn.Client.HeadObject(t.Context(), headInput(o.Bucket, "data/a")); err != nil || h.ObjectLockMode != "" {
		t.Errorf("HEAD of a file's object: %+v, %v, want no retention", h, err)
	}
	if _, err := Open(t.Context(), Options{}); err == nil || errors.Is(err, errStop) {
		t.Errorf("Open without options: %v, want an error", err)
	}
}
