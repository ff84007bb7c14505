package s3store

import (
	"bytes"
	"testing"

	"github.com/s3syncd/s3syncd/internal/s3conn"
	"github.com/s3syncd/s3syncd/internal/s3test"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// A bucket's policy may demand an ACL and tags of every request that makes an
// object: whatever makes one has them, signed.
func TestEveryWriteCarriesACLAndTags(t *testing.T) {
	f := s3test.NewFake(t, "bucket")
	f.Setenv(t)
	o := options(f.URL, "bucket", s3test.FakeKeyARN)
	o.ACL, o.Tags = "bucket-owner-full-control", map[string]string{"team": "a b", "cost/center": "é+1"}
	s := openStore(t, o)
	if err := s.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	body := []byte("1")
	written, err := s.Put(t.Context(), put("data/a", body, archive.Condition{}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Complete(t.Context(), upload(t, s, "data/m", bytes.Repeat([]byte("x"), 1<<10))); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Copy(t.Context(), archive.Copy{Key: "data/a", Size: 1, ETag: written.ETag}); err != nil {
		t.Errorf("Copy: %v", err)
	}
	s.Examine(t.Context(), true, 0)
	const tags = "cost%2Fcenter=%C3%A9%2B1&team=a+b"
	seen := map[string]int{}
	for _, r := range f.Ledger() {
		switch r.Op {
		case s3conn.OpPut, s3conn.OpCreate, s3conn.OpCopy:
			seen[r.Op]++
			if acl, got := r.Header.Get("X-Amz-Acl"), r.Header.Get("X-Amz-Tagging"); acl != o.ACL || got != tags {
				t.Errorf("%s %s has the ACL %q and the tags %q", r.Op, r.Key, acl, got)
			}
			if d := r.Header.Get("X-Amz-Tagging-Directive"); r.Op == s3conn.OpCopy && d != "REPLACE" {
				t.Errorf("a copy's tags are %q, want them replaced", d)
			}
		default:
			if r.Header.Get("X-Amz-Acl")+r.Header.Get("X-Amz-Tagging") != "" {
				t.Errorf("%s has an ACL or tags", r.Op)
			}
		}
	}
	for _, op := range []string{s3conn.OpPut, s3conn.OpCreate, s3conn.OpCopy} {
		if seen[op] == 0 {
			t.Errorf("no %s was sent", op)
		}
	}
	plain := openStore(t, options(f.URL, "bucket", s3test.FakeKeyARN))
	if plain.Restore(s.Capabilities()) {
		t.Error("what a canary with an ACL and tags learned counts without them")
	}
}
